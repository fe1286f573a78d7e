"""A mean that is looked at again and again while values come, and bounds that hold at all looks together.

Whoever looks often enough at a usual 95 % interval sees it miss for certain. These bounds are a confidence sequence:
with probability 1 - alpha the mean is within them at every look there ever is, however often and whenever one looks
(Robbins 1970; Howard, Ramdas, McAuliffe & Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence
sequences"). They rest on the central limit theorem, as Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024
("Time-uniform central limit theory and asymptotic confidence sequences") justify, for means that change with time, too;
so a few hundred values come before the first look.

Values that come one after the other resemble each other. So the variance is that of means of blocks, as for the gate
(comparing.block_means), which lengthen as values come (Glynn & Whitt 1992 show when that is consistent).
"""

import math
from statistics import NormalDist

import numpy as np

from pipeline.measures.scored import Numbers
from pipeline.retraining.comparing import student_t

#: Blocks kept at most; one more, and two neighbours become one. Ten blocks, the fewest a spread is told from, then are
#: a twelfth of these at least, so lengths from n/128 to n/10 are looked at.
BLOCKS_MAX = 128
BLOCKS_MIN = 10


def anytime_z(ratio: float, alpha: float) -> float:
    """The normal quantile whose place it takes, for one side: standard errors that a mean is off by, at any look.

    ratio: values so far over n0, the number for which the bound is tuned: for alpha 0.05 it is least at 8 n0, 2.78
    (one look there would have 1.64), and within 5 % of that from 3 n0 to 40 n0. The one-sided normal mixture in closed
    form of Howard et al. 2021, section 3.2.
    """
    return math.sqrt(2 * (1 + 1 / ratio) * math.log1p(math.sqrt(1 + ratio) / (2 * alpha)))


class BlockMeans:
    """Values in their order as means of up to 128 blocks of equal length: 1 kB, however many come."""

    def __init__(self) -> None:
        #: (m,) means of whole blocks, each of `length` values.
        self.means: Numbers = np.empty(0)
        self.length = 1
        self._begun: Numbers = np.empty(0)

    def __len__(self) -> int:
        """Values in whole blocks."""
        return len(self.means) * self.length

    @property
    def mean(self) -> float:
        """Of the values in whole blocks, of which there must be one."""
        return float(self.means.mean())

    def add(self, values: Numbers) -> None:
        """The next (n,) values."""
        values = np.concatenate([self._begun, values])
        whole = len(values) // self.length * self.length
        self._begun = values[whole:]
        self.means = np.concatenate([self.means, values[:whole].reshape(-1, self.length).mean(axis=1)])
        while len(self.means) > BLOCKS_MAX:
            if len(self.means) % 2:  # the last one has no neighbour yet: its mean stands for its values
                self._begun = np.concatenate([np.full(self.length, self.means[-1]), self._begun])
            self.means = _paired(self.means[: len(self.means) // 2 * 2])
            self.length *= 2

    def half_width(self, z: float) -> float:
        """By how much the mean may be off, z standard errors of a normal mean; infinite with fewer than ten blocks.

        The widest of Student's t of these blocks, of pairs of them, of pairs of pairs: short blocks miss what is
        common to neighbours, long ones are few.
        """
        share, means, widest = NormalDist().cdf(z), self.means, math.inf
        if len(means) >= BLOCKS_MIN:
            widest = 0.0
        while (blocks := len(means)) >= BLOCKS_MIN:
            half = student_t(share, blocks - 1) * float(means.std(ddof=1)) / math.sqrt(blocks)
            widest = max(widest, half)
            means = _paired(means[blocks % 2 :])
        return widest


def _paired(means: Numbers) -> Numbers:
    paired: Numbers = means.reshape(-1, 2).mean(axis=1)
    return paired
