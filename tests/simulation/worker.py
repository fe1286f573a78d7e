"""One simulated worker: our Consumer, commit path, ledger, TransactionalProducer and Flow, on simulated clients.

Simulated are what is not ours or runs on threads: Faust's app and streams (what they do with messages and
rebalances), the poller's thread (as a task), and the hot path's decoding and scoring (an output is its input).
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any
from unittest import mock

import greenlet
from faust.types import TP

from pipeline.bus.consumer import Consumer
from pipeline.bus.poller import PollerStoppedError
from pipeline.bus.producer import BatchProducer
from pipeline.bus.transactions import TransactionalProducer
from pipeline.bus.transport import Deadline, Hooks, Transactions
from pipeline.records import BatchSummary, RecordBatch, TopicPartition
from pipeline.scoring.flow import Flow, FlowSettings
from tests.simulation.clients import INPUT, OUTPUT, Network, PlainProducer, SimConsumer, SimProducer, named
from tests.simulation.virtual import Loop, World

COMMIT_EVERY_S = 0.3
TRANSACTION_TIMEOUT_S = 12.0
BATCH_RECORDS = 4
DRAIN_DEADLINE_S = 2.0


class Poller:
    """bus.Poller's outside; `run` is what its thread does."""

    def __init__(self, worker: "Worker") -> None:
        self._worker, self._world, self._cluster = worker, worker.world, worker.cluster
        self.consumer = SimConsumer(worker.cluster)
        self._requests: SimpleQueue[tuple[Callable[[Any], Any], ThreadFuture[Any]]] = SimpleQueue()
        self.room = threading.Event()
        self.room.set()
        self.arrived = self.arrived_bytes = 0
        self.drain_deadline_s = DRAIN_DEADLINE_S
        self._stopping = self._closed = False

    def ask(self, request: Callable[[Any], Any]) -> "ThreadFuture[Any]":
        future: ThreadFuture[Any] = ThreadFuture()
        if self._closed:
            future.set_exception(PollerStoppedError("stopped"))
        else:
            self._requests.put((request, future))
        return future

    def subscribe(self, _topics: list[str]) -> "ThreadFuture[None]":
        done: ThreadFuture[None] = ThreadFuture()
        done.set_result(None)
        return done

    def stop(self) -> None:
        self._stopping = True

    def join(self, timeout_s: float) -> None:
        give_up = self._world.now + timeout_s
        while not self._closed and self._world.now < give_up:
            self._world.sleep(0.01)

    def is_alive(self) -> bool:
        return not self._closed

    def _serve(self) -> None:
        with suppress(Empty):
            while True:
                request, future = self._requests.get_nowait()
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(request(self.consumer))
                    except Exception as error:  # noqa: BLE001 (belongs to whoever asked)
                        future.set_exception(error)

    async def run(self) -> None:
        """Join; then serve, follow the group, fetch, until stopped."""
        worker, cluster = self._worker, self._cluster
        self.consumer.member = cluster.join(worker.new_member_name(), worker.pulse())
        while not self._stopping:
            self._serve()
            await self._follow_the_group()
            self._fetch()
            await asyncio.sleep(self._world.random.uniform(0.002, 0.1))
        self._serve()
        assert self.consumer.member is not None
        cluster.leave(self.consumer.member.name)
        self._closed = True
        self._serve_refusals()

    def _serve_refusals(self) -> None:
        with suppress(Empty):
            while True:
                self._requests.get_nowait()[1].set_exception(PollerStoppedError("stopped"))

    async def _follow_the_group(self) -> None:
        member, cluster, owner = self.consumer.member, self._cluster, self._worker.consumer
        assert member is not None
        if cluster.members.get(member.name) is not member:
            lost = set(self.consumer.positions)
            if lost:
                owner.unassigned(named(lost))
                await self._wait_for_owner("lost", lost)
                self.consumer.positions.clear()
            self.consumer.member = cluster.join(self._worker.new_member_name(), self._worker.pulse())
            return
        target = cluster.synchronise(member)
        if going := member.owned - target:
            await self._wait_for_owner("revoke", going)
            for partition in going:
                self.consumer.positions.pop(partition, None)
            owner.unassigned(named(going))
            cluster.release(member, going)
            return
        coming = {p for p in target - member.owned if cluster.is_free(p) and cluster.stable_offset(p) is not None}
        if coming:
            member.owned |= coming
            for partition in coming:
                self.consumer.positions[partition] = max(cluster.stable_offset(partition) or 0, 0)
            owner.assigned(named(coming))
            await self._wait_for_owner("assign", coming)

    async def _wait_for_owner(self, kind: str, partitions: set[int]) -> None:
        if self._stopping:
            return
        handled = self._worker.consumer.rebalance(kind, named(partitions))
        give_up = self._world.now + self.drain_deadline_s + 2.0
        while not handled.done() and self._world.now < give_up:
            self._serve()
            await asyncio.sleep(0.01)

    def _fetch(self) -> None:
        if not self.room.is_set() or not self.consumer.positions:
            return
        batches = []
        for partition in self._world.random.sample(sorted(self.consumer.positions), 1):
            first = self.consumer.positions[partition]
            end = min(first + self._world.random.randint(1, BATCH_RECORDS), self._cluster.written())
            if offsets := list(range(first, end)):
                values: list[bytes | None] = [b"%d:%d" % (partition, offset) for offset in offsets]
                keys, times = [b"k"] * len(offsets), [0] * len(offsets)
                batches.append(RecordBatch(INPUT, partition, offsets, keys, values, times, None))  # type: ignore[arg-type]
                self.consumer.positions[partition] = end
        written = self._cluster.written()
        ends = {TopicPartition(INPUT, p): written for p, at in self.consumer.positions.items() if at == written}
        if batches or ends:
            self._worker.consumer.deliver(batches, ends)


class App:
    """What Consumer asks of Faust's app."""

    def __init__(self, producer: Any) -> None:
        self.conf = mock.Mock(id="group", broker_commit_interval=COMMIT_EVERY_S)
        self.sensors = SimpleNamespace(on_message_in=lambda *_: None)
        self.consumer_generation_id = 0
        self.rebalancing = self.should_stop = self.in_transaction = False
        self.producer = producer

    def on_rebalance_start(self) -> None:
        self.rebalancing = True


class StreamConsumer(Consumer):
    """Consumer with what Faust's app and streams do around it."""

    def __init__(self, worker: "Worker", transport: Any) -> None:
        super().__init__(
            transport,
            callback=self._to_stream,
            on_partitions_revoked=None,
            on_partitions_assigned=None,
            loop=worker.loop,
        )
        self._worker = worker
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def _to_stream(self, message: Any) -> None:
        await self.queue.put(message)

    async def on_partitions_revoked(self, _revoked: set[TP]) -> None:
        """Faust's app: stop the flow, empty the queues, wait for what is in work."""
        self.stop_flow()
        while not self.queue.empty():
            self.queue.get_nowait()
        await self.wait_empty()

    async def on_partitions_assigned(self, _assigned: set[TP], _generation_id: int = 0) -> None:
        """Faust's app: let the streams go on."""
        await asyncio.sleep(self._worker.world.jitter(0.05))
        self.app.rebalancing = False
        self.resume_flow()

    async def deliveries(self) -> AsyncIterator[Any]:
        """Faust's stream without acknowledgement: skips what is of another generation."""
        while True:
            message = await self.queue.get()
            if message.generation_id != self.app.consumer_generation_id:
                continue
            self._unacked_messages.add(message)
            message.tracked = True
            yield _Delivery(self, message)


@dataclass
class _Delivery:
    consumer: StreamConsumer
    message: Any

    @property
    def value(self) -> RecordBatch:
        batch: RecordBatch = self.message.value
        return batch

    def ack(self) -> None:
        self.consumer.ack(self.message)


class _Flow(Flow):
    """The real loop, guard and call-back over a step that only hands over."""

    def __init__(self, world: World, send: Callable[[RecordBatch], None]) -> None:
        self._world, self._send = world, send
        self._settings = FlowSettings(step_max=16)
        self._thread: Any = None
        self._between_steps = asyncio.Lock()

    def _drain(self) -> list[BatchSummary]:
        return []

    def _step(self, batches: list[RecordBatch]) -> None:
        self._world.sleep(self._world.jitter(0.5))  # the model
        for batch in batches:
            self._send(batch)


class FiberLock:
    """An RLock among fibers."""

    def __init__(self, world: World) -> None:
        self._world, self._owner, self._depth = world, None, 0

    def __enter__(self) -> None:
        me: Any = greenlet.getcurrent()
        while self._owner not in (None, me):
            self._world.sleep(0.001)
        self._owner, self._depth = me, self._depth + 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None


class Worker:
    """One process."""

    def __init__(self, world: World, network: Network, slot: int, *, exactly_once: bool) -> None:
        self.world, self.network, self.cluster, self.slot = world, network, network.cluster, slot
        self.exactly_once = exactly_once
        self.starts = self.joins = 0
        self.fault: Exception | None = None
        self.start()

    def pulse(self) -> Callable[[], bool]:
        """Tells of the present process whether it is neither dead nor paused."""
        loop = self.loop
        return lambda: not loop.dead and loop.resumes_at <= self.world.now

    def new_member_name(self) -> str:
        """Each join is another member."""
        self.joins += 1
        return f"{self.slot}-{self.joins}"

    def start(self) -> None:
        """A new process."""
        self.starts += 1
        self.fault = None
        self.loop = Loop(self.world)
        self.loop.call_soon(self._main)

    def kill(self) -> None:
        """SIGKILL."""
        if not self.loop.dead:
            self.loop.kill()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, then SIGCONT."""
        self.loop.resumes_at = self.world.now + seconds

    def stop(self) -> None:
        """SIGTERM."""
        if not self.loop.dead:
            self.loop.call_soon(lambda: self._keep(self._stop()))

    async def _stop(self) -> None:
        self.app.should_stop = True
        self.transport.start_deadline()
        await self.consumer.on_stop()
        self.kill()

    def _keep(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self.tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.failures.append(f"worker {self.slot}: {error!r}")

    def _on_fault(self, error: Exception) -> None:
        """The process ends; its supervisor will start it again."""
        self.fault = error
        self.loop.call_soon(self.kill)

    def _main(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.batch = self._make_producer()
        producer = SimpleNamespace(batch=self.batch, confirm=self._confirm)
        self.app = App(producer)
        deadline = Deadline(DRAIN_DEADLINE_S)
        self.transport: Any = SimpleNamespace(
            app=self.app,
            hooks=Hooks(on_fault=self._on_fault),
            transactions=Transactions(f"t-{self.slot}") if self.exactly_once else None,
            in_flight_max=64,
            in_flight_max_bytes=1 << 30,
            companions={},
            deadline_left_s=deadline.left_s,
            start_deadline=deadline.start,
            create_transaction_manager=lambda **_: None,
            Fetcher=mock.Mock(),
        )
        self.consumer = StreamConsumer(self, self.transport)
        self.poller = Poller(self)
        self.consumer._poller = self.poller  # type: ignore[assignment]
        self.flow = _Flow(self.world, self._send)
        self.consumer.commit_guard, self.consumer.on_aborted = self.flow.between_steps, self.flow.forget
        self._keep(self._join())
        self._keep(self.consumer._drain_messages(SimpleNamespace(should_stop=False)))
        self._keep(self._work())
        self._keep(self._commit_by_the_clock())
        if self.exactly_once:
            self._keep(self.consumer._commit_when_idle())

    async def _join(self) -> None:
        await self.consumer.subscribe([INPUT])
        await self.poller.run()

    def _make_producer(self) -> BatchProducer:
        worker = self

        class Exact(TransactionalProducer):
            def _make(self) -> Any:
                return SimProducer(
                    worker.network, f"t-{worker.slot}", TRANSACTION_TIMEOUT_S, lambda: not worker.loop.dead
                )

        class Plain(BatchProducer):
            def _make(self) -> Any:
                return PlainProducer(worker.network, f"t-{worker.slot}", 0.0, lambda: not worker.loop.dead)

        if not self.exactly_once:
            return Plain({})
        producer = Exact({}, f"t-{self.slot}", timeout_ms=int(TRANSACTION_TIMEOUT_S * 1000))
        producer._lock = FiberLock(self.world)  # type: ignore[assignment]
        return producer

    async def _confirm(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.batch.flush)

    def _send(self, batch: RecordBatch) -> None:
        self.batch.send_batch(OUTPUT, batch.keys, batch.values, [batch.partition] * len(batch))

    async def _work(self) -> None:
        try:
            await self.flow.run(
                self.consumer.deliveries(),
                lambda: not self.consumer.queue.empty(),
                lambda delivery: self.consumer.is_current(delivery.message),
            )
        except Exception as error:  # noqa: BLE001 (as topology._until_fault)
            self.consumer.abandon()
            self._on_fault(error)

    async def _commit_by_the_clock(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await self.consumer.commit()
