"""Decoding: which records are refused, with which reason and message, and that no other is lost."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import codec
from pipeline.codec import decoder as decoder_module
from pipeline.codec.framing import header
from pipeline.errors import SchemaError, UnreachableError
from pipeline.records import Decoded, Reason, Stage
from tests.property import avro_cases as cases
from tests.unit.test_codec_schemas import record


class Registry:
    """Schemas by id, in memory; away when told so."""

    def __init__(self, *schemas: str) -> None:
        self.schemas = dict(enumerate(schemas, 1))
        self.is_away = False
        self.asked: list[int] = []

    def schema(self, schema_id: int) -> str:
        self.asked.append(schema_id)
        if self.is_away:
            raise UnreachableError("no answer")
        if schema_id not in self.schemas:
            raise SchemaError(f"no schema has id {schema_id}")
        return self.schemas[schema_id]

    def register(self, subject: str, schema: str) -> int:
        raise NotImplementedError

    def latest(self, subject: str) -> tuple[int, str] | None:
        raise NotImplementedError


EVENT = record(
    ("id", "string"),
    ("time", ["null", {"type": "long", "logicalType": "timestamp-millis"}]),
    ("n", "int"),
    ("x", "double"),
)
#: A schema that pyruhvro cannot do.
BY_ROWS = record(("id", "string"), ("digest", {"type": "fixed", "name": "F", "size": 4}))


def event(i: int) -> dict[str, Any]:
    moment = cases.dt.datetime(2026, 1, 1, tzinfo=cases.UTC) + cases.dt.timedelta(seconds=i)
    return {"id": f"event-{i}", "time": moment if i % 3 else None, "n": i, "x": i / 4}


def value(i: int, schema_id: int = 1, schema: str = EVENT) -> bytes:
    return header(schema_id) + cases.write(schema, event(i))


def by_rows(i: int) -> bytes:
    return header(1) + cases.write(BY_ROWS, {"id": f"event-{i}", "digest": b"%04d" % i})


def varint(n: int) -> bytes:
    zigzag, out = (n << 1) ^ (n >> 63), bytearray()
    while zigzag >= 0x80:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def refusals(decoded: Decoded) -> list[tuple[int, Reason]]:
    assert all(reject.stage is Stage.DECODE for reject in decoded.rejects)
    return [(reject.row, reject.reason) for reject in decoded.rejects]


# --------------------------------------------------------------------------- good records


def test_an_empty_batch_has_all_columns_and_no_rows() -> None:
    """Nothing in, nothing out, with the columns that any batch has."""
    decoded = codec.ColumnarDecoder(Registry(EVENT), EVENT).decode([])
    assert decoded.columns.schema.equals(codec.arrow_schema(EVENT))
    assert decoded.columns.num_rows == len(decoded.rows) == len(decoded.rejects) == 0


@pytest.mark.parametrize("count", [1, 2, 100])
def test_good_records_are_decoded_in_order(count: int) -> None:
    """Each row is its record; the registry is asked once."""
    registry = Registry(EVENT)
    decoder = codec.ColumnarDecoder(registry, EVENT)
    for _ in range(2):
        decoded = decoder.decode([value(i) for i in range(count)])
        assert decoded.columns.to_pylist() == [event(i) for i in range(count)]
        assert decoded.rows.tolist() == list(range(count))
        assert decoded.rows.dtype == np.int64
    assert registry.asked == [1]


def test_records_of_several_schemas_keep_their_order() -> None:
    """A batch in which an older, the present and a newer schema take turns comes out as one, in its order."""
    older = record(("id", "string"), ("x", "float"))
    newer = record(("x", "double"), ("note", "string"), ("n", "int"), ("id", "string"))
    reader = record(("id", "string"), ("n", "long", -1), ("x", "double"))
    registry = Registry(older, EVENT, newer)
    values = []
    for i in range(60):
        if i % 3 == 0:
            values.append(header(1) + cases.write(older, {"id": f"event-{i}", "x": i / 4}))
        elif i % 3 == 1:
            values.append(value(i, 2))
        else:
            values.append(header(3) + cases.write(newer, {"x": i / 4, "note": "new", "n": i, "id": f"event-{i}"}))
    decoded = codec.ColumnarDecoder(registry, reader).decode(values)
    assert not decoded.rejects
    assert decoded.rows.tolist() == list(range(60))
    assert decoded.columns.to_pylist() == [
        {"id": f"event-{i}", "n": -1 if i % 3 == 0 else i, "x": i / 4} for i in range(60)
    ]


def test_a_field_known_by_another_name_is_found_by_its_alias() -> None:
    """A reader's alias finds the field under its old name, and the record under its."""
    writer = json.dumps({"type": "record", "name": "Old", "fields": [{"name": "temp", "type": "double"}]})
    fields = [{"name": "temperature", "type": ["null", "double"], "aliases": ["temp"]}]
    reader = json.dumps({"type": "record", "name": "New", "aliases": ["Old"], "fields": fields})
    decoded = codec.ColumnarDecoder(Registry(writer), reader).decode([header(1) + cases.write(writer, {"temp": 1.5})])
    assert decoded.columns.equals(
        pa.RecordBatch.from_arrays([pa.array([1.5])], schema=pa.schema([("temperature", pa.float64())]))
    )


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (record(("a", "int"), ("b", "int")), "b"),
        (record(("a", "int"), ("b", "int", 0), ("a_again", ["null", "int"])), "a_again"),
        (json.dumps({"type": "record", "name": "S", "fields": [{"name": "a", "type": "int"}]}), "name mismatch"),
        (record(("a", "int"), ("c", {"type": "array", "items": "string"})), "type mismatch"),
    ],
)
@pytest.mark.case("B9")
def test_a_writer_that_does_not_fit_is_a_mismatch_of_its_records(reader: str, why: str) -> None:
    """Each of its records is refused, with the schemas' difference as the message."""
    writer = record(("a", "int"), ("c", {"type": "array", "items": "int"}))
    decoded = codec.ColumnarDecoder(Registry(writer), reader).decode([header(1) + b"\x02\x00"] * 2)
    assert refusals(decoded) == [(0, Reason.SCHEMA_MISMATCH), (1, Reason.SCHEMA_MISMATCH)]
    assert why in decoded.rejects[0].message


def test_one_field_is_not_read_as_two() -> None:
    """Where an alias claims a field that another field already reads, nobody can say which is meant."""
    fields = [{"name": "a", "type": "int"}, {"name": "b", "type": "int", "aliases": ["a"]}]
    reader = json.dumps({"type": "record", "name": "R", "fields": fields})
    decoded = codec.ColumnarDecoder(Registry(record(("a", "int"))), reader).decode([header(1) + b"\x02"])
    assert "fields 'a' and 'b' are both 'a'" in decoded.rejects[0].message


def test_a_record_of_records_without_end_is_refused_by_name() -> None:
    """A message names the way down, but not every step of it."""
    schema = record(("next", ["null", "R"]))
    decoded = codec.ColumnarDecoder(Registry(schema), schema).decode([header(1) + b"\x02" * 1000])
    assert decoded.rejects[0].message.startswith("field next.next.next.....next: nested more than 100 deep")


def test_text_and_bytes_are_read_as_each_other() -> None:
    """Both promotions of the specification, by which bytes must be UTF-8 to be text."""
    text, raw = record(("v", "string")), record(("v", "bytes"))
    as_bytes = codec.ColumnarDecoder(Registry(text), raw).decode([header(1) + cases.write(text, {"v": "é"})])
    assert as_bytes.columns.to_pylist() == [{"v": "é".encode()}]
    as_text = codec.ColumnarDecoder(Registry(raw), text).decode(
        [header(1) + cases.write(raw, {"v": v}) for v in ("é".encode(), b"\xff")]
    )
    assert as_text.columns.to_pylist() == [{"v": "é"}]
    assert refusals(as_text) == [(1, Reason.UNDECODABLE)]


def test_defaults_of_every_kind_fill_missing_fields() -> None:
    """A field that the writer did not know has its default, of whatever type, on both paths."""
    inner = {"type": "record", "name": "N", "fields": [{"name": "x", "type": "int", "default": 4}]}
    new = [
        ("text", ["string", "null"], "t"),
        ("raw", "bytes", "\u00ff"),
        ("nested", inner, {}),
        ("list", {"type": "array", "items": "double"}, [1, 2.5]),
        ("map", {"type": "map", "values": "long"}, {"a": 1}),
        ("wide", ["long", "string"], "s"),
        ("none", ["null", "int"], None),
        ("money", {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "\u0001\u0002"),
        ("again", ["null", "R"], None),
    ]
    expected = {
        "text": "t", "raw": b"\xff", "nested": {"x": 4}, "list": [1.0, 2.5], "map": [("a", 1)],
        "wide": {"member0": None, "member1": "s"}, "none": None, "money": cases.Decimal("2.58"), "again": None,
    }  # fmt: skip
    for writer, some in ((EVENT, value(1)), (BY_ROWS, by_rows(1))):
        reader = record(("id", "string"), *new)
        decoded = codec.ColumnarDecoder(Registry(writer), reader).decode([some])
        assert decoded.columns.to_pylist() == [{"id": "event-1", **expected}]


def test_an_unknown_symbol_becomes_the_readers_default() -> None:
    """A writer's enum may have grown, if the reader's has a default."""
    writer = record(("e", {"type": "enum", "name": "E", "symbols": ["A", "B", "NEW"]}))
    reader = record(("e", {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": "A"}))
    values = [header(1) + cases.write(writer, {"e": symbol}) for symbol in ("B", "NEW")]
    decoded = codec.ColumnarDecoder(Registry(writer), reader).decode(values)
    assert decoded.columns.to_pylist() == [{"e": "B"}, {"e": "A"}]


def test_a_record_inside_itself_is_text() -> None:
    """Arrow has no recursive types: the inner record is JSON."""
    chain = record(("n", "int"), ("next", ["null", "R"]), ("raw", "bytes"))
    link = {"n": 2, "next": None, "raw": b"\xff"}
    body = cases.write(chain, {"n": 1, "next": link, "raw": b""})
    decoded = codec.ColumnarDecoder(Registry(chain), chain).decode([header(1) + body])
    (row,) = decoded.columns.to_pylist()
    assert json.loads(row["next"]) == {"n": 2, "next": None, "raw": "\u00ff"}


def test_blocks_of_any_size_are_read() -> None:
    """Arrays in several blocks, and in blocks that begin with their size, are as good as any."""
    schema = record(("a", {"type": "array", "items": "int"}))
    bodies = [b"\x04\x02\x04\x00", b"\x02\x02\x02\x04\x00", b"\x03\x04\x02\x04\x00", b"\x80\x00", b"\x00"]
    decoded = codec.ColumnarDecoder(Registry(schema), schema).decode([header(1) + body for body in bodies])
    assert decoded.columns.column(0).to_pylist() == [[1, 2], [1, 2], [1, 2], [], []]


def test_the_largest_integers_are_exact() -> None:
    """Longs of ten bytes, beside each other, and no digit of them lost."""
    schema = record(("a", "long"), ("b", {"type": "array", "items": "long"}))
    rows = [{"a": n, "b": [n, 1]} for n in (2**63 - 1, -(2**63), 2**62, -(2**62) - 1, 0)]
    decoded = codec.ColumnarDecoder(Registry(schema), schema).decode(
        [header(1) + cases.write(schema, row) for row in rows]
    )
    assert decoded.columns.to_pylist() == rows
    assert not decoded.rejects


# --------------------------------------------------------------------------- bad records

FAULTS: list[tuple[bytes | None, Reason, str]] = [
    (None, Reason.TOMBSTONE, "null"),
    (b"", Reason.EMPTY_VALUE, "empty"),
    (b"\x00\x00", Reason.TRUNCATED_HEADER, "2 bytes"),
    (b'{"id": "json"}', Reason.WRONG_MAGIC, "0x7b"),
    (header(99) + b"abc", Reason.UNKNOWN_SCHEMA, "no schema has id 99"),
    (header(2) + b"abc", Reason.SCHEMA_MISMATCH, "schema 2 cannot be read as the event schema"),
    (header(3) + b"abc", Reason.SCHEMA_MISMATCH, "not a valid Avro schema"),
    (value(0)[:-1], Reason.UNDECODABLE, "field x: ends at byte"),
    (header(1), Reason.UNDECODABLE, "field id: ends at byte 5"),
    (value(0) + b"!", Reason.TRAILING_BYTES, "1 byte too many"),
    (value(0) * 2, Reason.TRAILING_BYTES, f"{len(value(0))} bytes too many"),
    (header(1) + b"\x04\xff\xfe" + cases.write(EVENT, event(0))[8:], Reason.UNDECODABLE, "UTF-8"),
    (header(1) + b"\x02a\x06" + bytes(9), Reason.UNDECODABLE, "branch 3"),
    (header(1) + b"\x02a\x00" + varint(2**31) + bytes(8), Reason.UNDECODABLE, "field n: an int of more than 32 bits"),
]


@pytest.mark.parametrize("at", [0, 37, 99])
@pytest.mark.parametrize(("broken", "reason", "message"), FAULTS)
@pytest.mark.case("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B17")
def test_one_bad_record_is_one_reject(broken: bytes | None, reason: Reason, message: str, at: int) -> None:
    """Wherever it is, it is refused with its reason and a message, and its 99 neighbours are decoded."""
    values: list[bytes | None] = [value(i) for i in range(100)]
    values[at] = broken
    decoded = codec.ColumnarDecoder(Registry(EVENT, record(("other", "int")), "{"), EVENT).decode(values)
    (reject,) = decoded.rejects
    assert (reject.row, reject.reason) == (at, reason)
    assert message in reject.message
    assert "\n" not in reject.message
    assert reject.schema_id == (None if broken is None or len(broken) < 5 or broken[0] else int(broken[4]))
    good = [i for i in range(100) if i != at]
    assert decoded.rows.tolist() == good
    assert decoded.columns.to_pylist() == [event(i) for i in good]


def test_all_faults_at_once() -> None:
    """Many bad records of all kinds among good ones: each its own reject, in order."""
    registry = Registry(EVENT, record(("other", "int")), "{")
    values: list[bytes | None] = []
    for i in range(10):
        values += [value(i), *(broken for broken, _, _ in FAULTS)]
    decoded = codec.ColumnarDecoder(registry, EVENT).decode(values)
    size = len(FAULTS) + 1
    assert decoded.rows.tolist() == [i * size for i in range(10)]
    assert refusals(decoded) == [
        (i * size + 1 + j, reason) for i in range(10) for j, (_, reason, _) in enumerate(FAULTS)
    ]


def test_a_batch_of_nothing_good_has_no_rows() -> None:
    """All refused, none lost."""
    decoded = codec.ColumnarDecoder(Registry(EVENT), EVENT).decode([value(i)[:-1] for i in range(100)])
    assert decoded.columns.num_rows == 0
    assert refusals(decoded) == [(i, Reason.UNDECODABLE) for i in range(100)]


def test_schemas_beyond_pyruhvro_are_read_row_by_row_with_the_same_results() -> None:
    """Fixed, for one: good and bad records come out as on the columnar path."""
    values: list[bytes | None] = [by_rows(i) for i in range(40)]
    values[7] = by_rows(7)[:-1]
    values[9] = by_rows(9) + b"\x00"
    decoded = codec.ColumnarDecoder(Registry(BY_ROWS), BY_ROWS).decode(values)
    assert refusals(decoded) == [(7, Reason.UNDECODABLE), (9, Reason.TRAILING_BYTES)]
    assert decoded.columns.column("digest").to_pylist() == [b"%04d" % i for i in range(40) if i not in {7, 9}]


def test_a_bad_record_costs_few_decodings(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in 1,024 is found by bisection: two reads a halving, at most a leaf of records read alone."""
    calls: list[int] = []
    read = decoder_module.ColumnReader.read

    def counted(self: Any, values: Any) -> Any:
        calls.append(len(values))
        return read(self, values)

    monkeypatch.setattr(decoder_module.ColumnReader, "read", counted)
    values: list[bytes | None] = [value(i) for i in range(1024)]
    values[700] = value(700) + b"x"
    decoded = codec.ColumnarDecoder(Registry(EVENT), EVENT).decode(values)
    assert refusals(decoded) == [(700, Reason.TRAILING_BYTES)]
    assert len(calls) <= 1 + 2 * 6
    assert sum(calls) <= 3 * 1024


# --------------------------------------------------------------------------- registry


def test_without_a_registry_nothing_is_decided() -> None:
    """An absent registry is waited for: no reject, no column; the next try, once it answers, decodes."""
    registry = Registry(EVENT)
    decoder = codec.ColumnarDecoder(registry, EVENT)
    registry.is_away = True
    with pytest.raises(UnreachableError):
        decoder.decode([value(1), None])
    registry.is_away = False
    assert refusals(decoder.decode([value(1), None])) == [(1, Reason.TOMBSTONE)]


def test_an_unknown_id_is_asked_for_again_later() -> None:
    """Not for every record, but once the producer has registered its schema, its records are decoded."""
    registry, now = Registry(EVENT), [100.0]
    decoder = codec.ColumnarDecoder(registry, EVENT, monotonic=lambda: now[0])
    for _ in range(3):
        assert refusals(decoder.decode([value(1, 2)] * 5)) == [(i, Reason.UNKNOWN_SCHEMA) for i in range(5)]
    assert registry.asked == [2]
    registry.schemas[2] = EVENT
    now[0] += decoder_module.UNKNOWN_S
    assert refusals(decoder.decode([value(1, 2)])) == []


def test_random_ids_do_not_fill_the_memory() -> None:
    """What is remembered of unknown ids is bounded, and the known schema stays known."""
    registry = Registry(EVENT)
    decoder = codec.ColumnarDecoder(registry, EVENT)
    decoder.decode([value(0)])
    for start in range(2, 4002, 1000):
        decoder.decode([header(i) + b"x" for i in range(start, start + 1000)])
    decoder.decode([value(0)])
    assert registry.asked.count(1) == 1
    assert len(decoder._ways) <= decoder_module.REMEMBERED_MAX + 1


# --------------------------------------------------------------------------- hostile bytes

HOSTILE: list[tuple[Any, bytes]] = [
    ("string", varint(2**62) + b"x" * 10),
    ("bytes", varint(-5) + b"x" * 10),
    ("long", b"\xff" * 10 + b"\x01"),
    ("long", b"\xff" * 9 + b"\x7f"),
    ({"type": "array", "items": "int"}, varint(2**62) + b"\x02" * 10),
    ({"type": "array", "items": "int"}, varint(-(2**63)) + b"\x00\x00"),
    ({"type": "array", "items": "null"}, varint(2**60) + b"\x00"),
    ({"type": "array", "items": "null"}, varint(-(2**60)) + b"\x00\x00"),
    ({"type": "array", "items": {"type": "record", "name": "N", "fields": []}}, varint(2**60) + b"\x00"),
    ({"type": "array", "items": {"type": "array", "items": "null"}}, varint(9999) + (varint(9999) + b"\x00") * 9999),
    ({"type": "map", "values": "null"}, varint(2**62) + b"\x00" * 10),
    (["null", "R"], b"\x02" * 100_000 + b"\x00"),
    ({"type": "array", "items": "R"}, b"\x02" * 100_000 + b"\x00" * 100_000),
    ({"type": "enum", "name": "E", "symbols": ["A"]}, varint(2**40)),
    ({"type": "enum", "name": "E", "symbols": ["A"]}, varint(-1)),
    (["null", "int"], varint(-1)),
    (["null", "int", "string"], varint(2**40)),
    ({"type": "map", "values": "int"}, b"\x02\x04\xff\xfe\x02\x00"),
    ({"type": "array", "items": "string"}, b"\x02\x04\xff\xfe\x00"),
]


@pytest.mark.parametrize(("kind", "body"), HOSTILE)
@pytest.mark.case("B10", "B11", "B12", "B13", "B14", "B15", "B16")
def test_hostile_bytes_cost_one_reject_and_little_else(kind: Any, body: bytes) -> None:
    """Numbers in the bytes never decide how much is allocated or how often a loop runs; neighbours are decoded."""
    schema = record(("f", kind), ("end", "int", 0))
    good = header(1) + (b"\x00" if kind not in ("string", "bytes") else b"\x02a") + b"\x00"
    decoder = codec.ColumnarDecoder(Registry(schema), schema)
    tracemalloc.start()
    decoded = decoder.decode([good, header(1) + body, good])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refusals(decoded) == [(1, Reason.UNDECODABLE)]
    assert decoded.rows.tolist() == [0, 2]
    assert len(decoded.rejects[0].message) < 300
    assert peak < 20_000_000


def test_an_integer_that_overflows_its_tenth_byte_is_refused_beside_one_that_fills_it() -> None:
    """Spelled in as many bytes, only one of the two is a long."""
    schema = record(("f", "long"))
    least = b"\xff" * 9
    decoded = codec.ColumnarDecoder(Registry(schema), schema).decode(
        [header(1) + least + b"\x01", header(1) + least + b"\x03"]
    )
    assert decoded.columns.to_pylist() == [{"f": -(2**63)}]
    assert refusals(decoded) == [(1, Reason.UNDECODABLE)]
