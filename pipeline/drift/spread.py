"""Signals whose values scatter more, or less, than they did, around a mean that stays.

Of the stretches of the recent past (history.py) the histograms are there. From them comes, per signal and stretch, the
mean of the *fold* |2 rank - 1|: 1/2 on the baseline, more where values lie further out. Its means before and after each
boundary of stretches are compared as detector.py compares those of ranks, at the same limit. So workers and summaries
need nothing new, and a look at all signals takes a quarter of a millisecond, once in 256 events.
"""

import math

import numpy as np
import numpy.typing as npt

from pipeline.drift.baseline import cautious_time
from pipeline.drift.bins import kind_of, levels_of
from pipeline.drift.detector import SIDE_BLOCKS_MIN, alarm_limit, block_values
from pipeline.drift.history import Stretch
from pipeline.drift.parts import slice_score
from pipeline.records import Baseline, SignalBaseline

Doubles = npt.NDArray[np.float64]

#: Stretches before the first comparison: neighbours among them tell how the fold swings.
STRETCHES_MIN = 16
#: A change of the fold's mean by less than this many of its standard deviations is nobody's drift: a normal value's
#: standard deviation times 1.3, from E |2 Phi(s x) - 1| = 2 arctan(s) / pi.
EFFECT_MIN_SD = 0.29


def scatters(signal: SignalBaseline) -> bool:
    """Whether a signal's spread is watched: numbers and scores that vary; a share's spread is its mean's affair.

    Not that of scores within slices: it would double their comparisons.
    """
    number = signal.name.startswith(("feature:", "score:")) and slice_score(signal.name) is None
    return number and signal.count > 0 and kind_of(signal) == "rank"


def fold_time(signal: SignalBaseline) -> float:
    """Autocorrelation time of the fold of a first-order normal process with the signal's own (cautious) time.

    The fold is even, so what is left of its autocorrelation after k steps is about r^2k (Mehler's formula).
    """
    time = cautious_time(signal)
    squared = ((time - 1.0) / (time + 1.0)) ** 2
    return (1.0 + squared) / (1.0 - squared)


class SpreadScan:
    """Strengths of a change of spread of each signal at each boundary between stretches. Holds no state."""

    def __init__(self, baseline: Baseline, delta: float, comparisons: int) -> None:
        """delta, comparisons: as for detector.alarm_limit; comparisons are all that the monitor makes."""
        signals = baseline.signals
        self.watched = [index for index, signal in enumerate(signals) if scatters(signal)]
        width = max((len(signal.histogram) for signal in signals), default=1)
        chosen = [signals[index] for index in self.watched]
        self._folds = np.zeros((len(chosen), width))
        self._variances, self._times = np.ones(len(chosen)), np.ones(len(chosen))
        self._enough, self.limits = np.ones((2, len(chosen)))
        for row, signal in enumerate(chosen):
            fold = np.abs(2.0 * levels_of(signal) - 1.0)
            share = np.array(signal.histogram) / signal.count
            self._folds[row, : len(fold)] = fold
            self._variances[row] = max(1e-9, float(share @ fold**2) - float(share @ fold) ** 2)
            self._times[row] = fold_time(signal)
            self.limits[row] = alarm_limit(delta, comparisons, block_values(baseline.block_events, self._times[row]))
            self._enough[row] = SIDE_BLOCKS_MIN * block_values(baseline.block_events, self._times[row])
        self._effects = EFFECT_MIN_SD * np.sqrt(self._variances)[:, None]

    def strengths(self, stretches: list[Stretch]) -> Doubles | None:
        """|z| of a change at each stretch's start, (watched, stretches); 0 where it may not alarm. None: too few."""
        if not self.watched or len(stretches) < STRETCHES_MIN:
            return None
        histograms = np.stack([stretch.histograms[self.watched] for stretch in stretches])  # (stretches, watched, bins)
        values = histograms.sum(axis=2).T
        sums = np.einsum("tsb,sb->st", histograms, self._folds)
        # The first one may hold some of what was before the latest trigger: it is kept by what most of it is.
        values[:, 0] = sums[:, 0] = 0.0
        n1, s1 = (np.cumsum(side[:, ::-1], axis=1)[:, ::-1] for side in (values, sums))
        n0, s0 = n1[:, :1] - n1, s1[:, :1] - s1
        moved = np.abs(s1 / np.maximum(n1, 1.0) - s0 / np.maximum(n0, 1.0))
        variance = (self._variances * self._times * self._excess(values, sums))[:, None]
        z = moved / np.sqrt(variance * (1.0 / np.maximum(n0, 1.0) + 1.0 / np.maximum(n1, 1.0)))
        enough = np.minimum(n0, n1) >= self._enough[:, None]
        found: Doubles = np.where(enough & (moved >= self._effects), z, 0.0)
        return found

    def _excess(self, values: Doubles, sums: Doubles) -> Doubles:
        """By how much the fold swings from stretch to stretch more than promised, as factors >= 1 on its time.

        Volatility that clusters says nothing of itself in the mean's autocorrelation. The median over neighbours is not
        moved by one change; 0.455 is that of a squared normal value. Below 1.5 it is taken for noise.
        """
        means = sums / np.maximum(values, 1.0)
        inverse = 1.0 / np.maximum(values, 1.0)
        promised = (self._variances * self._times)[:, None] * (inverse[:, 1:] + inverse[:, :-1])
        there = (values[:, 1:] > 0) & (values[:, :-1] > 0)
        ratios = np.where(there, np.diff(means, axis=1) ** 2 / promised, math.nan)
        with np.errstate(all="ignore"):
            excess = np.nanmedian(ratios, axis=1) / 0.455
        factors: Doubles = np.where(excess > 1.5, excess, 1.0)
        return factors
