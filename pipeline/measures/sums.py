"""Metrics from sums over rows: one vector stands for any number of them, and vectors of parts add up to that of all."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.measures import calibration, metrics
from pipeline.measures.calibration import Bins
from pipeline.measures.ranking import Ranking
from pipeline.measures.scored import Metrics, Numbers, by_class, predicted
from pipeline.records import Longs, OutputContract

#: Bins of score histograms over all classes: 512 for each of two, 16 (BINS_MIN) for each of 64 or more.
SCORE_BINS, BINS_MIN = 1024, 16
#: Histograms have equal bins of the logit from -LOGIT_MAX to LOGIT_MAX (6e-6 to 1 - 6e-6): where the scores of rare
#: classes crowd, near 0, bins are narrow as well. 512 bins are 0.047 wide, 0.012 in probability at most.
LOGIT_MAX = 12.0
#: Sums of a classification beside its confusion matrix and its histograms.
_SCALARS = 6


@dataclass(frozen=True, slots=True)
class Sums:
    """How rows of one kind of model become sums in one float64 vector, and how metrics follow from it.

    Classification, k classes, b bins: confusion (k + 1, k); log losses, Brier losses, rows outside [0, 1]; rows, hits
    and no-change hits where an earlier truth was known; by score of each ranked class, positives and negatives (b
    each); by confidence, rows, confidences and hits (b each). Regression: rows, |e|, e^2, pinball losses, truth less
    `origin` and its square; rows, |e| and e^2 of no-change.
    """

    output: OutputContract
    #: What a regression predicts, if not the mean.
    quantile: float | None = None
    #: Near the mean of a regression's truth (of the training rows, say): r2 would lose digits far from it.
    origin: float = 0.0

    @property
    def classes(self) -> int:
        return max(2, self.output.width)

    @property
    def bins(self) -> int:
        """Bins of each histogram."""
        return max(BINS_MIN, SCORE_BINS // self.classes)

    @property
    def size(self) -> int:
        """Length of the vector: 2,572 for two classes, 13,354 for a hundred."""
        if self.output.kind == "regression":
            return 9
        return self._table + _SCALARS + (2 * len(self._ranked) + 3) * self.bins

    @property
    def _table(self) -> int:
        return (self.classes + 1) * self.classes

    @property
    def _ranked(self) -> range:
        """Classes that are ranked against all others, as in metrics.rankings."""
        return range(1, 2) if self.classes == 2 else range(self.classes)

    def of(self, outputs: Numbers, truth: npt.NDArray[Any], before: npt.NDArray[Any]) -> Numbers:
        """(size,) of n rows: outputs (n, width) float64, truth and `before` as in metrics.Answers."""
        if self.output.kind == "regression":
            return self._of_values(truth - outputs[:, 0], truth - self.origin, truth - before)
        return self._of_classes(by_class(outputs), predicted(outputs), truth, before)

    def _of_classes(self, columns: Numbers, labels: Longs, truth: Longs, before: Longs) -> Numbers:
        parts: list[Any] = [metrics.confusion(metrics.Answers(columns, labels, truth, before)).ravel()]
        outside = ((columns < -metrics.ROUNDING) | (columns > 1 + metrics.ROUNDING)).any(axis=1)
        columns = np.clip(columns, 0.0, 1.0)
        parts.append([metrics.log_losses(columns, truth).sum(), metrics.brier_losses(columns, truth).sum()])
        told, right = before != metrics.NOTHING_BEFORE, labels == truth
        unchanged = (truth == before) & (truth >= 0)
        parts.append([outside.sum(), told.sum(), right[told].sum(), unchanged[told].sum()])
        for c in self._ranked:
            bins, positive = self._bin(columns[:, c]), truth == c
            parts += [np.bincount(bins[rows], minlength=self.bins) for rows in (positive, ~positive)]
        confidences, hits = calibration.confidence(columns, labels, truth)
        bins = self._bin(confidences)
        parts += [np.bincount(bins, weights, minlength=self.bins) for weights in (None, confidences, hits)]
        return np.concatenate(parts).astype(np.float64)

    def _of_values(self, error: Numbers, centred: Numbers, change: Numbers) -> Numbers:
        told = change[~np.isnan(change)]
        pinball = 0.0 if self.quantile is None else metrics.quantile_losses(error, self.quantile).sum()
        sums = [len(error), np.abs(error).sum(), (error**2).sum(), pinball, centred.sum(), (centred**2).sum()]
        return np.array([*sums, len(told), np.abs(told).sum(), (told**2).sum()], dtype=np.float64)

    def _bin(self, probabilities: Numbers) -> Longs:
        with np.errstate(divide="ignore"):
            logits = np.log(probabilities) - np.log1p(-probabilities)
        scaled = (np.clip(logits, -LOGIT_MAX, LOGIT_MAX) + LOGIT_MAX) * (self.bins / (2 * LOGIT_MAX))
        bins: Longs = np.minimum(scaled.astype(np.int64), self.bins - 1)
        return bins

    # ----------------------------------------------------------------------- metrics

    def rows(self, sums: Numbers) -> float:
        """How many rows are in it; where rows fade, their weight."""
        return float(sums[0] if self.output.kind == "regression" else sums[: self._table].sum())

    def metrics(self, sums: Numbers) -> Metrics:
        """As `measure` names them, from sums; {} without rows.

        Exact but for rounding, except three. `roc_auc` counts pairs within one bin as ties, and is off by at most
        `roc_auc_error`; `pr_auc` by at most `pr_auc_error`. `ece` is exact for equal-mass bins whose borders are
        borders of the histogram. Absent if any output is no probability: those three and the losses.
        """
        if self.rows(sums) <= 0:
            return {}
        return self._regression(sums) if self.output.kind == "regression" else self._classification(sums)

    def _classification(self, sums: Numbers) -> Metrics:
        found = metrics.from_confusion(sums[: self._table].reshape(self.classes + 1, self.classes))
        log_loss, brier, outside, told, hits, unchanged = sums[self._table : self._table + _SCALARS].tolist()
        if not outside:
            rows = self.rows(sums)
            found |= {"log_loss": log_loss / rows, "brier": brier / rows}
            # The highest scores first, as a Ranking has them.
            pairs = sums[self._table + _SCALARS : -3 * self.bins].reshape(len(self._ranked), 2, self.bins)[:, :, ::-1]
            found |= metrics.from_rankings({c: Ranking(*np.cumsum(pair, axis=1)) for c, pair in enumerate(pairs)})
            for name, error_of in (("roc_auc_error", _roc_auc_error), ("pr_auc_error", _pr_auc_error)):
                errors = [error for pair in pairs if (error := error_of(*pair)) is not None]
                if errors:
                    found[name] = float(np.mean(errors))
            found["ece"] = calibration.ece(self._reliability(sums))
        return found | (metrics.no_change(told, hits, unchanged) if told > 0 else {})

    def _regression(self, sums: Numbers) -> Metrics:
        rows, absolute, squared, pinball, total, squares, told, change, changes = sums.tolist()
        spread = squares - total**2 / rows
        found = {"mae": absolute / rows, "rmse": float(np.sqrt(squared / rows))}
        # Less than that is what rounding leaves of a constant.
        if spread > 1e-12 * squares:
            found["r2"] = 1.0 - squared / spread
        if self.quantile is not None:
            found["quantile_loss"] = pinball / rows
        if told > 0:
            found |= {"mae_of_no_change": change / told, "rmse_of_no_change": float(np.sqrt(changes / told))}
        return found

    def reliability(self, sums: Numbers) -> list[dict[str, Any]]:
        """Reliability bins as in `measure`; [] for a regression, and where an output is no probability."""
        if self.output.kind == "regression" or sums[self._table + 2]:
            return []
        return calibration.reliability(self._reliability(sums))

    def _reliability(self, sums: Numbers) -> Bins:
        return calibration.regrouped(Bins(*sums[-3 * self.bins :].reshape(3, self.bins)))


def _roc_auc_error(positives: Numbers, negatives: Numbers) -> float | None:
    """Half the share of pairs that one bin holds both of: they may all be in the right order, or all in the wrong."""
    pairs = positives.sum() * negatives.sum()
    return float((positives * negatives).sum() / pairs / 2) if pairs > 0 else None


def _pr_auc_error(positives: Numbers, negatives: Numbers) -> float | None:
    """How far average precision may be from that of the bins, the highest first, whatever the order within them.

    It is the mean over positives of the precision at each. In a bin of p positives, with a positives and w negatives
    above it, that is lowest if its n negatives come first: (a + x) / (a + x + c) at the x-th, c = w + n, together at
    least the integral over x, p - c ln((a + p + c) / (a + c)). It is highest if they come last: (a + p) / (a + p + w).
    """
    total = positives.sum()
    if total <= 0:
        return None
    held = positives > 0
    p, a, w = positives[held], (np.cumsum(positives) - positives)[held], (np.cumsum(negatives) - negatives)[held]
    c = w + negatives[held]
    low = p - c * np.log1p(np.divide(p, a + c, out=np.zeros_like(p), where=c > 0))
    middle, high = p * (a + p) / (a + p + c), p * (a + p) / (a + p + w)
    return float(max(middle.sum() - low.sum(), high.sum() - middle.sum()) / total)
