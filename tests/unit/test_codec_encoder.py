"""Encoding: bytes that any consumer reads, or a message that names the column; never something in between."""

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import codec
from pipeline.codec.framing import header
from pipeline.errors import SchemaError
from tests.property import avro_cases as cases
from tests.unit.test_codec_decoder import Registry
from tests.unit.test_codec_schemas import record

INNER = {"type": "record", "name": "N", "fields": [{"name": "x", "type": "int"}]}
ENUM = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
FIXED = {"type": "fixed", "name": "F", "size": 2}


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def encode(schema: str, columns: pa.RecordBatch) -> list[Any]:
    """What `avro` reads of the encoded columns."""
    return [cases.read(schema, value[5:]) for value in codec.ColumnarEncoder(schema, 7).encode(columns)]


@pytest.mark.parametrize("schema_id", [0, 1, 0x817F, 0x80FF, 0x7F81, 0xFFFFFF7F, 0xFFFFFFFF])
def test_every_id_stands_in_the_header(schema_id: int) -> None:
    """Also those whose bytes are a NaN, since the header travels as a float."""
    schema = record(("a", "int"))
    encoded = codec.ColumnarEncoder(schema, schema_id).encode(batch(a=pa.array([1, -2], pa.int32())))
    assert encoded == [header(schema_id) + b"\x02", header(schema_id) + b"\x03"]
    registry = Registry()
    registry.schemas[schema_id] = schema
    decoded = codec.ColumnarDecoder(registry, schema).decode(encoded)
    assert decoded.columns.to_pylist() == [{"a": 1}, {"a": -2}]


def test_an_id_of_more_than_four_bytes_is_refused() -> None:
    """The wire format has no room for it."""
    with pytest.raises(SchemaError, match="does not fit into 4 bytes"):
        codec.ColumnarEncoder(record(("a", "int")), 2**32)


@pytest.mark.parametrize("extra", [[], [("f", FIXED)]])
def test_all_types_are_read_by_avro(extra: list[Any]) -> None:
    """Each as `arrow_schema` has it, with and without a type that pyruhvro cannot do; columns in any order."""
    schema = record(
        ("i", ["null", "int"]), ("l", "long"), ("d", "double"), ("s", "string"), ("b", ["null", "bytes"]), ("e", ENUM),
        ("day", {"type": "int", "logicalType": "date"}),
        ("clock", ["null", {"type": "int", "logicalType": "time-millis"}]),
        ("at", {"type": "long", "logicalType": "timestamp-millis"}),
        ("list", {"type": "array", "items": ["null", "int"]}), ("map", {"type": "map", "values": "long"}),
        ("n", ["null", INNER]), ("nothing", "null"), *extra,
    )  # fmt: skip
    day, at = dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=dt.UTC)
    rows: list[dict[str, Any]] = [
        {"i": 1, "l": 2**62, "d": 0.5, "s": "é", "b": b"\xff", "e": "B", "day": day, "clock": dt.time(1, 2, 3, 4000),
         "at": at, "list": [1, None], "map": {"k": 1}, "n": {"x": 1}, "nothing": None, "f": b"ab"},
        {"i": None, "l": -1, "d": -0.0, "s": "", "b": None, "e": "A", "day": day, "clock": None, "at": at,
         "list": [], "map": {}, "n": None, "nothing": None, "f": b"\x00\xff"},
    ]  # fmt: skip
    if not extra:
        rows = [{name: value for name, value in row.items() if name != "f"} for row in rows]
    found = codec.arrow_schema(schema)
    arrays = {field.name: pa.array([row[field.name] for row in rows], field.type) for field in reversed(found)}
    assert encode(schema, batch(**arrays)) == rows
    sliced = batch(**{name: pa.concat_arrays([array, array]).slice(1, 2) for name, array in arrays.items()})
    assert encode(schema, sliced) == [rows[1], rows[0]]


def test_nothing_is_encoded_to_nothing() -> None:
    """No rows, no values."""
    assert encode(record(("a", "int")), batch(a=pa.array([], pa.int32()))) == []


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("long", pa.array([1], pa.int8()), 1),
        ("double", pa.array([3], pa.int64()), 3.0),
        ("double", pa.array([0.5], pa.float32()), 0.5),
        ("string", pa.array(["a"]).dictionary_encode(), "a"),
        ("string", pa.array(["a"], pa.large_string()), "a"),
        ("bytes", pa.array([b"a"], pa.large_binary()), b"a"),
        ("bytes", pa.array([b"a"], pa.binary(1)), b"a"),
        (["null", "string"], pa.nulls(1), None),
        ({"type": "array", "items": "double"}, pa.array([[1.5]], pa.large_list(pa.float32())), [1.5]),
        ({"type": "map", "values": "long"}, pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())), {"a": 1}),
        (INNER, pa.array([{"x": 1}], pa.struct([("x", pa.int64())])), {"x": 1}),
        (
            {"type": "long", "logicalType": "timestamp-millis"},
            pa.array([1], pa.timestamp("s", tz="Europe/Paris")),
            dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC),
        ),
    ],
)
def test_narrower_columns_fit(kind: Any, column: pa.Array, expected: Any) -> None:
    """A column of another type is taken if each of its values is one of the field's type."""
    assert encode(record(("a", kind)), batch(a=column)) == [{"a": expected}]


@pytest.mark.parametrize(
    ("kind", "column", "why"),
    [
        ("int", pa.array([1.0]), "column a: double is not what its field takes, int32"),
        ("int", pa.array([2**31]), "column a: Integer value 2147483648 not in range"),
        ("float", pa.array([0.1]), "column a: double is not"),
        ("long", pa.array(["1"]), "column a: string is not"),
        ("string", pa.array([1]), "column a: int64 is not"),
        ("long", pa.array([True]), "column a: bool is not"),
        ("double", pa.array([2**60 + 1]), "column a: Integer value"),
        (INNER, pa.array([{"y": 1}]), "column a: struct<y: int64> is not"),
        ({"type": "long", "logicalType": "timestamp-millis"}, pa.array([1], pa.timestamp("ms")), "column a: timestamp"),
        ({"type": "long", "logicalType": "timestamp-millis"}, pa.array([1], pa.timestamp("us", tz="UTC")), "column a:"),
        (FIXED, pa.array([b"abc"]), "column a"),
        ("int", pa.array([1, None], pa.int32()), "column a, row 1: null, but the field does not allow it"),
        ({"type": "array", "items": "int"}, pa.array([[1, None]], pa.list_(pa.int32())), "column a, row 1: null"),
        ({"type": "map", "values": "int"}, pa.array([[("k", None)]], pa.map_(pa.string(), pa.int32())), "column a"),
        (["null", INNER], pa.array([None, {"x": None}], pa.struct([("x", pa.int32())])), r"column a.x, row 0: null"),
        (ENUM, pa.array(["C"]), "symbol 'C' not in schema"),
        (["int", "string"], pa.array([{"member0": 1, "member1": None}]), "does not fit|column a"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: Any, column: pa.Array, why: str) -> None:
    """SchemaError that names the column; pyruhvro alone would write 0 for a null."""
    with pytest.raises(SchemaError, match=why) as caught:
        encode(record(("a", kind)), batch(a=column))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (batch(a=pa.array([1], pa.int32())), "no column for b"),
        (batch(a=pa.array([1], pa.int32()), b=pa.array(["x"]), c=pa.array([1])), "no field for column c"),
        (
            pa.RecordBatch.from_arrays([pa.array([1], pa.int32()), pa.array(["x"]), pa.array(["y"])], ["a", "b", "b"]),
            "twice",
        ),
    ],
)
def test_columns_are_those_of_the_schema(columns: pa.RecordBatch, why: str) -> None:
    """None is missing, none is left over."""
    with pytest.raises(SchemaError, match=why):
        codec.ColumnarEncoder(record(("a", "int"), ("b", "string")), 1).encode(columns)


def test_a_field_may_be_named_as_the_header_is() -> None:
    """The header's two fields make room for any name an event has."""
    schema = record(("magic_", "int"), ("schema_id_", "int"), ("magic__", "int"))
    columns = batch(**{name: pa.array([i], pa.int32()) for i, name in enumerate(["magic_", "schema_id_", "magic__"])})
    assert encode(schema, columns) == [{"magic_": 0, "schema_id_": 1, "magic__": 2}]


# --------------------------------------------------------------------------- single records


def test_single_records_go_and_come_as_objects() -> None:
    """Logical types are given and got as a stock consumer has them."""
    schema = record(
        ("at", {"type": "long", "logicalType": "timestamp-micros"}),
        ("local", {"type": "long", "logicalType": "local-timestamp-millis"}),
        ("money", {"type": "fixed", "name": "M", "size": 4, "logicalType": "decimal", "precision": 6, "scale": 2}),
        ("id", {"type": "string", "logicalType": "uuid"}),
        ("day", {"type": "int", "logicalType": "date"}),
    )
    row = {
        "at": dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
        "local": dt.datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 (local)
        "money": Decimal("-12.34"),
        "id": uuid.UUID(int=5),
        "day": dt.date(1, 1, 1),
    }
    rows = codec.RowCodec(Registry(schema))
    assert rows.decode(rows.encode(1, schema, row)) == row


@pytest.mark.parametrize("bad", [{}, {"a": "x"}, {"a": 2**31}, {"a": None}, {"a": 1, "b": 2}, {"a": 1.5}, {"a": True}])
def test_a_record_that_does_not_fit_is_not_encoded(bad: dict[str, Any]) -> None:
    """Fields missing, left over, of another type or too large: SchemaError, one line."""
    with pytest.raises(SchemaError, match="the record does not fit its schema"):
        codec.RowCodec(Registry()).encode(1, record(("a", "int")), bad)


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        ({"type": "long", "logicalType": "timestamp-millis"}, b"\xfe" + b"\xff" * 8 + b"\x01", "beyond the years"),
        ({"type": "int", "logicalType": "date"}, b"\xfe\xff\xff\xff\x0f", "beyond the years"),
        ({"type": "int", "logicalType": "time-millis"}, b"\x01", "no time of the day"),
        ({"type": "string", "logicalType": "uuid"}, b"\x02x", "no UUID"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 2}, b"\x02\x64", "more than 2 digits"),
    ],
)
def test_what_no_object_can_hold_is_a_schema_error(kind: Any, body: bytes, why: str) -> None:
    """Numbers that are valid Avro but no date, time, UUID or decimal."""
    with pytest.raises(SchemaError, match=rf"schema 1: field a: .*{why}"):
        codec.RowCodec(Registry(record(("a", kind)))).decode(header(1) + body)


def test_a_value_that_is_no_record_is_a_schema_error() -> None:
    """Nothing, JSON, an unknown id, a schema that is no record."""
    rows = codec.RowCodec(Registry('"int"'))
    for value, why in (
        (None, "tombstone"),
        (b"{}", "0x7b"),
        (header(9), "no schema has id 9"),
        (header(1) + b"\x02", "no record"),
    ):
        with pytest.raises(SchemaError, match=why):
            rows.decode(value)


@pytest.mark.parametrize("name", ["batch-summary", "retraining-trigger"])
def test_our_own_records_survive(name: str) -> None:
    """What the worker and the monitor send is what the monitor and the consumers get, NaN included."""
    schema = codec.load_schema(name)
    numbers = {"int": 3, "long": 2**40, "double": 0.5, "string": "text"}

    def example(kind: Any) -> Any:
        if isinstance(kind, str):
            return numbers.get(kind, {"topic": "t", "partition": 3, "first_offset": 1, "last_offset": 2})
        if kind["type"] == "array":
            return [example(kind["items"])] * 2
        return {field["name"]: example(field["type"]) for field in kind["fields"]}

    row = example(json.loads(schema))
    rows = codec.RowCodec(Registry(schema))
    assert rows.decode(rows.encode(1, schema, row)) == row
    if name == "batch-summary":
        row["means"] = [[float("nan"), 1.0]]
        again = rows.decode(rows.encode(1, schema, row))
        assert np.isnan(again["means"][0][0])
