"""Faust's consumer on librdkafka: one Faust message is one record batch of one topic-partition."""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future as ThreadFuture
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import structlog
from confluent_kafka import Consumer as _Consumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition
from faust.types import TP, ConsumerMessage, Message
from mode.utils.futures import notify

from pipeline.bus.acks import Acked, NoIndex
from pipeline.bus.clients import ErrorLog
from pipeline.bus.ledger import BatchOffset, Ledger
from pipeline.bus.poller import Poller, PollerStoppedError
from pipeline.bus.positions import Positions
from pipeline.bus.transactions import TransactionalProducer
from pipeline.errors import DrainTimeoutError, PipelineError, TransactionAbortedError, UnreachableError
from pipeline.records import RecordBatch, TopicPartition

log = structlog.get_logger(__name__)

#: What the commit after a drain may take even when the drain used up the deadline.
LAST_COMMIT_S = 1.0
#: Between two questions for the group's offsets after an abort.
REPLAY_PAUSE_S = 0.5

CommitGuard = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _no_guard() -> AsyncIterator[None]:
    yield


def _nothing() -> None:
    pass


class Consumer(Positions):
    """Polls on a thread of its own, hands record batches to Faust's streams, commits what the ledger allows.

    Commit: see `commit`, whose steps are numbered. A batch is committed only once its message was
    acknowledged by the stream that got it *and* the producer's outputs are on the broker.
    """

    logger = logging.getLogger("faust.rdkafka")  # mode logs each step of each service under its class's module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledger = Ledger()
        self._poller: Poller | None = None
        self._acked = Acked(self._complete)
        self._acked_index: dict[TP, NoIndex] = defaultdict(NoIndex)
        self._waiting_for_ack: asyncio.Future[None] | None = None
        self._fetched: asyncio.Queue[Message] = asyncio.Queue()
        #: What Faust was told; the ledger follows the poller, and is ahead during a rebalance.
        self._assigned: set[TP] = set()
        self._seeking: Counter[TopicPartition] = Counter()
        self._flow_resumed = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._rebalance_lock = asyncio.Lock()
        self._abandoned = False
        self._errors = ErrorLog("consumer", self._hooks.on_broker_error)
        #: Entered around the flush of every commit: an app holds back its producing meanwhile.
        self.commit_guard: CommitGuard = _no_guard
        #: Called when a transaction was aborted: what the app added up since the last commit is void.
        self.on_aborted: Callable[[], None] = _nothing
        #: The open transaction holds outputs of which the offsets cannot be committed with it.
        self._tainted = False

    @property
    def _hooks(self) -> Any:
        return self.transport.hooks

    @property
    def _stopping(self) -> bool:
        return bool(self.should_stop or self.app.should_stop)

    # -- lifecycle ----------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start the poller's thread. Raises SettingsError for an option librdkafka refuses."""
        transport, hooks = self.transport, self._hooks
        options = transport.options.for_consumer(
            self.app.conf.id,
            client_id=self.app.conf.broker_client_id,
            stats_cb=hooks.on_statistics,
            statistics_interval_ms=hooks.statistics_interval_ms if hooks.on_statistics else None,
        )
        self._poller = Poller(
            options, self, self._errors, poll_records=transport.poll_records, in_flight_max=transport.in_flight_max
        )
        self._poller.drain_deadline_s = transport.drain_deadline_s
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

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for these topics."""
        names = sorted(topics)
        if names and self._poller is not None:
            await asyncio.wrap_future(self._poller.subscribe(names))

    # -- the poller's side: called on its thread, taking effect on the loop in this order ---

    def assigned(self, partitions: set[TopicPartition]) -> None:
        self.loop.call_soon_threadsafe(self.ledger.assign, partitions)

    def unassigned(self, partitions: set[TopicPartition]) -> None:
        self.loop.call_soon_threadsafe(self._let_go, partitions)

    def _let_go(self, partitions: set[TopicPartition]) -> None:
        self._tainted = self._tainted or self.ledger.uncommitted(partitions)
        self.ledger.revoke(partitions)

    def deliver(self, batches: list[RecordBatch]) -> None:
        self.loop.call_soon_threadsafe(self._arrived, batches)

    def rebalance(self, kind: str, partitions: set[TopicPartition]) -> "ThreadFuture[None]":
        return asyncio.run_coroutine_threadsafe(self._rebalance(kind, {TP(*tp) for tp in partitions}), self.loop)

    def failed(self, error: BaseException) -> None:
        if not self.should_stop:
            asyncio.run_coroutine_threadsafe(self._give_up(error), self.loop)

    async def _give_up(self, error: BaseException) -> None:
        self.abandon()
        await self.crash(error)

    # -- rebalance --------------------------------------------------------------------------

    async def _rebalance(self, kind: str, partitions: set[TP]) -> None:
        """One rebalance after the other; a fault in one ends the app, which would otherwise stand still."""
        async with self._rebalance_lock:
            try:
                if not self._stopping:
                    await self._change_assignment(kind, partitions)
                elif kind == "revoke":
                    await self.wait_empty()  # the stop drains already: partitions go once that is done
            except PollerStoppedError:
                log.warning("rebalance cut short by the end of the consumer", kind=kind)
            except Exception as error:  # noqa: BLE001 (any fault leaves the streams suspended)
                await self._give_up(error)

    async def _change_assignment(self, kind: str, partitions: set[TP]) -> None:
        """Drain, commit, let go or take over, resume: one complete cycle for each callback.

        1. Stop the flow; streams finish what they hold, queues are emptied, what is done is committed
           (Faust's revoke handler).
        2. Begin a new generation: batches that step 1 dropped, or could not wait for, are read again.
        3. Tell Faust the new assignment and wait until its flow has resumed.
        """
        started = time.monotonic()
        self._hooks.on_rebalance(kind, len(partitions))
        self.app.on_rebalance_start()
        going = set() if kind == "assign" else partitions
        if self._assigned:
            await self.on_partitions_revoked(going)
        self._assigned = self._assigned | partitions if kind == "assign" else self._assigned - partitions
        self.app.consumer_generation_id += 1  # streams skip what carries an older one
        await self._restart_from(self._rewound())
        self._flow_resumed.clear()
        await self.on_partitions_assigned(set(self._assigned), self.app.consumer_generation_id)
        await self.wait(self._flow_resumed.wait())  # or the consumer's stop
        self._mind_room()
        log.info(
            "rebalanced",
            kind=kind,
            partitions=len(partitions),
            assigned=len(self._assigned),
            took_ms=round((time.monotonic() - started) * 1e3),
        )

    def resume_flow(self) -> None:
        super().resume_flow()
        self._flow_resumed.set()

    # -- fetching ----------------------------------------------------------------------------

    def _arrived(self, batches: list[RecordBatch]) -> None:
        """Enter what was fetched in the ledger, in the order it was fetched, and queue it for the streams.

        The loop runs this before any rebalance that the poller reports later, so that a rebalance finds
        every fetched record in the ledger, to be rewound if it never reached a stream.
        """
        for batch in batches:
            if self._poller is not None:
                self._poller.arrived += len(batch)
            tp = TopicPartition(batch.topic, batch.partition)
            if tp not in self.ledger or self._seeking[tp]:
                continue
            try:
                offset = self.ledger.hand_out(tp, batch.first_offset, batch.next_offset, len(batch))
            except ValueError as error:
                self.failed(error)
                return
            if tp in self._assigned:  # else a rebalance is late, which will rewind it
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
        """Complete a message's range, unless no stream's body ever got it."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        # Faust's pure-Python loop acknowledges messages it skips during a rebalance. `tracked` is set just
        # before the body gets a message: without it, the batch was never processed and must be read again.
        done = bool(message.tracked) and self._complete(message.tp, message.offset)
        notify(self._waiting_for_ack)
        return done

    def _complete(self, tp: TP, offset: BatchOffset) -> bool:
        done = self.ledger.complete(TopicPartition(*tp), offset)
        self._mind_room()
        return done

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002 (Faust's signature)
        """Commit what is done. False if there was nothing to commit or nobody to commit to.

        1. Hold the app's producing back (`commit_guard`), so that the flush has an end.
        2. Take the ledger's committable offsets.
        3. Flush: every output of these batches is acknowledged by all in-sync replicas, or this raises.
        4. Commit the offsets, on the poller's thread.
        5. Note them in the ledger.

        With transactions 3 and 4 are one: outputs and offsets in one transaction; see `_commit_transaction`.
        """
        async with self._commit_lock:
            if self._abandoned or self._poller is None:
                return False
            try:
                return await self._commit_guarded()
            except (
                PollerStoppedError,
                TransactionAbortedError,
            ):  # aborted by the guard's own sending: the next commit goes back
                return False
            except PipelineError as error:
                self.abandon()
                self._hooks.on_commit("failed")
                self._hooks.on_fault(error)
                return False

    async def _commit_guarded(self) -> bool:
        async with self.commit_guard():
            offsets = self.ledger.committable()
            if self.transport.transactions is not None:
                return await self._commit_transaction(offsets)
            if not offsets:
                return False
            await self.app.producer.confirm()
        return await self._commit(offsets)

    async def _commit_transaction(self, offsets: dict[TopicPartition, int]) -> bool:
        """Commit outputs and offsets together, or abort and go back to the last commit.

        Abort: the producer had to, the coordinator refused this member's offsets, or a partition that went
        away left outputs in the transaction of which the offsets are somebody else's now.
        """
        batch: TransactionalProducer = self.app.producer.batch
        started = time.monotonic()
        if not (self._tainted or batch.aborted):
            if not offsets:
                return False
            group = await self._ask(lambda c: c.consumer_group_metadata())
            try:
                await asyncio.to_thread(batch.commit, offsets, group)
            except TransactionAbortedError as error:
                log.warning("commit aborted", error=str(error))
            else:
                self.ledger.committed(offsets)
                self._hooks.on_commit("ok")
                self._hooks.on_commit_seconds(time.monotonic() - started)
                return True
        self._hooks.on_commit("aborted")
        await asyncio.to_thread(batch.abort)
        await self._replay()
        return False

    async def _replay(self) -> None:
        """Read again what was done since the last commit; the broker says where that is."""
        committed = await self._committed_for_sure()
        self._tainted = False
        self.on_aborted()
        if not self.app.rebalancing:  # a rebalance has a generation of its own, and Faust compares it
            self.app.consumer_generation_id += 1
        offsets = {tp: self.ledger.reset(tp, committed.get(TP(*tp))) for tp in list(self.ledger)}
        await self._restart_from({tp: offset for tp, offset in offsets.items() if offset is not None})
        log.warning("reading again from the last commit", partitions=len(offsets))

    async def _committed_for_sure(self) -> dict[TP, int]:
        while True:
            try:
                return await self.committed_offsets()
            except UnreachableError as error:
                log.warning("waiting for the group's offsets", error=str(error))
                await asyncio.sleep(REPLAY_PAUSE_S)

    def is_current(self, message: Message) -> bool:
        """Whether a batch that a stream holds is still to be done: an abort or a seek calls back what it held."""
        return self.ledger.is_open(TopicPartition(*message.tp), message.offset)

    async def _commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        wanted = {tp: offset for tp, offset in offsets.items() if tp in self.ledger}
        if not wanted:
            return False
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

        At shutdown, work that is not done (or not acknowledged by the broker) at the deadline goes to the
        fault hook as DrainTimeoutError, and stays uncommitted; a rebalance goes on without it.
        """
        if self._stopping:
            self.transport.start_deadline()
        deadline = time.monotonic() + self.transport.deadline_left_s()
        while self._unacked_messages and not self._abandoned:
            left = deadline - time.monotonic()
            if left <= 0:
                self._tainted = True
                records = sum(m.offset.records for m in self._unacked_messages)
                self._drain_failed(f"{records} records still in work")
                break
            await self._wait_for_ack(timeout=min(left, 0.1))
            self._clean_unacked_messages()
        try:
            await asyncio.wait_for(self.commit(), max(deadline - time.monotonic(), LAST_COMMIT_S))
        except TimeoutError:
            self._drain_failed("outputs not acknowledged by the broker")

    def _drain_failed(self, what: str) -> None:
        consequence = "it stays uncommitted and will be done again"
        if self._abandoned:
            return
        if self._stopping:
            self._hooks.on_fault(DrainTimeoutError(f"shutdown deadline passed: {what}; {consequence}"))
        else:
            log.warning("rebalance goes on with work in flight", what=what, consequence=consequence)

    async def _wait_for_ack(self, timeout: float) -> None:  # noqa: ASYNC109 (Faust's signature)
        self._waiting_for_ack = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._waiting_for_ack, timeout)
        except TimeoutError:
            pass
        finally:
            self._waiting_for_ack = None
