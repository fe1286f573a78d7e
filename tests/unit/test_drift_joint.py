"""How features go together is watched: what breaks or arises is found and named, and nothing else is."""

import dataclasses
import re

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from benchmarks.drift import IDENTITY, SIGNALS, autoregressive, monitor_for, watch
from pipeline.cli.evaluate_drift import timeline
from pipeline.drift import SignalSummariser, measure_baseline
from pipeline.drift.baseline import joint_columns
from pipeline.drift.joint import FEATURES_MAX, leans_on
from pipeline.drift.summaries import JOINT_ROWS
from pipeline.models import bundle as bundles
from pipeline.models.manifest import Architecture, Manifest, baseline_faults, parse
from pipeline.records import (
    Baseline,
    BatchSummary,
    Feature,
    FeatureContract,
    Floats,
    JointWeights,
    OutputContract,
    SignalBaseline,
)

Mixing = npt.NDArray[np.float64]

WIDTH = len(SIGNALS)


def correlated(strength: float, features: list[int], signs: tuple[int, ...] = ()) -> Mixing:
    """What independent columns are multiplied with so that these correlate and each keeps its distribution."""
    matrix = np.eye(WIDTH)
    signed = np.array(signs or [1] * len(features))
    matrix[np.ix_(features, features)] = strength * np.outer(signed, signed)
    np.fill_diagonal(matrix, 1.0)
    return np.linalg.cholesky(matrix).T


NOTHING = np.eye(WIDTH)
PAIR = correlated(0.8, [3, 7])
FOUR = correlated(0.8, [3, 7, 9, 12])
ALTERNATING = correlated(0.8, [3, 7, 9, 12], (1, -1, 1, -1))


def stream(before: Mixing, after: Mixing, seed: int, rows: int = 24_000) -> Floats:
    """Normal rows, of which the first 20,000 are mixed one way and the rest the other."""
    noise = np.random.default_rng(seed).normal(size=(rows, WIDTH))
    return np.concatenate([noise[:20_000] @ before, noise[20_000:] @ after]).astype(np.float32)


@pytest.mark.parametrize(
    ("before", "after", "features"),
    [
        pytest.param(PAIR, NOTHING, {3, 7}, id="one pair breaks"),
        pytest.param(NOTHING, FOUR, {3, 7, 9, 12}, id="four of sixteen begin"),
        pytest.param(NOTHING, ALTERNATING, {3, 7, 9, 12}, id="with signs that cancel"),
        pytest.param(NOTHING, PAIR, {3, 7}, id="one pair begins"),
    ],
)
def test_a_correlation_that_changes_is_found(before: Mixing, after: Mixing, features: set[int]) -> None:
    """No marginal moves; within 3,000 rows one trigger names the features whose correlation changed, and no other."""
    rows = stream(before, after, seed=41)
    found = watch(rows[10_000:], measure_baseline(SIGNALS, rows[:10_000]), np.random.default_rng(0))
    ((read, trigger),) = found
    assert 10_000 < read <= 13_000
    assert {s.signal for s in trigger.signals} <= {f"joint:{i}" for i in features}
    assert trigger.signals[0].detector == "adwin"
    assert abs(trigger.change_event_time_ms - 10_000) < 600


def test_evidence_is_told_as_a_correlation() -> None:
    """Means are correlations, before and after, and the advice says of which features."""
    rows = stream(PAIR, NOTHING, seed=42)
    ((_, trigger),) = watch(rows[10_000:], measure_baseline(SIGNALS, rows[:10_000]), np.random.default_rng(0))
    one, other = sorted(trigger.signals, key=lambda s: s.signal)
    assert (one.signal, other.signal) == ("joint:3", "joint:7")
    assert one.before_mean == pytest.approx(0.75, abs=0.07)
    assert abs(one.after_mean) < 0.4  # of the first 200 rows since
    told = r"inputs go together otherwise than they did \(correlation of (3 with 7|7 with 3): 0\.[67]\d -> 0\.\d\d\): "
    assert re.match(told, trigger.advice)


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.9])
def test_no_alarm_in_200000_rows_that_stay_correlated(rho: float) -> None:
    """A pair and a common factor that last, autocorrelated: no trigger."""
    generator = np.random.default_rng(43)
    mixing = PAIR @ correlated(0.5, [0, 1, 2, 4, 5])
    rows = (autoregressive(generator, 210_000, WIDTH, rho) @ mixing).astype(np.float32)
    assert watch(rows[10_000:], measure_baseline(SIGNALS, rows[:10_000]), generator, drain=(20, 1500)) == []


def test_a_feature_that_moves_by_itself_is_named_alone() -> None:
    """Products move with their factors: its joint signal, and that of its partner, say nothing new."""
    rows = stream(PAIR, PAIR, seed=44)
    rows[20_000:, 3] += 3.0
    ((_, trigger),) = watch(rows[10_000:], measure_baseline(SIGNALS, rows[:10_000]), np.random.default_rng(0))
    assert [s.signal for s in trigger.signals] == ["feature:3"]


# --------------------------------------------------------------------------- what a joint signal is


def test_weights_are_correlations_scaled_to_unit_variance() -> None:
    """The mean of a joint signal is a multiple correlation; a partner outweighs those that do not correlate."""
    rows = stream(PAIR, PAIR, seed=45)[:20_000]
    baseline = measure_baseline(SIGNALS, rows)
    assert baseline.joint is not None
    assert baseline.joint.features == tuple(str(i) for i in range(WIDTH))
    assert [s.name for s in baseline.signals[WIDTH:]] == [f"joint:{i}" for i in range(WIDTH)]
    weights = np.array(baseline.joint.weights)
    assert (np.diag(weights) == 0).all()
    normal = rows.astype(np.float64)
    assert (normal @ weights.T).std(axis=0) == pytest.approx(np.ones(WIDTH), abs=0.05)
    assert weights[3, 7] > 0.85
    assert weights[0, 1:] == pytest.approx(np.full(WIDTH - 1, weights[0, 1]))  # nothing known: all alike
    means = [s.mean for s in baseline.signals[WIDTH:]]
    assert means[3] == pytest.approx(0.8 * weights[3, 7], abs=0.06)
    assert abs(means[0]) < 0.05
    leans = leans_on(baseline.joint)
    assert leans["joint:3"] == ("3", "7")
    assert leans["joint:0"] == ("0",)
    assert measure_baseline(SIGNALS, rows) == baseline


def test_products_are_those_of_normal_scores() -> None:
    """Near z_i times what the others say, z being the values themselves where these are normal; 0 for no value."""
    rows = stream(PAIR, PAIR, seed=46)[:5_000]
    baseline = measure_baseline(SIGNALS, rows)
    assert baseline.joint is not None
    weights = np.array(baseline.joint.weights)
    rows = rows[:500].copy()
    rows[:, 5] = np.nan
    rows[7] = np.nan
    columns = joint_columns(baseline, rows)
    assert np.isnan(columns[7]).all()
    assert (np.delete(columns[:, 5], 7) == 0).all()
    known = np.nan_to_num(np.delete(rows, 7, axis=0))
    expected = known * (known @ weights.T)
    for i in range(WIDTH):
        if i != 5:
            assert np.corrcoef(expected[:, i], np.delete(columns[:, i], 7))[0, 1] > 0.9


def test_summaries_do_not_depend_on_batches() -> None:
    """To the last bit: values lie on cuts, and another order of adding must not move them to another bin."""
    rows = stream(FOUR, FOUR, seed=47)[:7_000]
    rows[::11, 3] = np.nan
    baseline = measure_baseline(SIGNALS, rows)

    def summary(sizes: list[int]) -> BatchSummary:
        summariser, start = SignalSummariser(baseline, IDENTITY), 0
        assert summariser.signals == SIGNALS
        for size in sizes:
            numbers = np.arange(start, start + size, dtype=np.int64)
            summariser.add("events", 0, numbers, numbers, rows[start : start + size])
            start += size
        (found,) = summariser.drain()
        return found

    whole, parts = summary([7_000]), summary([2_049, 1, 3_333, 1_617])
    assert whole.signals == [s.name for s in baseline.signals]
    assert whole.histograms == parts.histograms
    np.testing.assert_allclose(whole.means, parts.means, rtol=1e-12)
    assert whole.histograms == [list(s.histogram) for s in baseline.signals]  # of the very rows it was measured on
    np.testing.assert_allclose(whole.sums[WIDTH:], [s.mean * s.count for s in baseline.signals[WIDTH:]], rtol=1e-6)


def test_a_fast_stream_has_joint_values_of_every_kth_row() -> None:
    """k by the rows of the summary before, whatever the batches; each block has its share, and all else every row."""
    rows = stream(FOUR, FOUR, seed=49)[:20_000]
    rows[::13, 3] = np.nan
    baseline = measure_baseline(SIGNALS, rows)
    columns = joint_columns(baseline, rows)
    n, every = len(rows), len(rows) // JOINT_ROWS
    assert every == 4
    for sizes in ([n], [5_000, 3, 7_001, 7_996]):
        summariser = SignalSummariser(baseline, IDENTITY)
        numbers, drained = np.arange(n, dtype=np.int64), []
        for _ in range(2):
            start = 0
            for size in sizes:
                part = slice(start, start + size)
                summariser.add("events", 0, numbers[part], numbers[part], rows[part])
                start += size
            drained += summariser.drain()
        whole, some = drained
        assert whole.counts[:WIDTH] == some.counts[:WIDTH]
        assert whole.histograms[:WIDTH] == some.histograms[:WIDTH]
        assert whole.counts[WIDTH:] == [n] * WIDTH
        assert some.counts[WIDTH:] == [n // every] * WIDTH
        np.testing.assert_allclose(some.sums[WIDTH:], columns[::every].sum(axis=0, dtype=np.float64), rtol=1e-6)
        assert [sum(row) for row in some.histograms[WIDTH:]] == [n // every] * WIDTH
        assert not np.isnan(some.means).any()
        np.testing.assert_allclose(np.mean(some.means[WIDTH:]), np.mean(whole.means[WIDTH:]), atol=0.02)


def test_the_features_that_correlate_most_are_chosen() -> None:
    """Sixteen of 200, the bound; constants and features of one frequent value are none of them."""
    generator = np.random.default_rng(48)
    rows = generator.normal(size=(3_000, 200)).astype(np.float32)
    rows[:, 150:170] += 2.0 * generator.normal(size=(3_000, 1)).astype(np.float32)
    rows[:, 155] = 1.0
    rows[generator.random(3_000) < 0.9, 156] = 0.0
    baseline = measure_baseline([f"feature:{i}" for i in range(200)], rows)
    assert baseline.joint is not None
    chosen = [int(name) for name in baseline.joint.features]
    assert len(chosen) == FEATURES_MAX
    assert set(chosen) <= set(range(150, 170)) - {155, 156}
    assert len(baseline.signals) == 200 + FEATURES_MAX


@pytest.mark.parametrize(
    "signals",
    [("feature:0",), ("feature:0", "null:1"), ("score:0", "score:1", "rejected"), ("feature:0", "feature:constant")],
)
def test_fewer_than_two_features_go_with_nothing(signals: tuple[str, ...]) -> None:
    """Nulls, scores and constants have no joint signals; nor have rows too few to say anything."""
    rows = np.random.default_rng(49).normal(size=(1_000, len(signals))).astype(np.float32)
    rows[:, [i for i, name in enumerate(signals) if name == "feature:constant"]] = 4.0
    assert measure_baseline(signals, rows).joint is None
    assert measure_baseline(("feature:0", "feature:1"), rows[:50, [0, 0]]).joint is None


def test_the_timeline_of_an_evaluation_has_them() -> None:
    """Filled from the features, whatever the matrix holds in their place."""
    rows = stream(PAIR, NOTHING, seed=50)
    baseline = measure_baseline(SIGNALS, rows[:10_000])
    given = np.concatenate([rows, np.full_like(rows, np.nan)], axis=1)[10_000:]
    found = timeline(given, np.arange(len(given), dtype=np.int64), baseline, 10_000)
    before, after = (window["signals"]["joint:3"] for window in found["windows"])
    assert before["psi"] < 0.02
    assert before["mean"] > 0.6
    assert after["psi"] > 0.25
    assert abs(after["mean"]) < 0.1


# --------------------------------------------------------------------------- bundles

SIGNAL = SignalBaseline("feature:a", 3, 1.0, 0.5, 0.0, 2.0, (0.0, 1.0, 2.0), (1, 2), 0.25, 1.5)


def packed(baseline: Baseline) -> Manifest:
    return bundles.make(
        model_id="shop",
        architecture=Architecture(module="pipeline.models.architectures:TabularMLP", arguments={"numbers": 1}),
        contract=FeatureContract(
            (Feature("a", "number", impute=1, on_null="impute"), Feature("b", "category", vocabulary=("x", "ü"))),
            OutputContract("classification", 1, ("no", "yes"), "sigmoid"),
        ),
        weights=save({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}),
        baseline=baseline,
    ).manifest


def test_a_model_without_joint_signals_is_what_it_was() -> None:
    """Its version, its manifest and the monitor's state keep the names they had before there were any."""
    old = packed(Baseline((SIGNAL,), 16))
    assert old.model_version == "07aac596c9ac"
    assert b"joint" not in old.to_json()
    assert b"season" not in old.to_json()
    assert parse(old.to_json()) == old
    identity = monitor_for(old.baseline)
    assert identity.fingerprint == monitor_for(parse(old.to_json()).baseline).fingerprint


def test_weights_travel_in_the_bundle() -> None:
    """To the last digit; the monitor of what was read is the monitor of what was packed."""
    rows = stream(PAIR, PAIR, seed=51)[:2_000]
    made = packed(measure_baseline(SIGNALS, rows))
    assert made.baseline.joint is not None
    again = parse(made.to_json())
    assert again == made
    assert monitor_for(again.baseline).fingerprint == monitor_for(made.baseline).fingerprint


def test_contradictions_are_refused() -> None:
    """Weights of another shape, of features that are not there, of signals that do not follow."""
    baseline = measure_baseline(("feature:0", "feature:1"), stream(PAIR, PAIR, seed=52)[:1_000, [3, 7]])
    assert baseline.joint is not None
    assert baseline_faults(baseline) == []
    first, *others = baseline.signals
    for change, reason in (
        ({"joint": JointWeights(("0", "1"), ((0.0, 1.0),))}, "weights are not 2 rows of 2"),
        ({"joint": JointWeights(("0", "1"), ((0.0, 1.0), (1.0,)))}, "weights are not 2 rows of 2"),
        ({"joint": JointWeights(("1", "0"), baseline.joint.weights)}, "last signals are not the 2 of joint.features"),
        ({"joint": None}, "last signals are not the 0 of joint.features"),
        ({"signals": baseline.signals[::-1]}, "last signals are not the 2 of joint.features"),
        ({"signals": tuple(others)}, "no signal feature:0"),
    ):
        (fault, *_) = baseline_faults(dataclasses.replace(baseline, **change))
        assert reason in fault
    assert first.name == "feature:0"
