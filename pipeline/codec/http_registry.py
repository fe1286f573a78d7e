"""Schemas by id from a Schema Registry, through confluent-kafka's own client."""

import threading
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.codec.schemas import parse
from pipeline.errors import PipelineError, SchemaError, SettingsError, UnreachableError

TIMEOUT_S = 5.0
#: After the first try; with the client's waits of at most 1 s between, a call ends within about 12 s.
RETRIES_MAX = 1

#: The registry's own codes for no such subject, version or schema; a bare 404 may come from anyone.
_NOT_FOUND = frozenset({40401, 40402, 40403})
#: The request was understood and refused: incompatible (409), or no valid schema (422).
_REFUSED = frozenset({409, 422})
_CREDENTIALS = frozenset({401, 403})


class HttpRegistry:
    """A Schema Registry at `url`. The ids it once gave are remembered.

    basic_auth: "user:password". Neither it nor a password in the URL ever appears in a message.
    Raises SettingsError for a URL or credentials that cannot be meant.
    """

    def __init__(self, url: str, basic_auth: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._shown = _without_credentials(url)
        options: dict[str, Any] = {"url": url, "timeout": timeout_s, "max.retries": RETRIES_MAX}
        if basic_auth is not None:
            user, colon, _ = basic_auth.partition(":")
            if not user or not colon:
                raise SettingsError("registry.basic_auth: not user:password; set PIPELINE__REGISTRY__BASIC_AUTH")
            options["basic.auth.user.info"] = basic_auth
        try:
            self._client = SchemaRegistryClient(options)
        except (ValueError, TypeError):
            raise SettingsError(f"registry.url: {self._shown} is no URL of a Schema Registry") from None
        self._known: dict[int, str] = {}
        self._lock = threading.Lock()

    def schema(self, schema_id: int) -> str:
        """Avro JSON of `schema_id`. Raises SchemaError for an unknown id, UnreachableError without an answer."""
        if schema_id not in self._known:
            what = f"schema id {schema_id}"
            found = self._call(what, lambda: self._client.get_schema(schema_id))
            if found is None:
                raise SchemaError(f"Schema Registry {self._shown}: no schema has id {schema_id}")
            self._known[schema_id] = self._avro(what, found)
        return self._known[schema_id]

    def register(self, subject: str, schema: str) -> int:
        """Id of `schema` under `subject`; the registry decides whether it may follow the versions there are.

        Raises SchemaError if it may not, UnreachableError without an answer.
        """
        parse(schema)
        found = self._call(f"subject {subject}", lambda: self._client.register_schema(subject, Schema(schema, "AVRO")))
        if found is None:
            raise SchemaError(f"Schema Registry {self._shown}: subject {subject}: not found")
        return int(found)

    def latest(self, subject: str) -> tuple[int, str] | None:
        """Id and Avro JSON of the newest version, or None for an unknown subject."""
        what = f"subject {subject}"
        # The client would remember the version it got first for ever.
        self._client.clear_latest_caches()
        found = self._call(what, lambda: self._client.get_latest_version(subject))
        return None if found is None else (int(found.schema_id), self._avro(what, found.schema))

    def _call(self, what: str, call: Any) -> Any:
        """The result of `call`, None for "not found"; the one place where the client's errors become ours."""
        try:
            with self._lock:  # the client's caches are not for several threads
                return call()
        except SchemaRegistryError as error:
            if error.error_code in _NOT_FOUND:
                return None
            raise self._translated(what, error) from None
        except Exception as error:  # noqa: BLE001 (the HTTP client's errors are many; none is an answer)
            raise UnreachableError(f"Schema Registry {self._shown}: {what}: {type(error).__name__}") from None

    def _translated(self, what: str, error: SchemaRegistryError) -> PipelineError:
        status = error.http_status_code
        where = f"Schema Registry {self._shown}: {what}"
        if status in _REFUSED:
            return SchemaError(f"{where}: refused: {' '.join(str(error.error_message).split())[:500]}")
        if status in _CREDENTIALS:
            return UnreachableError(f"{where}: access denied (HTTP {status}); set PIPELINE__REGISTRY__BASIC_AUTH")
        return UnreachableError(f"{where}: HTTP {status}; is this the URL of a Schema Registry?")

    def _avro(self, what: str, found: Any) -> str:
        if found.schema_type not in {None, "AVRO"}:
            raise SchemaError(f"Schema Registry {self._shown}: {what} is {found.schema_type}, not Avro")
        if found.references:
            raise SchemaError(f"Schema Registry {self._shown}: {what} refers to other schemas, which is not supported")
        return str(found.schema_str)


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    except ValueError:
        return "the URL given"
