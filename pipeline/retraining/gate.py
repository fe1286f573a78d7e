"""May the challenger replace the champion? A pure function of their answers to the same rows that neither has seen.

docs/gate.md says what each check is for, and how often an equal or a better challenger passes them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline import measures
from pipeline.errors import ContractError
from pipeline.measures import metrics
from pipeline.measures.paired import mcnemar
from pipeline.measures.scored import Metrics, Scored, by_class, check, predicted
from pipeline.measures.slices import SLICE_ROWS_MIN, each
from pipeline.records import OutputContract
from pipeline.retraining.comparing import LOSSES, Bounds, block_means, compare, losses, paired_losses
from pipeline.retraining.findings import Finding
from pipeline.retraining.latency import Latency, ratio
from pipeline.settings import GateSettings

#: automatic: released without a person; waiting: for a person's yes; none: refused, there is nothing to approve.
Approval = Literal["automatic", "waiting", "none"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One of the two, and what it says of the n rows."""

    version: str
    output: OutputContract
    #: Rows in order of event time; truth as indices of this model's own classes. Slices: the champion's count.
    scored: Scored


@dataclass(frozen=True, slots=True)
class SliceChange:
    """Mean losses in one slice: `bounds` of the challenger's less the champion's hold for all slices together."""

    field: str
    value: str
    champion: float
    challenger: float
    bounds: Bounds
    #: By more than the setting allows, and not by chance.
    worse: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the challenger may take over, and why (not)."""

    accepted: bool
    approval: Approval
    checks: tuple[Finding, ...]
    #: What was compared, as in `comparing.LOSSES`.
    loss: str
    #: Of the mean loss over all rows, at the settings' alpha on each side.
    bounds: Bounds
    #: The judged slices, the one that lost most first; slices of too few rows are not among them.
    slices: tuple[SliceChange, ...]
    #: All of `measures.measure`.
    champion: dict[str, Any]
    challenger: dict[str, Any]

    @property
    def metrics(self) -> tuple[Metrics, Metrics]:
        """Of champion and challenger."""
        return self.champion["metrics"], self.challenger["metrics"]

    @property
    def says(self) -> str:
        """In one line: accepted, or refused and by which checks."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            return "refused: " + "; ".join(f"{finding.name}: {finding.says}" for finding in failed)
        return f"accepted: all {len(self.checks)} checks passed"


def judge(
    champion: Contestant,
    challenger: Contestant,
    settings: GateSettings,
    *,
    guards: Sequence[Finding] = (),
    latency: Latency | None = None,
    seed: int = 0,
) -> Verdict:
    """Hold the challenger against the champion; accepted if every check passes, and the `guards` have as well.

    An equal challenger is accepted with probability `settings.alpha` at most. The same input gives the same verdict.
    Without `latency` there is no check of it. 100,000 rows take 1 s. Raises ContractError if the two were not
    scored on the same rows, or do different things.
    """
    _check_same_rows(champion, challenger)
    kind = champion.output.kind
    loss = LOSSES[kind][0] if settings.loss == "auto" else settings.loss
    first, second = paired_losses(loss, (champion.scored, champion.output), (challenger.scored, challenger.output))
    bounds = compare(first, second, settings.alpha, seed=seed)
    reports = [measures.measure(one.scored, one.output) for one in (champion, challenger)]

    checks = [_rows(bounds, loss, settings), _better(bounds, loss, float(first.mean()) if len(first) else 0.0)]
    if loss == "error":
        checks.append(_mcnemar(champion.scored, challenger.scored, settings.alpha))
    if kind == "classification":
        checks += _probabilities(champion, challenger, reports, settings, seed)
    slices, left_out = slice_changes(champion.scored, first, second, settings)
    if champion.scored.slices:
        checks.append(_slices(slices, left_out, _slice_bound(first, settings)))
    if latency is not None:
        checks.append(_latency(latency, settings.latency_ratio_max))
    checks += guards
    accepted = all(found.passed for found in checks)
    approval: Approval = "none" if not accepted else "automatic" if settings.approval == "auto" else "waiting"
    return Verdict(accepted, approval, tuple(checks), loss, bounds, slices, *reports)


def refusals(champion_only: int, both: int, settings: GateSettings) -> Finding:
    """A guard: of the events that the champion scored, those that the challenger's contract refuses.

    They are missing among the rows that `judge` sees, and would become dead letters. both: how many both scored.
    """
    share = champion_only / max(champion_only + both, 1)
    told = f"of {champion_only + both:,} events that the champion takes, the challenger refuses {champion_only:,}"
    return Finding("refusals", share <= settings.refused_share_max, share, settings.refused_share_max, told)


def _check_same_rows(champion: Contestant, challenger: Contestant) -> None:
    for one in (champion, challenger):
        check(one.scored, one.output)
    left, right = champion.scored, challenger.scored
    if champion.output.kind != challenger.output.kind:
        raise ContractError(f"gate: a {challenger.output.kind} cannot replace a {champion.output.kind}")
    same = len(left) == len(right) and np.array_equal(left.times_ms, right.times_ms)
    if same and champion.output.classes == challenger.output.classes:
        same = np.array_equal(left.truth, right.truth)
    if not same:
        raise ContractError("gate: champion and challenger were not scored on the same rows")


# --------------------------------------------------------------------------- the checks


def _rows(bounds: Bounds, loss: str, settings: GateSettings) -> Finding:
    findable = bounds.findable(settings.alpha)
    told = f"{bounds.rows:,} labelled rows, {settings.rows_min:,} asked for"
    if np.isfinite(findable):
        told += f"; a gain of {findable:.3g} in {_named(loss)} would be found in 8 of 10 cases"
    return Finding("rows", bounds.rows >= settings.rows_min, float(bounds.rows), float(settings.rows_min), told)


def _better(bounds: Bounds, loss: str, before: float) -> Finding:
    told = f"{_named(loss)} {before:.4g} -> {before + bounds.mean:.4g}, {_interval(bounds)}"
    ending = "by chance, perhaps"
    if bounds.high < 0 or bounds.low > 0:
        ending = f"{'lower' if bounds.high < 0 else 'higher'}, and not by chance"
    return Finding("better", bounds.high < 0, bounds.high, 0.0, f"{told}: {ending}")


def _mcnemar(champion: Scored, challenger: Scored, alpha: float) -> Finding:
    found = mcnemar(*(predicted(scored.outputs) == scored.truth for scored in (champion, challenger)))
    # One side of the mid-p test.
    p = found.p_mid / 2 if found.only_second > found.only_first else 1 - found.p_mid / 2
    told = f"right in {found.only_second:,} rows where the champion is not, wrong in {found.only_first:,} where it is"
    return Finding("mcnemar", p < alpha, p, alpha, f"{told}: p = {p:.2g}, one-sided")


def _probabilities(
    champion: Contestant, challenger: Contestant, reports: list[dict[str, Any]], settings: GateSettings, seed: int
) -> list[Finding]:
    """Log loss and calibration; nothing where the champion gives no probabilities either."""
    proper = [metrics.is_probability(by_class(one.scored.outputs)) for one in (champion, challenger)]
    if not proper[0] or not len(champion.scored):
        return []
    if not proper[1]:
        told = "the challenger's outputs are no probabilities, and the champion's are"
        return [Finding("probabilities", False, None, None, told)]
    first, second = (losses("log_loss", one.scored, one.output) for one in (champion, challenger))
    before = float(first.mean())
    bounds, bound = compare(first, second, settings.alpha, seed=seed), settings.log_loss_worse_max * before
    told = f"log loss {before:.4g} -> {before + bounds.mean:.4g}, {_interval(bounds)}; may be worse by {bound:.2g}"
    errors = [report["metrics"]["ece"] for report in reports]
    grown = f"calibration error {errors[0]:.4f} -> {errors[1]:.4f}; may grow by {settings.ece_worse_max:.4g}"
    change = errors[1] - errors[0]
    return [
        Finding("log_loss", not _is_worse(bounds, bound), bounds.mean, bound, told),
        Finding("calibration", change <= settings.ece_worse_max, change, settings.ece_worse_max, grown),
    ]


def slice_changes(
    scored: Scored, first: Any, second: Any, settings: GateSettings
) -> tuple[tuple[SliceChange, ...], int]:
    """Each slice of SLICE_ROWS_MIN rows or more, the one that lost most first, and how many slices have fewer.

    first, second: (n,) losses. Bounds are at alpha / slices (Bonferroni): all hold together with 1 - alpha.
    """
    parts = list(each(scored))
    judged = [part for part in parts if int(part[2].sum()) >= SLICE_ROWS_MIN]
    bound, alpha = _slice_bound(first, settings), settings.alpha / max(len(judged), 1)
    found = []
    for field, value, inside in judged:
        bounds = block_means(second[inside] - first[inside], alpha)
        before, after = float(first[inside].mean()), float(second[inside].mean())
        found.append(SliceChange(field, value, before, after, bounds, _is_worse(bounds, bound)))
    found.sort(key=lambda one: (not one.worse, -one.bounds.mean))
    return tuple(found), len(parts) - len(judged)


def _slice_bound(first: Any, settings: GateSettings) -> float:
    return settings.slice_worse_max * float(first.mean()) if len(first) else 0.0


def _slices(slices: tuple[SliceChange, ...], left_out: int, bound: float) -> Finding:
    few = f"; {left_out:,} with fewer than {SLICE_ROWS_MIN} rows are not judged" if left_out else ""
    if not slices:
        return Finding("slices", True, None, bound, f"no slice has enough rows{few}")
    worst, worse = slices[0], sum(one.worse for one in slices)
    name = f"{worst.field} = {worst.value or '(empty)'}"
    change = f"{worst.champion:.4g} -> {worst.challenger:.4g} on {worst.bounds.rows:,} rows, {_interval(worst.bounds)}"
    told = f"{worse:,} of {len(slices):,} slices worse by more than {bound:.2g}; most of all {name}: {change}{few}"
    return Finding("slices", not worse, worst.bounds.mean, bound, told)


def _latency(latency: Latency, most: float) -> Finding:
    middle, low, high = ratio(latency)
    times = " -> ".join(f"{1e3 * float(np.median(s)):.3g} ms" for s in (latency.champion_s, latency.challenger_s))
    told = f"{middle:.2f} times the champion's (95 % interval {low:.2f} to {high:.2f}), {times} a batch"
    return Finding("latency", middle <= most, middle, most, f"{told}, median of {len(latency.champion_s):,} pairs")


def _is_worse(bounds: Bounds, bound: float) -> bool:
    """By more than `bound`, and not by chance: `low` alone would let harm pass, the mean alone would see ghosts."""
    return bounds.mean > bound and bounds.low > 0


def _named(loss: str) -> str:
    return loss.replace("_", " ")


def _interval(bounds: Bounds) -> str:
    return f"change {bounds.mean:+.3g} ({bounds.low:+.3g} to {bounds.high:+.3g})"
