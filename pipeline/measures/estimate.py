"""Accuracy before labels come: what a model's own confidence says of it, and how far off that was once they are there.

A calibrated model that is 0.8 sure is right in 8 of 10 rows, so its mean confidence is its accuracy. That holds while
inputs move and stops holding when their relation to the truth does (concept drift), which no one sees without labels.
So an estimate is shown with the error it had on the windows whose labels have come since.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ContractError
from pipeline.measures.intervals import Z
from pipeline.measures.scored import Numbers, Scored, by_class, predicted


@dataclass(frozen=True, slots=True)
class Estimate:
    """The accuracy that n rows without labels should have, and the 95 % range of what they then turn out to have."""

    accuracy: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Estimator:
    """By confidence (threshold None): the mean confidence, as NannyML's CBPE; the outputs must be calibrated.

    By threshold: the share of rows whose confidence reaches it, the average thresholded confidence (ATC) of Garg et al.
    2022, `fit` on labelled rows so that it gives their accuracy. It needs no calibration, and no better than order.
    """

    threshold: float | None = None

    @classmethod
    def fit(cls, scored: Scored) -> "Estimator":
        """By threshold. Raises ContractError without rows."""
        if not len(scored):
            raise ContractError("accuracy estimate: no labelled rows to fit its threshold on")
        right = int((predicted(scored.outputs) == scored.truth).sum())
        descending = np.sort(confidences(scored.outputs))[::-1]
        # Of all thresholds that as many rows reach as are right, the highest; above all of them if none is right.
        return cls(float(descending[right - 1]) if right else math.nextafter(float(descending[0]), math.inf))

    def estimate(self, outputs: Numbers) -> Estimate | None:
        """Of (n, width) probabilities; None without rows.

        The range is that of n independent rows each right with its chance, and so of sampling alone: under concept
        drift the accuracy lies outside.
        """
        rows = len(outputs)
        if not rows:
            return None
        chances = confidences(outputs)
        if self.threshold is not None:
            share = float((chances >= self.threshold).mean())
            return _ranged(share, share * (1 - share) / rows, rows)
        return _ranged(float(chances.mean()), float((chances * (1 - chances)).sum()) / rows**2, rows)


def _ranged(accuracy: float, variance: float, rows: int) -> Estimate:
    half = Z * math.sqrt(variance)
    return Estimate(accuracy, max(0.0, accuracy - half), min(1.0, accuracy + half), rows)


def confidences(outputs: Numbers) -> Numbers:
    """(n,) probability of the predicted class."""
    highest: Numbers = by_class(outputs).max(axis=1)
    return highest


def estimated_windows(scored: Scored, rows: int, estimator: Estimator) -> list[dict[str, Any]]:
    """Estimate beside truth in consecutive windows of `rows` rows; what is left over at the end is left out.

    [{first_time_ms, last_time_ms, rows, estimated, low, high, accuracy}].
    """
    found = []
    for start in range(0, len(scored) - rows + 1, rows):
        part = scored.take(slice(start, start + rows))
        estimate = estimator.estimate(part.outputs)
        assert estimate is not None
        found.append(
            {
                "first_time_ms": int(part.times_ms[0]),
                "last_time_ms": int(part.times_ms[-1]),
                "rows": rows,
                "estimated": estimate.accuracy,
                "low": estimate.low,
                "high": estimate.high,
                "accuracy": float((predicted(part.outputs) == part.truth).mean()),
            }
        )
    return found


def mean_absolute_error(windows: list[dict[str, Any]]) -> float | None:
    """How far estimates were from what labels then showed, mean over windows; None without any."""
    return float(np.mean([abs(w["estimated"] - w["accuracy"]) for w in windows])) if windows else None
