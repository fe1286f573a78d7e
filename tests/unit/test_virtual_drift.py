"""Virtual drift: a trigger of inputs asks for no training where enough labels show that the model errs no more."""

from typing import Any

import numpy as np
import pytest

from pipeline.measures import Scored
from pipeline.records import OutputContract, RetrainingTrigger, SignalEvidence
from pipeline.topology.virtual import judged, of_inputs

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
ONE = OutputContract("regression", 1)
ROWS, CHANGE = 4_000, 2_500


def trigger(*signals: str) -> RetrainingTrigger:
    """Of a change before row CHANGE, a row a second."""
    moved = [SignalEvidence(name, "adwin", 0.0, 1.0, 5_000, 1_500, 0.5, 0.3) for name in signals]
    return RetrainingTrigger("t", "p", "m", "1", moved, CHANGE * 1000, ROWS - CHANGE, [], [], "major", "", 0, 0, 0, 0)


def outcomes(before: float, since: float, seed: int = 0) -> Scored:
    """Of a classifier that is wrong in these shares of its rows."""
    random = np.random.default_rng(seed)
    wrong = random.random(ROWS) < np.where(np.arange(ROWS) < CHANGE, before, since)
    truth = random.integers(0, 2, ROWS)
    return Scored(np.where(wrong, 1 - truth, truth)[:, None].astype(float), truth, np.arange(ROWS) * 1000)


def told(found: Scored, output: OutputContract = TWO, labels_min: int = 1_000, *signals: str) -> Any:
    return judged(found, output, trigger(*(signals or ("feature:a",))), labels_min, 20_000)


def test_accuracy_that_holds_is_said_with_its_figures() -> None:
    """Errors of before and since, and by how many labels."""
    assert told(outcomes(0.1, 0.1)).startswith("inputs moved, accuracy holds (errors 11.1% before, 9.6% since")
    assert "1,500 labels" in told(outcomes(0.1, 0.1))


def test_many_labels_since_a_change_long_ago_are_as_good() -> None:
    """Of before and since as many are compared, however many there are."""
    found = outcomes(0.1, 0.1)
    since = Scored(
        *(np.concatenate([a, a[-1500:], a[-1500:], a[-1500:]]) for a in (found.outputs, found.truth)),
        np.arange(ROWS + 4_500) * 1000,
    )
    assert "2,048 labels" in told(since, TWO, 5_000)


def test_errors_that_rose_are_a_reason_to_train() -> None:
    """Also where they rose by less than five points, as long as it may have been more."""
    assert told(outcomes(0.1, 0.3)) is None
    assert told(outcomes(0.1, 0.14)) is None


def test_too_few_labels_are_waited_for() -> None:
    """As many as training needs; and a version that has not had enough to know how it erred at first."""
    assert told(outcomes(0.1, 0.1), labels_min=1_501) is None
    assert told(outcomes(0.1, 0.1).take(slice(2_101, ROWS))) is None


def test_a_missing_feature_is_no_virtual_drift() -> None:
    """It is the data's fault, whatever the errors do: the producer is to be looked at."""
    assert told(outcomes(0.1, 0.1), TWO, 1_000, "null:a") is None


@pytest.mark.parametrize(("spread", "holds"), [(1.0, True), (2.0, False)])
def test_regressions_are_judged_by_their_absolute_error(spread: float, holds: bool) -> None:
    """It may rise by a quarter."""
    errors = np.random.default_rng(1).normal(0, 1, ROWS) * np.where(np.arange(ROWS) < CHANGE, 1.0, spread)
    found = Scored(errors[:, None], np.zeros(ROWS), np.arange(ROWS) * 1000)
    assert (told(found, ONE) is not None) == holds


def test_a_slice_is_judged_by_its_own_outcomes() -> None:
    """Its errors are too few to move those of all; without enough of them, or without the slice, nothing is known."""
    half = np.where(np.arange(ROWS) % 2, "a", "b")
    good, bad = outcomes(0.03, 0.03, 1), outcomes(0.03, 0.3, 1)
    outputs = np.where(half[:, None] == "a", bad.outputs, good.outputs)
    found = Scored(outputs, good.truth, good.times_ms, {"shop": half})
    holds = told(found, TWO, 700, "score:yes@shop=b")
    assert holds.startswith("outputs moved in slice shop=b only, accuracy there holds (errors ")
    assert "750 labels" in holds
    assert told(found, TWO, 700, "score:yes@shop=a") is None
    assert told(found, TWO, 1_000, "score:yes@shop=b") is None
    assert told(good, TWO, 700, "score:yes@shop=b") is None
    assert "1,500 labels" in told(good, TWO, 1_000, "score:yes@shop=b", "score:yes")


def test_errors_that_raised_a_trigger_are_not_held_against_it() -> None:
    """Nor is one that says nothing of signals."""
    assert of_inputs(trigger("feature:a", "score:b"))
    assert not of_inputs(trigger("error:wrong", "feature:a"))
    assert not of_inputs(trigger())
