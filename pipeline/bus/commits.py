"""When what was done is committed: the numbered steps of `commit`. Mixed into consumer.Consumer.

A batch is committed only once its message was acknowledged by the stream that got it *and* its outputs are on
the broker: acknowledged before the offsets are committed (at least once), or in one transaction with them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import structlog
from confluent_kafka import Consumer as _Consumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition
from faust.types import TP, Message

from pipeline.bus.ledger import Ledger
from pipeline.bus.poller import PollerStoppedError
from pipeline.bus.positions import Positions
from pipeline.bus.transactions import TransactionalProducer
from pipeline.errors import DrainTimeoutError, PipelineError, TransactionAbortedError, UnreachableError
from pipeline.records import TopicPartition

log = structlog.get_logger(__name__)

#: What the commit after a drain may take even when the drain used up the deadline.
LAST_COMMIT_S = 1.0
#: With transactions, readers see a record at the next commit. So one is made as soon as nothing is left to do, but not
#: for more partitions a second than this: each makes a drift summary, of which the monitor takes 2.7 ms. With 4
#: partitions that is a commit every 50 ms. Under load something is always left, and the commit interval alone counts.
IDLE_COMMIT_PARTITIONS_PER_S = 80
IDLE_COMMIT_PAUSE_S = 0.02
#: Between two questions for the group's offsets after an abort.
REPLAY_PAUSE_S = 0.5

CommitGuard = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _no_guard() -> AsyncIterator[None]:
    yield


def _nothing() -> None:
    pass


class Commits(Positions):
    """The part of Faust's consumer interface that is about commits, drains included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledger = Ledger()
        #: What Faust was told; the ledger follows the poller, and is ahead during a rebalance.
        self._assigned: set[TP] = set()
        self._seeking: Counter[TopicPartition] = Counter()
        self._waiting_for_ack: asyncio.Future[None] | None = None
        self._commit_lock = asyncio.Lock()
        self._abandoned = False
        #: Entered around the flush of every commit: an app holds back its producing meanwhile.
        self.commit_guard: CommitGuard = _no_guard
        #: Called when a transaction was aborted: what the app added up since the last commit is void.
        self.on_aborted: Callable[[], None] = _nothing
        self._nothing_left = asyncio.Event()
        #: The open transaction holds outputs of which the offsets cannot be committed with it.
        self._tainted = False

    @property
    def _hooks(self) -> Any:
        return self.transport.hooks

    @property
    def _stopping(self) -> bool:
        return bool(self.should_stop or self.app.should_stop)

    def abandon(self) -> None:
        """From now on commit nothing: what is in flight must be done again by whoever comes next."""
        self._abandoned = True
        if self._poller is not None:
            self._poller.drain_deadline_s = 0.0

    # -- committing -------------------------------------------------------------------------

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
            except PollerStoppedError:
                return False
            except TransactionAbortedError:  # while the guard was sending: the next commit goes back
                return False
            except PipelineError as error:
                self.abandon()
                self._hooks.on_commit("failed")
                self._hooks.on_fault(error)
                return False

    async def _commit_when_idle(self) -> None:
        """With transactions: do not let readers wait for the commit interval while there is nothing else to do."""
        while not self.should_stop:
            await self._nothing_left.wait()
            self._nothing_left.clear()
            if self.ledger.idle():
                partitions = len(self.ledger.committable())
                await self.commit()
                await asyncio.sleep(max(IDLE_COMMIT_PAUSE_S, partitions / IDLE_COMMIT_PARTITIONS_PER_S))

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
        committed = await self.committed_for_sure()
        self._tainted = False
        self.on_aborted()
        if not self.app.rebalancing:  # a rebalance has a generation of its own, and Faust compares it
            self.app.consumer_generation_id += 1
        offsets = {tp: self.ledger.reset(tp, committed.get(TP(*tp))) for tp in list(self.ledger)}
        await self._restart_from({tp: offset for tp, offset in offsets.items() if offset is not None})
        log.warning("reading again from the last commit", partitions=len(offsets))

    async def committed_for_sure(self) -> dict[TP, int]:
        """`committed_offsets`, however long the broker is away."""
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

    # -- draining ---------------------------------------------------------------------------

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
            # A commit that is late goes on: cut off between an abort and the way back to the last commit, it would
            # leave a ledger that counts as done what was voided, or a partition that waits for its seek for ever.
            await asyncio.wait_for(asyncio.shield(self.commit()), max(deadline - time.monotonic(), LAST_COMMIT_S))
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
