"""Tallies: however outcomes are divided among batches and workers, they count the same, and what `measure` counts."""

import copy
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import ContractError
from pipeline.measures import Scored, measure
from pipeline.measures.online import Counting, Tally
from pipeline.measures.sums import Sums
from pipeline.records import OutputContract

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
THREE = OutputContract("classification", 3, ("a", "b", "c"), "softmax")
NUMBER = OutputContract("regression", 1)
EXAMPLES = settings(max_examples=100, deadline=None)
VIEWS: Any = ("total", "faded", "window")
PANE_MS, PANES_MAX = 100, 3
outputs = st.sampled_from([TWO, THREE, NUMBER])
seeds = st.integers(0, 2**32 - 1)


def rows(output: OutputContract, n: int, seed: int, span_ms: int = 1000) -> tuple[Any, Any, Any, Any]:
    """Outputs, truth, times and the truths before, of n rows in any order of time."""
    random = np.random.default_rng(seed)
    times_ms = random.integers(0, span_ms, n)
    if output.kind == "regression":
        truth = random.normal(5, 2, n)
        before = np.where(random.random(n) < 0.3, np.nan, random.normal(5, 2, n))
        return random.normal(5, 2, (n, 1)), truth, times_ms, before
    classes = max(2, output.width)
    logits = random.normal(0, 2, (n, classes)).round(int(random.integers(0, 3)))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.where(random.random(n) < 0.6, probabilities.argmax(axis=1), random.integers(-1, classes, n))
    return probabilities[:, -output.width :], truth, times_ms, random.integers(-2, classes, n)


def tally(output: OutputContract) -> Tally:
    return Tally(Counting(Sums(output, 0.9 if output is NUMBER else None, 5.0), PANE_MS, PANES_MAX, 0.8))


def filled(output: OutputContract, part: tuple[Any, ...]) -> Tally:
    found = tally(output)
    found.add(*part[:3], before=part[3])
    return found


def merged(*tallies: Tally) -> Tally:
    found = copy.deepcopy(tallies[0])
    for other in tallies[1:]:
        found.merge(other)
    return found


def assert_same(first: Tally, second: Tally) -> None:
    """The same sums in every view, but for the order in which numbers were added."""
    assert first.newest == second.newest
    assert first.panes.keys() == second.panes.keys()
    for view in VIEWS:
        np.testing.assert_allclose(first._sums(view), second._sums(view), rtol=1e-9, atol=1e-9)


@EXAMPLES
@given(outputs, st.integers(0, 80), seeds, st.lists(st.integers(0, 80), max_size=6), st.randoms())
def test_any_batches_in_any_order_count_as_one(
    output: OutputContract, n: int, seed: int, cuts: list[int], random: Any
) -> None:
    """Cut into batches anywhere and added in any order: the same tally."""
    whole = rows(output, n, seed)
    borders = [0, *sorted(min(cut, n) for cut in cuts), n]
    batches = [tuple(a[i:j] for a in whole) for i, j in itertools.pairwise(borders)]
    random.shuffle(batches)
    divided = tally(output)
    for batch in batches:
        divided.add(*batch[:3], before=batch[3])
    assert_same(divided, filled(output, whole))


@EXAMPLES
@given(outputs, seeds, st.lists(st.integers(0, 40), min_size=3, max_size=3))
def test_merging_is_associative_commutative_and_adds_up(output: OutputContract, seed: int, sizes: list[int]) -> None:
    """Three workers' tallies, merged in any way, are that of one worker who had all rows."""
    parts = [rows(output, n, seed + i) for i, n in enumerate(sizes)]
    a, b, c = (filled(output, part) for part in parts)
    expected = filled(output, tuple(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    for way in (merged(merged(a, b), c), merged(a, merged(b, c)), merged(c, a, b), merged(b, c, a)):
        assert_same(way, expected)


@EXAMPLES
@given(outputs, st.integers(1, 200), seeds)
def test_totals_are_the_metrics_of_the_rows(output: OutputContract, n: int, seed: int) -> None:
    """Every metric exact, but the two AUCs, within the bounds given beside them, and the calibration error."""
    values, truth, times_ms, before = rows(output, n, seed)
    found = filled(output, (values, truth, times_ms, before)).metrics("total")
    expected = measure(Scored(values, truth, times_ms), output, quantile=0.9)["metrics"]
    bounds = {name: found.pop(f"{name}_error") for name in ("roc_auc", "pr_auc") if f"{name}_error" in found}
    # The no-change baseline is given to a tally row by row; here it is of random truths.
    baselines = {"accuracy_of_no_change", "kappa_temporal", "mae_of_no_change", "rmse_of_no_change"}
    assert found.keys() - baselines == expected.keys() - baselines
    for name in expected.keys() - baselines - {"ece"}:
        assert abs(found[name] - expected[name]) <= bounds.get(name, 0.0) + 1e-9, name


@EXAMPLES
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=200))
def test_bounds_of_the_rankings_hold_for_any_scores(pairs: list[tuple[float, bool]]) -> None:
    """Also for scores that differ by next to nothing, or lie at the ends."""
    scores, truth = np.array([s for s, _ in pairs]), np.array([t for _, t in pairs]).astype(np.int64)
    assume(0 < truth.sum() < len(truth))
    times_ms = np.zeros(len(truth), np.int64)
    found = filled(TWO, (scores[:, None], truth, times_ms, np.full(len(truth), -2))).metrics("total")
    expected = measure(Scored(scores[:, None], truth, times_ms), TWO)["metrics"]
    for name in ("roc_auc", "pr_auc"):
        assert abs(found[name] - expected[name]) <= found[f"{name}_error"] + 1e-12


@EXAMPLES
@given(outputs, st.integers(1, 200), seeds)
def test_the_window_is_that_of_the_latest_panes(output: OutputContract, n: int, seed: int) -> None:
    """Metrics of the rows of the newest PANES_MAX panes, whatever the order they came in."""
    values, truth, times_ms, before = rows(output, n, seed)
    panes = times_ms // PANE_MS
    inside = panes > panes.max() - PANES_MAX
    windowed = filled(output, (values, truth, times_ms, before))
    alone = filled(output, (values[inside], truth[inside], times_ms[inside], before[inside]))
    assert windowed.rows("window") == inside.sum()
    assert windowed.metrics("window") == pytest.approx(alone.metrics("total"))


@EXAMPLES
@given(outputs, st.integers(1, 100), seeds)
def test_rows_fade_by_the_age_of_their_pane(output: OutputContract, n: int, seed: int) -> None:
    """A row weighs fading to the number of panes since: the first metric of each kind by its definition."""
    values, truth, times_ms, before = rows(output, n, seed)
    weights = 0.8 ** (times_ms.max() // PANE_MS - times_ms // PANE_MS)
    found = filled(output, (values, truth, times_ms, before))
    assert found.rows("faded") == pytest.approx(weights.sum())
    if output.kind == "regression":
        expected = np.average(np.abs(values[:, 0] - truth), weights=weights)
        assert found.metrics("faded")["mae"] == pytest.approx(expected)
    else:
        labels = (values[:, 0] >= 0.5).astype(int) if output.width == 1 else values.argmax(axis=1)
        assert found.metrics("faded")["accuracy"] == pytest.approx(np.average(labels == truth, weights=weights))


@EXAMPLES
@given(outputs, st.integers(0, 50), seeds)
def test_a_state_is_taken_up_bit_for_bit(output: OutputContract, n: int, seed: int) -> None:
    """Through JSON and back; going on from there is the same as never having stopped."""
    first, second = rows(output, n, seed), rows(output, 20, seed + 1)
    whole = filled(output, first)
    restored = Tally.restore(whole.counting, json.loads(json.dumps(whole.state(), allow_nan=False)))
    for one in (whole, restored):
        one.add(*second[:3], before=second[3])
    assert restored.state() == whole.state()


def test_what_counts_in_another_way_is_refused() -> None:
    """Neither merged nor restored: sums of another model or another pane mean something else."""
    for counting in (
        Counting(Sums(THREE), PANE_MS, PANES_MAX, 0.8),
        Counting(Sums(TWO), 2 * PANE_MS, PANES_MAX, 0.8),
        Counting(Sums(TWO), PANE_MS, PANES_MAX, 0.9),
    ):
        mine = Tally(Counting(Sums(TWO), PANE_MS, PANES_MAX, 0.8))
        with pytest.raises(ContractError, match="only the same kind can be merged"):
            mine.merge(Tally(counting))
        with pytest.raises(ContractError, match="counted by"):
            Tally.restore(mine.counting, Tally(counting).state())


def test_a_clock_far_ahead_does_not_empty_the_window() -> None:
    """A time later than the caller's clock counts as now; without the clock it would push all else out."""
    values, truth, times_ms, before = rows(TWO, 50, 0, span_ms=200)
    times_ms[0] = 10**15
    wild, held = tally(TWO), tally(TWO)
    wild.add(values, truth, times_ms, before=before)
    held.add(values, truth, times_ms, before=before, latest_ms=200)
    assert wild.rows("window") == 1
    assert held.rows("window") == 50


def test_outputs_that_are_no_probabilities_have_no_losses() -> None:
    """As `measure` leaves them out; the rest is there."""
    scores = tally(TWO)
    scores.add(np.array([[3.0], [-1.0]]), np.array([1, 0]), np.zeros(2, np.int64))
    assert scores.metrics()["accuracy"] == 1.0
    assert {"log_loss", "brier", "ece", "roc_auc"}.isdisjoint(scores.metrics())
    assert scores.reliability() == []


def test_nothing_counted_yet() -> None:
    """No rows, no metrics, and a state that can be taken up."""
    empty = tally(TWO)
    assert [empty.rows(view) for view in VIEWS] == [0, 0, 0]
    assert [empty.metrics(view) for view in VIEWS] == [{}, {}, {}]
    assert Tally.restore(empty.counting, empty.state()).state() == empty.state()
    assert merged(empty, empty).newest is None


def test_bounds_are_narrow_on_scores_as_they_are() -> None:
    """On 50,000 rows with one positive in 100 both AUCs are known to 0.005, and are off by less than 0.0005."""
    random = np.random.default_rng(0)
    truth = (random.random(50_000) < 0.01).astype(np.int64)
    scores = 1 / (1 + np.exp(-(random.normal(0, 1.5, 50_000) + 2 * truth - 5)))
    found = filled(TWO, (scores[:, None], truth, np.zeros(50_000, np.int64), np.full(50_000, -2))).metrics("total")
    expected = measure(Scored(scores[:, None], truth, np.zeros(50_000, np.int64)), TWO)["metrics"]
    assert found["roc_auc_error"] < 0.005
    assert found["roc_auc"] == pytest.approx(expected["roc_auc"], abs=5e-4)
    assert found["pr_auc"] == pytest.approx(expected["pr_auc"], abs=5e-3)
    assert found["ece"] == pytest.approx(expected["ece"], abs=1e-3)


def test_the_reliability_of_a_tally_is_that_of_its_rows() -> None:
    """Every row in one bin, the same frequencies as `measure` to a point; a regression has none."""
    values, truth, times_ms, before = rows(TWO, 3000, 1)
    found = filled(TWO, (values, truth, times_ms, before)).reliability("total")
    expected = measure(Scored(values, truth, times_ms), TWO)["reliability"]
    assert sum(entry["count"] for entry in found) == 3000
    at = [entry["confidence"] for entry in found]
    curve = np.interp(at, [e["confidence"] for e in expected], [e["frequency"] for e in expected])
    assert [entry["frequency"] for entry in found] == pytest.approx(curve, abs=0.05)
    assert filled(NUMBER, rows(NUMBER, 10, 0)).reliability("total") == []
