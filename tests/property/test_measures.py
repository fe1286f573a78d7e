"""The measures against scikit-learn, on any rows: ties, absent classes, classes nobody knew."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.measures import Scored, measure
from pipeline.records import OutputContract

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
THREE = OutputContract("classification", 3, ("a", "b", "c"), "softmax")
NUMBER = OutputContract("regression", 1)
EXAMPLES = settings(max_examples=100, deadline=None)
CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-9}


def scored(outputs: Any, truth: Any) -> Scored:
    return Scored(np.array(outputs, np.float64), np.array(truth), np.arange(len(truth), dtype=np.int64))


#: (probability of the second class in steps of 1/16, 0 and 1 left out; truth)
two_classes = st.lists(st.tuples(st.integers(1, 15), st.integers(-1, 1)), min_size=1, max_size=60)
#: (weights of three classes, truth)
three_classes = st.lists(
    st.tuples(st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(-1, 2)), min_size=1, max_size=60
)
numbers = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=60)


@EXAMPLES
@given(two_classes)
def test_two_classes_agree(rows: list[tuple[int, int]]) -> None:
    """Ranking, shares and losses of the second class against the rest."""
    scores, truth = np.array([s for s, _ in rows]) / 16, np.array([t for _, t in rows])
    found = measure(scored(scores[:, None], truth), TWO)["metrics"]
    positive, predicted = truth == 1, (scores >= 0.5).astype(int)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted), **CLOSE)
    if positive.any():
        assert found["pr_auc"] == pytest.approx(reference.average_precision_score(positive, scores), **CLOSE)
        assert found["recall"] == pytest.approx(reference.recall_score(positive, predicted), **CLOSE)
    if positive.any() and not positive.all():
        assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(positive, scores), **CLOSE)
    if predicted.any():
        assert found["precision"] == pytest.approx(reference.precision_score(positive, predicted), **CLOSE)
    if predicted.any() or positive.any():
        assert found["f1"] == pytest.approx(reference.f1_score(positive, predicted), **CLOSE)
    if (truth >= 0).all():
        assert found["brier"] == pytest.approx(reference.brier_score_loss(truth, scores, labels=[0, 1]), **CLOSE)
        assert found["log_loss"] == pytest.approx(reference.log_loss(truth, scores, labels=[0, 1]), **CLOSE)


@EXAMPLES
@given(three_classes)
def test_three_classes_agree(rows: list[tuple[list[int], int]]) -> None:
    """Macro means over the classes that occur, one class against the rest, losses over all three."""
    weights, truth = np.array([w for w, _ in rows], float), np.array([t for _, t in rows])
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    found = measure(scored(probabilities, truth), THREE)["metrics"]
    predicted = probabilities.argmax(axis=1)
    occurring = sorted(set(truth[truth >= 0].tolist()))
    options: dict[str, Any] = {"labels": occurring, "average": "macro", "zero_division": 0}
    if occurring:
        for name in ("precision", "recall", "f1"):
            expected = getattr(reference, f"{name}_score")(truth, predicted, **options)
            assert found[f"macro_{name}"] == pytest.approx(expected, **CLOSE)
        precisions = [reference.average_precision_score(truth == c, probabilities[:, c]) for c in occurring]
        assert found["pr_auc"] == pytest.approx(np.mean(precisions), **CLOSE)
    areas = [reference.roc_auc_score(truth == c, probabilities[:, c]) for c in occurring if (truth != c).any()]
    if areas:
        assert found["roc_auc"] == pytest.approx(np.mean(areas), **CLOSE)
    if (truth >= 0).all():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class that was predicted and does not occur
            expected = reference.balanced_accuracy_score(truth, predicted)
        assert found["balanced_accuracy"] == pytest.approx(expected, **CLOSE)
        expected = reference.log_loss(truth, probabilities, labels=[0, 1, 2])
        assert found["log_loss"] == pytest.approx(expected, **CLOSE)
        expected = reference.brier_score_loss(truth, probabilities, labels=[0, 1, 2])
        assert found["brier"] == pytest.approx(expected, **CLOSE)


@EXAMPLES
@given(two_classes)
def test_curves_agree(rows: list[tuple[int, int]]) -> None:
    """The points of the ROC curve, and of precision over recall, at every threshold."""
    scores, truth = np.array([s for s, _ in rows]) / 16, np.array([t for _, t in rows])
    positive = truth == 1
    assume(positive.any() and not positive.all())
    curves = measure(scored(scores[:, None], truth), TWO)["curves"]
    false, true, _ = reference.roc_curve(positive, scores, drop_intermediate=False)
    assert curves["roc"]["yes"]["false_positive_rate"] == pytest.approx(false, **CLOSE)
    assert curves["roc"]["yes"]["true_positive_rate"] == pytest.approx(true, **CLOSE)
    precision, recall, _ = reference.precision_recall_curve(positive, scores)
    # scikit-learn has the lowest threshold first, and adds the point (recall 0, precision 1).
    assert curves["pr"]["yes"]["precision"] == pytest.approx(precision[:-1][::-1], **CLOSE)
    assert curves["pr"]["yes"]["recall"] == pytest.approx(recall[:-1][::-1], **CLOSE)


@EXAMPLES
@given(numbers, st.sampled_from([0.05, 0.5, 0.9]))
def test_regression_agrees(rows: list[tuple[int, int]], quantile: float) -> None:
    """Errors, share of variance and pinball loss."""
    predicted, truth = np.array([p for p, _ in rows]) / 4, np.array([t for _, t in rows]) / 4
    found = measure(scored(predicted[:, None], truth), NUMBER, quantile=quantile)["metrics"]
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(truth, predicted), **CLOSE)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(truth, predicted), **CLOSE)
    expected = reference.mean_pinball_loss(truth, predicted, alpha=quantile)
    assert found["quantile_loss"] == pytest.approx(expected, **CLOSE)
    if np.ptp(truth) > 0:
        assert found["r2"] == pytest.approx(reference.r2_score(truth, predicted), **CLOSE)


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.integers(300, 3000), st.floats(0.01, 0.99))
def test_a_reduced_curve_lies_on_the_curve(seed: int, rows: int, share: float) -> None:
    """Of many thresholds a report shows some: points of the full curve, both ends among them."""
    random = np.random.default_rng(seed)
    scores, positive = random.random(rows), random.random(rows) < share
    assume(positive.any() and not positive.all())
    curve = measure(scored(scores[:, None], positive.astype(np.int64)), TWO)["curves"]["roc"]["yes"]
    false, true, _ = reference.roc_curve(positive, scores, drop_intermediate=False)
    points = list(zip(curve["false_positive_rate"], curve["true_positive_rate"], strict=True))
    assert len(points) <= 256
    assert {points[0], points[-1]} == {(0.0, 0.0), (1.0, 1.0)}
    assert set(points) <= set(zip(false.tolist(), true.tolist(), strict=True))
