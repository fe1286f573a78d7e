"""Faust's consumer on librdkafka: one Faust message is one record batch of one topic-partition."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future as ThreadFuture
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import structlog
from confluent_kafka import Consumer as _Consumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition
from faust.transport import base
from faust.types import TP, ConsumerMessage, Message
from mode.utils.futures import notify

from pipeline.bus.clients import ErrorLog
from pipeline.bus.ledger import BatchOffset, Ledger
from pipeline.bus.poller import Poller
from pipeline.errors import DrainTimeoutError, PipelineError
from pipeline.records import RecordBatch, TopicPartition

log = structlog.get_logger(__name__)

CommitGuard = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _no_guard() -> AsyncIterator[None]:
    yield


class _Acks:
    """What Faust's compiled stream loop appends an acknowledged offset to: straight into the ledger."""

    def __init__(self, ledger: Ledger, tp: TP) -> None:
        self._ledger = ledger
        self._tp = TopicPartition(*tp)

    def append(self, offset: BatchOffset) -> None:
        self._ledger.complete(self._tp, offset)


class _NoIndex(set[int]):
    """Faust's index of acknowledged offsets; the ledger has its own, so this one stays empty."""

    def add(self, _offset: int) -> None:
        pass


class Consumer(base.Consumer):
    """Polls on a thread of its own, hands record batches to Faust's streams, commits what the ledger allows.

    Commit: see `commit`, whose steps are numbered. A batch is committed only once its message was
    acknowledged by the stream that got it *and* the producer's outputs are on the broker.
    """

    _poller: Poller | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledger = Ledger()
        self._acked = _Mapping(lambda tp: _Acks(self.ledger, tp))
        self._acked_index: dict[TP, _NoIndex] = defaultdict(_NoIndex)
        self._fetched: asyncio.Queue[Message] = asyncio.Queue()
        self._assigned: set[TP] = set()
        self._flow_resumed = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._abandoned = False
        self._errors = ErrorLog("consumer", self._hooks.on_broker_error)
        #: Entered around the flush of every commit: an app holds back its producing meanwhile.
        self.commit_guard: CommitGuard = _no_guard

    @property
    def _hooks(self) -> Any:
        return self.transport.hooks

    # -- lifecycle ----------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start the poller's thread."""
        options = self.transport.options.for_consumer(
            self.app.conf.id,
            client_id=self.app.conf.broker_client_id,
            stats_cb=self._hooks.on_statistics,
            statistics_interval_ms=self._hooks.statistics_interval_ms if self._hooks.on_statistics else None,
        )
        options = {k.replace("stats.cb", "stats_cb"): v for k, v in options.items()}
        self._poller = Poller(options, self, self._errors, poll_records=self.transport.poll_records)
        self._poller.drain_deadline_s = self.transport.drain_deadline_s
        self._poller.start()

    async def on_stop(self) -> None:
        """Drain and commit within the deadline, leave the group, close."""
        poller = self._poller
        if poller is None:
            return
        if not self._abandoned:
            await self.wait_empty()
        poller.stop()
        left = self.transport.deadline_left_s()
        await asyncio.get_running_loop().run_in_executor(None, poller.join, max(left, 1.0))
        if poller.is_alive():
            log.warning("consumer did not close in time; the group will notice by its session timeout")

    def abandon(self) -> None:
        """From now on commit nothing: what is in flight must be done again by whoever comes next."""
        self._abandoned = True
        if self._poller is not None:
            self._poller.drain_deadline_s = 0.0

    def close(self) -> None:
        """Nothing to do: the poller's thread closes the consumer it owns."""

    # -- the poller's side: called on its thread ------------------------------------------

    def deliver(self, batches: list[RecordBatch]) -> None:
        self.loop.call_soon_threadsafe(self._arrived, batches)

    def rebalance(self, kind: str, partitions: set[TopicPartition]) -> "ThreadFuture[None]":
        if self.should_stop or self.app.should_stop:
            done: ThreadFuture[None] = ThreadFuture()
            done.set_result(None)
            return done
        return asyncio.run_coroutine_threadsafe(self._rebalance(kind, {TP(*tp) for tp in partitions}), self.loop)

    def failed(self, error: BaseException) -> None:
        if not self.should_stop:
            asyncio.run_coroutine_threadsafe(self._on_failed(error), self.loop)

    async def _on_failed(self, error: BaseException) -> None:
        self.abandon()
        await self.crash(error)

    # -- rebalance --------------------------------------------------------------------------

    async def _rebalance(self, kind: str, partitions: set[TP]) -> None:
        """Drain, commit, let go or take over, resume: one complete cycle for each callback.

        1. Stop the flow; streams finish what they hold, queues are emptied (Faust's revoke handler).
        2. Commit, unless the partitions are already lost to somebody else.
        3. Update assignment and ledger; rewind kept partitions whose queued batches step 1 dropped.
        4. Tell Faust the new assignment and wait until its flow has resumed.
        """
        started = time.monotonic()
        self._hooks.on_rebalance(kind, len(partitions))
        self.app.on_rebalance_start()
        if kind == "lost":
            self.ledger.revoke(TopicPartition(*tp) for tp in partitions)
        if self._assigned:
            await self.on_partitions_revoked(partitions if kind != "assign" else set())
        self._drop_fetched()
        if kind == "assign":
            kept, self._assigned = self._assigned, self._assigned | partitions
            self.ledger.assign(TopicPartition(*tp) for tp in partitions)
        else:
            kept = self._assigned = self._assigned - partitions
            self.ledger.revoke(TopicPartition(*tp) for tp in partitions)
        await self._rewind(kept)
        self.app.consumer_generation_id += 1
        self._flow_resumed.clear()
        await self.on_partitions_assigned(set(self._assigned), self.app.consumer_generation_id)
        await self._flow_resumed.wait()
        self._mind_room()
        log.info(
            "rebalanced",
            kind=kind,
            partitions=len(partitions),
            assigned=len(self._assigned),
            took_ms=round((time.monotonic() - started) * 1e3),
        )

    async def _rewind(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            offset = self.ledger.rewind(TopicPartition(*tp))
            if offset is not None:
                await self._seek(tp, offset)

    def resume_flow(self) -> None:
        super().resume_flow()
        self._flow_resumed.set()

    async def perform_seek(self) -> None:
        """Nothing to do: librdkafka starts at the committed offset, `_rewind` has seen to kept partitions."""

    # -- fetching ----------------------------------------------------------------------------

    def _arrived(self, batches: list[RecordBatch]) -> None:
        """Enter what was fetched in the ledger, in the order it was fetched, and queue it for the streams.

        The loop runs this before any rebalance that the poller reports later, so that a rebalance finds
        every fetched record in the ledger, to be rewound if it never reached a stream.
        """
        for batch in batches:
            tp = TopicPartition(batch.topic, batch.partition)
            if tp in self.ledger:
                offset = self.ledger.hand_out(tp, batch.first_offset, batch.next_offset, len(batch))
                self._fetched.put_nowait(self._message(batch, offset))
        self._mind_room()

    def _message(self, batch: RecordBatch, offset: BatchOffset) -> Message:
        return ConsumerMessage(
            batch.topic,
            batch.partition,
            offset,
            batch.timestamps_ms[0] / 1000.0,
            1,
            None,
            None,
            batch,  # the whole batch is the value; Faust's raw codec passes it through
            None,
            serialized_key_size=0,
            serialized_value_size=len(batch),
            tp=TP(batch.topic, batch.partition),
            generation_id=self.app.consumer_generation_id,
        )

    def _drop_fetched(self) -> None:
        while not self._fetched.empty():
            self._fetched.get_nowait()

    async def _drain_messages(self, fetcher: Any) -> None:
        """Body of Faust's fetcher service: hand fetched batches to the streams, one message each."""
        while not (self.should_stop or fetcher.should_stop):
            message = await self._fetched.get()
            if message.generation_id == self.app.consumer_generation_id:
                await self.callback(message)

    def _mind_room(self) -> None:
        """Open or close the poller's door by what is in flight."""
        if self._poller is None:
            return
        in_flight = self.ledger.in_flight_records
        if in_flight >= self.transport.in_flight_max:
            self._poller.room.clear()
        elif in_flight <= self.transport.in_flight_max // 2:
            self._poller.room.set()
        self._hooks.on_in_flight(in_flight)

    # -- acknowledging and committing -------------------------------------------------------------

    def ack(self, message: Message) -> bool:
        """Complete a message's range. Skipped ones (never given to a stream's body) stay open: see below."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        # Faust's pure-Python loop acknowledges messages it skips during a rebalance. `tracked` is set just
        # before the body gets a message: without it, the batch was never processed and must be read again.
        done = bool(message.tracked) and self.ledger.complete(TopicPartition(*message.tp), message.offset)
        self._mind_room()
        notify(self._waiting_for_ack)
        return done

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002 (Faust's signature)
        """Commit what is done. False if there was nothing to commit or nobody to commit to.

        1. Hold the app's producing back (`commit_guard`), so that the flush has an end.
        2. Take the ledger's committable offsets.
        3. Flush: every output of these batches is acknowledged by all in-sync replicas, or this raises.
        4. Commit the offsets, on the poller's thread.
        5. Note them in the ledger.
        """
        async with self._commit_lock:
            if self._abandoned or self._poller is None:
                return False
            async with self.commit_guard():
                offsets = self.ledger.committable()
                if not offsets:
                    return False
                try:
                    await self.app.producer.flush()
                except PipelineError as error:
                    self.abandon()
                    self._hooks.on_commit("failed")
                    self._hooks.on_fault(error)
                    return False
            return await self._commit(offsets)

    async def _commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        wanted = {tp: offset for tp, offset in offsets.items() if tp in self.ledger}
        started = time.monotonic()

        def request(consumer: _Consumer) -> list[_TopicPartition]:
            tps = [_TopicPartition(tp[0], tp[1], offset) for tp, offset in wanted.items()]
            return consumer.commit(offsets=tps, asynchronous=False)  # type: ignore[no-any-return]

        try:
            answer = await self._ask(request)
        except KafkaException as error:
            # The member was thrown out, the coordinator moved, the broker is away: the offsets stay in
            # the ledger for the next commit, or the partition's next owner starts from the last one.
            cause: KafkaError = error.args[0]
            log.warning("commit failed, kept for the next one", kind=cause.name().lower(), error=cause.str())
            self._hooks.on_commit("retried")
            return False
        failed = [tp for tp in answer if tp.error is not None]
        for tp in failed:
            log.warning("commit refused", topic=tp.topic, partition=tp.partition, error=tp.error.str())
        refused = {TopicPartition(tp.topic, tp.partition) for tp in failed}
        self.ledger.committed({tp: offset for tp, offset in wanted.items() if tp not in refused})
        self._hooks.on_commit("refused" if refused else "ok")
        self._hooks.on_commit_seconds(time.monotonic() - started)
        return not refused

    async def wait_empty(self) -> None:
        """Wait until streams have finished what they hold, then commit; bounded by the drain deadline.

        During a rebalance the time is the poller's; at shutdown passing it raises DrainTimeoutError
        through the fault hook, and what is open stays uncommitted.
        """
        deadline = time.monotonic() + min(self.transport.drain_deadline_s, self.transport.deadline_left_s())
        while self._unacked_messages and not self._abandoned:
            if time.monotonic() >= deadline:
                if self.app.should_stop:
                    open_records = sum(m.offset.records for m in self._unacked_messages)
                    self._hooks.on_fault(
                        DrainTimeoutError(
                            f"delivery.shutdown_deadline_s: {open_records} records still in work at the deadline; "
                            "they stay uncommitted and will be scored again"
                        )
                    )
                break
            await self._wait_for_ack(timeout=0.1)
            self._clean_unacked_messages()
        await self.commit()

    async def _wait_for_ack(self, timeout: float) -> None:  # noqa: ASYNC109 (Faust's signature)
        self._waiting_for_ack: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._waiting_for_ack, timeout)
        except TimeoutError:
            pass
        finally:
            self._waiting_for_ack = None

    # -- what else Faust asks of a consumer ----------------------------------------------------------

    async def _ask(self, request: Callable[[_Consumer], Any]) -> Any:
        if self._poller is None:
            raise RuntimeError("the consumer has not started")
        return await asyncio.wrap_future(self._poller.ask(request))

    async def subscribe(self, topics: Iterable[str]) -> None:
        names = sorted(topics)
        if names and self._poller is not None:
            await asyncio.wrap_future(self._poller.subscribe(names))

    def assignment(self) -> set[TP]:
        return set(self._assigned)

    async def _seek(self, partition: TP, offset: int) -> None:
        await self._ask(lambda c: c.seek(_TopicPartition(partition.topic, partition.partition, offset)))

    async def seek(self, partition: TP, offset: int) -> None:
        """Read `partition` from `offset` next; what is in flight of it stays uncommitted and is read again."""
        self._drop_fetched()
        self.ledger.revoke([TopicPartition(*partition)])
        self.ledger.assign([TopicPartition(*partition)])
        self.app.consumer_generation_id += 1  # streams drop what they hold of before
        await self._rewind(self._assigned - {partition})
        await self._seek(partition, offset)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            await self.seek(tp, offset)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        committed = await self.committed_offsets()
        for tp, offset in committed.items():
            await self.seek(tp, offset)
        return committed

    async def seek_to_beginning(self, *partitions: TP) -> None:
        for tp, offset in (await self.earliest_offsets(*partitions)).items():
            await self.seek(tp, offset)

    async def committed_offsets(self) -> dict[TP, int]:
        """Offsets the broker has for the assigned partitions; those without one are left out."""
        tps = [_TopicPartition(tp.topic, tp.partition) for tp in self._assigned]
        answer = await self._ask(lambda c: c.committed(tps, timeout=10.0))
        return {TP(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    async def position(self, tp: TP) -> int | None:
        answer = await self._ask(lambda c: c.position([_TopicPartition(tp.topic, tp.partition)]))
        offset: int = answer[0].offset
        return offset if offset >= 0 else None

    def highwater(self, tp: TP) -> int:  # noqa: ARG002 (Faust's signature)
        """Faust asks this per message for its web pages, which are off; `highwaters` is the real one."""
        return 0

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: (await self._watermarks(tp))[1] for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: (await self._watermarks(tp))[0] for tp in partitions}

    async def _watermarks(self, tp: TP) -> tuple[int, int]:
        partition = _TopicPartition(tp.topic, tp.partition)
        first, end = await self._ask(lambda c: c.get_watermark_offsets(partition, timeout=10.0))
        return first, end

    def topic_partitions(self, topic: str) -> int | None:
        count: int | None = self.transport.partition_counts().get(topic)
        return count

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        found: int | None = self.transport.key_partition(topic, key, partition)
        return found

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        await self.transport.create_topic(topic, partitions, replication, **options)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109 (Faust's signature)
        raise NotImplementedError("batches are pushed by the poller; see _drain_messages")

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        raise NotImplementedError("see _hand_out")

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)


class _Mapping(dict[TP, _Acks]):
    """A dict that makes missing values from their key."""

    def __init__(self, make: Callable[[TP], _Acks]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, tp: TP) -> _Acks:
        value = self[tp] = self._make(tp)
        return value
