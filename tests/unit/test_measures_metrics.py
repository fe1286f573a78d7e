"""Point metrics on rows that can be checked on paper, and every case that has no answer."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.measures import Scored, measure, windows
from pipeline.measures.metrics import PROBABILITY_MIN
from pipeline.records import OutputContract

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
THREE = OutputContract("classification", 3, ("a", "b", "c"), "softmax")
NUMBER = OutputContract("regression", 1)


def scored(outputs: Any, truth: Any, **slices: list[str]) -> Scored:
    columns = np.array(outputs, np.float64)
    return Scored(
        columns if columns.ndim == 2 else columns[:, None],
        np.array(truth),
        np.arange(len(columns)) * 1000,
        {name: np.array(values, np.str_) for name, values in slices.items()},
    )


def test_classification_by_hand() -> None:
    """Four rows, beside the two predictors that cost nothing."""
    rows = scored([0.9, 0.2, 0.8, 0.4], [1, 0, 0, 1])
    report = measure(rows, TWO, trained_on=np.array([0, 0, 1]))
    assert report["rows"] == 4
    assert report["confusion"] == [[1, 1], [1, 1]]
    assert report["metrics"] == pytest.approx(
        {
            "accuracy": 0.5,
            "balanced_accuracy": 0.5,
            "macro_precision": 0.5,
            "macro_recall": 0.5,
            "macro_f1": 0.5,
            "precision": 0.5,
            "recall": 0.5,
            "f1": 0.5,
            "roc_auc": 0.75,
            "pr_auc": (1 + 2 / 3) / 2,
            "log_loss": -np.log([0.9, 0.8, 0.2, 0.4]).mean(),
            "brier": (0.01 + 0.04 + 0.64 + 0.36) / 4,
            "ece": 0.0,  # |0.575 - 0.5| of one bin of four rows: less than what chance makes
            "accuracy_of_majority": 0.5,
            "accuracy_of_no_change": 0.5,
            "kappa_temporal": 0.0,
        },
        abs=0.02,
    )


def test_regression_by_hand() -> None:
    """Absolute error, root mean square, share of variance, pinball loss; the mean and the last value beside them."""
    report = measure(scored([1.0, 2.0, 7.0], [1.0, 3.0, 5.0]), NUMBER, trained_on=np.array([0.0, 2.0]), quantile=0.9)
    assert report["metrics"] == pytest.approx(
        {
            "mae": 1.0,
            "rmse": np.sqrt(5 / 3),
            "r2": 1 - 5 / 8,
            "quantile_loss": (0.9 * 1 + 0.1 * 2) / 3,
            "mae_of_mean": 2.0,
            "rmse_of_mean": np.sqrt((0 + 4 + 16) / 3),
            "mae_of_no_change": 5 / 3,
            "rmse_of_no_change": np.sqrt(9 / 3),
        }
    )
    assert (report["confusion"], report["reliability"], report["curves"]) == ([], [], {})


def test_unknown_classes_count_as_misses() -> None:
    """They lower accuracy and the F1 of what they were taken for, cost the log loss dearly, and are never positive."""
    report = measure(scored([[1, 0, 0], [1, 0, 0]], [0, -1]), THREE)
    found = report["metrics"]
    assert report["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == 1.0
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["log_loss"] == pytest.approx(-np.log(PROBABILITY_MIN) / 2)
    assert found["brier"] == pytest.approx(0.5)
    assert found["roc_auc"] == 0.5
    assert "accuracy_of_majority" not in found


@pytest.mark.parametrize("output", [TWO, THREE, NUMBER], ids=["two", "three", "number"])
def test_no_rows_have_no_metrics(output: OutputContract) -> None:
    """Nothing was measured, so nothing is said; and it is valid JSON."""
    report = measure(scored(np.empty((0, output.width)), np.empty(0, np.int64)), output, trained_on=np.array([1, 0]))
    assert report["rows"] == 0
    assert report["metrics"] == {}
    assert report["reliability"] == []
    assert windows(scored(np.empty((0, output.width)), np.empty(0, np.int64)), output, 10) == []
    json.dumps(report, allow_nan=False)


def test_what_rows_do_not_define_is_absent() -> None:
    """One class only has no AUC; nothing predicted no precision; a perfect no-change no kappa; a constant no r2."""
    negatives = measure(scored([0.1, 0.2, 0.3], [0, 0, 0]), TWO)["metrics"]
    assert {"roc_auc", "pr_auc", "precision", "recall", "f1", "kappa_temporal"}.isdisjoint(negatives)
    assert (negatives["accuracy"], negatives["accuracy_of_no_change"]) == (1.0, 1.0)
    positives = measure(scored([0.9, 0.8], [1, 1]), TWO)["metrics"]
    assert "roc_auc" not in positives
    assert positives["pr_auc"] == 1.0
    assert "r2" not in measure(scored([1.0, 2.0], [1.0, 1.0]), NUMBER)["metrics"]
    one = measure(scored([0.9], [1]), TWO)["metrics"]
    assert {"accuracy_of_no_change", "kappa_temporal"}.isdisjoint(one)


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    """A model without activation still has its accuracy and its ranking."""
    report = measure(scored([3.0, -2.0, 0.7, 0.1], [1, 0, 1, 0]), TWO)
    assert report["metrics"]["roc_auc"] == report["metrics"]["accuracy"] == 1.0
    assert {"log_loss", "brier", "ece"}.isdisjoint(report["metrics"])
    assert report["reliability"] == []


def test_no_change_knows_what_the_delay_allows() -> None:
    """With a delay of d rows it answers with the truth d rows before; rows without one count for neither side."""
    truth = [0, 0, 1, 1, 0, 0]
    rows = scored([0.9, 0.1, 0.9, 0.9, 0.9, 0.1], truth)
    one = measure(rows, TWO)["metrics"]
    assert one["accuracy_of_no_change"] == pytest.approx(3 / 5)
    assert one["kappa_temporal"] == pytest.approx((4 / 5 - 3 / 5) / (2 / 5))
    two = measure(rows, TWO, delay_rows=2)["metrics"]
    assert two["accuracy_of_no_change"] == 0.0
    assert two["kappa_temporal"] == pytest.approx(3 / 4)
    trained = measure(rows, TWO, delay_rows=2, trained_on=np.array([1, 0, 1]))["metrics"]
    assert trained["accuracy_of_no_change"] == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="delay_rows is 0"):
        measure(rows, TWO, delay_rows=0)


def test_windows_cut_the_rows_in_order() -> None:
    """Every row is in one window, the last one is shorter, and no-change looks back past the border."""
    found = windows(scored([0.9, 0.9, 0.1, 0.1, 0.9], [1, 1, 1, 0, 1]), TWO, 2)
    assert [w["rows"] for w in found] == [2, 2, 1]
    assert [(w["first_time_ms"], w["last_time_ms"]) for w in found] == [(0, 1000), (2000, 3000), (4000, 4000)]
    assert [w["metrics"]["accuracy"] for w in found] == [1.0, 0.5, 1.0]
    assert [w["metrics"]["accuracy_of_no_change"] for w in found] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("outputs", "truth", "output", "expected"),
    [
        ([[0.5, 0.5]], [0], TWO, "shape \\(1, 2\\), the model gives \\(1, 1\\)"),
        ([float("nan")], [0], TWO, "not finite"),
        ([0.5], [float("inf")], NUMBER, "not finite"),
        ([0.5], [2], TWO, "outside -1..1"),
        ([[1, 0, 0]], [-2], THREE, "outside -1..2"),
    ],
)
def test_rows_of_another_model_are_refused(outputs: Any, truth: Any, output: OutputContract, expected: str) -> None:
    """A wrong width, a NaN or a class that cannot be is an error in one line, not a wrong number."""
    with pytest.raises(ContractError, match=expected):
        measure(scored(outputs, truth), output)


def test_columns_of_different_lengths_are_refused() -> None:
    """Rows that lost their truth on the way are found at once."""
    with pytest.raises(ContractError, match="columns of \\[1, 2\\] rows"):
        Scored(np.zeros((2, 1)), np.zeros(1, np.int64), np.zeros(2, np.int64))
