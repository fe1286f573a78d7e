"""The join with durable state, for the agent that reads predictions and labels.

Both topics and the outcomes are in Kafka, the store is on disk. One rule joins them:

    an outcome is on its topic if and only if the offsets after its prediction and its label are committed

because they are in one transaction. The store is written after it:

    1. take    pair up a batch; outcomes go into the open transaction, changes stay in memory
    2.         the transport commits: outcomes, and the offsets after what was acknowledged
    3. keep    what was changed is sealed, and goes to disk with these offsets before the next batch

A crash before 2 leaves store and log as they were; one before 3 leaves the store behind, and `resume` reads what lies
between again and says nothing of it, for its outcomes are on the topic. The same rebuilds a store that was lost or
never was here: after a rebalance a partition's new owner reads what may still wait. An abort drops the changes.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from pipeline.contracts import Clock, Decoder, Encoder
from pipeline.errors import TransactionAbortedError
from pipeline.labels.join import Join, Label, Pair, Result, prefixes
from pipeline.labels.outcomes import leading_text, outcome_columns
from pipeline.labels.store import Store
from pipeline.records import Reason, RecordBatch, Reject, Stage, TopicPartition

log = structlog.get_logger(__name__)

#: Changes of one open transaction, 300 bytes each: 60 MB. With more, a batch waits for the commit.
CHANGES_MAX = 200_000
SWEEP_EVERY_S = 60.0
#: How soon it is noticed that an aborted transaction has called a batch back.
CALL_BACK_POLL_S = 0.05
#: Told of while a partition is read again.
PROGRESS_EVERY_S = 5.0


class Delivery(Protocol):
    """A fetched batch of predictions or labels; a Faust event is one."""

    @property
    def value(self) -> RecordBatch: ...
    def ack(self) -> Any: ...


class Place(Protocol):
    """Where predictions and labels come from."""

    def is_current(self, delivery: Delivery) -> bool:
        """Whether it is still to be done: a rebalance or an abort calls back what was delivered before."""
        ...

    def reading(self, delivery: Delivery) -> object:
        """Equal for two deliveries with no rebalance, abort or seek between them."""
        ...

    async def committed(self) -> Mapping[TopicPartition, int]:
        """The group's offsets of all assigned partitions that have one."""
        ...

    async def commit(self) -> None:
        """Commit what was acknowledged, now."""
        ...

    def since(self, tp: TopicPartition, time_ms: int) -> int:
        """First offset of `tp` with a timestamp of `time_ms` or later; its end if there is none."""
        ...

    def read(self, tp: TopicPartition, start: int, end: int) -> Iterable[RecordBatch]:
        """What the topic holds of these offsets, `end` exclusive."""
        ...


class Observer(Protocol):
    """What the station reports; observe.Metrics is one."""

    def labels(self, result: str, n: int) -> None: ...
    def label_delays(self, seconds: npt.NDArray[np.float64]) -> None: ...
    def labels_waiting(self, keys: int) -> None: ...


class Outgoing(NamedTuple):
    """What a batch puts into the open transaction: outcomes under their events' keys, and bad labels."""

    keys: list[bytes | None]
    outcomes: list[bytes]
    rejects: list[Reject]


#: Puts these into the transaction that will commit the batch's offset.
Send = Callable[[RecordBatch, Outgoing], Awaitable[None]]


class LabelStation:
    """Reads predictions and labels, pairs them up, and keeps its store in step. One task at a time may use it."""

    def __init__(
        self,
        store: Store,
        *,
        predictions_topic: str,
        labels_topic: str,
        predictions: Decoder,
        labels: Decoder,
        outcomes: Encoder,
        wait_s: float,
        clock: Clock,
        observer: Observer,
    ) -> None:
        """predictions, labels: decoders of the topics' records. wait_s: how long each half waits for the other."""
        self._store = store
        self._join = Join(store)
        self._topics = (predictions_topic, labels_topic)
        self._predictions, self._labels, self._outcomes = predictions, labels, outcomes
        self._wait_s, self._clock, self._observer = wait_s, clock, observer
        #: Offsets after what was taken and not sealed yet.
        self._taken: dict[TopicPartition, int] = {}
        #: Partitions whose part of the store is known to be where the group is.
        self._ready: set[int] = set()
        self._counts: dict[Result, int] = {}
        self._delays_ms: list[npt.NDArray[np.int64]] = []
        self._swept_at = 0.0
        #: Held by a batch in work and by a commit: neither finds the other half done.
        self.between_batches = asyncio.Lock()

    async def run(self, deliveries: AsyncIterable[Delivery], place: Place, send: Send) -> None:
        """Take what comes until it ends. Raises what `send` raises, but for an abort."""
        reading: object = None
        async for delivery in deliveries:
            if place.is_current(delivery) and place.reading(delivery) != reading:
                reading = place.reading(delivery)
                await place.commit()  # what is open belongs to partitions that stayed: keep it, or drop it
                self._ready.clear()
            aborted = False
            async with self.between_batches:
                await asyncio.to_thread(self._store.write)
                if place.is_current(delivery) and delivery.value.partition not in self._ready:
                    await self._resume(delivery.value.partition, place)
                try:
                    if place.is_current(delivery):
                        await self.take(delivery.value, send)
                    delivery.ack()
                except TransactionAbortedError as error:
                    log.warning("outcomes withdrawn", error=str(error))
                    aborted = True
            if aborted:
                await self._until_called_back(delivery, place)
            elif self._store.changes > CHANGES_MAX:
                await place.commit()

    async def _until_called_back(self, delivery: Delivery, place: Place) -> None:
        """After an abort while sending: the next commit goes back to the last one, and delivers this again."""
        while place.is_current(delivery):  # noqa: ASYNC110 (the commit knows nothing of us)
            await asyncio.sleep(CALL_BACK_POLL_S)
        delivery.ack()  # of what is called back: only says that it is no longer held

    # -- a batch ------------------------------------------------------------------------------

    async def take(self, batch: RecordBatch, send: Send) -> None:
        """Pair up one fetched batch and send what comes of it; on return it may be acknowledged."""
        pairs, rejects = await asyncio.to_thread(self._pair_up, batch)
        if pairs or rejects:
            await send(batch, await asyncio.to_thread(self._outgoing, batch, pairs, rejects))
        self._taken[TopicPartition(batch.topic, batch.partition)] = batch.next_offset

    def _pair_up(self, batch: RecordBatch) -> tuple[list[Pair], list[Reject]]:
        self._sweep()
        if batch.topic == self._topics[0]:
            return self._take_predictions(batch), []
        return self._take_labels(batch)

    def _take_predictions(self, batch: RecordBatch) -> list[Pair]:
        found = [value and leading_text(value) for value in batch.values]
        rows = [row for row, event_id in enumerate(found) if event_id]
        if len(rows) < len(batch):
            log.warning(
                "not predictions: skipped", topic=batch.topic, partition=batch.partition, first=batch.first_offset
            )
        pairs = self._join.predictions(
            batch.partition, [found[row] or b"" for row in rows], [batch.values[row] or b"" for row in rows]
        )
        self._count(Result.MATCHED, len(pairs))
        return [pair._replace(row=rows[pair.row]) for pair in pairs]

    def _take_labels(self, batch: RecordBatch) -> tuple[list[Pair], list[Reject]]:
        decoded = self._labels.decode(batch.values)
        columns = decoded.columns
        times_ms = columns.column("time").cast(pa.int64()).to_pylist()
        said = (columns.column(name).to_pylist() for name in ("event_id", "label", "value"))
        rejects, labels, rows = list(decoded.rejects), list[Label](), list[int]()
        for row, event_id, label, value, time_ms in zip(decoded.rows.tolist(), *said, times_ms, strict=True):
            if not event_id:
                rejects.append(Reject(row, Stage.LABEL, Reason.MISSING_ID, "event_id is empty"))
            elif label is None and (value is None or not math.isfinite(value)):
                rejects.append(Reject(row, Stage.LABEL, Reason.MISSING_LABEL, "neither a label nor a finite value"))
            else:
                truth = repr(value) if label is None else label
                known_ms = batch.timestamps_ms[row] if time_ms is None else time_ms
                labels.append(Label(event_id.encode(), truth, known_ms, batch.values[row] or b""))
                rows.append(row)
        deadline_ms = int((self._clock() + self._wait_s) * 1000)
        pairs, counts = self._join.labels(batch.partition, labels, deadline_ms)
        for result, count in counts.items():
            self._count(result, count)
        self._count(Result.MALFORMED, len(rejects))
        return [pair._replace(row=rows[pair.row]) for pair in pairs], rejects

    def _outgoing(self, batch: RecordBatch, pairs: Sequence[Pair], rejects: list[Reject]) -> Outgoing:
        if not pairs:
            return Outgoing([], [], rejects)
        columns, rows, delays_ms = outcome_columns(pairs, self._predictions, self._labels)
        if len(rows) < len(pairs):
            log.warning("not predictions: without an outcome", topic=self._topics[0], records=len(pairs) - len(rows))
        self._delays_ms.append(delays_ms)
        return Outgoing([batch.keys[pairs[row].row] for row in rows], self._outcomes.encode(columns), rejects)

    def _sweep(self) -> None:
        """Give up labels that have waited in vain, now and then."""
        if self._clock() - self._swept_at < SWEEP_EVERY_S:
            return
        self._swept_at = self._clock()
        if orphans := self._join.orphans(int(self._clock() * 1000)):
            self._count(Result.ORPHAN, orphans)
            log.warning("labels without a prediction given up", labels=orphans, waited_hours=self._wait_s / 3600)
        self._observer.labels_waiting(self._store.keys_estimate())

    def _count(self, result: Result, n: int) -> None:
        self._counts[result] = self._counts.get(result, 0) + n

    # -- in step with the commits ----------------------------------------------------------------

    def keep(self) -> None:
        """Everything that was taken is committed. Quick: the store is written before the next batch."""
        self._store.seal(self._taken)
        self._taken.clear()
        for result, count in self._counts.items():
            self._observer.labels(result, count)
        self._counts.clear()
        for delays_ms in self._delays_ms:
            self._observer.label_delays(delays_ms / 1000.0)
        self._delays_ms.clear()

    def drop(self) -> None:
        """What was taken since the last commit is void: its transaction was aborted."""
        self._store.drop()
        self._taken.clear()
        self._counts.clear()
        self._delays_ms.clear()

    def close(self) -> None:
        """Write what is committed, and let another process have the store."""
        self._store.close()

    # -- coming back --------------------------------------------------------------------------

    async def _resume(self, partition: int, place: Place) -> None:
        """Bring a partition's part of the store to where the group is; silent, since its outcomes are out."""
        committed = await place.committed()
        ends = {tp: committed.get(tp, 0) for tp in (TopicPartition(topic, partition) for topic in self._topics)}
        await asyncio.to_thread(self._catch_up, partition, ends, place)
        self._ready.add(partition)

    def _catch_up(self, partition: int, ends: Mapping[TopicPartition, int], place: Place) -> None:
        known = {tp: self._store.position(tp) for tp in ends}
        if any((known[tp] or 0) > end for tp, end in ends.items()):
            log.warning("labels store is ahead of its group, rebuilding", partition=partition)
            self._store.forget(prefixes(partition), list(ends))
            known = dict.fromkeys(ends)
        oldest_ms = int((self._clock() - self._wait_s) * 1000)
        for tp, end in ends.items():
            start = known[tp]
            if start is None:
                start = place.since(tp, oldest_ms) if end else 0
            if start < end:
                log.info("bringing labels up to what their group has committed", topic=tp.topic, start=start, end=end)
                self._read_again(tp, start, end, place)
            self._store.seal({tp: end})
            self._store.write()

    def _read_again(self, tp: TopicPartition, start: int, end: int, place: Place) -> None:
        told_at = time.monotonic()
        for batch in place.read(tp, start, end):
            self._pair_up(batch)
            self._store.seal({tp: batch.next_offset})
            self._store.write()
            if time.monotonic() - told_at >= PROGRESS_EVERY_S:
                told_at = time.monotonic()
                log.info("reading again", topic=tp.topic, partition=tp.partition, at=batch.next_offset, end=end)
        self._counts.clear()
