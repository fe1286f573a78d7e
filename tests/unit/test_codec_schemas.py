"""Schemas: what is one, what fits what, and the schemas of this package."""

import dataclasses
import json
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import codec, records
from pipeline.codec import schemas
from pipeline.errors import SchemaError
from pipeline.scoring.publish import PredictionColumns

NAMES = ("prediction", "batch-summary", "retraining-trigger")


def record(*fields: Any, **attributes: Any) -> str:
    """A record R of fields (name, type[, default])."""
    found = [{"name": name, "type": kind, **({"default": rest[0]} if rest else {})} for name, kind, *rest in fields]
    return json.dumps({"type": "record", "name": "R", "fields": found, **attributes})


# --------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSON"),
        ('"strange"', "strange"),
        ("[]]", "JSON"),
        ("7", "7"),
        ('{"type": "record", "name": "R"}', "ields"),
        (record(("a", "int"), ("a", "int")), "a"),
        (record(("a-b", "int")), "field 'a-b': not a name"),
        (record(("a", "int", "x")), "field 'a': 'x' is no int"),
        (record(("a", "int", 2**31)), "is no int"),
        (record(("a", "long", 0.5)), "is no long"),
        (record(("a", ["null", "int"], "x")), "fits no branch"),
        (record(("a", "boolean", 1)), "is no boolean"),
        (record(("a", "bytes", "\u0100")), "field 'a'"),
        (record(("a", {"type": "array", "items": "int"}, ["x"])), "is no int"),
        (record(("a", {"type": "fixed", "name": "F", "size": 2}, "abc")), "is no fixed"),
        (record(("a", {"type": "enum", "name": "E", "symbols": ["A"]}, "B")), "is no enum"),
        (record(("a", {"type": "record", "name": "N", "fields": [{"name": "x", "type": "int"}]}, {})), "lacks 'x'"),
        (record(("a", {"type": "record", "name": "N", "fields": []}, 1)), "is no N"),
        ("[" * 5000 + "]" * 5000, "deep"),
    ],
)
@pytest.mark.case("D2")
def test_what_is_no_schema_is_refused_in_one_line(text: str, why: str) -> None:
    """parse raises SchemaError, one line that says what is wrong, also for defaults that fit no value."""
    with pytest.raises(SchemaError, match=r"not a valid Avro schema: ") as caught:
        codec.parse(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        ("a", "double", "NaN"),
        ("a", ["int", "null"], None),
        ("a", {"type": "map", "values": "bytes"}, {"k": "\u00ff"}),
        ("a", {"type": "long", "logicalType": "of-tomorrow"}),
    ],
)
def test_unusual_schemas_are_schemas(field: tuple[Any, ...]) -> None:
    """Words for infinities, defaults of any branch, and unknown logical types (ignored) are allowed."""
    assert codec.parse(record(field)).type == "record"


def test_only_records_have_columns() -> None:
    """A topic's schema must be a record: decoder, encoder and Arrow schema refuse others."""
    with pytest.raises(SchemaError, match="must be a record, not string"):
        codec.arrow_schema('"string"')


# --------------------------------------------------------------------------- canonical form, compatibility


def test_canonical_form_is_that_of_the_specification() -> None:
    """Attributes, docs, defaults and white space go; names become full; order becomes canonical."""
    schema = record(
        ("b", {"logicalType": "timestamp-millis", "type": "long"}),
        ("a", {"type": "array", "items": {"type": "enum", "name": "E", "symbols": ["X"], "doc": "d"}}, []),
        namespace="n",
        doc="d",
    )
    assert codec.canonical_form(schema) == (
        '{"name":"n.R","type":"record","fields":[{"name":"b","type":"long"},'
        '{"name":"a","type":{"type":"array","items":{"name":"n.E","type":"enum","symbols":["X"]}}}]}'
    )
    assert len(codec.fingerprint(schema)) == 64


def test_incompatibility_says_where_and_why() -> None:
    """A person learns which field, and what about it."""
    old, new = record(("a", "int"), ("b", "string")), record(("a", "boolean"), ("b", "string"))
    (found,) = codec.incompatibilities(new, old)
    assert "fields/0" in found
    assert "boolean" in found


# --------------------------------------------------------------------------- Arrow


def test_arrow_types_are_those_that_scoring_takes() -> None:
    """Every Avro type has one Arrow type; null in a union makes it nullable; nested records stay nested."""
    inner = {"type": "record", "name": "N", "fields": [{"name": "x", "type": ["null", "int"]}]}
    schema = record(
        ("n", "int"),
        ("o", ["null", "double"]),
        ("s", {"type": "array", "items": "float"}),
        ("t", {"type": "long", "logicalType": "timestamp-millis"}),
        ("e", {"type": "enum", "name": "E", "symbols": ["A"]}),
        ("b", "bytes"),
        ("f", {"type": "fixed", "name": "F", "size": 4}),
        ("r", inner),
        ("m", {"type": "map", "values": "long"}),
        ("u", ["null", "int", "string"]),
        ("d", {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 2}),
        ("w", {"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 4}),
        ("z", ["null"]),
        ("again", ["null", "R"]),
    )
    assert codec.arrow_schema(schema).equals(
        pa.schema(
            [
                pa.field("n", pa.int32(), nullable=False),
                pa.field("o", pa.float64()),
                pa.field("s", pa.list_(pa.float32()), nullable=False),
                pa.field("t", pa.timestamp("ms", tz="UTC"), nullable=False),
                pa.field("e", pa.string(), nullable=False),
                pa.field("b", pa.binary(), nullable=False),
                pa.field("f", pa.binary(4), nullable=False),
                pa.field("r", pa.struct([("x", pa.int32())]), nullable=False),
                pa.field("m", pa.map_(pa.string(), pa.int64()), nullable=False),
                pa.field("u", pa.struct([("member0", pa.int32()), ("member1", pa.string())])),
                pa.field("d", pa.decimal256(40, 2), nullable=False),
                pa.field("w", pa.binary(), nullable=False),
                pa.field("z", pa.null()),
                pa.field("again", pa.string()),
            ]
        )
    )


# --------------------------------------------------------------------------- the schemas of this package


def test_an_unknown_schema_is_named() -> None:
    """Asking for a schema that the package does not have says so."""
    with pytest.raises(SchemaError, match="no schema 'nothing'"):
        codec.load_schema("nothing")


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_our_schemas_is_documented(name: str) -> None:
    """A consumer reads in the schema itself what a field means."""

    def undocumented(schema: Any) -> list[str]:
        if isinstance(schema, list):
            return [name for branch in schema for name in undocumented(branch)]
        if not isinstance(schema, dict):
            return []
        fields = schema.get("fields", [])
        own = [f["name"] for f in fields if len(f.get("doc", "")) < 10]
        own += [schema["name"]] if schema["type"] == "record" and not schema.get("doc") else []
        return own + [n for f in fields for n in undocumented(f["type"])] + undocumented(schema.get("items"))

    schema = json.loads(codec.load_schema(name))
    assert schema["namespace"] == "pipeline.v1"
    assert undocumented(schema) == []


def avro_of(annotation: Any) -> Any:
    """The Avro type of a dataclass field."""
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return {f.name: avro_of(hints[f.name]) for f in dataclasses.fields(annotation)}
    if typing.get_origin(annotation) is list:
        return [avro_of(typing.get_args(annotation)[0])]
    if typing.get_origin(annotation) is typing.Literal:
        return "string"
    return {int: "number", float: "double", str: "string"}[annotation]


def shape_of(schema: Any, named: dict[str, Any]) -> Any:
    """The same of an Avro schema."""
    if isinstance(schema, str):
        return named.get(schema) or {"int": "number", "long": "number"}.get(schema, schema)
    if schema["type"] == "array":
        return [shape_of(schema["items"], named)]
    if schema["type"] != "record":
        return shape_of(schema["type"], named)
    named[schema["name"]] = {f["name"]: shape_of(f["type"], named) for f in schema["fields"]}
    return named[schema["name"]]


@pytest.mark.parametrize(
    ("name", "dataclass"),
    [("batch-summary", records.BatchSummary), ("retraining-trigger", records.RetrainingTrigger)],
)
def test_schemas_have_the_fields_of_their_dataclasses(name: str, dataclass: Any) -> None:
    """Names, order and types of the fields are those in records.py: neither changes without the other."""
    expected, found = avro_of(dataclass), shape_of(json.loads(codec.load_schema(name)), {})
    assert found == expected
    assert list(found) == list(expected)


def test_the_prediction_schema_is_what_scoring_builds() -> None:
    """Columns of PredictionColumns have exactly the names, order and types of prediction.avsc."""
    contract = types.SimpleNamespace(output=types.SimpleNamespace(classes=("a", "b")))
    identity = records.ModelIdentity("m", "1")
    columns = PredictionColumns(contract, identity, lambda: 1.5).build(  # type: ignore[arg-type]
        ["x", "y"],
        np.array([-1, 1500]),
        np.ones((2, 2), np.float32),
        np.array([0, 1]),
        np.array([3, 4]),
        np.array([5, 6]),
    )
    expected = codec.arrow_schema(codec.load_schema("prediction"))
    assert columns.schema.names == expected.names
    assert columns.schema.types == expected.types
    assert len(codec.ColumnarEncoder(codec.load_schema("prediction"), 1).encode(columns)) == 2


def test_predictions_from_before_slices_and_calibrations_can_be_read(tmp_path: Path) -> None:
    """The registry takes the schema after the one without; old values have none, and old readers read on."""
    new = codec.load_schema("prediction")
    record = json.loads(new)
    later = ("slices", "calibration_id", "uncalibrated_outputs")
    record["fields"] = [f for f in record["fields"] if f["name"] not in later]
    old = json.dumps(record)
    registry = codec.FileRegistry(tmp_path)
    ids = [registry.register("p-value", schema) for schema in (old, new)]
    assert ids[0] != ids[1]
    prediction = {
        "event_id": "e",
        "event_time": None,
        "model_id": "m",
        "model_version": "1",
        "role": "champion",
        "outputs": [0.5],
        "label": None,
        "partition": 0,
        "offset": 1,
        "produced_at": 2,
    }
    rows = codec.RowCodec(registry)
    told = {"slices": {"a": "b"}, "calibration_id": "c", "uncalibrated_outputs": [0.75]}
    values = [rows.encode(ids[0], old, prediction), rows.encode(ids[1], new, {**prediction, **told})]
    read = codec.ColumnarDecoder(registry, new).decode(values)
    assert not read.rejects
    assert read.columns["slices"].to_pylist(maps_as_pydicts="strict") == [{}, {"a": "b"}]
    assert read.columns["calibration_id"].to_pylist() == [None, "c"]
    assert read.columns["uncalibrated_outputs"].to_pylist() == [None, [0.75]]
    before = codec.ColumnarDecoder(registry, old).decode(values)
    assert not before.rejects
    assert before.columns["event_id"].to_pylist() == ["e", "e"]


def test_a_wheel_carries_the_schemas(tmp_path: Path) -> None:
    """What is built from this tree has the .avsc files beside the code, as files."""
    root = Path(schemas.__file__).parents[2]
    build = "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((root / name).read_bytes())
    for name in ("pipeline", "schemas"):
        subprocess.run(["cp", "-a", root / name, copy / name], check=True)
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    listing = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], check=True, capture_output=True, text=True)
    assert {f"pipeline/schemas/{name}.avsc" for name in NAMES} <= set(listing.stdout.split())
