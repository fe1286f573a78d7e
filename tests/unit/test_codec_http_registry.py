"""The Schema Registry client, against a server that answers, refuses, fails, or says nothing."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from pipeline import codec
from pipeline.codec.http_registry import HttpRegistry
from pipeline.errors import SchemaError, SettingsError, UnreachableError
from tests.unit.schema_registry_server import SchemaRegistryServer
from tests.unit.test_codec_schemas import record

FIRST = record(("a", "int"))
SECOND = record(("a", "long"), ("b", "string", ""))
SECRET = "s3cret"


@pytest.fixture
def server() -> Iterator[SchemaRegistryServer]:
    with SchemaRegistryServer() as running:
        yield running


def test_schemas_are_registered_and_found(server: SchemaRegistryServer, tmp_path: Path) -> None:
    """Ids come from the server; latest is the newest version, also when another client registered it."""
    registry = codec.open_registry(server.url, tmp_path, None)
    assert registry.latest("t-value") is None
    assert registry.register("t-value", FIRST) == 1
    assert registry.schema(1) == FIRST
    assert registry.latest("t-value") == (1, FIRST)
    assert HttpRegistry(server.url).register("t-value", SECOND) == 2
    assert registry.latest("t-value") == (2, SECOND)
    assert registry.register("t-value", FIRST) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_id_is_asked_for_once(server: SchemaRegistryServer) -> None:
    """A schema never changes, so it is fetched once, and known even while the server fails."""
    HttpRegistry(server.url).register("t-value", FIRST)
    registry = HttpRegistry(server.url)
    assert registry.schema(1) == FIRST
    server.fail_with = 500
    assert registry.schema(1) == FIRST
    assert server.requests.count("GET /schemas/ids/1") == 1


def test_an_unknown_id_is_a_bad_record(server: SchemaRegistryServer) -> None:
    """404 with the registry's own error code: SchemaError; and asked again, it may be known by then."""
    registry = HttpRegistry(server.url)
    with pytest.raises(SchemaError, match="no schema has id 1"):
        registry.schema(1)
    HttpRegistry(server.url).register("t-value", FIRST)
    assert registry.schema(1) == FIRST


def test_an_incompatible_schema_is_refused(server: SchemaRegistryServer) -> None:
    """409: SchemaError with the registry's reason in one line."""
    registry = HttpRegistry(server.url)
    registry.register("t-value", FIRST)
    with pytest.raises(SchemaError, match=r"subject t-value: refused: .*incompatible with an earlier"):
        registry.register("t-value", record(("a", "boolean")))


@pytest.mark.parametrize("status", [500, 502, 503, 429, 401, 403, 404, 418])
def test_a_server_that_fails_is_an_absent_registry(status: int) -> None:
    """Any answer that is not about the id (a 404 of something that is no Schema Registry included) decides
    nothing: UnreachableError from every call.
    """
    with SchemaRegistryServer() as server:
        registry = HttpRegistry(server.url)
        server.fail_with = status
        if status == 404:
            server.fail_with = None
            registry = HttpRegistry(server.url + "/elsewhere")
        for call in (
            lambda: registry.schema(1),
            lambda: registry.latest("t-value"),
            lambda: registry.register("t-value", FIRST),
        ):
            with pytest.raises(UnreachableError, match=rf"Schema Registry {server.url}.*HTTP|access denied"):
                call()


def test_silence_and_nobody_are_an_absent_registry(server: SchemaRegistryServer) -> None:
    """A server that never answers is given up after the timeout; a port where none listens, at once."""
    registry = HttpRegistry(server.url, timeout_s=0.1)
    server.is_silent = True
    with pytest.raises(UnreachableError, match="ReadTimeout"):
        registry.schema(1)
    with pytest.raises(UnreachableError, match="ConnectError"):
        HttpRegistry("http://127.0.0.1:1").schema(1)


def test_credentials_are_sent_and_never_shown(tmp_path: Path) -> None:
    """Basic authentication works; neither a refusal nor a bad setting repeats the password."""
    with SchemaRegistryServer(f"user:{SECRET}") as server:
        assert codec.open_registry(server.url, tmp_path, f"user:{SECRET}").register("t-value", FIRST) == 1
        for url, auth in ((server.url, "user:wrong-" + SECRET), (server.url.replace("//", f"//user:x{SECRET}@"), None)):
            with pytest.raises(UnreachableError, match="access denied") as caught:
                HttpRegistry(url, auth).schema(1)
            assert SECRET not in str(caught.value)
    for auth in (SECRET, ":" + SECRET):
        with pytest.raises(SettingsError, match=r"registry\.basic_auth: not user:password") as refused:
            HttpRegistry("http://127.0.0.1:1", auth)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", ["ftp://host", "", "host:8081", "http://[::1"])
def test_no_url_is_a_setting_to_mend(url: str) -> None:
    """A URL that cannot be one is told so before anything is asked."""
    with pytest.raises(SettingsError, match=r"registry\.url"):
        HttpRegistry(url)


def test_only_avro_is_avro(server: SchemaRegistryServer) -> None:
    """Schemas of another kind, or in several parts, are refused as such."""
    server.schemas = [
        {"schema": "syntax", "schemaType": "PROTOBUF"},
        {"schema": FIRST, "references": [{"name": "n", "subject": "s", "version": 1}]},
    ]
    registry = HttpRegistry(server.url)
    with pytest.raises(SchemaError, match="schema id 1 is PROTOBUF, not Avro"):
        registry.schema(1)
    with pytest.raises(SchemaError, match="refers to other schemas"):
        registry.schema(2)
    with pytest.raises(SchemaError, match="not a valid Avro schema"):
        registry.register("t-value", "{}")


def test_confluents_own_serializer_and_deserializer_understand_ours(server: SchemaRegistryServer) -> None:
    """What their producer writes we decode, what we encode their consumer reads: one wire format, one registry."""
    subject = "events-value"
    schema = record(("id", "string"), ("at", {"type": "long", "logicalType": "timestamp-millis"}), ("x", "double"))
    row = {"id": "é", "at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "x": 0.5}
    client = SchemaRegistryClient({"url": server.url})
    context = SerializationContext("events", MessageField.VALUE)
    value = AvroSerializer(client, schema)(row, context)

    registry = HttpRegistry(server.url)
    decoded = codec.ColumnarDecoder(registry, schema).decode([value])
    assert decoded.columns.to_pylist() == [row]
    assert codec.RowCodec(registry).decode(value) == row
    latest = registry.latest(subject)
    assert latest is not None
    assert codec.ColumnarEncoder(latest[1], latest[0]).encode(decoded.columns) == [value]

    newer = record(*((f["name"], f["type"]) for f in json.loads(schema)["fields"]), ("note", "string", "none"))
    (ours,) = codec.ColumnarEncoder(newer, registry.register(subject, newer)).encode(
        decoded.columns.append_column("note", pa.array(["new"]))
    )
    assert AvroDeserializer(client)(ours, context) == {**row, "note": "new"}
    assert AvroDeserializer(client, schema)(ours, context) == row
