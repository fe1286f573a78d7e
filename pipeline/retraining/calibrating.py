"""A calibrator fitted on a model's older outcomes and judged by its newest: in service only if it helps there.

Pure; a command reads the outcomes. docs/calibration.md says what each check is for, and how often they are wrong.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import ContractError
from pipeline.measures import calibration, metrics
from pipeline.measures.calibrators import ACCEPT_ROWS_MIN, ROWS_MIN, Calibrator, Kind, fit
from pipeline.measures.paired import BLOCKS_MAX, block_rows_of
from pipeline.measures.scored import Flags, Metrics, Numbers, Scored, by_class, check, predicted
from pipeline.records import Longs, OutputContract
from pipeline.retraining.comparing import Bounds, block_means, compare
from pipeline.retraining.findings import Finding

#: Share of the rows, the newest, that a calibrator is judged by. It has one number to learn, or a curve, and little of
#: what more rows would teach it is lost with these; what they show of it grows with their square root.
JUDGED_SHARE = 0.3
#: Of the rows to fit on, the newest by which a kind is preferred to another that has less to learn.
CHOSEN_SHARE = 0.25
#: Resamples of the calibration error: the 5 % quantile rests on 50 of them.
RESAMPLES = 1000

JudgeBy = Literal["classes", "errors"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A calibrator, and whether it may go into service."""

    calibrator: Calibrator
    checks: tuple[Finding, ...]
    #: Rows it was fitted on, and the times of the oldest and the newest, milliseconds since the epoch.
    fitted_rows: int
    fitted_from_ms: int
    fitted_until_ms: int
    judged_rows: int
    #: Measures of the newest rows: with what is in service now, and with this calibrator.
    before: Metrics
    after: Metrics
    #: Share of the newest rows that it decides for another class.
    changed: float

    @property
    def accepted(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def says(self) -> str:
        """In one line: accepted, or refused and by which checks."""
        failed = [f"{check.name}: {check.says}" for check in self.checks if not check.passed]
        return f"refused: {'; '.join(failed)}" if failed else f"accepted: all {len(self.checks)} checks passed"


def calibrate(
    scored: Scored,
    output: OutputContract,
    *,
    kind: Kind | Literal["auto"] = "auto",
    judge_by: JudgeBy = "classes",
    current: Calibrator | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Trial:
    """Fit on the older of n rows, judge by the newest.

    scored: outputs as the model itself gave them, rows in order of time; those of classes it does not know are left
    out. judge_by: whether no class may be decided right less often, or whether it is enough that not more rows are
    wrong in all; `auto` is a Platt's line only then, as biases move what is decided. current: what is in service, which
    the new one has to be better than. alpha: of each check, one-sided.
    The same input gives the same trial; 100,000 rows of 4 classes take 0.8 s. Raises ContractError for outputs that are
    no probabilities, and for too few rows.
    """
    if output.kind == "regression":
        raise ContractError("calibration: a regression gives no probabilities")
    check(scored, output)
    if not metrics.is_probability(by_class(scored.outputs)):
        raise ContractError("calibration: outputs are no probabilities: some are outside 0 to 1")
    known = scored.take(scored.truth >= 0)
    judged = max(ACCEPT_ROWS_MIN, int(JUDGED_SHARE * len(known)))
    needed = ROWS_MIN["temperature" if kind == "auto" else kind]
    if len(known) - judged < needed:
        least = max(needed + ACCEPT_ROWS_MIN, int((needed - 1) / (1 - JUDGED_SHARE)) + 1)
        raise ContractError(f"calibration: {len(known):,} labelled rows of known classes; it takes {least:,} at least")
    older, newest = known.take(slice(0, len(known) - judged)), known.take(slice(len(known) - judged, len(known)))
    calibrator = fit(older, _chosen(older, judge_by, alpha, seed) if kind == "auto" else kind)
    before, after = (_applied(one, newest) for one in (current, calibrator))
    checks = [_log_loss(before, after, alpha, seed), _ece(before, after, alpha, seed)]
    checks.append((_classes if judge_by == "classes" else _errors)(before, after, output, alpha))
    return Trial(
        calibrator,
        tuple(checks),
        len(older),
        int(older.times_ms.min()),
        calibrator.fitted_until_ms,
        len(newest),
        _measures(before, output),
        _measures(after, output),
        float((predicted(before.outputs) != predicted(after.outputs)).mean()),
    )


def _chosen(rows: Scored, judge_by: JudgeBy, alpha: float, seed: int) -> Kind:
    """The kind with least to learn, unless one with more is better, and not by chance, on rows none was fitted on."""
    at = len(rows) - int(CHOSEN_SHARE * len(rows))
    older, newer = rows.take(slice(0, at)), rows.take(slice(at, len(rows)))
    best: Kind = "temperature"
    if len(older) < ROWS_MIN[best]:
        return best
    least = _log_losses(_applied(fit(older, best), newer))
    more: tuple[Kind, ...] = ("platt", "isotonic") if judge_by == "errors" else ("isotonic",)
    for kind in more:
        if len(older) < ROWS_MIN[kind]:
            break
        losses = _log_losses(_applied(fit(older, kind), newer))
        if compare(least, losses, alpha, seed=seed).high < 0:
            best, least = kind, losses
    return best


def _applied(calibrator: Calibrator | None, rows: Scored) -> Scored:
    """What a worker would publish of these rows."""
    if calibrator is None:
        return rows
    outputs = calibrator.apply(rows.outputs.astype(np.float32)).astype(np.float64)
    return Scored(outputs, rows.truth, rows.times_ms, rows.slices)


def _measures(rows: Scored, output: OutputContract) -> Metrics:
    return metrics.classification(metrics.answers(rows, output, None, 1))


def _log_losses(rows: Scored) -> Numbers:
    return metrics.log_losses(by_class(rows.outputs), rows.truth)


# --------------------------------------------------------------------------- the checks


def _log_loss(before: Scored, after: Scored, alpha: float, seed: int) -> Finding:
    first, second = _log_losses(before), _log_losses(after)
    bounds = compare(first, second, alpha, seed=seed)
    told = f"{first.mean():.4f} -> {second.mean():.4f}, {_interval(bounds)}: {_verdict(bounds)}"
    return Finding("log_loss", bounds.high < 0, bounds.high, 0.0, told)


def _ece(before: Scored, after: Scored, alpha: float, seed: int) -> Finding:
    block = block_rows_of(_log_losses(after) - _log_losses(before))
    bounds, errors = ece_change(before, after, alpha, block_rows=block, seed=seed)
    told = f"{errors[0]:.4f} -> {errors[1]:.4f}, {_interval(bounds)}: {_verdict(bounds)}"
    return Finding("ece", bounds.high < 0, bounds.high, 0.0, told)


def ece_change(
    before: Scored, after: Scored, alpha: float, *, block_rows: int = 1, seed: int = 0
) -> tuple[Bounds, tuple[float, float]]:
    """The calibration error of the second less that of the first on the same rows, with bounds at alpha; and both.

    It is no mean over rows, so bins are resampled: whole blocks of rows, drawn with replacement (Carlstein 1986), and
    their bins' sums added up. The bounds are quantiles of the resampled change. Chance within a resample makes a small
    error larger and hardly touches a large one, so that `high`, where the second is the smaller, is rather too high.
    """
    block = max(block_rows, math.ceil(len(before) / BLOCKS_MAX), 1)
    blocks = len(before) // block
    parts = [_confidence(rows) for rows in (before, after)]
    errors = [calibration.ece(calibration.equal_mass(*part)) for part in parts]
    mean = errors[1] - errors[0]
    if blocks < 2:
        return Bounds(mean, -math.inf, math.inf, len(before)), (errors[0], errors[1])
    drawn = np.random.default_rng(seed).multinomial(blocks, [1 / blocks] * blocks, RESAMPLES).astype(np.float64)
    first, second = (np.tensordot(drawn, _block_sums(*part, block), axes=1) for part in parts)
    changes = [_ece_of(two) - _ece_of(one) for one, two in zip(first, second, strict=True)]
    low, high = np.quantile(changes, [alpha, 1 - alpha])
    return Bounds(mean, float(low), float(high), len(before)), (errors[0], errors[1])


def _confidence(rows: Scored) -> tuple[Numbers, Flags]:
    return calibration.confidence(by_class(rows.outputs), predicted(rows.outputs), rows.truth)


def _block_sums(confidences: Numbers, hits: Flags, block: int) -> Numbers:
    """(blocks, bins, 3): of each block of rows, the count, confidence and hits in the equal-mass bins of all rows."""
    edges = np.unique(np.sort(confidences)[calibration.quantile_rows(len(confidences))])
    blocks = len(confidences) // block
    rows = slice(len(confidences) - blocks * block, None)  # what does not fill a block is the oldest
    bins = np.searchsorted(edges, confidences[rows], side="right") - 1
    places = np.repeat(np.arange(blocks) * len(edges), block) + bins
    sums = [np.bincount(places, values, blocks * len(edges)) for values in (None, confidences[rows], hits[rows])]
    return np.stack(sums, axis=1).astype(np.float64).reshape(blocks, len(edges), 3)


def _ece_of(sums: Numbers) -> float:
    """Of (bins, 3) sums; a bin that no row came to is none."""
    return calibration.ece(calibration.Bins(*sums[sums[:, 0] > 0].T))


def _errors(before: Scored, after: Scored, _output: OutputContract, alpha: float) -> Finding:
    """Not more rows are decided wrong, but by chance; some class may be found less often."""
    wrong = [(predicted(rows.outputs) != rows.truth).astype(np.float64) for rows in (before, after)]
    bounds = compare(wrong[0], wrong[1], alpha)
    told = f"{wrong[0].mean():.2%} -> {wrong[1].mean():.2%} wrong, {_interval(bounds)}: {_verdict(bounds)}"
    return Finding("errors", bounds.low <= 0, bounds.low, 0.0, told)


def _classes(before: Scored, after: Scored, output: OutputContract, alpha: float) -> Finding:
    """No class is decided right less often, nor is its probability worse, but by chance.

    Its probability is held to account by the log loss of "this class or another", over all rows. For two classes that
    is the log loss of both, which has a check of its own.
    """
    columns = [by_class(rows.outputs) for rows in (before, after)]
    wrong = [(predicted(rows.outputs) != rows.truth).astype(np.float64) for rows in (before, after)]
    occurring: Longs = np.unique(before.truth)
    each = alpha / max(len(occurring), 1)
    worst: list[tuple[float, str]] = []
    for c in occurring.tolist():
        name, inside = output.classes[c] if output.classes else str(c), before.truth == c
        missed = block_means((wrong[1] - wrong[0])[inside], each)
        if missed.low > 0:
            shares = [1 - float(one[inside].mean()) for one in wrong]
            worst.append((missed.mean, f"{name} decided right in {shares[0]:.1%} -> {shares[1]:.1%} of its rows"))
        if columns[0].shape[1] > 2:
            first, second = (_one_against_all(probabilities[:, c], inside) for probabilities in columns)
            bounds = block_means(second - first, each)
            if bounds.low > 0:
                worst.append((bounds.mean, f"log loss of {name} {first.mean():.4f} -> {second.mean():.4f}"))
    told = "; ".join(text for _, text in sorted(worst, reverse=True)[:3])
    told = told and f"{told}: worse, and not by chance"
    return Finding("classes", not worst, float(len(worst)), 0.0, told or f"none of {len(occurring)} got worse")


def _one_against_all(probability: Numbers, inside: Flags) -> Numbers:
    of_truth = np.where(inside, probability, 1 - probability)
    losses: Numbers = -np.log(np.clip(of_truth, metrics.PROBABILITY_MIN, 1.0))
    return losses


def _verdict(bounds: Bounds) -> str:
    if bounds.high < 0:
        return "lower, and not by chance"
    return "higher, and not by chance" if bounds.low > 0 else "by chance, perhaps"


def _interval(bounds: Bounds) -> str:
    return f"change {bounds.mean:+.4f} ({bounds.low:+.4f} to {bounds.high:+.4f})"
