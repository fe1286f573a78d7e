"""Gaps between a slice and the rest, and accuracy as confidences have it, from the sums of tallies.

The same measures as measures/slices.py and measures/estimate.py have of rows, with the same intervals. Where in a
vector of sums they lie is told by measures/sums.py.
"""

import math
from collections.abc import Iterator
from typing import Any

from pipeline.measures.intervals import Z, newcombe
from pipeline.measures.scored import Numbers
from pipeline.measures.slices import GAP_ROWS_MIN
from pipeline.measures.sums import Sums

#: As measures.slices.gaps gives it, a dict for JSON.
Gap = dict[str, Any]


def gaps(field: str, value: str | None, inside: Numbers, whole: Numbers, sums: Sums) -> list[Gap]:
    """How a slice differs from the rest, with 95 % intervals; a gap with too few rows on one side is left out.

    inside, whole: sums of the slice's rows, and of all rows, those of the slice included.
    """
    rest = whole - inside
    compared = _errors(inside, rest) if sums.output.kind == "regression" else _shares(inside, rest, sums)
    return [
        {
            "field": field,
            "value": value,
            "measure": measure,
            "value_of_slice": these,
            "of_rest": those,
            "difference": difference,
            "low": low,
            "high": high,
            "rows": rows,
        }
        for measure, rows, these, those, (difference, low, high) in compared
    ]


_Compared = Iterator[tuple[str, int, float, float, tuple[float, float, float]]]


def _shares(inside: Numbers, rest: Numbers, sums: Sums) -> _Compared:
    for name, mine, theirs in zip(*_names_and_counts(inside, rest, sums), strict=True):
        (hits, rows), (other_hits, other_rows) = mine, theirs
        if min(rows, other_rows) >= GAP_ROWS_MIN:
            yield name, rows, hits / rows, other_hits / other_rows, newcombe(hits, rows, other_hits, other_rows)


def _names_and_counts(inside: Numbers, rest: Numbers, sums: Sums) -> tuple[Any, Any, Any]:
    names = ("selection_rate", "true_positive_rate", "false_positive_rate") if sums.classes == 2 else ("accuracy",)
    return names, _counts(inside, sums), _counts(rest, sums)


def _counts(vector: Numbers, sums: Sums) -> list[tuple[int, int]]:
    """(hits, rows) of each measure: confusion[true, predicted], the last row being of unknown classes."""
    confusion = vector[: (sums.classes + 1) * sums.classes].reshape(sums.classes + 1, sums.classes)
    if sums.classes > 2:
        return [_whole(confusion[:-1].diagonal().sum(), confusion.sum())]
    positive, negative = confusion[1], confusion[0] + confusion[2]
    both = positive + negative
    return [_whole(part[1], part.sum()) for part in (both, positive, negative)]


def _whole(hits: float, rows: float) -> tuple[int, int]:
    return round(float(hits)), round(float(rows))


def _errors(inside: Numbers, rest: Numbers) -> _Compared:
    """Mean absolute errors, by Welch's normal interval: a vector begins with rows, sums of |e| and of e^2."""
    rows, others = round(float(inside[0])), round(float(rest[0]))
    if min(rows, others) < GAP_ROWS_MIN:
        return
    these, those = float(inside[1]) / rows, float(rest[1]) / others
    variances = [
        max(0.0, float(v[2]) - n * mean**2) / (n - 1) / n
        for v, n, mean in ((inside, rows, these), (rest, others, those))
    ]
    half = Z * math.sqrt(sum(variances))
    difference = these - those
    yield "mae", rows, these, those, (difference, difference - half, difference + half)


def estimated_accuracy(vector: Numbers, sums: Sums) -> float | None:
    """Mean confidence in the predicted class: what a calibrated model's accuracy would be (see measures/estimate.py).

    None without rows, and where outputs are no probabilities. Of two classes the histogram has the probability of the
    second; 1/2 is a border of its bins, so all rows of a bin have one predicted class.
    """
    rows = sums.rows(vector)
    if rows <= 0 or not sums.reliability(vector):
        return None
    counts, confidences, _ = vector[-3 * sums.bins :].reshape(3, sums.bins)
    if sums.classes == 2:
        half = sums.bins // 2
        return float(((counts - confidences)[:half].sum() + confidences[half:].sum()) / rows)
    return float(confidences.sum() / rows)
