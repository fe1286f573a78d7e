"""Slices: which fields make some, how settings name them, and what a worker says of those that do not fit."""

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import job, ours
from pipeline import observe, topology
from pipeline.cli import render
from pipeline.errors import ContractError
from pipeline.scoring.slices import TEXT_MAX, fitting, no_slices, schema_faults, short_text, slice_maps
from pipeline.settings import load

EVENT = pa.schema(
    {
        "shop": pa.string(),
        "gift": pa.bool_(),
        "items": pa.int64(),
        "amount": pa.float32(),
        "at": pa.timestamp("ms", tz="UTC"),
        "raw": pa.binary(),
        "tags": pa.list_(pa.string()),
        "meta": pa.struct({"store.kind": pa.string(), "kind": pa.string()}),
    }
)


def test_fields_with_a_short_text_make_slices() -> None:
    """Strings, Booleans and integers, also inside a record."""
    assert schema_faults(EVENT, ["shop", "gift", "items", "meta.kind"]) == []


def test_each_field_that_makes_none_is_told() -> None:
    """One line a field, of what is wrong and what there is; in the order of the settings."""
    names = ["amount", "at", "raw", "tags", "meta", "region", "meta.region"]
    faults = schema_faults(EVENT, names)
    assert [fault.split(":")[0] for fault in faults] == [f"events.slice_fields {name}" for name in names]
    assert all("makes no slices; name a string" in fault for fault in faults[:5])
    assert all("has no field 'region' there; it has shop, gift" in fault for fault in faults[5:])
    assert fitting(EVENT, ["gift", *names, "shop"]) == ["gift", "shop"]


def test_values_become_text_and_nulls_are_left_out() -> None:
    """As the event has them, in the order of the names; a row of nulls is an empty map, an empty text a value."""
    columns = [pa.array(["eu", None, ""]), pa.array([True, None, False]), pa.array([-(2**63), None, 7])]
    maps = slice_maps(["shop", "gift", "items"], [short_text(column) for column in columns])
    maps.validate(full=True)
    assert maps.to_pylist() == [
        [("shop", "eu"), ("gift", "true"), ("items", str(-(2**63)))],
        [],
        [("shop", ""), ("gift", "false"), ("items", "7")],
    ]


@pytest.mark.parametrize("column", [pa.nulls(3), pa.nulls(3, pa.string()), pa.array([], pa.string())])
def test_nothing_to_tell_is_an_empty_map(column: pa.Array) -> None:
    """A column of nulls, of whatever type, and a batch without rows."""
    assert slice_maps(["a"], [short_text(column)]).equals(no_slices(len(column)))


def test_a_long_value_is_cut_between_characters() -> None:
    """To TEXT_MAX characters, not bytes; what has as many bytes as that, but fewer characters, stays whole."""
    texts = ["ü" * (TEXT_MAX - 1), "\U0001f600" * (TEXT_MAX + 1), "x" * TEXT_MAX]
    maps = slice_maps(["a"], [short_text(pa.array(texts))])
    assert [value for ((_, value),) in maps.to_pylist()] == [text[:TEXT_MAX] for text in texts]


@pytest.mark.parametrize("text", ["region,device", " region , device, "])
def test_the_environment_names_fields_with_commas(text: str) -> None:
    """As a list in the file; an empty text is none."""
    assert load(environment={"PIPELINE__EVENTS__SLICE_FIELDS": text}).events.slice_fields == ["region", "device"]
    assert load(environment={"PIPELINE__EVENTS__SLICE_FIELDS": ""}).events.slice_fields == []


def test_a_worker_says_at_its_start_which_fields_do_not_fit(tmp_path: Path) -> None:
    """All of them, before it looks for a broker: there is none here."""
    task = job.Job("127.0.0.1:1", "in", "out", "group", 1)
    settings = load(ours.make_project(tmp_path, task, {"events.slice_fields": ["region", job.FEATURES[0]]}))

    async def start() -> None:
        role = topology.Role(settings, "worker", 0, observe.Metrics())
        await asyncio.wait_for(topology.build(role), 60)

    with pytest.raises(ContractError) as raised:
        asyncio.run(start())
    first, second = str(raised.value).splitlines()
    assert first.startswith("events.slice_fields region: the event schema has no field 'region'")
    assert second.startswith(f"events.slice_fields {job.FEATURES[0]}: a field of type ")


def test_tail_shows_slices_where_there_are_some() -> None:
    """Behind everything else; a prediction from before there were slices is shown as ever."""
    record = {
        "event_id": "e",
        "outputs": [0.5],
        "label": None,
        "partition": 0,
        "offset": 1,
        "model_id": "m",
        "model_version": "1",
        "role": "champion",
    }
    plain = render.describe_prediction(record)
    assert render.describe_prediction({**record, "slices": {}}) == plain
    shown = render.describe_prediction({**record, "slices": {"region": "eu", "gift": "true"}})
    assert shown == f"{plain}  region=eu  gift=true"
