"""The codec against `avro`: what one writes the other reads, and both refuse the same bytes."""

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import codec
from pipeline.codec.decoder import ColumnarDecoder
from pipeline.codec.reader import RowReader
from pipeline.codec.values import As, Malformed
from pipeline.errors import SchemaError
from pipeline.records import Reason
from tests.property import avro_cases as cases

EXAMPLES = settings(max_examples=150, deadline=None)


class OneSchema:
    """A registry that knows id 7."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    def schema(self, schema_id: int) -> str:
        if schema_id != 7:
            raise SchemaError(f"no schema has id {schema_id}")
        return self._schema

    def register(self, subject: str, schema: str) -> int:
        raise NotImplementedError

    def latest(self, subject: str) -> tuple[int, str] | None:
        raise NotImplementedError


def columns(decoder: ColumnarDecoder, schema: str, values: list[bytes]) -> tuple[list[Any], list[int], Any]:
    decoded = decoder.decode(values)
    assert decoded.columns.schema.equals(codec.arrow_schema(schema))
    decoded.columns.validate(full=True)
    rows = [cases.plain(row, json.loads(schema)) for row in decoded.columns.to_pylist()]
    return rows, decoded.rows.tolist(), decoded.rejects


def same(ours: Any, theirs: Any) -> bool:
    """Equality that tells 1 from True and 1.0, but takes any float as it is."""
    return repr(ours) == repr(theirs) or ours == theirs


@EXAMPLES
@given(cases.events())
def test_columns_hold_what_avro_wrote(event: tuple[str, list[dict[str, Any]]]) -> None:
    """Every record that `avro` writes, of any schema, is decoded to the same values, at its own row."""
    schema, records = event
    values = [cases.HEADER + cases.write(schema, record) for record in records]
    rows, places, rejects = columns(ColumnarDecoder(OneSchema(schema), schema), schema, values)
    assert not rejects
    assert places == list(range(len(records)))
    assert rows == [cases.read(schema, value[5:]) for value in values]


@EXAMPLES
@given(cases.events())
def test_single_records_are_read_as_avro_reads_them(event: tuple[str, list[dict[str, Any]]]) -> None:
    """RowCodec gives the objects that `avro` gives, logical types included, and writes what `avro` reads."""
    schema, records = event
    rows = codec.RowCodec(OneSchema(schema))
    for record in records:
        body = cases.write(schema, record)
        theirs = cases.read(schema, body)
        assert rows.decode(cases.HEADER + body) == theirs
        assert cases.read(schema, rows.encode(7, schema, theirs)[5:]) == theirs


@EXAMPLES
@given(cases.events())
def test_avro_reads_what_columns_are_encoded_to(event: tuple[str, list[dict[str, Any]]]) -> None:
    """Decoded columns, encoded again, are what `avro` wrote, byte for byte; for unions of several types, refused."""
    schema, records = event
    values = [cases.HEADER + cases.write(schema, record) for record in records]
    decoded = ColumnarDecoder(OneSchema(schema), schema).decode(values).columns
    encoder = codec.ColumnarEncoder(schema, 7)
    if has_wide_union(json.loads(schema)):
        return
    again = encoder.encode(decoded)
    assert again == encoder.encode(decoded)
    assert [cases.read(schema, value[5:]) for value in again] == [cases.read(schema, value[5:]) for value in values]


def has_wide_union(schema: Any) -> bool:
    if isinstance(schema, list):
        return len([b for b in schema if b != "null"]) != 1 or any(map(has_wide_union, schema))
    if isinstance(schema, dict):
        inner = [schema.get("items"), schema.get("values"), *(f["type"] for f in schema.get("fields", ()))]
        return any(map(has_wide_union, inner))
    return False


@st.composite
def broken(draw: st.DrawFn, body: bytes) -> bytes:
    """`body`, cut, extended, or with a few bytes replaced."""
    how = draw(st.sampled_from(["cut", "extend", "replace", "replace", "insert"]))
    at = draw(st.integers(0, max(len(body) - 1, 0)))
    some = draw(
        st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80\x00"])
    )
    if how == "cut":
        return body[:at]
    if how == "extend":
        return body + some
    if how == "insert":
        return body[:at] + some + body[at:]
    return body[:at] + some + body[at + len(some) :]


@settings(max_examples=400, deadline=None)
@given(st.data(), cases.events(logical=False))
def test_ours_accepts_exactly_what_avro_accepts(data: st.DataObject, event: tuple[str, list[dict[str, Any]]]) -> None:
    """Of records broken at random, those that `avro` reads to the last byte are decoded to the same values, all
    others are rejected one by one, and records beside them are never lost.
    """
    schema, records = event
    bodies = [cases.write(schema, record) for record in records]
    for row in range(0, len(bodies), 3):
        bodies[row] = data.draw(broken(bodies[row]))
    expected: dict[int, Any] = {}
    for row, body in enumerate(bodies):
        try:
            expected[row] = cases.read(schema, body)
        except cases.AVRO_ERRORS:
            continue
    decoder = ColumnarDecoder(OneSchema(schema), schema)
    rows, places, rejects = columns(decoder, schema, [cases.HEADER + body for body in bodies])
    assert places == list(expected)
    assert same(rows, list(expected.values()))
    assert [reject.row for reject in rejects] == [row for row in range(len(bodies)) if row not in expected]
    assert all(reject.reason in {Reason.UNDECODABLE, Reason.TRAILING_BYTES} for reject in rejects)


@EXAMPLES
@given(st.data(), cases.events(logical=False, records_max=1))
def test_rows_and_columns_agree(data: st.DataObject, event: tuple[str, list[dict[str, Any]]]) -> None:
    """Whatever the bytes, one record alone is good or bad just as the exact reader finds it."""
    schema, records = event
    body = data.draw(broken(cases.write(schema, records[0])))
    parsed = codec.parse(schema)
    try:
        expected = [RowReader(parsed, parsed, As.OBJECTS).read(body)]
    except Malformed:
        expected = []
    rows, _, _ = columns(ColumnarDecoder(OneSchema(schema), schema), schema, [cases.HEADER + body])
    assert same(rows, expected)


# --------------------------------------------------------------------------- schema resolution

WIDER = {
    "int": ["int", "long", "float", "double"],
    "long": ["long", "float", "double"],
    "float": ["float", "double"],
    # `avro` calls strings and bytes fit for each other, and then does not read them so: see test_codec_decoder.py.
}
DEFAULTS: list[tuple[Any, Any]] = [
    ("int", 3),
    ("string", "x"),
    (["null", "long"], None),
    ("double", 0.5),
    ("bytes", "abc"),
    ({"type": "array", "items": "int"}, [1, 2]),
    ({"type": "map", "values": "int"}, {"a": 1}),
]


@st.composite
def evolved(draw: st.DrawFn, schema: str) -> str:
    """A reader's schema for what `schema` wrote: fields moved, left out, added with a default, promoted, nullable."""
    record = json.loads(schema)
    kept = draw(st.lists(st.sampled_from(record["fields"]), unique_by=lambda field: field["name"]))
    fields = []
    for field in kept:
        kind = field["type"]
        if isinstance(kind, str) and kind in WIDER:
            kind = draw(st.sampled_from(WIDER[kind]))
        if not isinstance(kind, list) and kind != "null" and draw(st.booleans()):
            kind = ["null", kind]
        fields.append({"name": field["name"], "type": kind})
    for i, (kind, default) in enumerate(draw(st.lists(st.sampled_from(DEFAULTS), max_size=2))):
        fields.append({"name": f"new{i}", "type": kind, "default": default})
    return json.dumps({**record, "fields": draw(st.permutations(fields))})


def as_promoted(value: Any, kind: Any) -> Any:
    """`avro` leaves a promoted value as it was written; this is what the reader's type makes of it."""
    if isinstance(kind, list):
        kind = next(branch for branch in kind if branch != "null") if len(kind) == 2 and "null" in kind else None
    if value is None:
        return None
    return float(value) if kind in ("float", "double") else value


@settings(max_examples=300, deadline=None)
@given(st.data(), cases.events(logical=False, records_max=4))
def test_older_and_newer_records_are_read_as_avro_reads_them(
    data: st.DataObject, event: tuple[str, list[dict[str, Any]]]
) -> None:
    """Records of any compatible writer's schema become the reader's columns, with the values that `avro` gives."""
    writer, records = event
    reader = data.draw(evolved(writer))
    fields = json.loads(reader)["fields"]
    values = [cases.HEADER + cases.write(writer, record) for record in records]
    expected = []
    for value in values:
        theirs = cases.read(writer, value[5:], reader)
        expected.append({f["name"]: as_promoted(theirs[f["name"]], f["type"]) for f in fields})
    rows, places, rejects = columns(ColumnarDecoder(OneSchema(writer), reader), reader, values)
    assert places == list(range(len(values)))
    assert not rejects
    for field in fields:
        ours, theirs = ([row[field["name"]] for row in some] for some in (rows, expected))
        if "float" in (field["type"], *field["type"]):
            theirs = [None if v is None else float(np.float32(v)) for v in theirs]
        assert same(ours, theirs), field


@EXAMPLES
@given(cases.events(logical=False, records_max=1), st.data())
def test_compatibility_is_avros(event: tuple[str, list[dict[str, Any]]], data: st.DataObject) -> None:
    """Dropping a field is compatible, adding one without a default is not."""
    schema, _ = event
    assert codec.incompatibilities(data.draw(evolved(schema)), schema) == []
    record = json.loads(schema)
    record["fields"].append({"name": "added", "type": "int"})
    assert "added" in codec.incompatibilities(json.dumps(record), schema)[0]


@EXAMPLES
@given(cases.events(records_max=1))
def test_canonical_form_does_not_change_what_is_written(event: tuple[str, list[dict[str, Any]]]) -> None:
    """The canonical form is a schema with the same canonical form, fingerprint and Arrow columns but for logical
    types; attributes do not change it.
    """
    schema, _ = event
    canonical = codec.canonical_form(schema)
    assert codec.canonical_form(canonical) == canonical
    assert "logicalType" not in canonical
    commented = {**json.loads(schema), "doc": "with a comment", "owner": "someone"}
    assert codec.fingerprint(json.dumps(commented)) == codec.fingerprint(schema)
