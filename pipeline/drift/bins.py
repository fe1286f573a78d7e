"""Which bin a value falls in, and the number in [0, 1] that stands for it.

ADWIN and the confirming test need bounded values, and neither may be at the mercy of one outlier: so
a value is replaced by the level of its bin on the baseline's histogram. Three kinds of signal:

    share   0/1 indicators (null:, class:, category:, slice:, rejected, error:wrong): the value itself
    mode    one value holds most of the baseline (a constant too): 1 for any other value
    rank    all others: the mid-rank among the baseline's values, so its mean there is exactly 1/2

On normal values with 16 equal bins the mid-rank keeps about 95 % of the mean's power to find a shift
(Wilcoxon's efficiency, 3/π, holds for infinitely many bins), and it keeps it under heavy tails.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.records import Baseline, Floats, SignalBaseline

Kind = Literal["share", "mode", "rank"]

#: A value held by at least this share of the baseline makes the signal a "mode" signal: the ranks of
#: the rest would be too skewed for a normal approximation.
MODE_SHARE = 0.75

INDICATORS = ("null:", "class:", "category:", "slice:", "rejected", "error:wrong")


def is_indicator(signal: str) -> bool:
    """Whether a signal's values are 0 or 1 by its name."""
    return signal.startswith(INDICATORS)


def kind_of(baseline: SignalBaseline) -> Kind:
    """How this signal's values are bounded."""
    if is_indicator(baseline.name):
        return "share"
    return "mode" if baseline.count and max(baseline.histogram) >= MODE_SHARE * baseline.count else "rank"


def levels_of(baseline: SignalBaseline) -> npt.NDArray[np.float64]:
    """The level in [0, 1] of each of the m bins, (m,)."""
    histogram = np.array(baseline.histogram, dtype=np.float64)
    kind = kind_of(baseline)
    if kind == "share":
        return np.array([0.0, 1.0])
    if kind == "mode":
        levels = np.ones(len(histogram))
        levels[histogram.argmax()] = 0.0
        return levels
    share = histogram / max(1, baseline.count)
    return np.cumsum(share) - share / 2


def cut_points(values: Floats, bins: int = 16) -> list[float]:
    """Interior cut points of about `bins` equally filled bins of a non-empty float32 sample.

    Cuts are values of the sample, a bin being (cut, next cut]. A value so frequent that several
    quantiles fall on it gets a bin of its own, so ties never hide inside a bin.
    """
    quantiles = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf").astype(np.float32)
    found, times = np.unique(quantiles, return_counts=True)
    cuts = set(found.tolist())
    below = np.nextafter(found[times > 1], np.float32(-np.inf))
    cuts.update(below.tolist())
    return sorted(cuts)


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of all signals as arrays: what the summariser works with.

    cuts: float32 (signals, c), padded with +inf; counts: cuts of each signal; width: c + 2, the
    largest number of bins plus one for "no value"; levels: float64 (signals, width), padded with 0.
    """

    cuts: Floats
    counts: npt.NDArray[np.int64]
    levels: npt.NDArray[np.float64]
    width: int

    @classmethod
    def of(cls, baseline: Baseline) -> "Bins":
        """Bins of each signal of `baseline`, in its order."""
        interior = [signal.edges[1:-1] for signal in baseline.signals]
        most = max((len(cuts) for cuts in interior), default=0)
        cuts = np.full((len(interior), most), np.inf, dtype=np.float32)
        levels = np.zeros((len(interior), most + 2))
        for row, (signal, points) in enumerate(zip(baseline.signals, interior, strict=True)):
            cuts[row, : len(points)] = points
            levels[row, : len(points) + 1] = levels_of(signal)
        return cls(cuts, np.array([len(c) for c in interior], dtype=np.int64), levels, most + 2)
