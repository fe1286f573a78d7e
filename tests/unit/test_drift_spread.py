"""A signal that scatters otherwise is told, however its mean stays; clustered volatility is not taken for it."""

import math

import numpy as np
import pytest

from benchmarks.drift import SIGNALS, autoregressive, stationary, watch
from pipeline.drift import measure_baseline
from pipeline.drift.baseline import autocorrelation
from pipeline.drift.history import Stretch
from pipeline.drift.spread import EFFECT_MIN_SD, STRETCHES_MIN, SpreadScan, fold_time, scatters
from pipeline.records import Floats


@pytest.mark.parametrize(
    ("rho", "factor", "rows_max"), [(0.0, 2.0, 600), (0.7, 0.5, 800), (0.9, 2.0, 3_000), (0.0, 1.5, 1_500)]
)
def test_a_change_of_spread_is_found_within_3000_rows(rho: float, factor: float, rows_max: int) -> None:
    """More and less of it, autocorrelated or not; told once, of the one signal, and dated to where it happened."""
    rows, baseline, generator = stationary("normal", rho, 101, 15_000)
    rows[10_000:, 3] *= factor
    ((read, trigger),) = watch(rows, baseline, generator)
    assert 10_000 < read <= 10_000 + rows_max
    assert [(s.signal, s.detector) for s in trigger.signals] == [("feature:3", "spread")]
    assert trigger.advice.startswith("the spread of 3 changed: retrain")
    assert trigger.signals[0].before_count > 9_000
    assert abs(trigger.change_event_time_ms - 10_000) < rows_max / 2


def test_a_mean_that_moves_is_told_as_that() -> None:
    """Its fold moves as well; what dates the change better leads."""
    rows, baseline, generator = stationary("normal", 0.0, 102, 14_000)
    rows[10_000:, 3] += 3.0
    ((_, trigger),) = watch(rows, baseline, generator)
    assert [(s.signal, s.detector) for s in trigger.signals] == [("feature:3", "adwin")]


def volatile(phi: float, rows: int) -> Floats:
    """Four series whose volatility clusters: the logarithm of their deviation is AR(1), of deviation 0.5."""
    generator = np.random.default_rng(5)
    logarithms = 0.5 * autoregressive(generator, rows, 4, phi)
    return (np.exp(logarithms) * generator.normal(size=(rows, 4))).astype(np.float32)


def test_volatility_that_clusters_does_not_alarm() -> None:
    """Values do not correlate, their sizes do, for fifty rows: the stream itself tells it."""
    rows = volatile(0.98, 60_000)
    baseline = measure_baseline(SIGNALS[:4], rows[:10_000])
    assert all(s.autocorrelation_time < 2 for s in baseline.signals[:4])
    assert watch(rows[10_000:], baseline, np.random.default_rng(6), drain=(200, 900)) == []


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.9])
def test_the_folds_time_is_that_of_its_autocorrelation(rho: float) -> None:
    """Estimated from that of the ranks; never shorter than it is, by chance, and not twice as long."""
    rows = autoregressive(np.random.default_rng(7), 100_000, 1, rho)
    (signal,) = measure_baseline(["feature:x"], rows).signals
    phi = np.vectorize(lambda x: math.erf(x / math.sqrt(2)))
    _, time = autocorrelation(np.abs(phi(rows[:, 0].astype(np.float64))))
    assert 0.95 * time < fold_time(signal) < 1.5 * time


def stretch(first: int, values: np.ndarray, cuts: np.ndarray) -> Stretch:
    bins = np.searchsorted(cuts, values)
    histogram = np.bincount(bins, minlength=len(cuts) + 1).astype(np.float64)[None, :]
    zeros = np.zeros(1)
    return Stretch(first, first, len(values), first, np.array([float(len(values))]), zeros, zeros, histogram, {})


def test_strength_is_that_of_two_means() -> None:
    """z as the formula says it for the fold's means before and after; the true boundary is the strongest."""
    rows = np.random.default_rng(8).normal(size=(14_000, 1)).astype(np.float32)
    baseline = measure_baseline(["feature:x"], rows[:10_000])
    (signal,) = baseline.signals
    later = np.concatenate([rows[10_000:12_000, 0], 1.6 * rows[12_000:, 0]])
    cuts = np.array(signal.edges[1:-1], dtype=np.float32)
    stretches = [stretch(start, later[start : start + 100], cuts) for start in range(0, 4_000, 100)]
    scan = SpreadScan(baseline, 0.002, 1)
    assert scan.strengths(stretches[: STRETCHES_MIN - 1]) is None
    z = scan.strengths(stretches)
    assert z is not None
    assert z[0].argmax() == 20
    levels = (np.arange(16) + 0.5) / 16
    folds = np.abs(2 * levels - 1)[np.searchsorted(cuts, later)]
    moved = folds[2_000:].mean() - folds[100:2_000].mean()  # the first stretch does not count
    variance = np.abs(2 * levels - 1).var() * fold_time(signal) * (1 / 1_900 + 1 / 2_000)
    assert z[0, 20] == pytest.approx(moved / math.sqrt(variance), rel=0.02)
    assert (z[0, :2] == 0).all()  # nothing before it


def test_a_small_change_of_spread_is_nobodys_drift() -> None:
    """However certain: 1.3 times the deviation is where the bound lies."""
    assert pytest.approx((2 * math.atan(1.3) / math.pi - 0.5) * math.sqrt(12), abs=0.005) == EFFECT_MIN_SD
    rows, baseline, generator = stationary("normal", 0.0, 103, 40_000)
    rows[10_000:, 3] *= 1.15
    assert watch(rows, baseline, generator, drain=(200, 900)) == []


def test_numbers_and_scores_are_watched() -> None:
    """Shares have no spread of their own, joint signals follow their features, constants do not scatter."""
    rows = np.random.default_rng(9).normal(size=(1_000, 6)).astype(np.float32)
    rows[:, 2:4] = rows[:, 2:4] > 0
    rows[:, 4] = 1.0
    rows[:, 5] = np.nan
    signals = ("feature:a", "score:b", "null:a", "class:b", "feature:constant", "feature:never")
    baseline = measure_baseline((*signals[:1], "feature:z", *signals[1:]), np.insert(rows, 1, rows[:, 0] ** 3, axis=1))
    assert [s.name for s in baseline.signals if scatters(s)] == ["feature:a", "feature:z", "score:b"]
    assert any(s.name.startswith("joint:") for s in baseline.signals)
