"""Made-up events fit schema and model, whatever both are made of; a seed makes the same ones again."""

import json
from typing import Any

import pytest

from pipeline.codec import ColumnarDecoder, FileRegistry, RowCodec
from pipeline.errors import SchemaError
from pipeline.records import Baseline, Feature, FeatureContract, OutputContract, SignalBaseline
from pipeline.scoring.validate import Validator
from pipeline.testing.inventing import DIFFERENT, KEYS, EventMaker

TIME = {"type": "long", "logicalType": "timestamp-millis"}
OUTPUT = OutputContract("regression", 1)


def record(*fields: tuple[str, Any], name: str = "Event") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields]}


RICH = record(
    ("id", "string"),
    ("at", TIME),
    ("shop", "string"),
    ("amount", ["null", "double"]),
    ("items", "int"),
    ("member", "boolean"),
    ("colour", {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN", "BLUE"]}),
    ("kind", "string"),
    ("picture", "bytes"),
    ("thumbnail", {"type": "fixed", "name": "Thumbnail", "size": 8}),
    ("history", {"type": "array", "items": ["null", "float"]}),
    ("sensor", record(("temperature", "float"), ("unit", "string"), name="Sensor")),
    ("price", {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}),
    ("day", {"type": "int", "logicalType": "date"}),
    ("trace", {"type": "string", "logicalType": "uuid"}),
    ("tags", {"type": "map", "values": "long"}),
    ("child", ["null", "Event"]),
    ("spare", ["null", "Colour"]),
)
CONTRACT = FeatureContract(
    (
        Feature("amount", "number", range=(10.0, 20.0)),
        Feature("items", "number", range=(0.5, 3.2)),
        Feature("member", "category", vocabulary=("true", "false")),
        Feature("colour", "category", vocabulary=("BLUE", "RED"), on_unknown="reject"),
        Feature("kind", "category", vocabulary=("a", "b"), on_unknown="reject"),
        Feature("picture", "bytes", shape=(2, 3), dtype="float32"),
        Feature("thumbnail", "bytes", shape=(8,), dtype="uint8"),
        Feature("history", "sequence", shape=(100,), range=(-2.0, 2.0)),
        Feature("sensor.temperature", "number"),
    ),
    OUTPUT,
)


def baseline(name: str, low: float, high: float) -> Baseline:
    mean = (low + high) / 2
    return Baseline((SignalBaseline(f"feature:{name}", 9, mean, 1.0, low, high, (low, high), (9,), 0.0, 1.0),), 64)


def maker(seed: int = 1, schema: Any = RICH, contract: FeatureContract = CONTRACT, **options: Any) -> EventMaker:
    options = {"id_field": "id", "key_field": "shop", "time_field": "at", "clock": lambda: 1_700_000_000.0, **options}
    return EventMaker(json.dumps(schema), contract, baseline("sensor.temperature", 30.0, 40.0), seed=seed, **options)


def test_made_events_pass_decoder_and_validator(tmp_path: Any) -> None:
    """Not one of 500 becomes a dead letter, though the model refuses what is outside its ranges and vocabularies."""
    registry = FileRegistry(tmp_path)
    schema = json.dumps(RICH)
    schema_id = registry.register("events-value", schema)
    rows, events = RowCodec(registry), maker()
    made = [events.event(n) for n in range(1)]
    values = [rows.encode(schema_id, schema, events.event(n)[1]) for n in range(500)]
    decoded = ColumnarDecoder(registry, schema).decode(values)
    assert decoded.rejects == []
    validated = Validator(CONTRACT, id_field="id", time_field="at").validate(decoded)
    assert validated.rejects == []
    assert len(set(validated.ids)) == 500
    assert set(validated.event_times_ms.tolist()) == {1_700_000_000_000}
    temperatures = decoded.columns.column("sensor").field("temperature").to_numpy(zero_copy_only=False)
    assert (temperatures >= 30).all()
    assert (temperatures <= 40).all()
    assert made[0][0] == str(made[0][1]["shop"]).encode()


def test_a_seed_makes_the_same_events_again() -> None:
    """Another one makes others."""
    first, again, other = maker(1), maker(1), maker(2)
    for n in range(50):
        assert first.event(n) == again.event(n)
    assert any(first.event(n)[1]["amount"] != other.event(n)[1]["amount"] for n in range(50))


def test_events_repeat_under_new_ids_and_keys_come_again() -> None:
    """The id is new where the rest comes round; without a key field there are as many keys as KEYS."""
    events = maker(key_field=None)
    first = dict(events.event(3)[1])
    later = dict(events.event(3 + DIFFERENT)[1])
    assert first["id"] != later["id"]
    assert first["amount"] == later["amount"]
    assert len({events.event(n)[0] for n in range(3 * KEYS)}) == KEYS


def test_numbers_as_id_and_key() -> None:
    """An integer id is the number of the event; an integer key is one of few."""
    schema = record(("meta", record(("id", "long"), name="Meta")), ("customer", "int"), ("x", "float"))
    contract = FeatureContract((Feature("x", "number"),), OUTPUT)
    events = maker(schema=schema, contract=contract, id_field="meta.id", key_field="customer", time_field=None)
    key, made = events.event(12_345)
    assert made["meta"]["id"] == 12_345
    assert key == str(made["customer"]).encode()
    assert 0 <= made["customer"] < KEYS


@pytest.mark.parametrize(
    ("schema", "options", "said"),
    [
        (record(("x", "float")), {}, "has no field amount"),
        (record(("id", "string"), ("self", "Event")), {}, "contains itself without end"),
        (record(("id", "string"), ("odd", "complex")), {}, "unknown type 'complex'"),
    ],
)
def test_what_cannot_be_made_is_said(schema: Any, options: dict[str, Any], said: str) -> None:
    """A missing field, a record without end, a type that is none."""
    with pytest.raises(SchemaError, match=said):
        maker(schema=schema, **options)
