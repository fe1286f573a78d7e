"""Whether one model is better than another on the same rows, or only seems so."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.measures.scored import Flags, Numbers

#: Resamples: the 2.5 % quantile then rests on 50 of them, and is off by 14 % of its tail probability (1 / sqrt(50)).
RESAMPLES = 2000
#: Blocks drawn for one resample, at most; with more rows blocks grow, so that the cost stays at 4M sums (~40 ms). A
#: standard deviation from 2,000 blocks is known to 1 / sqrt(2 x 2000) = 1.6 %.
BLOCKS_MAX = 2000


@dataclass(frozen=True, slots=True)
class McNemar:
    """Rows that only one of two classifiers had right, and the two-sided p-values of "both err as often"."""

    only_first: int
    only_second: int
    #: Never too small, so rather too large.
    p_exact: float
    #: Half the probability of the observed table less: nearer to the nominal size (Fagerland et al. 2013).
    p_mid: float


def mcnemar(first_right: Flags, second_right: Flags) -> McNemar:
    """McNemar's test (1947), exact and mid-p, of (n,) hits on the same rows, which must be independent.

    With autocorrelated rows take `paired_bootstrap` with blocks. p is 1 where the two never differ.
    """
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    if not discordant:
        return McNemar(0, 0, 1.0, 1.0)
    # Binomial(discordant, 1/2) at 0..fewer, by logarithms of the ratios of neighbours.
    steps = np.log((discordant - np.arange(fewer)) / (np.arange(fewer) + 1.0))
    terms = np.exp(np.concatenate([[0.0], np.cumsum(steps)]) - discordant * math.log(2))
    exact = 2 * float(terms.sum())
    # Where both have as many, the tails overlap in the middle term: exact is then above 1.
    middle = only_first == only_second
    mid = 1.0 - float(terms[-1]) / 2 if middle else exact - float(terms[-1])
    return McNemar(only_first, only_second, min(1.0, exact), mid)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean loss of the second less that of the first: below 0 the second is better."""

    mean: float
    #: Bounds of the two-sided interval.
    low: float
    high: float
    #: Two-sided, of "the mean losses are the same".
    p: float
    rows: int
    block_rows: int


def paired_bootstrap(
    first: Numbers,
    second: Numbers,
    *,
    block_rows: int | None = 1,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Bootstrap of the mean difference of two (n,) losses of the same rows, in order of time; any loss will do.

    block_rows: 1 for independent rows; more, or None to choose by `block_rows_of`, where neighbours resemble each
    other: whole blocks are drawn then (circular block bootstrap, Politis & Romano 1992), which keeps what is within
    them. The interval is the mean less the quantiles of the resampled deviations ("basic", Davison & Hinkley 1997);
    p counts deviations at least as large as the mean. With fewer than two blocks everything is open: p is 1, the
    bounds are infinite.
    """
    rows = len(first)
    differences = second - first
    block = block_rows_of(differences) if block_rows is None else block_rows
    block = max(block, 1, math.ceil(rows / BLOCKS_MAX))
    blocks = math.ceil(rows / block)
    mean = float(differences.mean()) if rows else 0.0
    if blocks < 2:
        return Difference(mean, -math.inf, math.inf, 1.0, rows, block)
    sums = np.cumsum(np.concatenate([[0.0], differences - mean, (differences - mean)[: block - 1]]))
    sums = sums[block:] - sums[:-block]
    starts = np.random.default_rng(seed).integers(0, rows, (resamples, blocks), dtype=np.int32)
    deviations = sums[starts].sum(axis=1) / (blocks * block)
    # Blocks that do not divide the rows draw some rows too many: as if there were blocks x block of them.
    deviations *= math.sqrt(blocks * block / rows)
    # Of b blocks the deviations are too small by sqrt((b - 1) / b), as any plug-in variance is.
    deviations *= math.sqrt(blocks / (blocks - 1))
    low, high = np.quantile(deviations, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = (1 + int((np.abs(deviations) >= abs(mean)).sum())) / (resamples + 1)
    return Difference(mean, mean - float(high), mean - float(low), p, rows, block)


def block_rows_of(differences: Numbers) -> int:
    """The length of blocks, in rows, that suits (n,) values in order of time; 1 where neighbours are unrelated.

    (6 r^2 / (1 - r^2)^2)^(1/3) x n^(1/3): the best one for the circular block bootstrap of the mean of a first-order
    autoregression (Politis & White 2004, with its spectrum), r being the autocorrelation with the row before. At most
    a tenth of the rows, so that ten blocks remain.
    """
    rows = len(differences)
    centred = differences - differences.mean() if rows else differences
    power = float(centred @ centred)
    if rows < 20 or power == 0:
        return 1
    r = float(centred[1:] @ centred[:-1]) / power
    # An autocorrelation that chance makes: 1.96 standard errors of white noise.
    if r < 1.96 / math.sqrt(rows):
        return 1
    r = min(r, 0.999)
    return int(np.clip(round((6 * r**2 / (1 - r**2) ** 2 * rows) ** (1 / 3)), 1, rows // 10))
