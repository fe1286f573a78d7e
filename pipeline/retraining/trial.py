"""What becomes of a canary, and of a fresh champion: pure functions of the outcomes that have come so far.

Canary and champion are on trial side by side: keys are split between them, so no event has answers of both, but what
comes at one time comes to both. Outcomes are therefore compared in pairs of blocks of one time, and a hard hour that
both have cancels out. A fresh champion has nobody beside it and is held against what the one before it did last.

All bounds hold at all looks together (sequential.py). docs/releases.md says what follows from that, with measurements.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from pipeline.measures.metrics import is_probability
from pipeline.measures.scored import Metrics, Numbers, Scored, by_class
from pipeline.measures.sums import Sums
from pipeline.records import Longs, OutputContract
from pipeline.retraining.comparing import LOSSES, losses
from pipeline.retraining.latency import Slower
from pipeline.retraining.sequential import BlockMeans, anytime_z
from pipeline.settings import GateSettings, TrialSettings

#: Outcomes of the rarer model in one pair of blocks: enough for both to be there, and few, so that 60 pairs are there
#: when the first look is taken (trial.outcomes_min = 500).
PAIR_OUTCOMES = 8
#: Outcomes at the first look over those that bounds are tuned for: from there on they are within 5 % of the tightest to
#: ten times as many outcomes (see anytime_z).
TIGHT_FROM = 4
#: Half a point of an error rate is no difference, however small the rate: else a champion that never errs could not be
#: succeeded by one that never errs.
ERROR_WORSE_MIN = 0.005
#: A canary is silent where so many outcomes of its own should have come since its last one and none has: by chance in
#: e^-500 of cases where keys take turns, in e^-5 where a key comes a hundred times in a row. Where the share is below
#: 0.05 % fewer are waited for, so that what is remembered stays within 8 MB.
SILENT_OUTCOMES, SILENT_MAX = 500, 1_000_000
#: Only what is predicted so long after the last one counts: a worker fetches and warms up a model in seconds, and asks
#: again every five where the store does not answer.
SILENT_MS = 300_000
#: Outcomes of one model that wait for one of the other.
WAITING_MAX = 100_000
#: Newest outcomes of the champion before that a fresh one is held against: a rate of 0.2 is known to 0.011.
REFERENCE_OUTCOMES = 5_000
HOUR_MS = 3_600_000


class Verdict(NamedTuple):
    """What is to be done, and why, in one line."""

    action: Literal["wait", "promote", "withdraw", "rollback", "keep"]
    reason: str


class Trial:
    """A canary beside the champion, since both are in service."""

    def __init__(
        self,
        champion: OutputContract,
        canary: OutputContract,
        share: float,
        since_ms: int,
        *,
        bounds: TrialSettings,
        gate: GateSettings,
    ) -> None:
        """share: of the keys that are the canary's. since_ms: when both were released, by the wall clock."""
        self._bounds, self._gate = bounds, gate
        self._since_ms, self._share = since_ms, share
        names = _compared(gate.loss, champion.kind)
        weigher = _Weigher()
        self._champion, self._canary = _Arm(champion, names, weigher), _Arm(canary, names, weigher)
        n0 = bounds.outcomes_min / PAIR_OUTCOMES / TIGHT_FROM
        allowed = (bounds.worse_max, gate.log_loss_worse_max)
        #: Of each loss: the canary's less what the champion's may be at most, so below 0 where it is good enough.
        self._beyond = [_Beyond(column, name, allowed[column], n0) for column, name in enumerate(names)]
        self._waiting = [np.empty((0, len(names))) for _ in range(2)]
        self._silent_after = min(math.ceil(SILENT_OUTCOMES * (1 - share) / share), SILENT_MAX)
        #: When the champion answered, of its outcomes since the canary's last one.
        self._since_last: Longs = np.empty(0, np.int64)
        self._failure = ""
        self._slower = Slower(gate.latency_ratio_max)

    def tell(self, failure: str, latency_ratios: Sequence[float]) -> None:
        """What a worker says of the canary.

        failure: why it took it out of service, "" where it did not. latency_ratios: its time as a multiple of the
        champion's, of steps in which both scored the same rows.
        """
        self._failure = self._failure or failure
        self._slower.add(latency_ratios)

    def add(self, champion: Scored, canary: Scored) -> None:
        """The next outcomes of each, in the order in which they came; `times_ms` is when they were predicted."""
        arrived = [self._champion.take(champion), self._canary.take(canary)]
        self._waiting = [np.concatenate(pair) for pair in zip(self._waiting, arrived, strict=True)]
        of_champion, of_canary, self._waiting = _in_step(*self._waiting)
        for beyond in self._beyond:
            beyond.add(of_champion, of_canary)
        self._count_silence(champion.times_ms)

    def verdict(self, now_ms: int) -> Verdict:
        """Of all that was added; `wait` until the bounds say something."""
        told = _told(self._canary, self._champion)
        if unfit := self._unfit(told):
            return Verdict("withdraw", unfit)
        if min(self._canary.rows, self._champion.rows) >= self._bounds.outcomes_min:
            sure = f"at {1 - self._bounds.alpha:.3g} confidence"
            judged = self._judged()
            for beyond in judged:
                half = beyond.half_width(self._champion, self._canary, self._bounds.alpha / len(judged))
                if beyond.mean - half > 0:
                    return Verdict("withdraw", f"{told}: {beyond.name} is worse beyond {beyond.allowed}, {sure}")
            hindered = self._hindered(judged)
            if hindered is None:
                return Verdict("promote", f"{told}: not worse beyond {judged[0].allowed}, {sure}")
        else:
            hindered = f"too few outcomes, {self._bounds.outcomes_min:,} of each are needed"
        hours = (now_ms - self._since_ms) / HOUR_MS
        if hours >= self._bounds.hours_max:
            return Verdict("withdraw", f"no decision within {self._bounds.hours_max:g} h: {told}: {hindered}")
        return Verdict("wait", f"{told}: {hindered}")

    def _unfit(self, told: str) -> str | None:
        """Why it is withdrawn, however right it is."""
        if self._failure:
            return f"failed: {self._failure}"
        if self._slower.certain:
            return f"{told}: {self._slower.told}, at {1 - self._slower.alpha:.3g} confidence"
        return self._silence()

    def _judged(self) -> list["_Beyond"]:
        """The log loss is one of probabilities: where an output is none, there is only the other."""
        both = self._champion.of_probabilities and self._canary.of_probabilities
        return self._beyond if both else self._beyond[:1]

    def _hindered(self, judged: Sequence["_Beyond"]) -> str | None:
        """Why the canary may not be promoted now; None if it may."""
        first, *others = judged
        if first.mean + first.half_width(self._champion, self._canary, self._bounds.alpha) >= 0:
            return f"not known yet whether it is worse beyond {first.allowed}"
        for other in others:
            if other.mean > 0:
                return f"{other.name} seems worse beyond {other.allowed}"
        grown = self._canary.metrics.get("ece", 0.0) - self._champion.metrics.get("ece", 0.0)
        if grown > self._gate.ece_worse_max:
            return (
                f"calibration error {grown:.3f} above the champion's, at most {self._gate.ece_worse_max:g} is allowed"
            )
        return f"{self._slower.told}, it seems" if self._slower.seems else None

    @property
    def _last_ms(self) -> int:
        return max(self._canary.last_ms, self._since_ms)

    def _count_silence(self, times_ms: Longs) -> None:
        times = np.concatenate([self._since_last, times_ms])
        times = times[times > self._last_ms + SILENT_MS]
        if len(times) > self._silent_after:
            times = np.partition(times, len(times) - self._silent_after)[-self._silent_after :]
        self._since_last = times

    def _silence(self) -> str | None:
        """Whether the canary has stopped answering, or never has."""
        if len(self._since_last) < self._silent_after:
            return None
        since = "its last one" if self._canary.rows else "its release"
        told = f"{self._silent_after:,} outcomes of the champion from {SILENT_MS // 60_000} minutes after {since} on"
        return f"silent: none of {told} is the canary's; either it fails, or none of the keys is its"


class Watch:
    """A fresh champion, held against the last outcomes of the one before it."""

    def __init__(
        self, previous: OutputContract, current: OutputContract, *, bounds: TrialSettings, gate: GateSettings
    ) -> None:
        self._bounds = bounds
        self._names = _compared(gate.loss, current.kind)
        weigher = _Weigher()
        self._previous, self._current = _Arm(previous, self._names, weigher), _Arm(current, self._names, weigher)
        self._blocks = [BlockMeans() for _ in self._names]
        self._times: Longs = np.empty(0, np.int64)
        self._reference: Numbers = np.empty((0, len(self._names)))
        #: What each mean loss may be, by that of the champion before, once the first look is taken; then it stays.
        self._reference_high: list[float] | None = None

    def add(self, previous: Scored, current: Scored) -> None:
        """The next outcomes of the champion before, and of this one; `times_ms` is when they were predicted."""
        for blocks, values in zip(self._blocks, self._current.take(current).T, strict=True):
            blocks.add(values)
        if self._reference_high is None and len(previous):
            times = np.concatenate([self._times, previous.times_ms])
            values = np.concatenate([self._reference, self._previous.take(previous)])
            order = np.argsort(times, kind="stable")[-REFERENCE_OUTCOMES:]
            self._times, self._reference = times[order], values[order]

    def verdict(self) -> Verdict:
        """`rollback`, `keep` for good, or `wait`."""
        # A part for each loss, and of it one half for each of the two means.
        alpha = self._bounds.alpha / len(self._names) / 2
        enough = self._current.rows >= self._bounds.outcomes_min <= len(self._reference)
        if enough and self._reference_high is None:
            self._reference_high = [self._reference_bound(column, alpha) for column in range(len(self._names))]
        before = f"{self._reference[:, 0].mean():.4g}" if len(self._reference) else "-"
        told = f"{_of(self._current)}, of the champion before it {before} of its last {len(self._reference):,}"
        for column, high in enumerate(self._reference_high or ()):
            if self._judged(column) and self._least(column, alpha) > high:
                name, sure = self._names[column].replace("_", " "), f"at {1 - self._bounds.alpha:.3g} confidence"
                allowed = _percent(self._bounds.rollback_worse_max)
                return Verdict("rollback", f"{told}: {name} is worse beyond {allowed}, {sure}")
        if self._current.rows >= self._bounds.watch_outcomes:
            return Verdict("keep", told)
        return Verdict("wait", told)

    def _judged(self, column: int) -> bool:
        """The log loss beside another one is of probabilities: where an output is none, it says nothing."""
        return column == 0 or (self._previous.of_probabilities and self._current.of_probabilities)

    def _least(self, column: int, alpha: float) -> float:
        """What the mean loss of this champion is at least, at any look."""
        blocks = self._blocks[column]
        z = anytime_z(len(blocks) / (self._bounds.outcomes_min / TIGHT_FROM), alpha)
        return blocks.mean - blocks.half_width(z)

    def _reference_bound(self, column: int, alpha: float) -> float:
        """What it may be: the upper bound, at one look, of the mean loss of the champion before, and a share of it."""
        blocks = BlockMeans()
        blocks.add(self._reference[:, column])
        z, rows = NormalDist().inv_cdf(1 - alpha), len(self._reference)
        high = blocks.mean + math.hypot(blocks.half_width(z), z * self._previous.largest[column] / rows)
        return (1 + self._bounds.rollback_worse_max) * high + _floor(self._names[column])


# --------------------------------------------------------------------------- parts


def _compared(loss: str, kind: str) -> tuple[str, ...]:
    """Names of the losses: that of the gate, and of classes the log loss beside it."""
    first = LOSSES[kind][0] if loss == "auto" else loss
    return (first, "log_loss") if kind == "classification" and first != "log_loss" else (first,)


def _floor(loss: str) -> float:
    return ERROR_WORSE_MIN if loss in ("error", "balanced_error") else 0.0


def _percent(share: float) -> str:
    return f"{share:.0%}" if share else "any amount"


class _Weigher:
    """Weights by class, so that every class that occurs counts as much, from all outcomes so far of both models."""

    def __init__(self) -> None:
        self._counts = Counter[int]()

    def weights(self, truth: Longs) -> Numbers:
        """(n,) of outcomes, which it counts first."""
        classes, which, counts = np.unique(truth, return_inverse=True, return_counts=True)
        self._counts.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
        even = self._counts.total() / len(self._counts)
        weights: Numbers = np.array([even / self._counts[c] for c in classes.tolist()])[which]
        return weights


class _Arm:
    """One of the two models: its losses and the sums of its metrics."""

    def __init__(self, output: OutputContract, names: tuple[str, ...], weigher: _Weigher) -> None:
        self._output, self._names, self._weigher = output, names, weigher
        self._sums = Sums(output)
        self._total = np.zeros(self._sums.size)
        self.rows, self.last_ms = 0, 0
        self._loss = 0.0
        self.of_probabilities = output.kind == "classification"
        #: (losses,) the largest there was. That of an error is 1, whether there was one or not.
        self.largest = np.array([1.0 if name == "error" else 0.0 for name in names])

    def take(self, scored: Scored) -> Numbers:
        """(n, losses) of the next n outcomes."""
        if not len(scored):
            return np.empty((0, len(self._names)))
        columns = np.stack([losses(name, scored, self._output) for name in self._names], axis=1)
        if self._names[0] == "balanced_error":
            columns[:, 0] *= self._weigher.weights(scored.truth)
        unknown = np.full(len(scored), np.nan if self._output.kind == "regression" else -2)  # no earlier truth
        self._total += self._sums.of(scored.outputs, scored.truth, unknown)
        self.rows += len(scored)
        self.last_ms = max(self.last_ms, int(scored.times_ms.max()))
        self.of_probabilities = self.of_probabilities and is_probability(by_class(scored.outputs))
        self._loss += float(columns[:, 0].sum())
        self.largest = np.maximum(self.largest, columns.max(axis=0))
        return columns

    @property
    def mean(self) -> float:
        return self._loss / self.rows

    @property
    def name(self) -> str:
        return self._names[0].replace("_", " ")

    @property
    def metrics(self) -> Metrics:
        return self._sums.metrics(self._total)


def _of(arm: _Arm) -> str:
    return f"{arm.name} {arm.mean:.4g} of {arm.rows:,} outcomes" if arm.rows else "no outcomes"


def _told(canary: _Arm, champion: _Arm) -> str:
    return f"{_of(canary)}, of the champion {champion.mean:.4g} of {champion.rows:,}" if champion.rows else _of(canary)


def _in_step(champion: Numbers, canary: Numbers) -> tuple[Numbers, Numbers, list[Numbers]]:
    """(m, losses) means of m pairs of blocks of the same time, and the rows of each that are left for later.

    A block has PAIR_OUTCOMES of whoever has fewer, and what the other has beside them.
    """
    m = min(len(champion), len(canary)) // PAIR_OUTCOMES
    if not m:
        return champion[:0], canary[:0], [champion[-WAITING_MAX:], canary[-WAITING_MAX:]]
    means, left = [], []
    for rows, other in ((champion, canary), (canary, champion)):
        taken = m * PAIR_OUTCOMES if len(rows) <= len(other) else len(rows)
        starts = np.arange(m) * taken // m
        lengths = np.diff(np.append(starts, taken))
        means.append(np.add.reduceat(rows[:taken], starts) / lengths[:, None])
        left.append(rows[taken:])
    return means[0], means[1], left


class _Beyond:
    """By how much a loss of the canary is beyond what is allowed."""

    def __init__(self, column: int, name: str, worse_max: float, n0: float) -> None:
        """column: of the losses that the arms have. n0: pairs of blocks that the bounds are tuned for."""
        self._column, self._worse, self._n0 = column, worse_max, n0
        self.name, self.allowed, self._floor = name.replace("_", " "), _percent(worse_max), _floor(name)
        self._blocks = BlockMeans()

    def add(self, champion: Numbers, canary: Numbers) -> None:
        """(m, losses) means of the next pairs of blocks."""
        column = self._column
        self._blocks.add(canary[:, column] - (1 + self._worse) * champion[:, column] - self._floor)

    @property
    def mean(self) -> float:
        return self._blocks.mean

    def half_width(self, champion: _Arm, canary: _Arm, alpha: float) -> float:
        """By how much the mean may be off to one side, at any look.

        Losses that are all the same in a few outcomes are not known for certain: as if one more had been the largest.
        """
        z, column = anytime_z(len(self._blocks) / self._n0, alpha), self._column
        one_more = (1 + self._worse) * champion.largest[column] / champion.rows, canary.largest[column] / canary.rows
        return math.hypot(self._blocks.half_width(z), z * one_more[0], z * one_more[1])
