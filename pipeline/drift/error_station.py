"""The watch of a model's errors with durable state, for the agent that reads the outcomes topic.

As station.py, whose rule holds here too: a trigger is on its topic if and only if the offsets after the outcomes that
raised it are committed. What differs: outcomes have several partitions, and read again they do not interleave as they
did before. A change may then be seen a few outcomes sooner or later, on the other side of a commit; so it must not be
read out of the log again whether a trigger was sent. Therefore

    1. feed    watch the errors; a trigger waits
    2. send    it goes into the open transaction, and the state after it to disk, ahead of the commit
    3.         the transport commits: triggers, and the offsets after what was acknowledged
    4. keep    write the state; not after every commit, it may be older than the offsets

What waits on the topic at the start is better fed in the order in which it was written, across partitions, than in the
one in which it is fetched. So it may be fed before it is delivered: until all of it was, nothing is sent or saved.

On disk are two states, the one written ahead and the one known to be committed before. The newest that is nowhere
ahead of the group's offsets is the true one: `resume` finds it, what lies between is fed again, and a change in there
has not been told yet.
"""

import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from pipeline.drift import state_file
from pipeline.drift.errors import ErrorChange, ErrorWatch
from pipeline.drift.evidence import trigger_id, trigger_to_dict
from pipeline.drift.verdict import verdict
from pipeline.records import Floats, Longs, RetrainingTrigger, SignalEvidence, TopicPartition

log = structlog.get_logger(__name__)

#: Layout of the state file; another one is set aside, as are states of another River.
FORMAT = 1
#: A state has 0.1 MB and takes 10 ms to write, most of it the disk's; what came since is read again.
SAVE_EVERY_S = 1.0

Send = Callable[[RetrainingTrigger], Awaitable[None]]
#: What a change is worth: a trigger, or None for one that asks for nothing.
Describe = Callable[[ErrorChange, ErrorWatch], RetrainingTrigger | None]
Positions = Mapping[TopicPartition, int]


def trigger_of(
    change: ErrorChange,
    watch: ErrorWatch,
    *,
    pipeline: str,
    moved: list[SignalEvidence],
    window_events: int,
    now_ms: int,
) -> RetrainingTrigger | None:
    """The trigger of errors that rose; None if they fell.

    moved: evidence of inputs and outputs that changed lately, [] if none is known. The trigger's evidence is of the
    outcomes topic; it suggests no window, since outcomes come in the order of their labels: its time says since when.
    """
    if not change.rose:
        return None
    found = verdict(moved, change, None, change.outcomes, window_events)
    trigger = RetrainingTrigger(
        trigger_id="",
        pipeline=pipeline,
        model_id=watch.identity.model_id,
        model_version=watch.identity.model_version,
        signals=[change.evidence, *moved],
        change_event_time_ms=change.change_event_time_ms,
        change_events_ago=change.outcomes,
        evidence=change.ranges,
        window=[],
        severity=found.severity,
        advice=found.advice,
        events_seen=watch.outcomes,
        detected_event_time_ms=watch.event_times_ms()[1],
        next_allowed_after_events=0,
        produced_at_ms=0,
    )
    return replace(trigger, trigger_id=trigger_id(trigger_to_dict(trigger)), produced_at_ms=now_ms)


class ErrorObserver(Protocol):
    """What the station reports; observe.Metrics is one."""

    def drift_signal(self, name: str, value: float) -> None: ...
    def alarm(self, signal: str) -> None: ...


class ErrorStation:
    """Watches the errors of the champion, and keeps the state. One task at a time may use it."""

    def __init__(
        self, watch: ErrorWatch, path: Path, describe: Describe, *, source: str, observer: ErrorObserver | None = None
    ) -> None:
        """Load the states in `path`, if there are any; hold its folder until `close`.

        watch: a new one, of the champion. source: identifies cluster and topic: a state of another one is not used.
        Raises ContractError when the folder cannot be written, FencedError while another process holds it.
        """
        self._watch, self._path, self._describe = watch, path, describe
        self._source, self._observer = source, observer
        #: Offsets after what was fed, and after what may be committed with the open transaction.
        self._positions: dict[TopicPartition, int] = {}
        self._delivered: dict[TopicPartition, int] = {}
        #: Triggers that wait to be sent, and those in the open transaction.
        self._waiting: list[RetrainingTrigger] = []
        self._sent: list[RetrainingTrigger] = []
        #: States as they are on disk: of the open transaction, and the newest one that is committed.
        self._ahead: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        self._saved_at = -SAVE_EVERY_S
        #: Whether what is fed was told by a state that is gone.
        self._told = False
        self._lock = state_file.hold(path)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def watch(self) -> ErrorWatch:
        return self._watch

    def position(self, tp: TopicPartition) -> int:
        """Offset after what was fed of a partition."""
        return self._positions.get(tp, 0)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- outcomes ----------------------------------------------------------------------------

    def feed(self, tp: TopicPartition, next_offset: int, errors: tuple[Longs, Longs, Floats] | None = None) -> None:
        """Watch the champion's errors in a batch that ends before `next_offset`; what comes of it waits.

        errors: (n,) ascending offsets, times of the events in ms, errors; None if the batch has none. Outcomes that
        were fed before are left out.
        """
        start = self._positions.get(tp, 0)
        if next_offset <= start:
            return
        self._positions[tp] = next_offset
        if errors is None:
            return
        offsets, event_times_ms, values = errors
        fresh = offsets >= start
        change = self._watch.take(*tp, offsets[fresh], event_times_ms[fresh], values[fresh])
        if change is None:
            return
        evidence = change.evidence
        log.info("errors changed", signal=evidence.signal, before=evidence.before_mean, after=evidence.after_mean)
        trigger = self._describe(change, self._watch)
        if trigger is None:
            return
        if self._told:
            log.info("taken as told before the state was lost", trigger_id=trigger.trigger_id)
        else:
            self._waiting.append(trigger)

    async def send(self, tp: TopicPartition, next_offset: int, send: Send) -> None:
        """A batch that was fed is in the open transaction; so is what waits, once all that was fed is.

        What `send` raises is passed on; `resume` is to follow. Raises ContractError when the state cannot be written.
        """
        self._delivered[tp] = max(next_offset, self._delivered.get(tp, 0))
        if not self._waiting or self._is_ahead():
            return
        for trigger in self._waiting:
            await send(trigger)
        self._sent += self._waiting
        self._waiting = []
        self._ahead = self._state()
        self._write()

    def keep(self) -> list[RetrainingTrigger]:
        """Everything that was delivered is committed: save it, now and then; the triggers that are on the topic now.

        Raises ContractError when the state cannot be written (disk full, no permission).
        """
        if self._waiting or self._is_ahead():
            return []
        published, self._sent = self._sent, []
        if self._observer is not None:
            for name, mean in self._watch.latest_means().items():
                self._observer.drift_signal(name, mean)
            for trigger in published:
                self._observer.alarm(trigger.signals[0].signal)
        if published or time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._save()
        return published

    def replace(self, watch: ErrorWatch) -> None:
        """Watch another champion from now on. What was sent of the one before is to be committed by then."""
        log.info("errors of a new champion", model=watch.identity.model_id, version=watch.identity.model_version)
        self._watch, self._waiting, self._sent = watch, [], []

    # -- coming back -------------------------------------------------------------------------

    def resume(self, committed: Positions) -> Positions | None:
        """Go back to the newest state that is not ahead of what the group has committed; its offsets.

        For the time before the first `feed`, and after every rebalance and abort. What lies between them and
        `committed`, or more, is to be fed, and then `resumed` called. None: the state is lost, and is to be made again
        of what the topic still has before `committed`. What was told then, is not told again.
        """
        self._sent, self._waiting, self._watch, self._positions = [], [], self._watch.anew(), {}
        states = (state for state in (self._ahead, self._saved) if state is not None)
        found = next((state for state in states if _is_within(state, committed)), None)
        withdrawn = self._ahead is not None and found is not self._ahead
        self._saved, self._ahead = found, None
        self._told = found is None and bool(committed)
        if self._told:
            log.warning("state of the watch of errors is lost, making it again from outcomes", path=str(self._path))
        self._delivered = dict(committed)
        if found is None:
            if self._told:
                return None
            self._save()  # something to come back to
            return {}
        if withdrawn:  # before the group's offsets pass it: it would then be taken for true
            self._write()
        self._positions = _positions_of(found)
        if not self._watch.load(found["watch"]):
            log.info("state of another champion, watching anew", version=self._watch.identity.model_version)
        return dict(self._positions)

    def resumed(self, committed: Positions) -> None:
        """Everything up to `committed`, or more, was fed again."""
        for tp, offset in committed.items():
            self._positions[tp] = max(offset, self._positions.get(tp, 0))
        if self._told:
            self._save()
        self._told = False

    def _is_ahead(self) -> bool:
        return any(offset > self._delivered.get(tp, 0) for tp, offset in self._positions.items())

    # -- state -------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "positions": [[*tp, offset] for tp, offset in self._positions.items()],
            "watch": self._watch.state_dict(),
        }

    def _save(self) -> None:
        self._saved, self._ahead = self._state(), None
        self._write()

    def _write(self) -> None:
        head = state_file.head(FORMAT, self._source)
        states = [state for state in (self._ahead, self._saved) if state is not None]
        state_file.write(self._path, json.dumps({**head, "states": states}, separators=(",", ":")).encode())
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        if not self._path.exists():
            return
        body = state_file.read(self._path)
        misfit = "it is damaged" if body is None else state_file.misfit(json.loads(body), FORMAT, self._source)
        if body is None or misfit is not None:
            kept_as = state_file.set_aside(self._path)
            log.warning("state of the watch of errors not used", reason=misfit, kept_as=kept_as)
            return
        self._ahead, self._saved = ([None, *json.loads(body)["states"]])[-2:]


def _is_within(state: dict[str, Any], committed: Positions) -> bool:
    return all(offset <= committed.get(tp, 0) for tp, offset in _positions_of(state).items())


def _positions_of(state: dict[str, Any]) -> dict[TopicPartition, int]:
    return {TopicPartition(topic, partition): offset for topic, partition, offset in state["positions"]}
