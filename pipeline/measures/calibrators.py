"""Probabilities made to mean what they say, by recent outcomes: a temperature, Platt's line, or an isotonic curve.

A temperature has one number to learn and never changes which class wins; it mends a model that is too sure of all it
says, as networks are and as drift makes them. Platt's line adds a bias for each class, and so mends a model whose
classes have become more or less frequent. An isotonic curve mends any monotone error, and takes far more rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.errors import ContractError
from pipeline.measures.metrics import PROBABILITY_MIN, log_losses
from pipeline.measures.paired import paired_bootstrap
from pipeline.measures.scored import Numbers, Scored, by_class
from pipeline.records import Floats

Kind = Literal["temperature", "platt", "isotonic"]

#: Rows with a known truth that a fit takes. Temperature: of 100 rows whose logits have a deviation of 2 its standard
#: error is 1 / sqrt(100 x 0.3) = 0.18. Platt: twice as many, since the bias's is 1 / sqrt(200 x 0.15), also 0.18.
#: Isotonic: scikit-learn's guide advises against it for fewer than 1,000.
ROWS_MIN: dict[Kind, int] = {"temperature": 100, "platt": 200, "isotonic": 1000}
#: Beyond these a temperature says "always certain" or "no idea", which no calibration mends.
TEMPERATURE_MIN, TEMPERATURE_MAX = 0.05, 20.0
#: Newton's steps, or halvings of the interval in between: 60 halvings reach a float64's precision, 6 steps usually do.
STEPS_MAX = 60
#: Newest rows that `accepts` takes: 2,000 more are better, fewer are 10 blocks of 20 at most.
ACCEPT_ROWS_MIN = 200


@dataclass(frozen=True, slots=True)
class Curve:
    """A piecewise linear function, constant beyond its ends: scores ascend strictly, probabilities never fall."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def at(self, scores: Numbers) -> Numbers:
        return np.interp(scores, self.scores, self.probabilities)


@dataclass(frozen=True, slots=True)
class Calibrator:
    """What to do to the probabilities of a model of this width; `fit` makes one."""

    kind: Kind
    width: int
    #: Time of the newest row it was fitted on, milliseconds since the epoch.
    fitted_until_ms: int
    #: Logits are divided by it: above 1 probabilities move towards even. 1 for isotonic.
    temperature: float = 1.0
    #: Platt: added to each class's logit after that; that of the first is 0.
    biases: tuple[float, ...] = ()
    #: Isotonic: of the second class of two, or of each of more.
    curves: tuple[Curve, ...] = ()

    def apply(self, outputs: Floats) -> Floats:
        """(n, width) float32 probabilities, calibrated; 50 ns a row of one column. Raises ContractError if misshapen.

        Rows of several columns sum to 1, also where a model's own do not (sigmoids).
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.width:
            raise ContractError(f"calibrator: made for outputs of width {self.width}, not of shape {outputs.shape}")
        columns = by_class(outputs.astype(np.float64))
        changed = (
            self._curved(columns)
            if self.kind == "isotonic"
            else _tempered(_logarithms(columns), 1 / self.temperature, self.biases or 0.0)
        )
        calibrated: Floats = changed[:, -self.width :].astype(np.float32)
        return calibrated

    def _curved(self, columns: Numbers) -> Numbers:
        if len(self.curves) == 1:
            return by_class(self.curves[0].at(columns[:, 1])[:, None])
        changed = np.stack([curve.at(columns[:, c]) for c, curve in enumerate(self.curves)], axis=1)
        normalised: Numbers = changed / changed.sum(axis=1, keepdims=True)
        return normalised

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON; `of` takes it up again."""
        curves = [{"scores": list(c.scores), "probabilities": list(c.probabilities)} for c in self.curves]
        common = {"kind": self.kind, "width": self.width, "fitted_until_ms": self.fitted_until_ms}
        biases = {"biases": list(self.biases)} if self.biases else {}
        return {**common, "temperature": self.temperature, **biases, "curves": curves}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Calibrator":
        """The calibrator whose `plain` data this is. Raises ContractError if it is none."""
        try:
            curves = tuple(Curve(tuple(c["scores"]), tuple(c["probabilities"])) for c in plain["curves"])
            biases = tuple(plain.get("biases", ()))
            made = cls(plain["kind"], plain["width"], plain["fitted_until_ms"], plain["temperature"], biases, curves)
        except (KeyError, TypeError) as error:
            raise ContractError(f"calibrator: not the data of one: {error!r}") from None
        if made.kind not in ROWS_MIN:
            raise ContractError(
                f"calibrator: kind {made.kind!r} is not known here; it needs a newer version of pipeline"
            )
        return made


def fit(scored: Scored, kind: Kind = "temperature") -> Calibrator:
    """A calibrator that makes the log loss (isotonic: the squared error) of these rows least.

    Rows of a class the model does not know are left out: no calibration makes it known. Raises ContractError for
    fewer than ROWS_MIN others.
    """
    known = scored.take(scored.truth >= 0)
    if len(known) < ROWS_MIN[kind]:
        raise ContractError(f"calibration: {len(known)} rows of known classes; {kind} takes {ROWS_MIN[kind]} at least")
    width, until_ms = known.outputs.shape[1], int(known.times_ms.max())
    columns = by_class(known.outputs)
    if kind == "temperature":
        return Calibrator(kind, width, until_ms, _temperature(_logarithms(columns), known.truth))
    if kind == "platt":
        return Calibrator(kind, width, until_ms, *_platt(_logarithms(columns), known.truth))
    ranked = [1] if columns.shape[1] == 2 else range(columns.shape[1])
    # Nothing is certain after n rows: at most (n + 1) / (n + 2), the rule of succession.
    least = 1 / (len(known) + 2)
    curves = []
    for c in ranked:
        scores, frequencies = isotonic(columns[:, c], (known.truth == c).astype(np.float64))
        curves.append(Curve(tuple(scores.tolist()), tuple(np.clip(frequencies, least, 1 - least).tolist())))
    return Calibrator(kind, width, until_ms, curves=tuple(curves))


def accepts(calibrator: Calibrator, newest: Scored, *, seed: int = 0) -> tuple[bool, str]:
    """Whether it helps on rows it was not fitted on, in order of time, and why (not), in one line.

    It does if the log loss falls, by the upper end of a one-sided 95 % interval (block bootstrap of pairs).
    """
    rows = len(newest)
    if rows < ACCEPT_ROWS_MIN:
        return False, f"{rows} rows to judge it by; it takes {ACCEPT_ROWS_MIN} at least"
    if int(newest.times_ms.min()) < calibrator.fitted_until_ms:
        return False, "it was fitted on rows as new as these; judge it by newer ones"
    after = calibrator.apply(newest.outputs.astype(np.float32)).astype(np.float64)
    losses = [log_losses(by_class(outputs), newest.truth) for outputs in (newest.outputs, after)]
    change = paired_bootstrap(*losses, block_rows=None, confidence=0.90, seed=seed)
    measured = f"log loss {losses[0].mean():.4f} -> {losses[1].mean():.4f}, change at most {change.high:+.4f} (95 %)"
    return change.high < 0, f"{measured} on {rows:,} rows in blocks of {change.block_rows}"


# --------------------------------------------------------------------------- temperature


def _logarithms(columns: Numbers) -> Numbers:
    return np.log(np.clip(columns, PROBABILITY_MIN, 1.0))


def _tempered(logarithms: Numbers, power: float, biases: Any = 0.0) -> Numbers:
    """Softmax of power x log p + bias: for two classes the sigmoid of power x logit + bias."""
    logits = power * logarithms + biases
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Numbers = scaled / scaled.sum(axis=1, keepdims=True)
    return probabilities


def _temperature(logarithms: Numbers, truth: Any) -> float:
    """The temperature of least log loss (Guo et al. 2017): in its inverse the loss is convex.

    Newton's method; where a step leaves the interval that holds the minimum, its middle is taken instead.
    """
    of_truth = logarithms[np.arange(len(truth)), truth]
    low, high = 1 / TEMPERATURE_MAX, 1 / TEMPERATURE_MIN
    power = 1.0
    for _ in range(STEPS_MAX):
        probabilities = _tempered(logarithms, power)
        expected = (probabilities * logarithms).sum(axis=1)
        slope = float((expected - of_truth).mean())
        curvature = float(((probabilities * logarithms**2).sum(axis=1) - expected**2).mean())
        low, high = (power, high) if slope < 0 else (low, power)
        step = power - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - power) < 1e-9 * power:
            break
        power = following
    return 1 / power


# --------------------------------------------------------------------------- Platt


def _platt(logarithms: Numbers, truth: Any) -> tuple[float, tuple[float, ...]]:
    """The temperature and biases of least log loss (Platt 1999; several classes: Alexandari et al. 2020).

    Newton's method on the inverse temperature, kept within its bounds, and on the biases but the first; the loss is
    convex in them. Targets are smoothed as Platt's are, by the rule of succession, so a class that no row is of keeps a
    chance and the biases stay finite.
    """
    rows, classes = logarithms.shape
    targets = np.full((rows, classes), 1 / (rows + classes))
    targets[np.arange(rows), truth] += rows / (rows + classes)
    parameters = np.concatenate([[1.0], np.zeros(classes - 1)])
    loss, slopes, curvatures = _platt_loss(logarithms, targets, parameters)
    for _ in range(STEPS_MAX):
        # A power at its bound, with the loss falling beyond it, is held there.
        held = (parameters[0] <= 1 / TEMPERATURE_MAX and slopes[0] > 0) or (
            parameters[0] >= 1 / TEMPERATURE_MIN and slopes[0] < 0
        )
        free = slice(1 if held else 0, None)
        step = np.zeros(classes)
        step[free] = np.linalg.solve(curvatures[free, free], slopes[free])
        for _ in range(STEPS_MAX):
            tried = parameters - step
            tried[0] = np.clip(tried[0], 1 / TEMPERATURE_MAX, 1 / TEMPERATURE_MIN)
            found = _platt_loss(logarithms, targets, tried)
            if found[0] <= loss:
                break
            step /= 2
        gained = loss - found[0]
        parameters, (loss, slopes, curvatures) = tried, found
        if gained < 1e-12:
            break
    return 1 / float(parameters[0]), (0.0, *parameters[1:].tolist())


def _platt_loss(logarithms: Numbers, targets: Numbers, parameters: Numbers) -> tuple[float, Numbers, Numbers]:
    """Mean log loss, its (classes,) slopes and (classes, classes) curvatures, in the power and the biases."""
    probabilities = _tempered(logarithms, float(parameters[0]), np.concatenate([[0.0], parameters[1:]]))
    loss = -(targets * np.log(np.clip(probabilities, PROBABILITY_MIN, 1.0))).sum(axis=1).mean()
    excess = probabilities - targets
    slopes = np.concatenate([[(excess * logarithms).sum(axis=1).mean()], excess.mean(axis=0)[1:]])
    away = logarithms - (probabilities * logarithms).sum(axis=1, keepdims=True)
    weighed = probabilities * away
    curvatures = np.diag([(weighed * away).sum(axis=1).mean(), *probabilities.mean(axis=0)[1:]])
    curvatures[0, 1:] = curvatures[1:, 0] = weighed.mean(axis=0)[1:]
    curvatures[1:, 1:] -= probabilities[:, 1:].T @ probabilities[:, 1:] / len(targets)
    return float(loss), slopes, curvatures + 1e-9 * np.eye(len(parameters))


# --------------------------------------------------------------------------- isotonic


def isotonic(scores: Numbers, targets: Numbers) -> tuple[Numbers, Numbers]:
    """The non-decreasing function of (n,) scores nearest to (n,) targets in squares, as points to go between.

    Pool adjacent violators (Ayer et al. 1955): blocks whose means fall are merged until none does. Each block is two
    points, its lowest and its highest score, or one. n is 1 at least; 1M rows of different scores take 0.3 s.
    """
    distinct, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, targets)
    means: list[float] = []
    weights: list[int] = []
    firsts: list[int] = []
    for first, (total, count) in enumerate(zip(sums.tolist(), counts.tolist(), strict=True)):
        mean, weight, start = total / count, count, first
        while means and means[-1] >= mean:
            earlier, earlier_weight, start = means.pop(), weights.pop(), firsts.pop()
            mean = (earlier * earlier_weight + mean * weight) / (earlier_weight + weight)
            weight += earlier_weight
        means.append(mean)
        weights.append(weight)
        firsts.append(start)
    lasts = [*(first - 1 for first in firsts[1:]), len(distinct) - 1]
    ends = np.stack([firsts, lasts], axis=1).ravel()
    single = np.append(ends[1:] == ends[:-1], [False])
    return distinct[ends[~single]], np.repeat(means, 2)[~single]
