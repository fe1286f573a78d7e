"""Whether a model's errors change: the same detector as for signals, on outcomes, whose labels come when they come.

Nobody knows how a model errs in service before it does: the bundle has its errors on held-out rows, not how they
swing from hour to hour. So the first LEARN_OUTCOMES of a model are its baseline, measured as those of signals are, and
what comes after is watched by a `DriftMonitor` of this one signal: block means, ADWIN, a test that knows the
autocorrelation, a false-alarm rate per 10,000 outcomes, evidence with offsets, state that is exact.

Outcomes are taken in the order of their topic: the order in which labels came, which need not be that of the events. A
change is told apart from one of the inputs, which has a time, by `around`: errors of events before and since.
"""

import base64
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.drift.baseline import cautious_time, measure_baseline
from pipeline.drift.merge import Place
from pipeline.drift.monitor import DriftMonitor, MonitorSettings
from pipeline.drift.summaries import SignalSummariser
from pipeline.records import Baseline, Floats, Longs, ModelIdentity, OffsetRange, SignalBaseline, SignalEvidence

#: Names of the one signal: of a classification 1 where the class was wrong, of a regression the absolute error.
WRONG, ABSOLUTE = "error:wrong", "error:absolute"
#: Outcomes a baseline is measured on: an error rate of 0.2 is then known to 1.96 x 0.4 / sqrt(2000) = 0.018, and the
#: autocorrelation time to about a tenth at rho = 0.7 (see baseline.py). Memory: 16 kB.
LEARN_OUTCOMES = 2_000
#: Latest outcomes kept one by one for `around`: half before and half since, a rate of 0.2 is compared to +-0.025.
RECENT_OUTCOMES = 4_096
#: As MonitorSettings: expected false changes in 10,000 outcomes.
DELTA = 0.002
#: Normal quantile of 95 %, two-sided.
_Z = 1.96


@dataclass(frozen=True, slots=True)
class ErrorChange:
    """Errors that changed: what the detector has to show, where it began, and where it was seen."""

    evidence: SignalEvidence
    change_event_time_ms: int
    #: Outcomes since the change.
    outcomes: int
    #: Offsets of the outcomes topic.
    ranges: list[OffsetRange]

    @property
    def rose(self) -> bool:
        return self.evidence.after_mean > self.evidence.before_mean


@dataclass(frozen=True, slots=True)
class Around:
    """Mean errors of events before a time and since, with the 95 % interval of their difference."""

    signal: str
    before_mean: float
    after_mean: float
    before_count: int
    after_count: int
    #: Of after less before.
    low: float
    high: float


class ErrorWatch:
    """Watches the errors of one version of one model, over all partitions of the outcomes topic. One thread's."""

    def __init__(self, identity: ModelIdentity, signal: str, *, delta: float = DELTA) -> None:
        """signal: WRONG or ABSOLUTE. delta: expected number of false changes in 10,000 outcomes.

        There is no cooldown: a change for the better, which asks for nothing, must not hide one for the worse.
        """
        self.identity = identity
        self._signal = signal
        self._settings = MonitorSettings(delta, cooldown_events=0)
        self._learnt: Floats = np.empty(0, np.float32)
        #: Highest offset taken, by topic and partition.
        self._taken: dict[Place, int] = {}
        self._recent_times: Longs = np.empty(0, np.int64)
        self._recent: Floats = np.empty(0, np.float32)
        #: From LEARN_OUTCOMES on: how the model erred in these, and what watches it since.
        self._baseline: Baseline | None = None
        self._monitor: DriftMonitor | None = None

    def anew(self) -> "ErrorWatch":
        """One that has seen nothing, of the same model."""
        return ErrorWatch(self.identity, self._signal, delta=self._settings.delta)

    @property
    def baseline(self) -> SignalBaseline | None:
        """How the model erred at first; None until enough labels have come."""
        return None if self._baseline is None else self._baseline.signals[0]

    @property
    def outcomes(self) -> int:
        """Outcomes counted, those of the baseline included."""
        return len(self._learnt) if self._monitor is None else LEARN_OUTCOMES + self._monitor.events_seen

    def latest_means(self) -> dict[str, float]:
        """As DriftMonitor.latest_means; {} while the baseline is learnt."""
        return {} if self._monitor is None else self._monitor.latest_means()

    def event_times_ms(self) -> tuple[int, int]:
        """The earliest and the latest event of the latest outcomes, which `around` looks at. Needs one outcome."""
        return int(self._recent_times.min()), int(self._recent_times.max())

    def take(
        self, topic: str, partition: int, offsets: Longs, event_times_ms: Longs, errors: Floats
    ) -> ErrorChange | None:
        """Count the errors (n,) of outcomes with ascending offsets; a change once there is one, and evidence for it.

        Offsets that were counted before are not counted again.
        """
        fresh = offsets > self._taken.get((topic, partition), -1)
        offsets, event_times_ms, errors = offsets[fresh], event_times_ms[fresh], errors[fresh]
        if not len(offsets):
            return None
        self._taken[topic, partition] = int(offsets[-1])
        self._recent_times = np.concatenate([self._recent_times, event_times_ms])[-RECENT_OUTCOMES:]
        self._recent = np.concatenate([self._recent, errors])[-RECENT_OUTCOMES:]
        learns = 0 if self._baseline is not None else LEARN_OUTCOMES - len(self._learnt)
        if learns:
            self._learnt = np.concatenate([self._learnt, errors[:learns]])
            if len(self._learnt) == LEARN_OUTCOMES:
                self._begin(measure_baseline([self._signal], self._learnt[:, None]))
        if self._baseline is None or self._monitor is None or len(offsets) <= learns:
            return None
        summariser = SignalSummariser(self._baseline, self.identity)
        summariser.add(topic, partition, offsets[learns:], event_times_ms[learns:], errors[learns:, None])
        trigger = self._monitor.take(*summariser.drain())
        if trigger is None:
            return None
        (evidence,) = trigger.signals
        return ErrorChange(evidence, trigger.change_event_time_ms, trigger.change_events_ago, trigger.evidence)

    def around(self, time_ms: int) -> Around | None:
        """Errors of the latest outcomes, of events before a time and since; None where one of them has none.

        Whether a change of the inputs, which has a time, is one of the errors as well. The interval counts n outcomes
        as n over their autocorrelation time.
        """
        since = self._recent_times >= time_ms
        after, before = self._recent[since].astype(np.float64), self._recent[~since].astype(np.float64)
        if self._baseline is None or not len(after) or not len(before):
            return None
        # Errors that are all the same in a few outcomes are not known for certain: as if one more had been at the end.
        spread = float(np.ptp(self._recent)) or 1.0
        variance = sum((float(v.var()) + spread**2 / len(v)) / len(v) for v in (before, after))
        half = _Z * math.sqrt(cautious_time(self._baseline.signals[0]) * variance)
        difference = float(after.mean() - before.mean())
        means = (float(before.mean()), float(after.mean()))
        return Around(self._signal, *means, len(before), len(after), difference - half, difference + half)

    def _begin(self, baseline: Baseline) -> None:
        self._baseline, self._learnt = baseline, np.empty(0, np.float32)
        model_id, version = self.identity.model_id, self.identity.model_version
        self._monitor = DriftMonitor(
            baseline, pipeline="", model_id=model_id, model_version=version, settings=self._settings
        )

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that later changes depend on, JSON-able and exact."""
        return {
            "of": [asdict(self.identity), self._signal],
            "taken": [[*place, offset] for place, offset in self._taken.items()],
            "learnt": _encode(self._learnt),
            "recent": [_encode(self._recent_times), _encode(self._recent)],
            "baseline": None if self._baseline is None else asdict(self._baseline),
            "monitor": None if self._monitor is None else self._monitor.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> bool:
        """Go on as if the watch that gave `state_dict` had never stopped; False, undone, if it is another model's."""
        if state["of"] != [asdict(self.identity), self._signal]:
            return False
        self._taken = {(topic, partition): offset for topic, partition, offset in state["taken"]}
        self._recent_times = _decode(state["recent"][0], "<i8").astype(np.int64)
        self._recent = _decode(state["recent"][1], "<f4").astype(np.float32)
        if state["baseline"] is not None:
            (signal,) = state["baseline"]["signals"]
            lists = {name: tuple(signal[name]) for name in ("edges", "histogram")}
            self._begin(Baseline((SignalBaseline(**{**signal, **lists}),), state["baseline"]["block_events"]))
        if self._monitor is not None:
            self._monitor.load(state["monitor"])
        self._learnt = _decode(state["learnt"], "<f4").astype(np.float32)
        return True


def _encode(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _decode(text: str, kind: str) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=kind)
