"""By how much the mean loss of one model differs from another's on the same rows, and within which bounds.

Rows are in order of event time, and neighbours may resemble each other: what a bound says must hold then, too.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pipeline.errors import ContractError
from pipeline.measures import metrics
from pipeline.measures.paired import block_rows_of, paired_bootstrap
from pipeline.measures.scored import Numbers, Scored, by_class, predicted
from pipeline.records import OutputContract

#: The share of real gains that "can be found" stands for.
POWER = 0.8
#: Losses of each kind of model, the first unless told otherwise.
LOSSES = {
    "classification": ("error", "balanced_error", "log_loss"),
    "regression": ("absolute_error", "squared_error"),
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Mean loss of the second less that of the first (below 0 the second is better), and its one-sided bounds."""

    mean: float
    #: The true difference is below `low` with probability alpha, and above `high` with alpha.
    low: float
    high: float
    rows: int

    def findable(self, alpha: float) -> float:
        """The gain that these rows would have shown in 8 of 10 cases: (z of 1 - alpha + z of 0.8) standard errors."""
        if not math.isfinite(self.high - self.low):
            return math.inf
        z = NormalDist().inv_cdf(1 - alpha)
        return (z + NormalDist().inv_cdf(POWER)) * (self.high - self.low) / (2 * z)


def losses(name: str, scored: Scored, output: OutputContract) -> Numbers:
    """(n,) losses of a model, smaller is better. Raises ContractError for a loss of the other kind of model.

    error: 0 or 1. log_loss: in nats. absolute_error, squared_error: in the unit of the truth, or its square.
    balanced_error: as error; `paired_losses` weighs it.
    """
    if name not in LOSSES[output.kind]:
        raise ContractError(f"gate.loss: {name} is no loss of a {output.kind}; {' or '.join(LOSSES[output.kind])} is")
    if output.kind == "regression":
        error: Numbers = np.abs(scored.truth - scored.outputs[:, 0])
        return error if name == "absolute_error" else error**2
    if name == "log_loss":
        return metrics.log_losses(by_class(scored.outputs), scored.truth)
    wrong: Numbers = (predicted(scored.outputs) != scored.truth).astype(np.float64)
    return wrong


def paired_losses(
    name: str, first: tuple[Scored, OutputContract], second: tuple[Scored, OutputContract]
) -> tuple[Numbers, Numbers]:
    """(n,) losses of two models on the same rows, which need not know the same classes.

    balanced_error: the error, weighted so that every class that occurs counts as much; its mean is 1 less the balanced
    accuracy.
    """
    left, right = losses(name, *first), losses(name, *second)
    if name == "balanced_error" and len(left):
        truths = np.stack([first[0].truth, second[0].truth])  # a class that only one of them knows is still one
        _, which, counts = np.unique(truths, axis=1, return_inverse=True, return_counts=True)
        weights = (len(left) / (len(counts) * counts))[which.ravel()]
        left, right = left * weights, right * weights
    return left, right


def compare(first: Numbers, second: Numbers, alpha: float, *, seed: int = 0) -> Bounds:
    """Bounds of the mean difference of two (n,) losses of the same rows: the wider of two methods.

    The block bootstrap knows skewed losses, but takes too small a spread from few blocks of closely related rows: of
    equal models with an autocorrelation of 0.9 it calls 9 % better in 1,000 rows, at 5 %. Student's t of block means
    keeps near to 5 % there (`python -m benchmarks.gate` measures both).
    """
    resampled = paired_bootstrap(first, second, block_rows=None, confidence=1 - 2 * alpha, seed=seed)
    of_blocks = block_means(second - first, alpha)
    return Bounds(resampled.mean, min(resampled.low, of_blocks.low), max(resampled.high, of_blocks.high), len(first))


def block_means(differences: Numbers, alpha: float) -> Bounds:
    """Student's t of the means of consecutive blocks ("batch means", Conway 1963), any alpha, at the cost of one sum.

    Blocks are twice as long as the bootstrap's, a tenth of the rows at most: between means of the shorter ones a tenth
    of the spread is missing at an autocorrelation of 0.9. Infinite with fewer than two blocks.
    """
    rows = len(differences)
    block = min(2 * block_rows_of(differences), max(1, rows // 10))
    blocks = rows // block
    mean = float(differences.mean()) if rows else 0.0
    if blocks < 2:
        return Bounds(mean, -math.inf, math.inf, rows)
    # What does not fill a block is the oldest.
    means = differences[rows - blocks * block :].reshape(blocks, block).mean(axis=1)
    half = student_t(1 - alpha, blocks - 1) * float(means.std(ddof=1)) / math.sqrt(blocks)
    return Bounds(mean, mean - half, mean + half, rows)


def student_t(share: float, freedom: int) -> float:
    """The quantile of Student's t by Fisher and Cornish's expansion.

    Right to 0.3 % from 9 degrees of freedom on, down to tails of 1e-5. With fewer it is too small; `block_means` has 9
    at least, unless rows are fewer than 10.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (power + 1) for power, term in enumerate(terms))
