"""How the number features go together: one signal for each of some, of products with the others.

A correlation can break, or arise, while no feature's own distribution moves. Of up to 16 features the monitor watches

    joint:i = z_i * sum_j w_ij z_j        z: normal scores of the values' bins, of unit variance; 0 for no value

The sum is what the other features say of feature i, scaled to unit variance on the baseline: so the mean of joint:i is
a correlation, and reads like one. w_ij is the baseline's correlation of i and j where that is there beyond doubt: if
it breaks, the mean falls. Elsewhere it is a small constant: if a correlation arises, the mean moves. The features' own
shifts and scales leave the mean alone where features are independent.

Measured against squared projections on the two smallest and two largest principal components of 16 features, in
standard deviations of the rank's mean: a correlation of 0.8 in one pair that breaks 0.65 (components 0.80), in one
of eight such pairs 0.60 (0.29), four features that begin to correlate by 0.8 0.50 (0.32, by luck), with signs that
alternate 0.20 (0.18), one pair of them 0.17 (0.03: never found), one feature that leaves a common factor 0.62 (0.12).
And it names the feature.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipeline.drift.bins import kind_of, levels_of
from pipeline.records import Floats, JointWeights, SignalBaseline

PREFIX = "joint:"
#: Features at most, whatever the model has: workers do 16 look-ups, 2 * 16^2 = 512 multiplications and additions, and
#: 16 values to sum up for an event. One that arises between two of p features moves the mean by rho / sqrt(p - 1).
FEATURES_MAX = 16
#: Features that these are chosen from, and rows for it: 10,000 x 1,024 x 4 bytes = 41 MB, 2e10 operations: a second or
#: two, once, when a model is packed.
CANDIDATES_MAX, CHOICE_ROWS_MAX = 1024, 10_000
#: Rows without which nothing can be said.
ROWS_MIN = 200
#: Weight of a feature that did not correlate: small beside those that did.
WEIGHT_MIN = 0.1
#: Standard errors from 0 at which a correlation is there beyond doubt.
DOUBT = 3.0
#: Scores and weights are multiples of these, so a sum of up to 1,024 is exact in float32 (24 bits), in whatever order
#: a machine adds: values often lie on a cut, and a last digit would move them to another bin.
SCORE_STEP, WEIGHT_STEP = 2.0**-6, 2.0**-8
#: Eight bins keep 95 % of the effect that sixteen show, at half the comparisons for a worker.
BINS = 8
#: A feature with so large a share of the squared weights is one that the signal leans on.
LEANS_SHARE = 0.1


class JointValues:
    """Gives the joint signals' values of rows from the bins of the features' values."""

    def __init__(self, joint: JointWeights, signals: Sequence[SignalBaseline], width: int) -> None:
        """signals: the baseline's. width: bins in a row of the table; the last stands for no value."""
        known = {signal.name: signal for signal in signals}
        self._scores = np.zeros((len(joint.features), width), dtype=np.float32)
        for row, name in enumerate(joint.features):
            scores = normal_scores(known[f"feature:{name}"])
            self._scores[row, : len(scores)] = scores
        self._bases = (np.arange(len(joint.features)) * width)[:, None]
        self._missing = width - 1
        self._weights = np.array(joint.weights, dtype=np.float32)

    def of(self, bins: npt.NDArray[np.integer]) -> Floats:
        """Values (features, n), float32, of bins (features, n); NaN in a row where no feature has a value."""
        scores = self._scores.ravel().take(bins + self._bases, mode="clip")
        # Not `@`: BLAS puts a second thread on it, which costs a worker 6 s of CPU per million events for nothing.
        values: Floats = scores * np.einsum("ij,jn->in", self._weights, scores)
        nothing = (bins == self._missing).all(axis=0)
        if nothing.any():
            values[:, nothing] = np.nan
        return values


def normal_scores(signal: SignalBaseline) -> npt.NDArray[np.float64]:
    """Normal quantiles of the bins' mid-ranks, of mean 0 and variance 1 on the baseline but for rounding; (bins,)."""
    share = np.array(signal.histogram) / max(1, signal.count)
    quantile = NormalDist().inv_cdf
    scores = np.array([quantile(level) for level in np.clip(levels_of(signal), 0.01, 0.99).tolist()])
    scores -= share @ scores
    scores /= max(1e-9, float(share @ scores**2) ** 0.5)
    found: npt.NDArray[np.float64] = np.round(scores / SCORE_STEP) * SCORE_STEP
    return found


def joint_weights(signals: Sequence[SignalBaseline], matrix: Floats) -> JointWeights | None:
    """The features to watch together and their weights; None where there are fewer than two that vary, or few rows.

    signals: baselines of the first columns of `matrix`, (n, >= len(signals)), in time order.
    """
    columns = [i for i, s in enumerate(signals) if s.name.startswith("feature:") and _varies(s)][:CANDIDATES_MAX]
    if len(columns) < 2 or len(matrix) < ROWS_MIN:
        return None
    rows = matrix[:: -(-len(matrix) // CHOICE_ROWS_MAX)]
    width = max(len(signals[column].histogram) for column in columns) + 1
    scores = np.empty((len(columns), len(rows)), dtype=np.float32)
    for row, column in enumerate(columns):
        table = np.append(normal_scores(signals[column]), np.zeros(width - len(signals[column].histogram)))
        scores[row] = table[bins_of(signals[column], rows[:, column], width - 1)]
    correlations = (scores @ scores.T).astype(np.float64) / len(rows)
    # Of two series the product hangs together no longer than the one that forgets sooner.
    times = np.array([signals[column].autocorrelation_time for column in columns])
    times = np.minimum(times[:, None], times[None, :])
    error = 1.0 / np.sqrt(np.minimum(len(rows), len(matrix) / times))
    sure = np.abs(correlations) >= np.maximum(WEIGHT_MIN, DOUBT * error)
    np.fill_diagonal(sure, False)
    strength = np.where(sure, correlations**2, 0.0).sum(axis=1)
    chosen = np.sort(np.argsort(-strength, kind="stable")[:FEATURES_MAX])
    square = np.ix_(chosen, chosen)
    weights = np.where(sure[square], correlations[square], WEIGHT_MIN)
    np.fill_diagonal(weights, 0.0)
    variance = np.einsum("ij,jk,ik->i", weights, correlations[square], weights)
    weights /= np.sqrt(np.maximum(variance, WEIGHT_MIN**2))[:, None]
    names = tuple(signals[columns[index]].name.removeprefix("feature:") for index in chosen.tolist())
    return JointWeights(names, tuple(tuple(row) for row in (np.round(weights / WEIGHT_STEP) * WEIGHT_STEP).tolist()))


def leans_on(joint: JointWeights) -> dict[str, tuple[str, ...]]:
    """Joint signal -> the features that it is of: its own, and those that weigh most, heaviest first."""
    found = {}
    for name, weights in zip(joint.features, joint.weights, strict=True):
        shares = np.square(weights) / max(1e-12, float(np.square(weights).sum()))
        heavy = [joint.features[i] for i in np.argsort(-shares, kind="stable").tolist() if shares[i] >= LEANS_SHARE]
        found[PREFIX + name] = (name, *heavy)
    return found


def bins_of(signal: SignalBaseline, column: Floats, missing: int) -> npt.NDArray[np.int64]:
    """Bin of each value of a column (n,); `missing` for those that are none."""
    bins = np.searchsorted(np.array(signal.edges[1:-1], dtype=np.float32), column, side="left")
    return np.where(np.isfinite(column), bins, missing)


def _varies(signal: SignalBaseline) -> bool:
    return signal.count > 0 and signal.variance > 0 and kind_of(signal) == "rank"
