"""The drift monitor with durable state, for the agent that reads the summaries topic.

A fetched batch of summaries is done in this order:

    1. feed the monitor; its triggers go into the outbox
    2. save: monitor, next offset of the summaries topic, outbox, in one file, atomically
    3. publish each trigger and wait until the broker has it
    4. clear the outbox and save again (only if there was a trigger)

and only then may the caller acknowledge the batch. A crash before 2 reads the batch again into the old
state; between 2 and 4 the triggers of the outbox are published again under the same ids, and summaries
below the saved offset are skipped. So no trigger is lost, a repeated one has the same `trigger_id`, and no
event counts twice. Does not guarantee: that a trigger is on the topic only once.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

from pipeline.drift.evidence import trigger_from_dict, trigger_to_dict
from pipeline.drift.monitor import DriftMonitor
from pipeline.drift.summaries import summary_from_dict
from pipeline.errors import ContractError, SchemaError
from pipeline.records import BatchSummary, RecordBatch, RetrainingTrigger

log = structlog.get_logger(__name__)

#: Layout of the state file; another one is set aside, as are states of another River.
FORMAT = 2

Publish = Callable[[RetrainingTrigger], Awaitable[None]]


class MonitorObserver(Protocol):
    """What the station reports; observe.Metrics is one."""

    def monitor_events(self, n: int) -> None: ...
    def drift_signal(self, name: str, value: float) -> None: ...
    def alarm(self, signal: str) -> None: ...


class MonitorStation:
    """Decodes summaries, feeds the monitor, and keeps its state. One task owns it."""

    def __init__(
        self,
        monitor: DriftMonitor,
        path: Path,
        decode: Callable[[bytes], dict[str, Any]],
        *,
        source: str = "",
        observer: MonitorObserver | None = None,
    ) -> None:
        """Load the state in `path`, or begin anew.

        decode: a summary's bytes to its Avro row; raises SchemaError for bytes that are none.
        source: identifies cluster and topic: offsets saved for another one are not used.
        Raises ContractError when the folder cannot be written.
        """
        self._monitor = monitor
        self._path = path
        self._decode = decode
        self._source = source
        self._observer = observer
        self._next_offsets: dict[int, int] = {}
        self._outbox: list[RetrainingTrigger] = []
        #: Values that were no summary, and summaries of another model or read before.
        self.undecodable = 0
        self.skipped = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ContractError(f"drift.state_dir: {path.parent} cannot be made: {error}") from None
        self._load()

    @property
    def outbox(self) -> tuple[RetrainingTrigger, ...]:
        """Triggers saved and not yet known to be published."""
        return tuple(self._outbox)

    async def republish(self, publish: Publish) -> None:
        """Publish what a former run may not have; call before the first `take`."""
        if self._outbox:
            log.info("publishing triggers of the run before", trigger_ids=[t.trigger_id for t in self._outbox])
            await self._empty_outbox(publish)

    async def take(self, batch: RecordBatch, publish: Publish) -> None:
        """Do one fetched batch of the summaries topic; on return it may be acknowledged.

        publish: sends one trigger and returns once the broker has it. What it raises is passed on, with
        the trigger still in the outbox.
        """
        seen_before = self._monitor.events_seen
        for offset, value in zip(batch.offsets, batch.values, strict=True):
            if offset < self._next_offsets.get(batch.partition, 0):
                self.skipped += 1
                continue
            summary = self._summary(batch, offset, value)
            trigger = self._monitor.take(summary) if summary is not None else None
            if trigger is not None:
                self._outbox.append(trigger)
        self._next_offsets[batch.partition] = max(self._next_offsets.get(batch.partition, 0), batch.next_offset)
        self.save()
        self._report(self._monitor.events_seen - seen_before)
        if self._outbox:
            await self._empty_outbox(publish)

    def save(self) -> None:
        """Write the state so that a crash at any moment leaves the old file or the new one.

        Raises ContractError when it cannot be written (disk full, no permission).
        """
        body = json.dumps(
            {
                "format": FORMAT,
                "river": _river_version(),
                "source": self._source,
                "fingerprint": self._monitor.fingerprint,
                "next_offsets": {str(p): offset for p, offset in self._next_offsets.items()},
                "outbox": [trigger_to_dict(t) for t in self._outbox],
                "monitor": self._monitor.state_dict(),
            },
            separators=(",", ":"),
        ).encode()
        new = self._path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise ContractError(f"drift.state_dir: {self._path} cannot be written: {error}") from None

    async def _empty_outbox(self, publish: Publish) -> None:
        for trigger in self._outbox:
            await publish(trigger)
        self._outbox = []
        self.save()

    def _summary(self, batch: RecordBatch, offset: int, value: bytes | None) -> BatchSummary | None:
        """The summary in a value; None, with a line in the log, for anything else."""
        where = f"{batch.topic}[{batch.partition}]@{offset}"
        try:
            summary = summary_from_dict(self._decode(value or b""))
        except (SchemaError, KeyError, TypeError) as error:
            self.undecodable += 1
            log.warning("not a batch summary: skipped", where=where, error=f"{type(error).__name__}: {error}")
            return None
        refusal = self._monitor.refusal(summary)
        if refusal is not None:
            self.skipped += 1
            log.warning("batch summary skipped", where=where, reason=refusal)
            return None
        return summary

    def _report(self, events: int) -> None:
        if self._observer is None:
            return
        self._observer.monitor_events(events)
        for name, mean in self._monitor.latest_means().items():
            self._observer.drift_signal(name, mean)
        for trigger in self._outbox:
            for signal in trigger.signals:
                self._observer.alarm(signal.signal)

    def _load(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ContractError(f"drift.state_dir: {self._path} cannot be read: {error}") from None
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            self._set_aside("it is damaged")
            return
        state = json.loads(body)
        if state["format"] != FORMAT:
            self._set_aside(f"its format is {state['format']}, not {FORMAT}")
            return
        # What was promised to be published stays promised, whichever model is watched now.
        self._outbox = [trigger_from_dict(row) for row in state["outbox"]]
        if state["source"] == self._source:
            self._next_offsets = {int(p): offset for p, offset in state["next_offsets"].items()}
        misfit = self._misfit(state)
        if misfit is None:
            self._monitor.load(state["monitor"])
            log.info("monitor state loaded", path=str(self._path), events_seen=self._monitor.events_seen)
        else:
            self._set_aside(misfit)
            self.save()

    def _misfit(self, state: dict[str, Any]) -> str | None:
        """Why the monitor cannot go on from a whole state, or None."""
        if state["source"] != self._source:
            return "it belongs to another cluster or topic"
        if state["fingerprint"] != self._monitor.fingerprint:
            return "it belongs to another model version or baseline"
        if state["river"] != _river_version():
            return f"its detectors are of River {state['river']}"
        return None

    def _set_aside(self, reason: str) -> None:
        """Keep the file under another name; it is replaced by the next save, not before."""
        aside = self._path.with_suffix(".bad")
        shutil.copyfile(self._path, aside)
        log.warning("monitor state not used, beginning anew", reason=reason, kept_as=str(aside))


def _river_version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 (reads package metadata: only when saving)

    return version("river")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
