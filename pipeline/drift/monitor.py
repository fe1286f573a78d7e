"""The drift monitor: summaries in, at most one trigger a drift out. Pure, deterministic, restartable."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.drift.baseline import cautious_time
from pipeline.drift.detector import detectors
from pipeline.drift.evidence import (
    PSI_MAJOR,
    advice_for,
    divergences,
    severity_of,
    signal_evidence,
    trigger_id,
    trigger_to_dict,
)
from pipeline.drift.history import History, Stretch, evidence_ranges, training_ranges
from pipeline.drift.joint import PREFIX, leans_on
from pipeline.drift.merge import DATING_BLOCKS, RoundMerger
from pipeline.drift.parts import moved_by_slices, slice_score, strength
from pipeline.drift.spread import SpreadScan, scatters
from pipeline.records import Baseline, BatchSummary, RetrainingTrigger, SignalBaseline, SignalEvidence

#: A signal that did not alarm by itself is named when it changed at the same point by so much: one in
#: 10,000 signals that did not change would be.
MOVED_Z = 3.9
#: Events in the summaries since the change before a trigger is sent: a summary that came half before, half
#: after it would show a mixture as the evidence; and signals that alarm a little later join the trigger.
#: Sampling alone then shows a PSI of 15 / 200 = 0.075 over 16 bins, still "minor".
EVIDENCE_EVENTS_MIN = 200
#: Effective values, and events, that the slow comparison with the baseline needs: PSI over 16 bins
#: then scatters by 0.011 around its bias, which is subtracted.
BASELINE_EFFECTIVE = 500
BASELINE_EVENTS = 2_000
#: And it is made once in so many events: it costs a third of a millisecond.
BASELINE_EVERY = 256
#: The comparison may alarm again once the signal is back this close to the baseline.
PSI_REARM = 0.05


#: Events since a change for which products that alarm wait for one of their features that moves as well.
FACTORS_EVENTS_MAX = 1_000
#: What can alarm; the later ones date a change better.
DETECTORS = ("baseline", "spread", "adwin")


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """See settings.DriftSettings; delta is the expected number of false triggers in 10,000 events."""

    delta: float = 0.002
    cooldown_events: int = 10_000
    window_events: int = 20_000


@dataclass(frozen=True, slots=True)
class _Alarm:
    """A signal that alarmed: how far beyond its limit, and where its change began."""

    signal: int
    detector: str
    excess: float
    start_event: int
    start_time_ms: int


class DriftMonitor:
    """Watches the signals of one version of one model, over all partitions of its input."""

    def __init__(
        self,
        baseline: Baseline,
        *,
        pipeline: str,
        model_id: str,
        model_version: str,
        settings: MonitorSettings | None = None,
        now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """now_ms: read for `produced_at_ms` of a trigger and nothing else."""
        self._baseline = baseline
        self._pipeline = pipeline
        self.model_id = model_id
        self.model_version = model_version
        self._settings = settings or MonitorSettings()
        self._now_ms = now_ms
        self._names = [s.name for s in baseline.signals]
        together = baseline.joint.features if baseline.joint else ()
        self._factors = [self._names.index(f"feature:{name}") for name in together]
        self._leans = leans_on(baseline.joint) if baseline.joint else {}
        self._variances = {s.name: s.variance * cautious_time(s) for s in baseline.signals}
        self._merger = RoundMerger()
        self._history = History([len(s.histogram) for s in baseline.signals])
        delta, watched = self._settings.delta, sum(s.count > 0 for s in baseline.signals)
        comparisons = watched + sum(map(scatters, baseline.signals))
        self._detectors = detectors(baseline.signals, baseline.block_events, delta, comparisons)
        self._spread = SpreadScan(baseline, delta, comparisons)
        self._needed = np.array([max(BASELINE_EVENTS, BASELINE_EFFECTIVE * cautious_time(s)) for s in baseline.signals])
        #: Whether the comparison with the baseline may alarm: once per departure from it.
        self._armed = [s.count > 0 for s in baseline.signals]
        #: Events counted, events merged (some may wait for other partitions), and when the cooldown ends.
        self.events_seen = 0
        self._events_merged = 0
        self._quiet_until = 0
        self._last_event_time_ms = 0

    @property
    def fingerprint(self) -> str:
        """Identifies model version and baseline: state of another one is not continued."""
        plain = asdict(self._baseline)
        for part in ("joint", "season"):
            if plain[part] is None:  # as it was before there were any: the state of old bundles goes on
                del plain[part]
        identity = [self.model_id, self.model_version, plain]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def refusal(self, summary: BatchSummary) -> str | None:
        """Why a summary is none of this monitor's business, or None."""
        if (summary.model_id, summary.model_version) != (self.model_id, self.model_version):
            return f"of model {summary.model_id} {summary.model_version}, not {self.model_id} {self.model_version}"
        if summary.signals != self._names:
            return "its signals are not the baseline's"
        blocks = len(summary.block_counts)
        parallel: list[list[Any]] = [summary.block_last_offsets, summary.block_last_event_times_ms, *summary.means]
        per_signal: list[list[Any]] = [summary.means, summary.counts, summary.sums, summary.sums_of_squares]
        whole = (
            blocks > 0
            and summary.events == sum(summary.block_counts)
            and all(len(column) == blocks for column in parallel)
            and all(len(column) == len(self._names) for column in per_signal)
            and [len(h) for h in summary.histograms] == [len(s.histogram) for s in self._baseline.signals]
        )
        return None if whole else "its blocks, means and histograms do not fit together"

    def take(self, summary: BatchSummary) -> RetrainingTrigger | None:
        """Count a summary's new events; a trigger when they complete the evidence for a drift.

        What `refusal` names is left out. Events counted before are not counted again.
        """
        if self.refusal(summary) is not None:
            return None
        fresh = self._merger.fresh_from(summary)
        due = self._merger.take(summary, fresh)
        events = sum(summary.block_counts[fresh:])
        if not events:
            return None
        self._history.add(summary, fresh, self._merger.round_of(summary), self.events_seen)
        self.events_seen += events
        self._last_event_time_ms = median_low(summary.block_last_event_times_ms[-DATING_BLOCKS:])
        for block in due:
            for detector, share, mean in zip(self._detectors, block.shares, block.means, strict=True):
                if detector is not None and mean == mean:  # noqa: PLR0124 (not NaN; isnan takes three times as long)
                    values = block.events * share
                    detector.add(values, values * mean, self._events_merged, block.time_ms)
            self._events_merged += block.events
        return self._decide(events)

    def latest_means(self) -> dict[str, float]:
        """Latest mean of each signal, bounded, for display; signals without a block are left out."""
        means = {n: d.mean() for n, d in zip(self._names, self._detectors, strict=True) if d is not None}
        return {name: mean for name, mean in means.items() if mean == mean}  # noqa: PLR0124

    # -- deciding ----------------------------------------------------------------------------

    def _decide(self, events: int) -> RetrainingTrigger | None:
        alarms = self._changes()
        if self.events_seen // BASELINE_EVERY > (self.events_seen - events) // BASELINE_EVERY:
            alarms += self._spreads() + self._departures()
        if not alarms:
            return None
        lead = max(alarms, key=lambda a: (DETECTORS.index(a.detector), not self._is_joint(a), a.excess, -a.signal))
        evidence_events = sum(s.events for s in self._history.split(lead.start_event)[1])
        if self.events_seen < self._quiet_until or evidence_events < EVIDENCE_EVENTS_MIN or self._factors_move(lead):
            for alarm in alarms:  # still there when it may be told: keep the proposal open
                detector = self._detectors[alarm.signal]
                if detector is not None and alarm.detector == "adwin":
                    detector.keep_open()
            return None
        trigger = self._trigger(lead, alarms)
        self._begin_anew(lead)
        return trigger

    def _is_joint(self, alarm: _Alarm) -> bool:
        return self._names[alarm.signal].startswith(PREFIX)

    def _factors_move(self, lead: _Alarm) -> bool:
        """Whether an alarm of products waits: features move as well, and will name and date the change better."""
        if not self._is_joint(lead) or self.events_seen - lead.start_event >= FACTORS_EVENTS_MAX:
            return False
        factors = (self._detectors[index] for index in self._factors)
        return any(d is not None and d.strength_at(lead.start_event) >= MOVED_Z for d in factors)

    def _changes(self) -> list[_Alarm]:
        """Signals that changed within the stream."""
        alarms = []
        for index, detector in enumerate(self._detectors):
            change = detector.change() if detector is not None and detector.proposed else None
            if detector is not None and change is not None and change.z >= detector.limit:
                excess = change.z / detector.limit
                alarms.append(_Alarm(index, "adwin", excess, change.start_event, change.start_time_ms))
        return alarms

    def _spreads(self) -> list[_Alarm]:
        """Signals that scatter more or less since some point of the stream."""
        z = self._spread.strengths(self._history.stretches)
        if z is None:
            return []
        alarms = []
        for row, (index, limit) in enumerate(zip(self._spread.watched, self._spread.limits.tolist(), strict=True)):
            best = int(z[row].argmax())
            start = self._history.stretches[best]
            # Blocks may wait for other partitions: first let the detectors see what is seen here.
            seen = self._events_merged >= start.first_event + start.events + EVIDENCE_EVENTS_MIN
            if seen and z[row, best] >= limit:
                alarms.append(_Alarm(index, "spread", float(z[row, best]) / limit, start.first_event, start.time_ms))
        return alarms

    def _departures(self) -> list[_Alarm]:
        """Signals that differ from the baseline by much: a stream that had shifted before it was watched."""
        stretches = self._history.stretches
        counts = np.cumsum([s.counts for s in reversed(stretches)], axis=0)  # (stretches, signals), newest first
        if not (counts[-1] >= self._needed).any():
            return []
        histograms = np.cumsum([s.histograms for s in reversed(stretches)], axis=0)
        alarms = []
        for index, baseline in enumerate(self._baseline.signals):
            full = counts[:, index] >= self._needed[index]
            if not baseline.count or not full.any():
                continue
            whole = int(full.argmax())
            half = min(whole - 1, int((counts[:, index] >= self._needed[index] / 2).argmax()))
            psi = self._excess_psi(baseline, histograms[whole, index])
            if psi < PSI_REARM:
                self._armed[index] = True
            if not self._armed[index] or psi < PSI_MAJOR or half < 0:
                continue
            # A change in the newest part is ADWIN's to tell, and to date.
            older = self._excess_psi(baseline, histograms[whole, index] - histograms[half, index])
            if older >= PSI_MAJOR:
                start = stretches[len(stretches) - 1 - whole]
                alarms.append(_Alarm(index, "baseline", psi / PSI_MAJOR, start.first_event, start.time_ms))
        return alarms

    @staticmethod
    def _excess_psi(baseline: SignalBaseline, histogram: npt.NDArray[np.float64]) -> float:
        """PSI less what sampling alone is expected to show."""
        bins, count = len(baseline.histogram), max(1.0, float(histogram.sum()))
        noise = (bins - 1) * cautious_time(baseline) * (1.0 / count + 1.0 / baseline.count)
        return divergences(histogram, baseline)[1] - noise

    def _trigger(self, lead: _Alarm, alarms: list[_Alarm]) -> RetrainingTrigger:
        earlier, after = self._history.split(lead.start_event)
        before = earlier if lead.detector != "baseline" else []
        fired = {a.signal: a.detector for a in sorted(alarms, key=lambda a: DETECTORS.index(a.detector))}
        signals: list[SignalEvidence] = []
        for index, baseline in enumerate(self._baseline.signals):
            detector = self._detectors[index]
            name = fired.get(index)
            if name is None and detector is not None and lead.detector != "baseline":
                name = "moved" if detector.strength_at(lead.start_event) >= MOVED_Z else None
            if name is not None:
                signals.append(signal_evidence(index, baseline, name, before, after))
            elif detector is not None and slice_score(baseline.name) and lead.detector != "baseline":
                # Its blocks are long, and may not tell yet what the history does.
                found = signal_evidence(index, baseline, "moved", before, after)
                signals += [found] if strength(found, self._variances[baseline.name]) >= MOVED_Z else []
        signals = sorted(self._own(signals), key=lambda s: -s.psi)
        return self._describe(lead, signals, earlier, after)

    def _own(self, signals: list[SignalEvidence]) -> list[SignalEvidence]:
        """Without what moved only with something else.

        Joint signals where one of their features moved by itself, for products move with their factors; and outputs
        of the whole stream where a slice moved and the rest did not, unless it is much of the whole.
        """
        by_slices = moved_by_slices(signals, self._variances, MOVED_Z)
        signals = [s for s in signals if s.psi >= PSI_MAJOR or s.signal not in by_slices]
        together = self._baseline.joint.features if self._baseline.joint else ()
        alone = any(s.signal in (f"feature:{name}", f"null:{name}") for s in signals for name in together)
        return [s for s in signals if not (alone and s.signal.startswith(PREFIX))]

    def _describe(
        self, lead: _Alarm, signals: list[SignalEvidence], earlier: list[Stretch], after: list[Stretch]
    ) -> RetrainingTrigger:
        settings = self._settings
        severity = severity_of(signals)
        since = self.events_seen - lead.start_event
        trigger = RetrainingTrigger(
            trigger_id="",
            pipeline=self._pipeline,
            model_id=self.model_id,
            model_version=self.model_version,
            signals=signals,
            change_event_time_ms=lead.start_time_ms,
            change_events_ago=since,
            evidence=evidence_ranges(after),
            window=training_ranges(earlier, after, settings.window_events),
            severity=severity,
            advice=advice_for(severity, signals, since, settings.window_events, self._leans),
            events_seen=self.events_seen,
            detected_event_time_ms=self._last_event_time_ms,
            next_allowed_after_events=settings.cooldown_events,
            produced_at_ms=0,
        )
        return replace(trigger, trigger_id=trigger_id(trigger_to_dict(trigger)), produced_at_ms=self._now_ms())

    def _begin_anew(self, lead: _Alarm) -> None:
        """What came since the change is the new normal; the next trigger waits for the cooldown."""
        for detector in self._detectors:
            if detector is not None:
                detector.restart(lead.start_event)
        self._history.forget_before(lead.start_event)
        self._armed = [False] * len(self._armed)
        self._quiet_until = self.events_seen + self._settings.cooldown_events

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that later triggers depend on, JSON-able and exact."""
        return {
            "detectors": [d.state_dict() if d is not None else None for d in self._detectors],
            "merger": self._merger.state_dict(),
            "history": self._history.state_dict(),
            "armed": self._armed,
            "counters": [self.events_seen, self._events_merged, self._quiet_until, self._last_event_time_ms],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue as if the monitor that gave `state_dict` had never stopped."""
        for detector, saved in zip(self._detectors, state["detectors"], strict=True):
            if detector is not None:
                detector.load(saved)
        self._merger.load(state["merger"])
        self._history.load(state["history"])
        self._armed = list(state["armed"])
        self.events_seen, self._events_merged, self._quiet_until, self._last_event_time_ms = state["counters"]
