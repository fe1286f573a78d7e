"""One signal's detector: ADWIN proposes, a two-sample test that knows the autocorrelation decides.

ADWIN (Bifet and Gavaldà 2007, River's) alone has to be either slow or loud here: its bound charges every
test for values that use the whole range [0, 1], and holds for independent values only. So it runs with a
loose confidence and its detections are proposals. While a proposal is open, the means before and after
every remembered block boundary are compared, n values counting as n / tau, and the signal alarms when the
largest |z| passes a limit.

That limit bounds false alarms by itself, whatever ADWIN proposes and in whatever order the events of
different partitions come in: a scan over all change points and all ends of independent values with limit
b runs for C sqrt(2 pi) exp(b^2 / 2) / b values on average before its first false alarm (Siegmund and
Venkatraman 1995, Annals of Statistics 23, theorem 1, which gives C = 1.36 for windows of any length).
"""

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt
from river.drift import ADWIN

from pipeline.drift.baseline import cautious_time
from pipeline.drift.bins import kind_of, levels_of
from pipeline.drift.merge import DATING_BLOCKS
from pipeline.records import SignalBaseline

Doubles = npt.NDArray[np.float64]

#: Loose on purpose. Against a proposal that is always open, waiting for ADWIN made none of 20 steps of half
#: a standard deviation later at rho 0.7 and 0.9, and 5 of 20 at rho 0 (by 26 to 189 rows, in drains of 110).
PROPOSE_DELTA = 0.3
#: ADWIN looks for a cut every 4 blocks: 0.11 us an update where every block costs 0.26 (River 0.26.1).
PROPOSE_CLOCK = 4
#: Blocks remembered one by one or joined; the newest half is never joined.
MEMORY_BLOCKS = 256
#: Blocks before the first comparison: enough to see how much the stream itself swings.
WARM_UP_BLOCKS = MEMORY_BLOCKS // 2
#: Blocks in a group whose mean tells how the stream swings, and groups the estimate remembers: it then
#: scatters by sqrt(2 / 128) = 12 %.
SWING_BLOCKS = 8
SWING_MEMORY = 64
#: Blocks whose mean centres ADWIN's input.
CENTRE_BLOCKS = 8
#: Blocks that each side of a comparison needs.
SIDE_BLOCKS_MIN = 8
#: C of the run length above, in blocks of at least one autocorrelation time and windows of at least 8:
#: simulated 2.85 at rho 0, 4.3 at 0.7, 6.4 at 0.9 (b = 4.25; 2.4 million blocks each).
RUN_LENGTH_FACTOR = 2.8
#: A change smaller than this many standard deviations of the baseline is nobody's drift, however certain.
EFFECT_MIN_SD = 0.1
#: The same for shares, where the baseline's deviation may be 0: half a percent of the events.
EFFECT_MIN_SHARE = 0.005
#: Delta is the expected number of false triggers, over all signals, in so many events.
DELTA_EVENTS = 10_000


def block_values(block_events: int, autocorrelation_time: float) -> int:
    """Values in a block of one signal: at least its autocorrelation time."""
    return max(block_events, math.ceil(autocorrelation_time))


def alarm_limit(delta: float, signals: int, values: int) -> float:
    """The |z| at which one of `signals` series alarms, so that all raise `delta` false alarms in DELTA_EVENTS.

    values: in a block. Bonferroni over signals: solves C sqrt(2 pi) exp(b^2 / 2) / b = blocks * signals / delta.
    """
    blocks = DELTA_EVENTS / values
    target = math.log(blocks * max(1, signals) / (RUN_LENGTH_FACTOR * math.sqrt(2.0 * math.pi) * delta))
    b = 3.0
    for _ in range(50):  # fixed point of b^2 / 2 = target + ln b; contracts by 1 / b^2 a step
        b = math.sqrt(max(4.5, 2.0 * (target + math.log(b))))
    return b


@dataclass(frozen=True, slots=True)
class Change:
    """The likeliest change point of a signal: strength |z|, and the first block after the change."""

    z: float
    start_event: int
    start_time_ms: int


class SignalDetector:
    """Detects changes of one signal's bounded mean. Deterministic; remembers a bounded number of blocks."""

    def __init__(self, baseline: SignalBaseline, block_events: int, limit: float) -> None:
        self._kind = kind_of(baseline)
        self.limit = limit
        self._time = cautious_time(baseline)
        self._block_values = block_values(block_events, self._time)
        levels, histogram = levels_of(baseline), np.array(baseline.histogram, dtype=np.float64)
        share = histogram / max(1, baseline.count)
        mean = float(share @ levels) if len(levels) == len(share) else 0.0
        self._variance = max(0.0, float(share @ levels**2) - mean**2) if len(levels) == len(share) else 0.0
        # ADWIN's input: +-2.5 standard deviations of a block mean fill [0, 1], so that its bound's
        # range term is not paid for a range that block means never use. At most 4-fold.
        deviation = math.sqrt(self._variance * self._time / self._block_values)
        self._gain = min(4.0, max(1.0, 1.0 / (5.0 * max(deviation, 1e-9))))
        self._centre: float | None = None
        self._adwin = _new_adwin()
        self._open = [0.0, 0.0, 0.0, 0.0]  # values, sum, first event, first event time of the block being filled
        # Remembered blocks, oldest first; columns: values, sum, first event, its time in ms.
        self._blocks = np.zeros((MEMORY_BLOCKS, 4))
        self._length = 0
        # How much the stream swings: blocks of the group being filled, the group before, first estimates, estimate.
        self._group = [0.0, 0.0, 0.0]
        self._before_group: float | None = None
        self._swings: list[float] = []
        self._swing: float | None = None
        #: Blocks for which the proposal stays open.
        self.proposed = 0

    def add(self, values: float, total: float, event: int, time_ms: int) -> None:
        """Count `values` values with sum `total`; `event` and `time_ms` are where they begin."""
        current = self._open
        if current[0] == 0.0:
            current[2], current[3] = event, time_ms
        current[0] += values
        current[1] += total
        if current[0] >= self._block_values:
            self._close_block()

    def _close_block(self) -> None:
        self._blocks[self._length] = self._open
        self._length += 1
        mean = self._open[1] / self._open[0]
        self._watch_swings(self._open[0], self._open[1])
        self._open = [0.0, 0.0, 0.0, 0.0]
        self.proposed = max(0, self.proposed - 1)
        if self._centre is not None:
            self._propose(mean, self._centre)
        elif self._length >= CENTRE_BLOCKS:
            self._start_adwin()
        if self._length == MEMORY_BLOCKS:
            self._join_old_blocks()

    def _watch_swings(self, values: float, total: float) -> None:
        """Estimate the variance of long means from neighbouring groups of blocks.

        Half the squared difference of two group means, times a group's values, has the long-run variance
        as its mean whatever the mean does in the long run. One difference may hold a change, so each is
        capped at nine times the estimate, which begins with a median (0.455 of the mean for one degree).
        """
        group = self._group
        group[0] += values
        group[1] += total
        group[2] += 1.0
        if group[2] < SWING_BLOCKS:
            return
        mean = group[1] / group[0]
        if self._before_group is not None:
            squared = (mean - self._before_group) ** 2 * group[0] / 2.0
            if self._swing is not None:
                self._swing += (min(squared, 9.0 * self._swing) - self._swing) / SWING_MEMORY
            else:
                self._swings.append(squared)
                if len(self._swings) == WARM_UP_BLOCKS // SWING_BLOCKS - 1:
                    self._swing = float(np.median(self._swings)) / 0.455
        self._before_group = mean
        self._group = [0.0, 0.0, 0.0]

    def _propose(self, mean: float, centre: float) -> None:
        self._adwin.update(min(1.0, max(0.0, 0.5 + (mean - centre) * self._gain)))
        if self._adwin.drift_detected:
            self.proposed = MEMORY_BLOCKS

    def _start_adwin(self) -> None:
        blocks = self._blocks[: self._length]
        means = blocks[:, 1] / blocks[:, 0]
        centre = float(means.mean())
        self._centre, self._adwin = centre, _new_adwin()
        for mean in means.tolist():
            self._propose(mean, centre)

    def _join_old_blocks(self) -> None:
        """Halve the older half: resolution is kept where a new change can be."""
        half = MEMORY_BLOCKS // 2
        old, new = self._blocks[:half], self._blocks[half:].copy()
        joined = old[0::2].copy()
        joined[:, :2] += old[1::2, :2]
        self._length = half // 2 + half
        self._blocks[: half // 2] = joined
        self._blocks[half // 2 : self._length] = new

    def mean(self) -> float:
        """Latest block mean, NaN before the first."""
        values, total = self._blocks[self._length - 1, :2].tolist() if self._length else (0.0, 0.0)
        return total / values if values else math.nan

    def change(self) -> Change | None:
        """The likeliest change point, however weak; None without enough values on both sides."""
        z = self._strengths()
        if z is None or not len(z):
            return None
        best = int(z.argmax())
        if z[best] <= 0.0:
            return None
        times_ms = self._blocks[best : best + DATING_BLOCKS, 3].tolist()
        # As a double the latest time a record can claim is 2^63: one too much for the trigger's long.
        return Change(float(z[best]), int(self._blocks[best, 2]), min(int(median_low(times_ms)), 2**63 - 1))

    def strength_at(self, event: int) -> float:
        """|z| of a change at the remembered block boundary nearest to `event`; 0 without one."""
        z = self._strengths()
        if z is None:
            return 0.0
        return float(z[np.abs(self._blocks[: self._length, 2] - event).argmin()])

    def keep_open(self) -> None:
        """A change that may not be told yet: go on comparing."""
        self.proposed = MEMORY_BLOCKS

    def restart(self, event: int) -> None:
        """Forget what came before `event`: the new regime is what later values are compared with."""
        kept = self._blocks[: self._length][self._blocks[: self._length, 2] >= event].copy()
        self._length = len(kept)
        self._blocks[: self._length] = kept
        self._centre, self._adwin = None, _new_adwin()
        if self._length >= CENTRE_BLOCKS:
            self._start_adwin()
        self.proposed = 0

    def _strengths(self) -> Doubles | None:
        """|z| of a change at the start of each remembered block, 0 where it may not alarm."""
        if self._length < WARM_UP_BLOCKS:
            return None
        values, sums = self._blocks[: self._length, 0], self._blocks[: self._length, 1]
        n1, s1 = values[::-1].cumsum()[::-1], sums[::-1].cumsum()[::-1]
        n0, s0 = n1[0] - n1, s1[0] - s1
        pooled = float(s1[0] / n1[0])
        m1 = s1 / n1
        m0 = s0 / np.maximum(n0, 1e-9)
        ranked = self._kind == "rank"
        variance = self._variance if ranked else pooled * (1.0 - pooled)
        time = self._time * self._excess(variance)
        if ranked:
            z = np.abs(m1 - m0) / np.sqrt(variance * time * (1.0 / np.maximum(n0, 1e-9) + 1.0 / n1))
            effect = EFFECT_MIN_SD * math.sqrt(variance)
        else:
            # Shares near 0 are far from normal: the likelihood ratio's signed root is not.
            z = np.sqrt(2.0 * np.maximum(0.0, n1 * _bernoulli_kl(m1, pooled) + n0 * _bernoulli_kl(m0, pooled)) / time)
            effect = max(EFFECT_MIN_SHARE, EFFECT_MIN_SD * math.sqrt(self._variance))
        enough = np.minimum(n0, n1) >= SIDE_BLOCKS_MIN * self._block_values
        return np.where(enough & (np.abs(m1 - m0) >= effect), z, 0.0)

    def _excess(self, variance: float) -> float:
        """By how much the stream swings more than the baseline promised, as a factor >= 1 on tau.

        A baseline measured on shuffled rows promises far too little. Below 1.5 it is taken for noise.
        """
        if variance <= 0.0 or self._swing is None:
            return 1.0
        excess = self._swing / (variance * self._time)
        return excess if excess > 1.5 else 1.0

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that later results depend on, JSON-able and exact (River's own ADWIN state in base64)."""
        return {
            "adwin": _encode(bytes(self._adwin._helper.__getstate__())),  # noqa: SLF001 (has no public name)
            "detected": bool(self._adwin.drift_detected),
            "centre": self._centre,
            "open": list(self._open),
            "swings": [list(self._group), self._before_group, list(self._swings), self._swing],
            "blocks": _encode(self._blocks[: self._length].astype("<f8").tobytes()),
            "proposed": self.proposed,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`. The bytes must be those it gave: River aborts on damaged ones."""
        self._adwin = _new_adwin()
        self._adwin._helper.__setstate__(base64.b64decode(state["adwin"]))  # noqa: SLF001
        self._adwin._drift_detected = state["detected"]  # noqa: SLF001
        self._centre = state["centre"]
        self._open = list(state["open"])
        group, self._before_group, swings, self._swing = state["swings"]
        self._group, self._swings = list(group), list(swings)
        blocks = np.frombuffer(base64.b64decode(state["blocks"]), dtype="<f8").reshape(-1, 4)
        self._length = len(blocks)
        self._blocks[: self._length] = blocks
        self.proposed = state["proposed"]


def _new_adwin() -> Any:
    return ADWIN(delta=PROPOSE_DELTA, clock=PROPOSE_CLOCK)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bernoulli_kl(p: Doubles, q: float) -> Doubles:
    """KL divergence of Bernoulli(p) from Bernoulli(q), nats; where q is 0 or 1, so is every p."""
    if q <= 0.0 or q >= 1.0:
        return np.zeros_like(p)
    p = np.clip(p, 0.0, 1.0)
    return _xlogy(p, p / q) + _xlogy(1.0 - p, (1.0 - p) / (1.0 - q))


def _xlogy(x: Doubles, y: Doubles) -> Doubles:
    return x * np.log(np.where(x > 0.0, y, 1.0))


def detectors(
    signals: Iterable[SignalBaseline], block_events: int, delta: float, comparisons: int
) -> list[SignalDetector | None]:
    """A detector for each signal, None for those that had no value in the baseline.

    comparisons: of how many series in all delta bounds the false alarms.
    """
    return [
        SignalDetector(s, block_events, alarm_limit(delta, comparisons, block_values(block_events, cautious_time(s))))
        if s.count
        else None
        for s in signals
    ]
