"""Calibrations on any rows: an order is never turned round, and a trial never knows the newest rows beforehand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipeline.measures import Scored
from pipeline.measures.calibrators import TEMPERATURE_MAX, TEMPERATURE_MIN, Calibrator, Curve
from pipeline.measures.scored import predicted
from pipeline.records import OutputContract
from pipeline.retraining.calibrating import calibrate

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
#: Steps of 1/64 within 0 and 1: float32 tells any two apart after any temperature up to 1 / 4, and beyond 1.
SCORES = st.lists(st.integers(1, 63), min_size=2, max_size=80)


@given(SCORES, st.integers(0, 2**32 - 1), st.floats(0.5, TEMPERATURE_MAX))
def test_a_temperature_keeps_ranking_and_classes(steps: list[int], seed: int, temperature: float) -> None:
    """ROC-AUC is the same; 0.5 stays 0.5."""
    outputs = (np.array(steps, np.float32) / 64)[:, None]
    after = Calibrator("temperature", 1, 0, temperature).apply(outputs)
    assert (predicted(after.astype(np.float64)) == predicted(outputs.astype(np.float64))).all()
    truth = np.random.default_rng(seed).random(len(steps)) < 0.5
    if truth.any() and not truth.all():
        assert roc_auc_score(truth, after[:, 0]) == roc_auc_score(truth, outputs[:, 0])


@given(SCORES, st.lists(st.tuples(st.integers(0, 64), st.integers(1, 63)), min_size=1, max_size=10))
def test_a_curve_never_turns_an_order_round(steps: list[int], points: list[tuple[int, int]]) -> None:
    """It may make equal what was not."""
    scores = sorted({score for score, _ in points})
    heights = sorted(height for _, height in points)[: len(scores)]
    curve = Curve(tuple(s / 64 for s in scores), tuple(h / 64 for h in heights))
    outputs = (np.sort(np.array(steps, np.float32)) / 64)[:, None]
    after = Calibrator("isotonic", 1, 0, curves=(curve,)).apply(outputs)[:, 0]
    assert (np.diff(after) >= 0).all()
    assert min(heights) / 64 <= after.min() <= after.max() <= max(heights) / 64


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 4), st.sampled_from(["temperature", "auto"]))
def test_what_is_fitted_does_not_depend_on_the_rows_that_judge_it(seed: int, too_sure: float, kind: str) -> None:
    """With their truth turned round, it is the same calibrator that is judged."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, 1_000)
    truth = (random.random(1_000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    outputs = (1 / (1 + np.exp(-too_sure * logits)))[:, None]
    scored = Scored(outputs, truth, np.arange(1_000))
    found = calibrate(scored, TWO, kind=kind)  # type: ignore[arg-type]
    assert TEMPERATURE_MIN <= found.calibrator.temperature <= TEMPERATURE_MAX
    turned = truth.copy()
    turned[-found.judged_rows :] = 1 - turned[-found.judged_rows :]
    other = calibrate(Scored(outputs, turned, np.arange(1_000)), TWO, kind=kind)  # type: ignore[arg-type]
    assert other.calibrator == found.calibrator
    assert other.after["log_loss"] != found.after["log_loss"]
