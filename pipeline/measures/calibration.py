"""Whether a probability means what it says: reliability bins, and a calibration error without the bias of binning.

With two classes the probability of the second is held against how often it came true; with more, the probability
of the predicted class against how often that was right (top-label calibration, Guo et al. 2017).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from pipeline.measures.intervals import wilson
from pipeline.measures.scored import Flags, Numbers
from pipeline.records import Longs

#: As many as Guo et al. 2017 and most papers since: figures can be laid beside theirs.
BINS_MAX = 15
#: Fewer rows than these and a bin's frequency is off by up to 0.11 (one standard error, 0.5 / sqrt(20)).
BIN_ROWS_MIN = 20


class Bins(NamedTuple):
    """Sums over the rows of each of m bins, by ascending confidence; all (m,) float64, no bin is empty."""

    counts: Numbers
    confidences: Numbers
    hits: Numbers


def confidence(columns: Numbers, predicted: Longs, truth: Longs) -> tuple[Numbers, Flags]:
    """(n,) the probability that is held to account, and (n,) whether it came true. columns: (n, classes)."""
    if columns.shape[1] == 2:
        return columns[:, 1], truth == 1
    return columns[np.arange(len(columns)), predicted], truth == predicted


def equal_mass(confidences: Numbers, hits: Flags) -> Bins:
    """Up to BINS_MAX bins of about the same number of rows, BIN_ROWS_MIN at least; rows of one value stay together."""
    order = np.argsort(confidences)
    ordered = confidences[order]
    starts = np.searchsorted(ordered, ordered[quantile_rows(len(ordered))])
    return _sums(np.ones(len(ordered)), ordered, hits[order].astype(np.float64), np.unique(starts))


def regrouped(fine: Bins) -> Bins:
    """The same from m fine bins (a histogram; here they may be empty): borders move to the nearest fine one below."""
    some = fine.counts > 0
    counts, confidences, hits = fine.counts[some], fine.confidences[some], fine.hits[some]
    rows = np.cumsum(counts)
    total = rows[-1] if len(rows) else 0.0
    # By weight, which need not be whole rows.
    bins = int(np.clip(total // BIN_ROWS_MIN, 1, BINS_MAX))
    starts = np.searchsorted(rows, total * np.arange(bins) / bins, side="right") if len(rows) else np.empty(0, np.int64)
    return _sums(counts, confidences, hits, np.unique(starts))


def quantile_rows(rows: int) -> Longs:
    """The row at which each equal-mass bin would begin, of rows in order."""
    bins = int(np.clip(rows // BIN_ROWS_MIN, 1, BINS_MAX)) if rows else 0
    return np.arange(bins, dtype=np.int64) * rows // max(bins, 1)


def _sums(counts: Numbers, confidences: Numbers, hits: Numbers, starts: Longs) -> Bins:
    if not len(starts):
        return Bins(*np.zeros((3, 0)))
    return Bins(*(np.add.reduceat(values, starts) for values in (counts, confidences, hits)))


def plain_ece(bins: Bins) -> float:
    """Mean over rows of |confidence - frequency| of their bin (Naeini et al. 2015): too large, by chance alone."""
    return float(np.abs(bins.confidences - bins.hits).sum() / bins.counts.sum())


def ece(bins: Bins) -> float:
    """Expected calibration error in L1, less the part of it that chance alone makes; 0 to 1, 0 without rows.

    A bin's gap is its mean confidence less its frequency, which is off by a standard error s. |gap| is then too large
    by E|N(m, s)| - |m|, m being the true gap (Kumar, Liang & Ma 2019, "Verified uncertainty calibration"). They
    evaluate it at m = gap, which removes 41 % of the excess of a calibrated model, as gaps of chance look real. Here m
    is the gap shrunk by one factor for all bins, so that their squares sum to Kumar's unbiased estimate of the squared
    error, sum of weight x (gap^2 - s^2): a calibrated model gets nearly nothing, and a large error is left as it is.
    Measured in tests/unit/test_measures_calibration.py, tabulated in docs/measures.md.
    """
    if not len(bins.counts):
        return 0.0
    weights = bins.counts / bins.counts.sum()
    frequency = bins.hits / bins.counts
    gaps = bins.confidences / bins.counts - frequency
    # A bin of one row (or less, where rows fade) says nothing of its spread: as uncertain as can be.
    variances = np.where(bins.counts > 1, frequency * (1 - frequency) / np.maximum(bins.counts - 1, 1e-9), 0.25)
    squared = float((weights * gaps**2).sum())
    if squared == 0:
        return 0.0
    shrink = math.sqrt(max(0.0, float((weights * (gaps**2 - variances)).sum())) / squared)
    excess = [
        _folded_mean(shrink * abs(g), math.sqrt(v)) - shrink * abs(g) for g, v in zip(gaps, variances, strict=True)
    ]
    return max(0.0, float((weights * (np.abs(gaps) - excess)).sum()))


def _folded_mean(mean: float, deviation: float) -> float:
    """E|N(mean, deviation)| for mean >= 0."""
    if deviation == 0:
        return mean
    z = mean / deviation
    return deviation * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + mean * math.erf(z / math.sqrt(2))


def reliability(bins: Bins) -> list[dict[str, Any]]:
    """One entry a bin: mean confidence, frequency with its 95 % Wilson interval, rows."""
    entries = []
    for count, confidences, hits in zip(*bins, strict=True):
        low, high = wilson(hits, count)
        entries.append(
            {
                "confidence": float(confidences / count),
                "frequency": float(hits / count),
                "low": low,
                "high": high,
                "count": round(float(count)),
            }
        )
    return entries
