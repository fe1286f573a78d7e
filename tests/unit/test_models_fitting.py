"""A feature contract beside an Avro schema: the same verdict as the hot path, before it runs."""

import json
from typing import Any

import pytest

from pipeline import codec
from pipeline.models.fitting import misfits
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.scoring.fields import schema_faults

FEATURES = {
    "number": Feature("x", "number"),
    "category": Feature("x", "category", vocabulary=("a",)),
    "bytes": Feature("x", "bytes", shape=(2, 3), dtype="int16"),
    "sequence": Feature("x", "sequence", shape=(8,)),
}
TYPES: list[Any] = [
    "boolean",
    "int",
    "long",
    "float",
    "double",
    "string",
    "bytes",
    ["null", "double"],
    ["string", "null"],
    {"type": "enum", "name": "E", "symbols": ["a", "b"]},
    {"type": "fixed", "name": "F", "size": 12},
    {"type": "array", "items": "float"},
    {"type": "array", "items": ["null", "long"]},
    {"type": "array", "items": "string"},
    ["null", {"type": "array", "items": "double"}],
    {"type": "map", "values": "double"},
    {"type": "record", "name": "R", "fields": [{"name": "y", "type": "double"}]},
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "int", "logicalType": "date"},
    {"type": "int", "logicalType": "time-millis"},
    {"type": "string", "logicalType": "uuid"},
    {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2},
    ["null", {"type": "long", "logicalType": "timestamp-micros"}],
]


def contract(*features: Feature) -> FeatureContract:
    return FeatureContract(features, OutputContract("regression", 1))


def schema(avro_type: Any, name: str = "x") -> str:
    fields = [{"name": "id", "type": "string"}, {"name": name, "type": avro_type}]
    return json.dumps({"type": "record", "name": "Event", "fields": fields})


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("avro_type", TYPES, ids=json.dumps)
def test_the_verdict_is_that_of_the_hot_path(kind: str, avro_type: Any) -> None:
    """Judged by the Avro JSON alone, a feature fits exactly if the validator takes the decoded column."""
    wanted, text = contract(FEATURES[kind]), schema(avro_type)
    hot = schema_faults(wanted, codec.arrow_schema(text), "id", None)
    assert bool(misfits(wanted, text)) == bool(hot), (misfits(wanted, text), hot)


@pytest.mark.parametrize(
    ("feature", "avro_type", "expected"),
    [
        (Feature("y", "number"), "double", "feature y: the event schema has no field 'y'; it has id, x"),
        (FEATURES["number"], "string", "feature x: a field of type string cannot be used as number"),
        (
            FEATURES["number"],
            {"type": "long", "logicalType": "timestamp-millis"},
            "feature x: a field of type timestamp-millis (long) cannot be used as number",
        ),
        (
            FEATURES["number"],
            ["null", "int", "string"],
            "feature x: a union of int, string cannot be used; only of null and one type",
        ),
        (
            FEATURES["bytes"],
            {"type": "fixed", "name": "F", "size": 10},
            "feature x: a fixed of 10 bytes, but the model takes 12 (2x3 of int16)",
        ),
        (Feature("x.y", "number"), "double", "feature x.y: the event schema has no record around 'y'"),
        (FEATURES["number"], "null", "feature x: a field of type null cannot be used as number"),
    ],
)
def test_a_misfit_is_one_line_with_the_reason(feature: Feature, avro_type: Any, expected: str) -> None:
    """Which feature, what the schema has, what it would take."""
    assert misfits(contract(feature), schema(avro_type)) == [expected]


def test_all_misfits_are_told_at_once() -> None:
    """One line for each feature that does not fit, none for those that do."""
    found = misfits(contract(Feature("a", "number"), Feature("x", "number"), Feature("b", "number")), schema("int"))
    assert [line.split(":")[0] for line in found] == ["feature a", "feature b"]


def test_nested_and_named_types_are_followed() -> None:
    """A path leads into records, optional ones too; a type defined once is known by its name later."""
    size = {"type": "record", "name": "Size", "namespace": "n", "fields": [{"name": "height", "type": "float"}]}
    text = json.dumps(
        {
            "type": "record",
            "name": "Event",
            "namespace": "n",
            "fields": [
                {"name": "body", "type": ["null", size]},
                {"name": "lid", "type": "n.Size"},
                {"name": "foot", "type": {"type": "array", "items": "Size"}},
                {"name": "wrapped", "type": {"type": {"type": "string"}}},
            ],
        }
    )
    good = [Feature(name, "number") for name in ("body.height", "lid.height")]
    assert misfits(contract(*good, Feature("wrapped", "category", vocabulary=("a",))), text) == []
    assert misfits(contract(Feature("body.width", "number")), text) == [
        "feature body.width: the event schema has no field 'width'; it has height"
    ]
    assert len(misfits(contract(Feature("foot.height", "number")), text)) == 1


@pytest.mark.parametrize("text", ["{", "[]", '"string"', '{"type": "enum", "name": "E", "symbols": []}'])
def test_what_is_no_event_schema_is_said(text: str) -> None:
    """Broken JSON, or a schema that is no record."""
    assert len(misfits(contract(FEATURES["number"]), text)) == 1
