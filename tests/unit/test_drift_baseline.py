"""Signal names, baselines, bins and autocorrelation times."""

import dataclasses

import numpy as np
import pytest

from benchmarks.drift import autoregressive
from pipeline.drift import measure_baseline, signal_names
from pipeline.drift.baseline import autocorrelation, cautious_time
from pipeline.drift.bins import kind_of, levels_of
from pipeline.drift.detector import alarm_limit
from pipeline.errors import DataError
from pipeline.records import Feature, FeatureContract, OutputContract


def _contract(output: OutputContract) -> FeatureContract:
    return FeatureContract((Feature("x", "number"), Feature("colour", "category", vocabulary=("a",))), output)


def test_signals_are_numbers_nulls_scores_classes_and_rejections() -> None:
    """Numbers are watched by value, all features by null rate, outputs by score and predicted class."""
    names = signal_names(_contract(OutputContract("classification", 3, ("a", "b", "c"))))
    scores, classes = tuple(f"score:{c}" for c in "abc"), tuple(f"class:{c}" for c in "abc")
    assert names == ("feature:x", "null:x", "null:colour", *scores, *classes, "rejected")


def test_two_classes_are_watched_by_the_second_alone() -> None:
    """The first class is the complement of the second: watching both would count one drift twice."""
    names = signal_names(_contract(OutputContract("classification", 1, ("no", "yes"), "sigmoid")))
    assert names[3:] == ("score:yes", "class:yes", "rejected")


def test_regression_outputs_have_no_class_signals() -> None:
    """Regression is watched by its values under the names that the hot path uses."""
    assert signal_names(_contract(OutputContract("regression", 2)))[3:] == (
        "score:output0",
        "score:output1",
        "rejected",
    )


def test_baseline_of_a_normal_signal_has_equally_filled_bins() -> None:
    """Bins are quantiles, moments are those of the sample, and the levels' mean is one half."""
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(8_000, 1)).astype(np.float32)
    (signal,) = measure_baseline(["feature:x"], values).signals
    assert signal.count == 8_000
    assert signal.mean == pytest.approx(values.mean(dtype=np.float64))
    assert signal.variance == pytest.approx(values.var(dtype=np.float64), rel=1e-6)
    assert signal.histogram == (500,) * 16
    assert len(signal.edges) == 17
    assert np.dot(levels_of(signal), signal.histogram) / signal.count == pytest.approx(0.5)


def test_values_that_are_missing_do_not_count() -> None:
    """NaN is no value: it changes neither counts nor moments."""
    values = np.array([[1.0], [np.nan], [3.0], [np.nan]], dtype=np.float32)
    (signal,) = measure_baseline(["feature:x"], values).signals
    assert (signal.count, signal.mean, sum(signal.histogram)) == (2, 2.0, 2)


def test_a_signal_without_values_is_kept_and_not_watched() -> None:
    """A feature that was never there has a baseline of count 0 whose numbers are all finite."""
    (signal,) = measure_baseline(["feature:x"], np.full((10, 1), np.nan, dtype=np.float32)).signals
    assert signal.count == 0
    assert all(np.isfinite(v) for v in dataclasses.astuple(signal) if isinstance(v, float))


def test_a_constant_signal_gets_bins_below_at_and_above_it() -> None:
    """Any other value, higher or lower by the smallest step, falls outside the constant's bin."""
    (signal,) = measure_baseline(["feature:x"], np.full((100, 1), 5.0, dtype=np.float32)).signals
    assert signal.histogram == (0, 100, 0)
    assert kind_of(signal) == "mode"
    assert levels_of(signal).tolist() == [1.0, 0.0, 1.0]
    below, above = np.float32(signal.edges[1]), np.float32(signal.edges[2])
    assert below == np.nextafter(np.float32(5), np.float32(0))
    assert above == 5.0


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    """Half of the values are 0: none of the others shares their bin."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(4_000, 1)).astype(np.float32)
    values[generator.random(4_000) < 0.5] = 0.0
    (signal,) = measure_baseline(["feature:x"], values).signals
    assert max(signal.histogram) == (values == 0).sum()


def test_indicators_have_two_bins_even_when_they_never_move() -> None:
    """A null rate of 0 is a share whose first missing value is already another bin."""
    (signal,) = measure_baseline(["null:x"], np.zeros((50, 1), dtype=np.float32)).signals
    assert (kind_of(signal), signal.histogram) == ("share", (50, 0))


@pytest.mark.parametrize(("rho", "time"), [(0.0, 1.0), (0.7, 5.4), (0.9, 17.8)])
def test_autocorrelation_time_is_that_of_the_process(rho: float, time: float) -> None:
    """Of first-order processes it is (1 + r) / (1 - r), a little less after ranking; lag 1 is r."""
    signals = measure_baseline(
        [f"feature:{i}" for i in range(16)], autoregressive(np.random.default_rng(2), 20_000, 16, rho)
    ).signals[:16]
    assert np.mean([s.autocorrelation_time for s in signals]) == pytest.approx(time, rel=0.08)
    assert np.mean([s.autocorrelation for s in signals]) == pytest.approx(rho, abs=0.03)
    assert all(cautious_time(s) > s.autocorrelation_time for s in signals)


def test_seasons_lengthen_the_autocorrelation_time() -> None:
    """A slow swing under noise is seen though a short autoregression would miss it."""
    steps = np.arange(20_000)
    series = np.sin(2 * np.pi * steps / 1_000) + np.random.default_rng(3).normal(size=20_000)
    assert autocorrelation(series)[1] > 100


def test_anticorrelation_and_constants_count_as_independent() -> None:
    """The time is never below 1, and defined for a constant and for a few values."""
    assert autocorrelation(np.tile([0.0, 1.0], 500))[1] == 1.0
    assert autocorrelation(np.ones(100)) == (0.0, 1.0)
    assert autocorrelation(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_blocks_grow_with_autocorrelation_within_bounds() -> None:
    """Blocks are one autocorrelation time of the middle signal, at least 8 and at most 64 events."""
    events = {
        rho: measure_baseline(
            [f"feature:{i}" for i in range(4)], autoregressive(np.random.default_rng(4), 20_000, 4, rho)
        ).block_events
        for rho in (0.0, 0.9, 0.995)
    }
    assert events[0.0] == 8
    assert 14 <= events[0.9] <= 22
    assert events[0.995] == 64
    assert measure_baseline(["rejected"], np.zeros((10, 1), dtype=np.float32)).block_events == 8


def test_a_matrix_of_another_width_is_refused() -> None:
    """The message says both widths; a matrix without rows is refused as well."""
    with pytest.raises(DataError, match=r"\(3, 2\) for 1 signals"):
        measure_baseline(["feature:x"], np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(DataError):
        measure_baseline(["feature:x"], np.zeros((0, 1), dtype=np.float32))


def test_alarm_limits_rise_with_signals_and_fall_with_delta() -> None:
    """All signals share one budget of false alarms; longer blocks are fewer tests."""
    usual = alarm_limit(0.002, 16, 8)
    assert 5.0 < usual < 6.5
    assert alarm_limit(0.002, 160, 8) > usual
    assert alarm_limit(0.2, 16, 8) < usual
    assert alarm_limit(0.002, 16, 80) < usual
