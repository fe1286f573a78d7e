"""How good a model is on rows it never saw, beside what costs nothing: always the same answer, or the last one."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.records import Floats, Longs

#: A probability of 0 for what happened would make the log loss infinite.
PROBABILITY_MIN = 1e-7

Metrics = dict[str, float]
Numbers = npt.NDArray[np.float64]


def classification(
    outputs: Floats, predicted: Longs, truth: Longs, trained: Longs, classes: int
) -> tuple[Metrics, list[list[int]]]:
    """Metrics, and the confusion matrix (rows: true class, columns: predicted).

    outputs: (n, classes) probabilities, or (n, 1) of the second of two. predicted, truth: (n,) class indices;
    a truth of -1 is a class never trained on, which no prediction meets. trained: indices of the training
    part, in order of time, or none; its most frequent class is `majority`; `no_change` repeats the truth before.
    Balanced accuracy and macro-F1 are means over the classes that occur in the truth.
    """
    known = truth >= 0
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (truth[known], predicted[known]), 1)
    hits, true_counts = confusion.diagonal(), confusion.sum(axis=1)
    # What was taken for a class counts against it, rows of unknown classes included.
    predicted_counts = np.bincount(predicted, minlength=classes)
    occurs = true_counts > 0
    recalls = hits[occurs] / true_counts[occurs]
    f1 = 2 * hits[occurs] / (true_counts[occurs] + predicted_counts[occurs])
    probabilities = np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs
    of_truth = np.where(known, probabilities[np.arange(len(truth)), np.maximum(truth, 0)], 0.0)
    metrics = {
        "accuracy": _mean(predicted == truth),
        "balanced_accuracy": _mean(recalls),
        "macro_f1": _mean(f1),
        "log_loss": _mean(-np.log(np.clip(of_truth, PROBABILITY_MIN, 1.0))),
    }
    if len(trained):
        majority = np.bincount(trained[trained >= 0], minlength=classes).argmax()
        metrics["accuracy_of_majority"] = _mean(truth == majority)
    metrics["accuracy_of_no_change"] = _mean((truth == _before(truth, trained)) & known)
    return metrics, confusion.tolist()


def regression(predicted: Numbers, truth: Numbers, trained: Numbers) -> Metrics:
    """All (n,). `mean` answers with the mean of the training part, `no_change` with the truth before."""
    error = predicted - truth
    before = _before(truth, trained)
    spread = float(((truth - truth.mean()) ** 2).sum())
    measured = {
        "mae": _mean(np.abs(error)),
        "rmse": float(np.sqrt(_mean(error**2))),
        "r2": 1.0 - float((error**2).sum()) / spread if spread > 0 else 0.0,
        "mae_of_no_change": _mean(np.abs(truth - before)),
        "rmse_of_no_change": float(np.sqrt(_mean((truth - before) ** 2))),
    }
    if len(trained):
        measured["mae_of_mean"] = _mean(np.abs(truth - trained.mean()))
    return measured


def _before(truth: npt.NDArray[Any], trained: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The truth of the row before each; the first row of all, which has none, is its own."""
    return np.concatenate([trained[-1:] if len(trained) else truth[:1], truth[:-1]])


def _mean(values: npt.NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
