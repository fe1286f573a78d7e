"""Quality of models from outcomes: rows, bounds, the no-change baseline, delays, alarms of gaps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import codec
from pipeline.codec import ColumnarDecoder, ColumnarEncoder
from pipeline.errors import ContractError
from pipeline.measures.online import Counting
from pipeline.measures.slices import GAP_ROWS_MIN
from pipeline.measures.sums import Sums
from pipeline.quality import OutcomeReader, Outcomes, Quality, errors_of, outcomes_of
from pipeline.quality.alarms import GapWatch
from pipeline.quality.delays import EDGES, MADE_PANES_MAX, Delays
from pipeline.quality.gaps import gaps
from pipeline.quality.known import FRONT_MAX, KnownTruths
from pipeline.quality.quality import MODELS_MAX, SLICES_MAX, VALUES_MAX
from pipeline.records import ModelIdentity, OutputContract, RecordBatch, TopicPartition

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
NUMBER = OutputContract("regression", 1)
HOUR_MS = 3_600_000


def record(**given: Any) -> dict[str, Any]:
    """An outcome of schemas/outcome.avsc."""
    plain = {
        "event_id": "e",
        "event_time": 1_000,
        "model_id": "m",
        "model_version": "1",
        "role": "champion",
        "outputs": [0.25],
        "predicted": "no",
        "label": "no",
        "value": None,
        "label_time": 3_000,
        "predicted_at": 1_200,
        "partition": 0,
        "offset": 0,
        "slices": {},
    }
    return {**plain, **given}


def columns(*records: dict[str, Any]) -> pa.RecordBatch:
    schema = codec.arrow_schema(codec.load_schema("outcome"))
    rows = [{**r, "slices": list(r["slices"].items())} for r in records]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def counted(output: OutputContract = TWO, pane_ms: int = HOUR_MS, panes_max: int = 24) -> Quality:
    return Quality(Counting(Sums(output), pane_ms, panes_max, 0.9))


def rows(n: int, seed: int, *, at_ms: int = 0, rates: dict[str, float] | None = None, version: str = "1") -> Outcomes:
    """n outcomes of two classes; each shop's share of "yes" among the predictions is its rate."""
    random = np.random.default_rng(seed)
    rates = rates or {"north": 0.3, "south": 0.3}
    shops = random.choice(list(rates), n)
    yes = random.random(n) < np.array([rates[shop] for shop in shops])
    times_ms = at_ms + np.sort(random.integers(0, HOUR_MS, n))
    truth = (random.random(n) < 0.3).astype(np.int64)
    outputs = np.where(yes, 0.8, 0.2)[:, None]
    model = np.zeros(n, np.int64)
    identity = ModelIdentity("m", version)
    return Outcomes((identity,), model, outputs, truth, times_ms, times_ms, times_ms, {"shop": pa.array(shops)})


# --------------------------------------------------------------------------- rows


def test_rows_of_decoded_outcomes() -> None:
    """Classes become indices, an unknown one -1; the prediction's time stands in where the event has none."""
    found = outcomes_of(
        columns(
            record(label="yes", slices={"shop": "north", "country": "at"}),
            record(label="maybe", event_time=None, model_version="2", role="canary"),
            record(slices={"shop": "south"}),
        ),
        TWO,
        [b"a", None, b"c"],
    )
    assert found.truth.tolist() == [1, -1, 0]
    assert found.outputs.tolist() == [[0.25]] * 3
    assert found.event_times_ms.tolist() == [1_000, 1_200, 1_000]
    assert found.label_times_ms.tolist() == [3_000] * 3
    assert [found.models[i] for i in found.model] == [
        ModelIdentity("m", "1"),
        ModelIdentity("m", "2", "canary"),
        ModelIdentity("m", "1"),
    ]
    assert {name: values.to_pylist() for name, values in found.slices.items()} == {
        "shop": ["north", None, "south"],
        "country": ["at", None, None],
    }
    assert found.keys is not None
    assert found.keys.tolist() == [b"a", None, b"c"]


def test_what_cannot_be_measured_is_left_out_and_counted() -> None:
    """Each outcome for one reason, and the others as if it had not been there."""
    found = outcomes_of(
        columns(
            record(outputs=[0.2, 0.8]),
            record(outputs=[float("nan")], slices={"shop": "north"}),
            record(label=None, value=3.0),
            record(role="trainee"),
            record(outputs=[], role="trainee"),
            record(slices={"shop": "south"}),
        ),
        TWO,
    )
    assert len(found) == 1
    assert found.slices["shop"].to_pylist() == ["south"]
    assert found.left_out == {"other_output": 1, "not_finite": 1, "no_truth": 1, "unknown_role": 2}
    assert outcomes_of(columns(record(value=float("inf")), record(value=2.0)), NUMBER).truth.tolist() == [2.0]
    assert len(outcomes_of(columns(), TWO)) == 0


class _Registry:
    """Knows the outcomes' schema."""

    def schema(self, schema_id: int) -> str:
        assert schema_id == 7
        return codec.load_schema("outcome")

    def register(self, subject: str, schema: str) -> int:
        raise NotImplementedError(subject, schema)

    def latest(self, subject: str) -> tuple[int, str] | None:
        raise NotImplementedError(subject)


def batch(first_offset: int, values: list[Any], partition: int = 0) -> RecordBatch:
    n = len(values)
    offsets = list(range(first_offset, first_offset + n))
    return RecordBatch("outcomes", partition, offsets, [b"k"] * n, values, [0] * n)


def test_a_reader_takes_each_offset_once() -> None:
    """Batches overlap after a rebalance; what cannot be decoded is counted, and its key belongs to nobody else."""
    schema = codec.load_schema("outcome")
    encoded = ColumnarEncoder(schema, 7).encode(columns(*(record(event_id=f"e{n}") for n in range(6))))
    reader = OutcomeReader(ColumnarDecoder(_Registry(), schema), TWO, by_key=True)
    first = reader.take(batch(10, [encoded[0], b"not avro", encoded[1], None]))
    assert (len(first), first.keys is not None) == (2, True)
    assert len(reader.take(batch(12, encoded[1:5]))) == 2  # 12 and 13 were taken
    assert len(reader.take(batch(12, encoded[1:3]))) == 0
    assert len(reader.take(batch(0, encoded[:1], partition=1))) == 1
    assert reader.positions == {TopicPartition("outcomes", 0): 16, TopicPartition("outcomes", 1): 1}
    assert reader.left_out == {"undecodable": 2}


def test_errors_are_those_of_champions() -> None:
    """1 for a wrong class; the absolute error of a regression; shadows and canaries have none."""
    found = errors_of(
        outcomes_of(
            columns(record(label="yes"), record(role="canary"), record(outputs=[0.5], label="yes"), record()), TWO
        ),
        TWO,
    )
    ((identity, errors),) = found.items()
    assert identity == ModelIdentity("m", "1")
    assert (errors.values.tolist(), errors.rows.tolist()) == ([1.0, 0.0, 0.0], [0, 2, 3])
    (of_number,) = errors_of(outcomes_of(columns(record(value=-1.0)), NUMBER), NUMBER).values()
    assert of_number.values.tolist() == [1.25]


# --------------------------------------------------------------------------- bounds


def test_slices_beyond_the_bounds_count_together() -> None:
    """An identifier taken for a slice takes no room from others, and no row is lost."""
    n = SLICES_MAX + 50
    base = rows(n, 1)
    ids = pa.array([f"id{i}" for i in range(n)])
    fields = {"id": ids, **{f"f{i}": pa.array([f"v{j % VALUES_MAX}" for j in range(n)]) for i in range(4)}}
    found = counted()
    found.add(replace(base, slices=fields))
    (version,) = found.report()["versions"]
    by_field: dict[str, list[Any]] = {}
    for part in version["slices"]:
        by_field.setdefault(part["field"], []).append(part)
    assert {name: sum(p["rows"] for p in parts) for name, parts in by_field.items()} == dict.fromkeys(fields, n)
    assert sum(p["value"] is not None for p in by_field["id"]) == VALUES_MAX
    assert sum(p["value"] is not None for p in version["slices"]) == SLICES_MAX


def test_the_model_with_the_oldest_labels_goes() -> None:
    """And does not come back with labels older than all of those there is room for."""
    found = counted()
    for version in range(MODELS_MAX + 1):
        found.add(rows(10, version, at_ms=version * HOUR_MS, version=str(version)))
    assert [m.model_version for m in found.models] == ["4", "3", "2", "1"]
    found.add(rows(10, 9, at_ms=0, version="0"))
    assert [m.model_version for m in found.models] == ["4", "3", "2", "1"]


def test_the_window_ends_at_the_newest_label_of_all_models() -> None:
    """A version, or a slice, that has fallen silent does not show its last window for ever."""
    found = counted(panes_max=2)
    found.add(rows(300, 1, at_ms=0, version="old"))
    found.add(rows(300, 2, at_ms=5 * HOUR_MS, version="new", rates={"north": 0.5}))
    found.add(rows(300, 3, at_ms=9 * HOUR_MS, version="new", rates={"south": 0.5}))
    (version,) = found.report()["versions"]
    assert (version["model_version"], version["rows"]) == ("new", 300)
    assert [part["value"] for part in version["slices"]] == ["south"]


def test_estimates_and_labelled_predictions_are_those_of_the_window() -> None:
    """Also of a version that has fallen silent; shadows answer nobody."""
    found = counted(panes_max=3)
    for hour in range(3):
        found.add(rows(200, hour, at_ms=hour * HOUR_MS, version="old"))
    found.add(rows(200, 4, at_ms=4 * HOUR_MS, version="new"))
    new, old = found.report()["versions"]
    assert (new["rows"], new["estimate"]["stretches"]) == (200, 1)
    assert (old["rows"], old["estimate"]["stretches"]) == (200, 1)
    shadow = replace(rows(50, 5, at_ms=4 * HOUR_MS), models=(ModelIdentity("m", "3", "shadow"),))
    found.add(shadow)
    assert found.labelled_since(4 * HOUR_MS) == 200
    assert found.labelled_since(0) == 800


def test_a_clock_far_ahead_does_not_empty_the_window() -> None:
    """A label from the future counts as of now."""
    now_ms, future = 10 * HOUR_MS, rows(200, 1, at_ms=10**13)
    found = counted()
    found.add(rows(200, 2, at_ms=9 * HOUR_MS), latest_ms=now_ms)
    found.add(future, latest_ms=now_ms)
    assert found.report()["versions"][0]["rows"] == 400


def test_other_outputs_do_not_merge() -> None:
    """Sums of another kind mean something else."""
    with pytest.raises(ContractError, match="cannot be merged"):
        counted().merge(counted(NUMBER))


# --------------------------------------------------------------------------- no change, delays


def test_kappa_temporal_goes_by_what_was_known() -> None:
    """Truth alternates by the hour and is known at once: no change is always wrong; by key, always right."""
    n = 100
    times = np.arange(n) * 1_000
    truth = np.arange(n) % 2
    outputs = np.where(truth == 1, 0.9, 0.1)[:, None]
    outputs[::4] = 1 - outputs[::4]  # every fourth is wrong
    identity = (ModelIdentity("m", "1"),)

    def metrics(keys: Any, delay_ms: int) -> Any:
        found = counted()
        found.add(Outcomes(identity, np.zeros(n, np.int64), outputs, truth, times, times, times + delay_ms, {}, keys))
        return found.report()["versions"][0]["metrics"]

    wrong_always = metrics(None, 500)
    assert wrong_always["accuracy_of_no_change"] == 0.0
    assert wrong_always["kappa_temporal"] == pytest.approx(0.75, abs=0.01)
    assert metrics(None, 1_500)["accuracy_of_no_change"] == 1.0  # the label before the last is what is known
    own = metrics(np.array([b"ab"[i % 2 :][:1] for i in range(n)], dtype=object), 500)
    assert own["accuracy_of_no_change"] == 1.0
    assert "kappa_temporal" not in own
    assert "accuracy_of_no_change" not in metrics(None, 10**6)


def test_known_truths_are_bounded_and_never_from_the_future() -> None:
    """Beyond the bound older answers get coarser."""
    n = 2 * FRONT_MAX
    known = KnownTruths()
    times = np.arange(n)
    known.add(times, times + 10, times.astype(float))
    assert len(known._fronts[None].moments) <= FRONT_MAX
    found = known.before(times, -1.0)
    assert (found[-1000:] == times[-1000:] - 10).all()
    assert (found <= np.maximum(times - 10, -1)).all()
    assert found[n // 2] > 0


def test_delays_are_told_by_quantiles() -> None:
    """To 19 %, never less than they were; and how many of the predictions since a time have a label."""
    delays = Delays(HOUR_MS)
    seconds = np.random.default_rng(3).lognormal(6, 2, 5_000)
    predicted = np.arange(5_000) * HOUR_MS // 100
    delays.add(predicted, predicted, predicted + (seconds * 1000).astype(np.int64))
    for q in (0.1, 0.5, 0.9, 0.99):
        exact = float(np.quantile(seconds, q))
        found = delays.quantile(q)
        assert found is not None
        assert max(1.0, exact * 0.99) <= found <= max(1.0, exact * 1.20)
    assert delays.labelled_since(40 * HOUR_MS) == 1_000
    assert Delays(1).quantile(0.5) is None
    ahead = Delays(1)
    ahead.add(np.array([9_000]), np.array([9_000]), np.array([0]))
    assert ahead.quantile(0.5) == EDGES[0]


def test_delays_forget_predictions_of_long_ago() -> None:
    """Panes are bounded, the newest stay; merging adds up."""
    panes = np.arange(MADE_PANES_MAX + 10) * HOUR_MS
    first, second = Delays(HOUR_MS), Delays(HOUR_MS)
    first.add(panes, panes, panes)
    assert (len(first.made), min(first.made)) == (MADE_PANES_MAX, 10)
    second.merge(first)
    second.merge(first)
    assert second.labelled_since(0) == 2 * MADE_PANES_MAX


# --------------------------------------------------------------------------- alarms


def hours(found: Quality, first: int, n: int, seed: int, **rates: float) -> list[Any]:
    """n hours of 2,000 outcomes each; alarms raised."""
    raised = []
    for hour in range(first, first + n):
        raised += found.add(rows(2_000, seed * 1000 + hour, at_ms=hour * HOUR_MS, rates=rates))
    return raised


def test_a_gap_that_widens_alarms_once_and_until_it_is_gone() -> None:
    """It is told once, does not become the usual, and is taken back when the gap is."""
    found = counted()
    assert hours(found, 0, 24, 1, north=0.3, south=0.3) == []
    raised = hours(found, 24, 24, 2, north=0.3, south=0.45)
    assert {(alarm.value, alarm.measure) for _, alarm in raised} >= {("south", "selection_rate")}
    assert len(raised) == len({(alarm.value, alarm.measure) for _, alarm in raised})
    assert hours(found, 48, 24, 3, north=0.3, south=0.45) == []
    (alarm,) = [a for _, a in found.alarms() if (a.value, a.measure) == ("south", "selection_rate")]
    assert alarm.difference == pytest.approx(0.15, abs=0.03)
    assert alarm.before == pytest.approx(0.0, abs=0.03)
    assert 25 * HOUR_MS <= alarm.since_ms <= 31 * HOUR_MS
    assert hours(found, 72, 12, 4, north=0.3, south=0.3) == []
    found.judge()
    assert found.alarms() == []


def test_a_gap_that_was_always_there_is_no_alarm() -> None:
    """Nor one that narrows, nor one that is wider by less than is worth a word."""
    found = counted()
    assert hours(found, 0, 24, 1, north=0.2, south=0.5) == []
    assert hours(found, 24, 12, 2, north=0.2, south=0.52) == []
    assert hours(found, 36, 12, 3, north=0.35, south=0.35) == []


def gap(difference: float, half: float) -> dict[str, Any]:
    """A gap of a rate that is known to +-half with 95 %."""
    ends = {"low": difference - half, "high": difference + half}
    return {"field": "x", "value": "a", "measure": "selection_rate", "difference": difference, "rows": 100, **ends}


@pytest.mark.parametrize(
    ("before", "now", "raised"),
    [
        (gap(0.0, 0.001), gap(0.04, 0.001), False),  # certain, and not worth a word
        (gap(0.0, 0.001), gap(0.06, 0.001), True),
        (gap(0.0, 0.001), gap(-0.06, 0.001), True),  # in either direction
        (gap(0.1, 0.001), gap(-0.12, 0.001), False),  # as wide as before, the other way round
        (gap(0.1, 0.001), gap(0.04, 0.001), False),
        (gap(0.0, 0.001), gap(0.06, 0.04), False),  # wide, and not certain
        (gap(0.0, 0.04), gap(0.06, 0.001), False),  # nor that it was narrower before
    ],
)
def test_what_counts_as_widening(before: Any, now: Any, raised: bool) -> None:
    """Wider by enough, and not by chance on either side; without a gap before there is nothing to widen."""
    watch = GapWatch()
    assert watch.judge([], [now], 0) == []
    assert bool(watch.judge([before], [now], 5)) == raised
    assert [alarm.since_ms for alarm in watch.raised.values()] == [5] * raised
    watch.judge([], [], 6)
    assert len(watch.raised) == raised


@pytest.mark.parametrize(("scale", "raised"), [(1.0, False), (2.0, True)])
def test_errors_widen_by_shares_of_the_rest(scale: float, raised: bool) -> None:
    """A regression's unit may be anything: what counts is a quarter of what the rest is off by, here 100."""
    errors = {"measure": "mae", "of_rest": 100.0}
    watch = GapWatch()
    watch.judge([gap(1.0, 0.1) | errors], [gap(1.0 + 20 * scale, 0.1) | errors], 0)
    assert bool(watch.raised) == raised


def test_a_gap_needs_rows_on_both_sides() -> None:
    """As many as measures.slices asks for."""
    sums = Sums(NUMBER)

    def found(rows: int, others: int) -> int:
        inside, rest = (np.array([n, n, n, 0, 0, 0, 0, 0, 0], dtype=np.float64) for n in (rows, others))
        return len(gaps("x", "a", inside, inside + rest, sums))

    assert (found(GAP_ROWS_MIN, GAP_ROWS_MIN), found(GAP_ROWS_MIN - 1, 99), found(99, GAP_ROWS_MIN - 1)) == (1, 0, 0)
    two = Sums(TWO)
    vectors = np.zeros((2, two.size))
    vectors[0, :4] = vectors[1, :4] = [GAP_ROWS_MIN, 0, 0, GAP_ROWS_MIN - 1]
    names = [g["measure"] for g in gaps("x", "a", vectors[0], vectors.sum(axis=0), two)]
    assert names == ["selection_rate", "false_positive_rate"]


def test_an_alarm_does_not_flap() -> None:
    """Between half the bound and the bound it stays as it is."""
    found = counted()
    hours(found, 0, 24, 1, north=0.3, south=0.3)
    hours(found, 24, 12, 2, north=0.3, south=0.4)
    assert ("south", "selection_rate") in {(a.value, a.measure) for _, a in found.alarms()}
    hours(found, 36, 12, 3, north=0.3, south=0.34)  # below the 0.05 that raises it
    found.judge()
    assert ("south", "selection_rate") in {(a.value, a.measure) for _, a in found.alarms()}


def test_stationary_gaps_do_not_alarm() -> None:
    """Ten days of hours of few rows in twelve slices: not one alarm by chance."""
    shops = {f"s{n}": 0.3 for n in range(12)}
    found = counted()
    raised = []
    for hour in range(240):
        raised += found.add(rows(200, hour, at_ms=hour * HOUR_MS, rates=shops))
    assert raised == []


def test_a_slice_whose_errors_grow_alarms() -> None:
    """Regression: mean absolute error of the slice against the rest, in shares of the rest's."""
    found = counted(NUMBER)
    random = np.random.default_rng(8)
    for hour in range(12):
        n = 500
        wide = np.array(["a", "b"] * (n // 2))
        scale = np.where(wide == "b", 3.0 if hour >= 8 else 1.0, 1.0)
        times = np.full(n, hour * HOUR_MS)
        truth = random.normal(0, scale)
        identity = (ModelIdentity("m", "1"),)
        found.add(
            Outcomes(
                identity, np.zeros(n, np.int64), np.zeros((n, 1)), truth, times, times, times, {"x": pa.array(wide)}
            )
        )
    found.judge()
    assert {(a.field, a.value, a.measure) for _, a in found.alarms()} == {("x", "a", "mae"), ("x", "b", "mae")}
