"""Point metrics: one number for many rows, beside what costs nothing (always the same answer, or the last one).

A metric whose denominator is zero on these rows is absent, so that every number given is one that was measured.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.measures import calibration
from pipeline.measures.ranking import Ranking, average_precision, rank, roc_auc
from pipeline.measures.scored import Flags, Metrics, Numbers, Scored, by_class, predicted
from pipeline.records import Longs, OutputContract

#: A probability of 0 for what happened would make the log loss infinite; float32 tells no smaller one from 1 - p.
PROBABILITY_MIN = 1e-7
#: What a probability may exceed [0, 1] by: a few steps of float32 (6e-8), summed.
ROUNDING = 1e-6
#: Stands in `Answers.before` of a classification for "no truth is known yet".
NOTHING_BEFORE = -2


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said of n rows, what was so, and what "no change" would have said."""

    #: Classification: (n, classes) float64. Regression: (n, width), of which the first column counts.
    columns: Numbers
    #: (n,) int64 class, or float64 value.
    predicted: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    #: (n,) the truth some rows before; NOTHING_BEFORE, or NaN in a regression, where there was none.
    before: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: slice | Longs | Flags) -> "Answers":
        """Some of the rows, each with the truth that came before it among all."""
        return Answers(self.columns[rows], self.predicted[rows], self.truth[rows], self.before[rows])


def answers(scored: Scored, output: OutputContract, trained_on: npt.NDArray[Any] | None, delay_rows: int) -> Answers:
    """The rows ready to be measured; `trained_on`: truth of the rows just before them, if known."""
    if output.kind == "classification":
        before = _before(scored.truth, trained_on, delay_rows, NOTHING_BEFORE)
        return Answers(by_class(scored.outputs), predicted(scored.outputs), scored.truth, before)
    before = _before(scored.truth.astype(np.float64), trained_on, delay_rows, np.nan)
    return Answers(scored.outputs, scored.outputs[:, 0], scored.truth, before)


def _before(
    truth: npt.NDArray[Any], trained_on: npt.NDArray[Any] | None, delay_rows: int, nothing: float
) -> npt.NDArray[Any]:
    if delay_rows < 1:
        raise ValueError(f"delay_rows is {delay_rows}; a label can be known one row later at the earliest")
    earlier = truth[:0] if trained_on is None else trained_on[-delay_rows:].astype(truth.dtype)
    missing = np.full(delay_rows - len(earlier), nothing, truth.dtype)
    return np.concatenate([missing, earlier, truth])[: len(truth)]


# --------------------------------------------------------------------------- classification


def confusion(answers: Answers) -> Longs:
    """(classes + 1, classes): rows true class, columns predicted; the last row holds the classes nobody knew."""
    classes = answers.columns.shape[1]
    rows = np.where(answers.truth < 0, classes, answers.truth)
    counts = np.bincount(rows * classes + answers.predicted, minlength=(classes + 1) * classes)
    return counts.reshape(classes + 1, classes)


def rankings(answers: Answers) -> dict[int, Ranking]:
    """By class, one against all others: of the second class of two, of each of more."""
    classes = answers.columns.shape[1]
    ranked = [1] if classes == 2 else range(classes)
    return {c: rank(answers.columns[:, c], answers.truth == c) for c in ranked}


def classification(answers: Answers, ranked: dict[int, Ranking] | None = None) -> Metrics:
    """All point metrics of a classification; {} without rows. `ranked`: `rankings(answers)`, if already made.

    A row of an unknown class is a miss, and a negative of every class.
    """
    if not len(answers):
        return {}
    found = from_confusion(confusion(answers))
    found |= from_rankings(rankings(answers) if ranked is None else ranked)
    if is_probability(answers.columns):
        found["log_loss"] = float(log_losses(answers.columns, answers.truth).mean())
        found["brier"] = float(brier_losses(answers.columns, answers.truth).mean())
        bins = calibration.equal_mass(*calibration.confidence(answers.columns, answers.predicted, answers.truth))
        found["ece"] = calibration.ece(bins)
    told = answers.before != NOTHING_BEFORE
    if told.any():
        unchanged = (answers.truth == answers.before) & (answers.truth >= 0)
        right = answers.predicted == answers.truth
        found |= no_change(int(told.sum()), int(right[told].sum()), int(unchanged[told].sum()))
    return found


def from_confusion(counts: npt.NDArray[Any]) -> Metrics:
    """Metrics that the confusion matrix (see `confusion`; weights may be fractions) holds; at least one row.

    Macro metrics are means over the classes that occur in the truth. There a class never predicted has precision 0.
    """
    classes = counts.shape[1]
    hits, occurring, taken = counts[:classes].diagonal(), counts[:classes].sum(axis=1), counts.sum(axis=0)
    found = {"accuracy": float(hits.sum() / counts.sum())}
    occurs = occurring > 0
    if occurs.any():
        recalls = hits[occurs] / occurring[occurs]
        found["balanced_accuracy"] = float(recalls.mean())
        found["macro_precision"] = float(np.divide(hits, taken, out=np.zeros(classes), where=taken > 0)[occurs].mean())
        found["macro_recall"] = float(recalls.mean())
        found["macro_f1"] = float((2 * hits[occurs] / (occurring + taken)[occurs]).mean())
    if classes == 2:
        shares = {
            "precision": (hits[1], taken[1]),
            "recall": (hits[1], occurring[1]),
            "f1": (2 * hits[1], occurring[1] + taken[1]),
        }
        found |= {name: float(part / whole) for name, (part, whole) in shares.items() if whole > 0}
    return found


def from_rankings(ranked: dict[int, Ranking]) -> Metrics:
    """ROC-AUC and average precision: means over the classes that have them."""
    found = {}
    for name, of in (("roc_auc", roc_auc), ("pr_auc", average_precision)):
        values = [value for ranking in ranked.values() if (value := of(ranking)) is not None]
        if values:
            found[name] = float(np.mean(values))
    return found


def no_change(rows: float, hits: float, unchanged: float) -> Metrics:
    """The no-change baseline, and kappa-temporal (Zliobaite et al. 2015): 0 is no better than it, 1 perfect.

    Of the `rows` where an earlier truth was known: those that the model, and that the baseline, had right.
    """
    accuracy, baseline = hits / rows, unchanged / rows
    found = {"accuracy_of_no_change": baseline}
    if baseline < 1:
        found["kappa_temporal"] = (accuracy - baseline) / (1 - baseline)
    return found


def majority(answers: Answers, trained_on: Longs) -> Metrics:
    """Accuracy of always answering the most frequent class of the training rows."""
    known = trained_on[trained_on >= 0]
    if not len(known) or not len(answers):
        return {}
    return {"accuracy_of_majority": float((answers.truth == np.bincount(known).argmax()).mean())}


def is_probability(columns: Numbers) -> bool:
    """Whether all outputs lie in [0, 1], but for rounding of float32; those of a model without activation need not."""
    return not len(columns) or bool(columns.min() >= -ROUNDING and columns.max() <= 1 + ROUNDING)


def log_losses(columns: Numbers, truth: Longs) -> Numbers:
    """(n,) minus the natural logarithm of the probability of the truth, bounded by PROBABILITY_MIN."""
    of_truth = np.where(truth < 0, 0.0, columns[np.arange(len(truth)), np.maximum(truth, 0)])
    losses: Numbers = -np.log(np.clip(of_truth, PROBABILITY_MIN, 1.0))
    return losses


def brier_losses(columns: Numbers, truth: Longs) -> Numbers:
    """(n,) squared distance to the truth (Brier 1950), halved for two classes: there it is (p - y)^2, as usual."""
    # |p - e|^2 = |p|^2 - 2 p[truth] + 1, and |p|^2 where no class is the truth.
    of_truth = columns[np.arange(len(truth)), np.maximum(truth, 0)]
    squares = np.einsum("ij,ij->i", columns, columns) + np.where(truth < 0, 0.0, 1.0 - 2.0 * of_truth)
    losses: Numbers = np.maximum(squares, 0.0) / (2 if columns.shape[1] == 2 else 1)
    return losses


# --------------------------------------------------------------------------- regression


def regression(answers: Answers, quantile: float | None = None) -> Metrics:
    """All point metrics of a regression; {} without rows. r2 is absent where the truth is constant."""
    if not len(answers):
        return {}
    error = answers.truth - answers.predicted
    spread = float(((answers.truth - answers.truth.mean()) ** 2).sum())
    found = {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
    if spread > 0:
        found["r2"] = 1.0 - float((error**2).sum()) / spread
    if quantile is not None:
        found["quantile_loss"] = float(quantile_losses(error, quantile).mean())
    told = ~np.isnan(answers.before)
    if told.any():
        found |= _apart("no_change", (answers.truth - answers.before)[told])
    return found


def mean(answers: Answers, trained_on: Numbers) -> Metrics:
    """Errors of always answering the mean of the training rows."""
    return _apart("mean", answers.truth - trained_on.mean()) if len(trained_on) and len(answers) else {}


def quantile_losses(error: Numbers, quantile: float) -> Numbers:
    """(n,) pinball losses (Koenker & Bassett 1978) of truth - prediction; smallest where that quantile is predicted."""
    return np.maximum(quantile * error, (quantile - 1) * error)


def _apart(name: str, error: Numbers) -> Metrics:
    return {f"mae_of_{name}": float(np.abs(error).mean()), f"rmse_of_{name}": float(np.sqrt((error**2).mean()))}
