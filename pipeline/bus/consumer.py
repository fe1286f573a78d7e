"""Faust's consumer on librdkafka: one Faust message is one record batch of one topic-partition."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import Any

import structlog
from faust.types import TP, ConsumerMessage, Message
from mode.utils.futures import notify

from pipeline.bus.acks import Acked, NoIndex
from pipeline.bus.clients import ErrorLog, make_admin
from pipeline.bus.commits import Commits
from pipeline.bus.identities import Identities
from pipeline.bus.ledger import BatchOffset
from pipeline.bus.poller import Poller, PollerStoppedError
from pipeline.errors import PipelineError
from pipeline.records import RecordBatch, TopicPartition

log = structlog.get_logger(__name__)


class Consumer(Commits):
    """Polls on a thread of its own, hands record batches to Faust's streams, commits what the ledger allows.

    Commits are in commits.py, seeking is in positions.py: this class is what Faust and the poller see of them.
    """

    logger = logging.getLogger("faust.rdkafka")  # mode logs each step of each service under its class's module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._poller: Poller | None = None
        self._acked = Acked(self._complete)
        self._acked_index: dict[TP, NoIndex] = defaultdict(NoIndex)
        self._fetched: asyncio.Queue[Message] = asyncio.Queue()
        self._flow_resumed = asyncio.Event()
        self._rebalance_lock = asyncio.Lock()
        self._errors = ErrorLog("consumer", self._hooks.on_broker_error)

    # -- lifecycle ----------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start the poller's thread. Raises SettingsError for an option librdkafka refuses."""
        transport, hooks = self.transport, self._hooks
        options = transport.options.for_consumer(
            self.app.conf.id,
            client_id=self.app.conf.broker_client_id,
            enable_partition_eof=True,
            stats_cb=hooks.on_statistics,
            statistics_interval_ms=hooks.statistics_interval_ms if hooks.on_statistics else None,
        )
        self._poller = Poller(
            options,
            self,
            self._errors,
            poll_records=transport.poll_records,
            in_flight_max=transport.in_flight_max,
            in_flight_max_bytes=transport.in_flight_max_bytes,
            identities=Identities(partial(make_admin, transport.options, ErrorLog("admin", quiet=True))),
            on_missed=hooks.on_missed,
            companions=transport.companions,
        )
        self._poller.drain_deadline_s = transport.drain_deadline_s
        self._poller.start()
        if transport.transactions is not None and transport.transactions.when_idle:
            self.add_future(self._commit_when_idle())

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

    def close(self) -> None:
        """Nothing to do: the poller's thread closes the consumer it owns."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for these topics, once nothing is left open of this instance's former life."""
        names = sorted(set(topics) - set(self.transport.companions.values()))
        if not names or self._poller is None:
            return
        try:
            if self.transport.transactions is not None:
                await asyncio.to_thread(self.app.producer.batch.take_over)
        except PipelineError as error:
            if not self._stopping:
                self._hooks.on_fault(error)
            return
        await asyncio.wrap_future(self._poller.subscribe(names))

    # -- the poller's side: called on its thread, taking effect on the loop in this order ---

    def assigned(self, partitions: set[TopicPartition]) -> None:
        self.loop.call_soon_threadsafe(self.ledger.assign, partitions)

    def unassigned(self, partitions: set[TopicPartition]) -> None:
        self.loop.call_soon_threadsafe(self._let_go, partitions)

    def _let_go(self, partitions: set[TopicPartition]) -> None:
        in_work = any(TopicPartition(*message.tp) in partitions for message in self._unacked_messages)
        self._tainted = self._tainted or in_work or self.ledger.uncommitted(partitions)
        self.ledger.revoke(partitions)

    def deliver(self, batches: list[RecordBatch], ends: dict[TopicPartition, int] | None = None) -> None:
        self.loop.call_soon_threadsafe(self._arrived, batches, ends or {})

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

    def _arrived(self, batches: list[RecordBatch], ends: dict[TopicPartition, int]) -> None:
        """Enter what was fetched in the ledger, in the order it was fetched, and queue it for the streams.

        The loop runs this before any rebalance that the poller reports later, so that a rebalance finds
        every fetched record in the ledger, to be rewound if it never reached a stream.
        """
        for batch in batches:
            tp = TopicPartition(batch.topic, batch.partition)
            if tp not in self.ledger or self._seeking[tp]:
                continue
            try:
                offset = self.ledger.hand_out(tp, batch.first_offset, batch.next_offset, len(batch), batch.size_bytes)
            except ValueError as error:
                self.failed(error)
                return
            if tp in self._assigned:  # else a rebalance is late, which will rewind it
                self._fetched.put_nowait(self._message(batch, offset))
        for tp, end in ends.items():
            if tp in self.ledger and not self._seeking[tp]:
                self.ledger.skip(tp, end)
        self._mind_room()
        if self._poller is not None:  # last: what is counted twice for a moment is never let in
            self._poller.arrived += sum(map(len, batches))
            self._poller.arrived_bytes += sum(batch.size_bytes for batch in batches)

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
        ledger, transport = self.ledger, self.transport
        self._poller.in_flight, self._poller.in_flight_bytes = ledger.in_flight_records, ledger.in_flight_bytes
        full = max(
            ledger.in_flight_records / transport.in_flight_max, ledger.in_flight_bytes / transport.in_flight_max_bytes
        )
        if full >= 1:
            self._poller.room.clear()
        elif full <= 1 / 2:
            self._poller.room.set()
        self._hooks.on_in_flight(ledger.in_flight_records)

    # -- acknowledging ----------------------------------------------------------------------------

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
        if done and self.ledger.idle():
            self._nothing_left.set()
        self._mind_room()
        return done
