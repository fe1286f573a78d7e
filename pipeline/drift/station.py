"""The drift monitor with durable state, for the agent that reads the summaries topic.

Summaries and triggers are in Kafka, the state is a file. One rule joins them:

    a trigger is on the topic if and only if the offset after the summary that raised it is committed

because both are in one transaction. So the file holds a snapshot of the monitor and its place in the summaries
topic, nothing else:

    1. take    feed the monitor; a trigger goes into the open transaction
    2.         the transport commits: triggers, and the offset after the last summary that was acknowledged
    3. keep    write the snapshot, atomically; not after every commit, it may be older than the offset

A crash before 2 leaves the old offset and the old snapshot: the same summaries raise the same trigger again, under
the same id. Where the snapshot is older than the offset, `resume` feeds what lies between and sends nothing of it,
since it is on the topic. The same rebuilds a state that was lost from what the topic still holds. An abort goes
back to the snapshot. So no trigger is lost or repeated, and no event counts twice.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import structlog

from pipeline.drift import state_file
from pipeline.drift.monitor import DriftMonitor
from pipeline.drift.summaries import summary_from_dict
from pipeline.errors import ContractError, SchemaError, TransactionAbortedError
from pipeline.records import BatchSummary, RecordBatch, RetrainingTrigger

log = structlog.get_logger(__name__)

#: Layout of the state file; another one is set aside, as are states of another River.
FORMAT = 3
#: A lost state is rebuilt from at most so many of the newest summaries: 54 s at 2.7 ms each, with 16 signals
#: (1.8 in the monitor, 0.9 to decode). 4 partitions that commit twice a second make so many in 40 minutes.
REBUILD_SUMMARIES_MAX = 20_000

#: A state of 16 signals is 0.4 MB and takes 16 ms to write; `resume` reads again what came since.
SAVE_EVERY_S = 1.0
#: How soon it is noticed that an aborted transaction has called a batch back.
CALL_BACK_POLL_S = 0.05

Send = Callable[[RetrainingTrigger], Awaitable[None]]
#: (start, end) -> what the summaries topic holds of these offsets, `end` exclusive.
Read = Callable[[int, int], Iterable[RecordBatch]]


class Delivery(Protocol):
    """A fetched batch of summaries; a Faust event is one."""

    @property
    def value(self) -> RecordBatch: ...
    def ack(self) -> Any: ...


class Place(Protocol):
    """Where the summaries come from."""

    def is_current(self, delivery: Delivery) -> bool:
        """Whether it is still to be done: a rebalance or an abort calls back what was delivered before."""
        ...

    def reading(self, delivery: Delivery) -> object:
        """Equal for two deliveries with no rebalance, abort or seek between them."""
        ...

    async def committed(self, delivery: Delivery) -> int | None:
        """The group's offset in the delivery's partition; None if there is none."""
        ...

    async def commit(self) -> None:
        """Commit what was acknowledged, now."""
        ...

    async def successor(self, model_id: str, model_version: str) -> DriftMonitor | None:
        """The monitor of this model, if it is champion now; None if it is not."""
        ...

    def read(self, start: int, end: int) -> Iterable[RecordBatch]:
        """What the topic holds of these offsets, `end` exclusive."""
        ...


class MonitorObserver(Protocol):
    """What the station reports; observe.Metrics is one."""

    def monitor_events(self, n: int) -> None: ...
    def drift_signal(self, name: str, value: float) -> None: ...
    def alarm(self, signal: str) -> None: ...


class MonitorStation:
    """Decodes summaries, feeds the monitor, and keeps its state. One task at a time may use it."""

    def __init__(
        self,
        monitor: DriftMonitor,
        path: Path,
        decode: Callable[[bytes], dict[str, Any]],
        *,
        source: str = "",
        observer: MonitorObserver | None = None,
    ) -> None:
        """Load the state in `path`, or begin anew; hold its folder until `close`.

        decode: a summary's bytes to its Avro row; raises SchemaError for bytes that are none.
        source: identifies cluster and topic: a state of another one is not used.
        Raises ContractError when the folder cannot be written, FencedError while another monitor holds it.
        """
        self._monitor = monitor
        self._path = path
        self._decode = decode
        self._source = source
        self._observer = observer
        #: Offset after the last summary that was fed; None: nothing is known of the topic yet.
        self._next_offset: int | None = None
        #: Triggers in the open transaction.
        self._sent: list[RetrainingTrigger] = []
        #: The batch that was decoded last, and what it held.
        self._decoded_of: RecordBatch | None = None
        self._summaries: list[BatchSummary | None] = []
        #: Values that were no summary, and summaries of another model or read before.
        self.undecodable = 0
        self.skipped = 0
        #: Held by a batch in work and by a commit: neither finds the other half done.
        self.between_batches = asyncio.Lock()
        self._saved_at = -SAVE_EVERY_S
        #: Whether everything that was fed is committed, and not all of it saved.
        self._unsaved = False
        self._lock = state_file.hold(path)
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        self._snapshot = self._state()
        self._reported = monitor.events_seen

    @property
    def events_seen(self) -> int:
        """Events counted, over all runs."""
        return self._monitor.events_seen

    def close(self) -> None:
        """Save what is left to be saved, and let another monitor have the folder."""
        if self._lock is None:
            return
        try:
            if self._unsaved:
                self._save()
        except ContractError as error:
            log.warning("monitor state not saved at the end", error=str(error))
        finally:
            os.close(self._lock)
            self._lock = None

    async def run(self, deliveries: AsyncIterable[Delivery], place: Place, send: Send) -> None:
        """Feed what comes until it ends; see `take`. Raises what `send` raises, but for an abort."""
        reading: object = None
        async for delivery in deliveries:
            aborted = False
            successor = await self._successor(delivery, place)
            if successor is not None:
                await place.commit()  # what is open is the old model's
            async with self.between_batches:
                if successor is not None:
                    await asyncio.to_thread(self._replace, successor)
                if place.is_current(delivery) and place.reading(delivery) != reading:
                    reading = place.reading(delivery)
                    await asyncio.to_thread(self.resume, await place.committed(delivery), place.read)
                try:
                    if place.is_current(delivery):
                        await self.take(delivery.value, send)
                    delivery.ack()
                except TransactionAbortedError as error:
                    log.warning("triggers withdrawn", error=str(error))
                    aborted = True
            if aborted:
                await self._until_called_back(delivery, place)

    async def _successor(self, delivery: Delivery, place: Place) -> DriftMonitor | None:
        """The monitor of a new champion, once the first summary of its events is here; there is one for its baseline.

        What the old one's last events would say is not looked at: they are not scored by it any more.
        """
        if not place.is_current(delivery):
            return None
        for identity in self._others(delivery.value):
            if (found := await place.successor(*identity)) is not None:
                return found
        return None

    def _others(self, batch: RecordBatch) -> set[tuple[str, str]]:
        """Models, but for the monitor's own, that a batch has summaries of."""
        found = {(summary.model_id, summary.model_version) for summary in self._decoded(batch) if summary is not None}
        return found - {(self._monitor.model_id, self._monitor.model_version)}

    def _replace(self, monitor: DriftMonitor) -> None:
        log.info("monitor of a new champion", model=monitor.model_id, version=monitor.model_version)
        self._monitor, self._sent = monitor, []
        self._reported = monitor.events_seen
        self._save()

    async def _until_called_back(self, delivery: Delivery, place: Place) -> None:
        """After an abort while sending: the next commit goes back to the last one, and delivers this again."""
        while place.is_current(delivery):  # noqa: ASYNC110 (the commit knows nothing of us)
            await asyncio.sleep(CALL_BACK_POLL_S)
        delivery.ack()  # of what is called back: only says that it is no longer held

    def resume(self, committed: int | None, read: Read) -> None:
        """Go back to the snapshot, and from there to where the group is.

        For the time before the first `take`, and after every rebalance and abort; may take a minute.
        committed: the offset the group has committed; None if it has none, and everything is still to come.
        """
        self._sent = []
        self._restore()
        if committed is None:
            return
        known = self._next_offset
        start = max(0, committed - REBUILD_SUMMARIES_MAX) if known is None else known
        if start >= committed:
            return
        log.info("bringing the monitor up to what its group has committed", start=start, end=committed)
        for batch in read(start, committed):
            for summary in self._fresh(batch):
                self._monitor.take(summary)  # a trigger that comes of it is on the topic
        self._next_offset = committed
        self._reported = self._monitor.events_seen
        self._save()

    async def take(self, batch: RecordBatch, send: Send) -> None:
        """Feed one fetched batch of the summaries topic; on return it may be acknowledged.

        send: puts one trigger into the transaction that will commit this batch's offset. What it raises is passed
        on; the batch must be read again then, after `resume`.
        """
        self._unsaved = False
        for summary in self._fresh(batch):
            trigger = self._monitor.take(summary)
            if trigger is not None:
                await send(trigger)
                self._sent.append(trigger)
        self._next_offset = max(self._next_offset or 0, batch.next_offset)

    def keep(self) -> list[RetrainingTrigger]:
        """Everything that was taken is committed: save it, now and then; the triggers that are on the topic now.

        Raises ContractError when the state cannot be written (disk full, no permission).
        """
        published, self._sent = self._sent, []
        self._report(published)
        self._unsaved = True
        if published or time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._save()
        return published

    # -- summaries ---------------------------------------------------------------------------

    def _fresh(self, batch: RecordBatch) -> Iterable[BatchSummary]:
        """The summaries of a batch that were not fed before."""
        for offset, summary in zip(batch.offsets, self._decoded(batch), strict=True):
            if offset < (self._next_offset or 0):
                self.skipped += 1
            elif summary is None:
                self.undecodable += 1
            elif (refusal := self._monitor.refusal(summary)) is not None:
                self.skipped += 1
                log.warning("batch summary skipped", where=_place(batch, offset), reason=refusal)
            else:
                yield summary

    def _decoded(self, batch: RecordBatch) -> list[BatchSummary | None]:
        """What is in a batch, decoded once; None, with a line in the log, for what is no summary."""
        if self._decoded_of is not batch:
            self._decoded_of, self._summaries = batch, []
            for offset, value in zip(batch.offsets, batch.values, strict=True):
                try:
                    self._summaries.append(summary_from_dict(self._decode(value or b"")))
                except (SchemaError, KeyError, TypeError) as error:
                    told = f"{type(error).__name__}: {error}"
                    log.warning("not a batch summary: skipped", where=_place(batch, offset), error=told)
                    self._summaries.append(None)
        return self._summaries

    def _report(self, published: list[RetrainingTrigger]) -> None:
        if self._observer is None:
            return
        self._observer.monitor_events(self._monitor.events_seen - self._reported)
        self._reported = self._monitor.events_seen
        for name, mean in self._monitor.latest_means().items():
            self._observer.drift_signal(name, mean)
        for trigger in published:
            for signal in trigger.signals:
                self._observer.alarm(signal.signal)

    # -- state -------------------------------------------------------------------------------

    def _state(self) -> bytes:
        return json.dumps(
            {
                **state_file.head(FORMAT, self._source),
                "fingerprint": self._monitor.fingerprint,
                "next_offset": self._next_offset,
                "monitor": self._monitor.state_dict(),
            },
            separators=(",", ":"),
        ).encode()

    def _restore(self) -> None:
        state = json.loads(self._snapshot)
        self._next_offset = state["next_offset"]
        self._monitor.load(state["monitor"])

    def _save(self) -> None:
        body = self._snapshot = self._state()
        state_file.write(self._path, body)
        self._saved_at, self._unsaved = time.monotonic(), False

    def _load(self) -> None:
        if not self._path.exists():
            return
        body = state_file.read(self._path)
        if body is None:
            self._set_aside("it is damaged")
            return
        state = json.loads(body)
        if (misfit := state_file.misfit(state, FORMAT, self._source)) is not None:
            self._set_aside(misfit)
            return
        self._next_offset = state["next_offset"]
        if state["fingerprint"] != self._monitor.fingerprint:
            # Read on from where the other left off: what came before is none of this model's business.
            self._set_aside("it belongs to another model version or baseline")
            return
        self._monitor.load(state["monitor"])
        log.info("monitor state loaded", path=str(self._path), events_seen=self._monitor.events_seen)

    def _set_aside(self, reason: str) -> None:
        log.warning("monitor state not used, beginning anew", reason=reason, kept_as=state_file.set_aside(self._path))


def _place(batch: RecordBatch, offset: int) -> str:
    return f"{batch.topic}[{batch.partition}]@{offset}"
