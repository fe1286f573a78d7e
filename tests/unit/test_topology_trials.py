"""Which outcomes are a model's, and that a decision is carried out on the state it was made of or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import codec
from pipeline.drift import summary_from_dict, summary_to_dict
from pipeline.models import releases
from pipeline.models.releases import Decision, Model, Releases
from pipeline.records import BatchSummary, ModelIdentity, OutputContract
from pipeline.topology.trials import _Arm, _change, told_of

OUTPUT = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
FIELDS = codec.arrow_schema(codec.load_schema("outcome"))


def decoded(*rows: tuple[str, str, int]) -> pa.RecordBatch:
    """(version, role, predicted at) of outcomes, as they are decoded; the output tells them apart."""
    n, stamp = len(rows), pa.timestamp("ms", tz="UTC")
    times = pa.array([at for *_, at in rows]).cast(stamp)
    made = {
        "event_id": pa.array([str(row) for row in range(n)]),
        "model_id": pa.array(["shop"] * n),
        "model_version": pa.array([version for version, _, _ in rows]),
        "role": pa.array([role for _, role, _ in rows]),
        "outputs": pa.array([[row / 100] for row in range(n)], pa.list_(pa.float32())),
        "label": pa.array(["yes"] * n),
        "label_time": times,
        "predicted_at": times,
        "partition": pa.array([0] * n),
        "offset": pa.array(range(n)),
        "slices": pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
    }
    return pa.RecordBatch.from_arrays([made.get(f.name, pa.nulls(n)).cast(f.type) for f in FIELDS], schema=FIELDS)


def test_outcomes_of_one_model_in_one_role_within_a_time() -> None:
    """Not of another version, nor from when it was canary, nor from before its release or after the next one."""
    columns = decoded(
        ("v2", "champion", 10),
        ("v1", "champion", 15),
        ("v2", "canary", 15),
        ("v2", "champion", 9),
        ("v2", "champion", 20),
        ("v2", "champion", 19),
    )
    found = _Arm(ModelIdentity("shop", "v2", "champion"), OUTPUT, 10, 20).of(columns)
    assert found.outputs[:, 0] == pytest.approx([0.0, 0.05])
    assert found.times_ms.tolist() == [10, 19]
    assert found.truth.tolist() == [1, 1]
    other = _Arm(ModelIdentity("store", "v2", "champion"), OUTPUT, 0).of(columns)
    assert len(other) == 0


def carried_out(state: Releases, change: releases.Change) -> Releases:
    history = (*state.history, *(entry for key, entry in change if key.startswith("release/") and entry))
    return Releases(**{slot: dict(change).get(slot, state.slot(slot)) for slot in releases.SLOTS}, history=history)


def decision(number: int) -> Decision:
    return Decision(str(number), "shop", "test", number)


@pytest.fixture
def tried() -> Releases:
    """v1, then v2 champion, and v3 beside it."""
    state = Releases()
    for number, version in enumerate(("v1", "v2")):
        state = carried_out(state, releases.release(state, Model("shop", version, version, version), decision(number)))
    return carried_out(state, releases.canary(state, Model("shop", "v3", "v3", "v3"), 0.1, decision(2)))


@pytest.mark.parametrize(
    ("action", "champion", "canary"), [("promote", "v3", None), ("withdraw", "v2", None), ("rollback", "v1", "v3")]
)
def test_each_decision_on_the_state_it_was_made_of(
    tried: Releases, action: str, champion: str, canary: str | None
) -> None:
    """A promotion, a withdrawal, a rollback; a shadow that came meanwhile is no matter."""
    shadowed = carried_out(tried, releases.shadow(tried, Model("shop", "v4", "v4", "v4"), decision(3)))
    state = carried_out(shadowed, _change(action, shadowed, tried, decision(4)))
    assert state.champion is not None
    assert state.champion.model_version == champion
    assert (state.canary.model_version if state.canary else None) == canary


@pytest.mark.parametrize("action", ["promote", "withdraw", "rollback"])
def test_nothing_once_somebody_was_faster(tried: Releases, action: str) -> None:
    """A canary with another share, none at all, or another champion: the decision was about something else."""
    assert tried.champion is not None
    assert tried.canary is not None
    for other in (
        replace(tried, canary=None),
        replace(tried, canary=replace(tried.canary, share=0.5, release_id="9")),
        replace(tried, champion=replace(tried.champion, release_id="9")),
    ):
        assert _change(action, other, tried, decision(4)) == ()


def test_an_outcome_of_a_class_that_the_model_does_not_know_is_an_error() -> None:
    """It stays among the outcomes, with no class of the model's."""
    columns = decoded(("v1", "canary", 1))
    at = columns.schema.get_field_index("label")
    columns = columns.set_column(at, columns.schema.field(at), pa.array(["maybe"]).cast(FIELDS.field("label").type))
    found = _Arm(ModelIdentity("shop", "v1", "canary"), OUTPUT, 0).of(columns)
    assert np.array_equal(found.truth, [-1])


def test_what_a_batch_summary_tells_of_a_canary(tmp_path: Path) -> None:
    """Of this version; nothing by what is no summary, or by one of a version of this software that told nothing."""
    registry, schema = codec.FileRegistry(tmp_path), json.loads(codec.load_schema("batch-summary"))
    rows = codec.RowCodec(registry)
    summary = BatchSummary("t", 0, 0, 0, 0, 0, "m", "1", 0, 0, [], [], [], [], [], [], [], [], [], "2", "raised", [1.5])
    row = summary_to_dict(summary)
    earlier = {**schema, "fields": [f for f in schema["fields"] if "canary" not in f["name"]]}
    new = rows.encode(registry.register("s-value", json.dumps(schema)), json.dumps(schema), row)
    known = {field["name"] for field in earlier["fields"]}
    row = {name: value for name, value in row.items() if name in known}
    old = rows.encode(registry.register("old-value", json.dumps(earlier)), json.dumps(earlier), row)
    assert told_of(rows, new, "2") == ("raised", [1.5])
    assert told_of(rows, new, "1") is None
    assert told_of(rows, old, "2") is None
    assert told_of(rows, b"garbage", "2") is None
    assert summary_from_dict(rows.decode(new)) == summary
    assert summary_from_dict(rows.decode(old)) == replace(
        summary, canary_version="", canary_failure="", canary_latency_ratios=[]
    )
