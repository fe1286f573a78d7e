"""The calibration error: nearly nothing where nothing is wrong, the right amount where something is."""

import numpy as np
import pytest

from pipeline.measures import Scored, measure
from pipeline.measures.calibration import BIN_ROWS_MIN, Bins, ece, equal_mass, plain_ece, regrouped, reliability
from pipeline.records import OutputContract

RUNS = 200


def simulated(rows: int, shift: float, seed: int) -> Bins:
    """Bins of rows whose chance is `shift` below the probability that the model gives."""
    random = np.random.default_rng(seed)
    probabilities = random.uniform(shift, 1, rows)
    return equal_mass(probabilities, random.random(rows) < probabilities - shift)


def means(rows: int, shift: float) -> tuple[float, float]:
    """(plain, debiased), mean of RUNS seeds."""
    bins = [simulated(rows, shift, seed) for seed in range(RUNS)]
    return float(np.mean([plain_ece(b) for b in bins])), float(np.mean([ece(b) for b in bins]))


@pytest.mark.parametrize("rows", [300, 1000, 10_000])
def test_a_calibrated_model_has_nearly_none(rows: int) -> None:
    """By chance alone the plain estimate is well above 0; the debiased one keeps less than a third of that."""
    plain, debiased = means(rows, 0.0)
    assert plain > 0.8 * np.sqrt(2 / np.pi) * np.sqrt(1 / 6) * np.sqrt(15 / rows)
    assert debiased < plain / 3


@pytest.mark.parametrize("rows", [1000, 10_000])
@pytest.mark.parametrize("shift", [0.05, 0.1, 0.2])
def test_a_known_error_is_found(rows: int, shift: float) -> None:
    """Probabilities that are 5, 10 or 20 points too high: the mean estimate is within a point of that, or closer."""
    _, debiased = means(rows, shift)
    assert debiased == pytest.approx(shift, abs=0.01 if rows == 1000 else 0.002)


def test_three_classes_are_held_to_their_confidence() -> None:
    """A model that is right in 6 of 10 rows and says 0.9 is 0.3 off."""
    random = np.random.default_rng(0)
    rows = 5000
    outputs = np.tile([0.9, 0.06, 0.04], (rows, 1))
    truth = np.where(random.random(rows) < 0.6, 0, 1)
    output = OutputContract("classification", 3, ("a", "b", "c"), "softmax")
    report = measure(Scored(outputs, truth, np.arange(rows)), output)
    assert report["metrics"]["ece"] == pytest.approx(0.3, abs=0.02)
    (entry,) = report["reliability"]
    assert entry["confidence"] == pytest.approx(0.9)
    assert entry["low"] < 0.6 < entry["high"]
    assert entry["count"] == rows


def test_bins_hold_equal_rows_and_never_split_a_value() -> None:
    """Fifteen bins of a fifteenth each; a value that half of the rows share is in one bin."""
    even = equal_mass(np.linspace(0, 1, 3000), np.zeros(3000, bool))
    assert even.counts.tolist() == [200] * 15
    tied = equal_mass(np.sort(np.r_[np.full(500, 0.3), np.linspace(0, 1, 500)]), np.zeros(1000, bool))
    assert tied.counts.sum() == 1000
    assert tied.counts.max() >= 500
    few = equal_mass(np.linspace(0, 1, 2 * BIN_ROWS_MIN), np.zeros(2 * BIN_ROWS_MIN, bool))
    assert few.counts.tolist() == [BIN_ROWS_MIN] * 2
    assert equal_mass(np.empty(0), np.empty(0, bool)).counts.tolist() == []


def test_a_histogram_gives_the_same_bins_where_its_borders_allow() -> None:
    """One fine bin a value is as good as the rows themselves; empty fine bins change nothing."""
    random = np.random.default_rng(1)
    values = random.integers(0, 50, 2000)
    hits = random.random(2000) < values / 50
    fine = Bins(*(np.bincount(values, w, minlength=60).astype(float) for w in (np.ones(2000), values / 50, hits)))
    exact, grouped = equal_mass(values / 50, hits), regrouped(fine)
    assert abs(len(exact.counts) - len(grouped.counts)) <= 1
    assert grouped.counts.sum() == 2000
    assert ece(grouped) == pytest.approx(ece(exact), abs=0.01)
    assert [entry["count"] for entry in reliability(grouped)] == grouped.counts.tolist()
    assert regrouped(Bins(*np.zeros((3, 60)))).counts.tolist() == []


def test_no_rows_have_no_error() -> None:
    """Nothing measured is no NaN."""
    assert ece(Bins(*np.zeros((3, 0)))) == 0.0
