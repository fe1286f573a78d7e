"""How well scores put one class before the rest: ROC-AUC, average precision, and their curves."""

from typing import Any, NamedTuple

import numpy as np

from pipeline.measures.scored import Flags, Numbers
from pipeline.records import Longs

#: Points of a curve in a report: more than a plot 800 pixels wide can show apart, and 20 kB of JSON at most.
CURVE_POINTS_MAX = 256


class Ranking(NamedTuple):
    """How many rows score at least each of m thresholds, the highest first: (m,) int64, the last one all rows."""

    positives: Longs
    negatives: Longs


def rank(scores: Numbers, positive: Flags) -> Ranking:
    """The ranking of (n,) scores; rows of the same score have one threshold, so that their order cannot matter."""
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], np.ones(min(1, len(scores)), bool)))
    positives = np.cumsum(positive[order], dtype=np.int64)[last]
    return Ranking(positives, last + 1 - positives)


def roc_auc(ranking: Ranking) -> float | None:
    """P(a positive scores above a negative), ties half (Mann-Whitney); None unless there are both."""
    positives, negatives = _totals(ranking)
    if not positives or not negatives:
        return None
    above = np.concatenate([[0.0], ranking.positives[:-1]])
    pairs = np.diff(ranking.negatives, prepend=0) * (above + ranking.positives) / 2
    return float(pairs.sum() / (float(positives) * negatives))


def average_precision(ranking: Ranking) -> float | None:
    """Sum of precision x gain of recall over the thresholds, without interpolation; None without positives.

    Linear interpolation between points of a precision-recall curve is too hopeful (Davis & Goadrich 2006).
    """
    positives, _ = _totals(ranking)
    if not positives:
        return None
    precision = ranking.positives / np.maximum(ranking.positives + ranking.negatives, 1)
    return float((np.diff(ranking.positives, prepend=0) * precision).sum() / positives)


def roc_curve(ranking: Ranking) -> dict[str, list[float]]:
    """From (0, 0) to (1, 1), at most CURVE_POINTS_MAX points evenly along the curve; empty unless there are both."""
    positives, negatives = _totals(ranking)
    if not positives or not negatives:
        return {"false_positive_rate": [], "true_positive_rate": []}
    rates = (
        np.concatenate([[0.0], ranking.negatives / negatives]),
        np.concatenate([[0.0], ranking.positives / positives]),
    )
    shown = _spread(rates[0] + rates[1])
    return {"false_positive_rate": rates[0][shown].tolist(), "true_positive_rate": rates[1][shown].tolist()}


def pr_curve(ranking: Ranking) -> dict[str, list[float]]:
    """Recall and precision, the highest threshold first, at most CURVE_POINTS_MAX points; empty without positives."""
    positives, negatives = _totals(ranking)
    if not positives:
        return {"recall": [], "precision": []}
    flagged = ranking.positives + ranking.negatives
    # A histogram may begin with empty bins, where nothing is flagged and precision means nothing.
    begun = flagged > 0
    recall = ranking.positives[begun] / positives
    precision = ranking.positives[begun] / flagged[begun]
    shown = _spread(recall + flagged[begun] / (positives + negatives))
    return {"recall": recall[shown].tolist(), "precision": precision[shown].tolist()}


def _totals(ranking: Ranking) -> tuple[int, int]:
    return (int(ranking.positives[-1]), int(ranking.negatives[-1])) if len(ranking.positives) else (0, 0)


def _spread(along: Numbers) -> Any:
    """Indices of points about evenly spaced in the ascending `along`, both ends included."""
    if len(along) <= CURVE_POINTS_MAX:
        return slice(None)
    return np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], CURVE_POINTS_MAX)))
