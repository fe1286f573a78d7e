"""The gate, on any rows: never both of two, always one that errs less everywhere, and the same verdict again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measures import Scored
from pipeline.records import OutputContract
from pipeline.retraining.gate import Contestant, judge
from pipeline.settings import GateSettings

EXAMPLES = settings(max_examples=60, deadline=None)
THREE = OutputContract("classification", 3, ("a", "b", "c"), "softmax")
NUMBER = OutputContract("regression", 1)
SEEDS = st.integers(0, 2**32 - 1)
ROWS = 400


def classifier(random: np.random.Generator, truth: np.ndarray, skill: float, spread: float) -> np.ndarray:
    """(n, 3) probabilities that lean on the truth, more or less."""
    logits = random.normal(size=(len(truth), 3)) * spread
    logits[np.arange(len(truth)), truth] += skill
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def of(outputs: np.ndarray, truth: np.ndarray, output: OutputContract, slices: np.ndarray) -> Contestant:
    return Contestant("1", output, Scored(outputs, truth, np.arange(len(truth)), {"s": slices}))


@EXAMPLES
@given(
    SEEDS, st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 4), st.sampled_from(["error", "balanced_error", "log_loss"])
)
def test_never_both_of_two(seed: int, first: float, second: float, spread: float, loss: str) -> None:
    """Whoever is champion: at most one of them may replace the other, however generous the other bounds."""
    random = np.random.default_rng(seed)
    truth, slices = random.integers(0, 3, ROWS), random.choice(["x", "y"], ROWS)
    left, right = (of(classifier(random, truth, skill, spread), truth, THREE, slices) for skill in (first, second))
    lenient = GateSettings(
        rows_min=100, loss=loss, alpha=0.2, slice_worse_max=99, log_loss_worse_max=99, ece_worse_max=1
    )  # type: ignore[arg-type]
    verdicts = judge(left, right, lenient), judge(right, left, lenient)
    assert not (verdicts[0].accepted and verdicts[1].accepted)
    assert verdicts[0].bounds.mean == -verdicts[1].bounds.mean
    assert judge(left, right, lenient) == verdicts[0]
    assert not judge(left, left, lenient).accepted


@EXAMPLES
@given(SEEDS, st.floats(0, 2), st.floats(0.1, 4), st.floats(0.05, 1))
def test_one_that_errs_less_everywhere_is_accepted(seed: int, skill: float, spread: float, step: float) -> None:
    """Every row's log loss falls, by a part of it: accepted, whatever its size; calibration alone may object.

    A model that is right in every row with 0.6 is not calibrated, so that bound is out of the way here.
    """
    random = np.random.default_rng(seed)
    truth, slices = random.integers(0, 3, ROWS), random.choice(["x", "y"], ROWS)
    before = classifier(random, truth, skill, spread)
    certain = np.eye(3)[truth]
    better = of(before + step * (certain - before), truth, THREE, slices)
    chosen = GateSettings(rows_min=100, loss="log_loss", ece_worse_max=1)
    verdict = judge(of(before, truth, THREE, slices), better, chosen)
    assert verdict.accepted, verdict.says


@EXAMPLES
@given(SEEDS, st.integers(15, ROWS))
def test_mended_rows_are_accepted(seed: int, mended: int) -> None:
    """From 15 rows on, of 400, that only the challenger has right, and none that only the champion has."""
    random = np.random.default_rng(seed)
    truth, slices = random.integers(0, 3, ROWS), random.choice(["x", "y"], ROWS)
    wrong = np.eye(3)[(truth + 1) % 3]
    outputs = wrong.copy()
    rows = random.choice(ROWS, mended, replace=False)
    outputs[rows] = np.eye(3)[truth[rows]]
    chosen = GateSettings(rows_min=100, ece_worse_max=1)
    verdict = judge(of(wrong, truth, THREE, slices), of(outputs, truth, THREE, slices), chosen)
    assert verdict.accepted, verdict.says
    assert next(c for c in verdict.checks if c.name == "mcnemar").value == pytest.approx(0.5 ** (mended + 1))


@EXAMPLES
@given(SEEDS, st.floats(0.01, 0.99), st.floats(1e-6, 1e6))
def test_a_regression_that_errs_less_everywhere_is_accepted(seed: int, part: float, unit: float) -> None:
    """In any unit: every error is the same part of the champion's."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=ROWS) * unit
    error = random.normal(size=ROWS) * unit
    slices = random.choice(["x", "y"], ROWS)
    left = of((truth + error)[:, None], truth, NUMBER, slices)
    right = of((truth + part * error)[:, None], truth, NUMBER, slices)
    settings_ = GateSettings(rows_min=100)
    assert judge(left, right, settings_).accepted
    assert not judge(right, left, settings_).accepted
