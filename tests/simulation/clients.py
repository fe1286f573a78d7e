"""librdkafka's producer and consumer as far as our code sees them, on a network that delays, loses and repeats."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import greenlet
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.records import TopicPartition
from tests.simulation.brokers import OK, Cluster, Member
from tests.simulation.virtual import Fiber, World

INPUT, OUTPUT = "in", "out"

#: librdkafka sends a request again after this long without an answer; shorter than transactions.SOCKET_TIMEOUT_MS, so
#: that more happens in a schedule.
SOCKET_TIMEOUT_S = 4.0
#: And no sooner than this after its connection broke (transactions.RETRY_BACKOFF_MS).
RETRY_S = 0.56
#: What the broker says while it is busy with the transaction before; also a coordinator that has moved.
_RETRIED_INSIDE = {KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.NOT_COORDINATOR}
_FENCED = {KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_TXN_STATE}
_ABORTABLE = {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID}


class Network:
    """Carries requests of a fiber to the cluster."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self.world, self.cluster = world, cluster
        #: Chances of a copy that arrives much later, of an answer lost, and of a coordinator that has moved.
        self.stray, self.lost, self.moved = 0.0, 0.0, 0.0

    def ask(self, request: Callable[[], Any], timeout_s: float, *, strays: bool = False) -> Any:
        """The answer, or None at the timeout: then the request may have been done, or be done later."""
        world, fiber = self.world, greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        answer: list[Any] = []
        waiting = [True]

        def wake() -> None:
            if waiting[0]:
                waiting[0] = False
                fiber.switch()

        def arrive() -> None:
            moved = world.random.random() < self.moved
            result = KafkaError.NOT_COORDINATOR if moved else request()
            if world.random.random() >= self.lost:
                world.after(world.jitter(0.05), lambda: (answer.append(result), fiber.loop.call_soon(wake)))

        late = strays and world.random.random() < self.stray
        # As late as that is after the timeout: the sender has sent another copy by then.
        world.after(world.random.uniform(0, 3 * SOCKET_TIMEOUT_S) if late else world.jitter(0.05), arrive)
        fiber.loop.call_later(timeout_s, wake)
        fiber.parent.switch()
        return answer[0] if answer else None

    def cut(self, request: Callable[[], Any]) -> None:
        """A copy of a request whose connection broke: nobody waits for its answer, and it may yet arrive."""
        self.world.after(self.world.random.uniform(0, 2.0), request)


class SimProducer:
    """A transactional producer; the methods are confluent_kafka.Producer's."""

    def __init__(self, network: Network, name: str, timeout_s: float, alive: Callable[[], bool]) -> None:
        self.network, self.cluster, self.world = network, network.cluster, network.world
        self.name, self.timeout_s = name, timeout_s
        self._alive = alive
        self.epoch = -1
        self._open = False
        self._sent = False
        self._in_flight = 0
        self._lingering: list[Any] = []
        self._queue: deque[tuple[int, list[Any]]] = deque()
        self._fatal: KafkaError | None = None
        self._failed: KafkaError | None = None

    def __len__(self) -> int:
        return self._in_flight

    # -- transactions ------------------------------------------------------------------------

    def init_transactions(self, timeout_s: float) -> None:
        give_up = self.world.now + timeout_s
        while self.world.now < give_up:
            answer = self.network.ask(lambda: self.cluster.init_producer(self.name, self.timeout_s), SOCKET_TIMEOUT_S)
            if isinstance(answer, tuple) and answer[0] == OK:
                self.epoch = answer[2]
                return
            self.world.sleep(0.1)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "init", False, True))

    def begin_transaction(self) -> None:
        self._raise_fatal()
        self._open, self._sent = True, False
        self._failed = None

    def send_offsets_to_transaction(self, positions: list[_TopicPartition], group: Any) -> None:
        self._raise_fatal()
        offsets = {tp.partition: tp.offset for tp in positions}
        self._sent = True
        code = self._ask(lambda: self.cluster.offset_commit(self.name, self.epoch, group, offsets), strays=True)
        if code is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "offsets", False, True))
        self._raise(code)

    def commit_transaction(self, _timeout_s: float) -> None:
        self._raise_fatal()
        while self._in_flight:
            self.world.sleep(0.001)
        self._raise_fatal()
        if self._failed is not None:
            raise KafkaException(KafkaError(self._failed.code(), "delivery", False, False, True))
        self._end(commit=True)

    def abort_transaction(self, _timeout_s: float) -> None:
        self._raise_fatal()
        while self._in_flight:  # librdkafka waits for what is under way, so that it cannot arrive in the next one
            self.world.sleep(0.001)
        self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        """EndTxn, which librdkafka sends again when the connection breaks or nobody answers."""

        def request() -> int:
            return self.cluster.end(self.name, self.epoch, commit=commit)

        while self._sent:
            if self.world.random.random() < self.network.stray / 4:
                self.network.cut(request)
                self.world.sleep(RETRY_S)
            code = self.network.ask(request, SOCKET_TIMEOUT_S, strays=True)
            if code == OK:
                break
            if code is None or code in _RETRIED_INSIDE:
                self.world.sleep(0.1)
                continue
            self._raise(code)
        self._open = False

    def _ask(self, request: Callable[[], int], *, strays: bool) -> int | None:
        """Retried inside while the coordinator is busy."""
        give_up = self.world.now + SOCKET_TIMEOUT_S
        while True:
            if strays and self.world.random.random() < self.network.stray / 4:
                self.network.cut(request)
                self.world.sleep(RETRY_S)
            code: int | None = self.network.ask(request, SOCKET_TIMEOUT_S, strays=strays)
            if code not in _RETRIED_INSIDE or self.world.now > give_up:
                return None if code in _RETRIED_INSIDE else code
            self.world.sleep(0.05)

    def _raise(self, code: int) -> None:
        if code in _FENCED:
            self._fatal = KafkaError(code, "fatal", True)
            self._raise_fatal()
        if code in _ABORTABLE:
            raise KafkaException(KafkaError(code, "abortable", False, False, True))

    def _raise_fatal(self) -> None:
        if not self._alive():
            raise greenlet.GreenletExit
        if self._fatal is not None:
            raise KafkaException(self._fatal)

    # -- records -----------------------------------------------------------------------------

    def produce(self, _topic: str, value: bytes, _key: bytes | None, _partition: int = -1) -> None:
        """Kept until the next poll, as by a linger; acknowledged, or refused, later."""
        self._lingering.append(tuple(map(int, value.split(b":"))))

    def _send(self, outputs: list[Any]) -> None:
        self._queue.append((self.epoch, outputs))
        if len(self._queue) == 1:
            self.world.after(self.world.jitter(0.05), self._arrive)

    def _arrive(self) -> None:
        """The first record under way: sequence numbers keep those behind it in their order."""
        code = self._append(*self._queue[0])
        if code in _RETRIED_INSIDE:
            self.world.after(0.05, self._arrive)
            return
        if code in _FENCED and self._alive():
            self._fatal = KafkaError(code, "fatal", True)
        self._queue.popleft()
        self._in_flight = max(0, self._in_flight - 1)
        if self._queue:
            self.world.after(self.world.jitter(0.05), self._arrive)

    def _append(self, epoch: int, outputs: list[Any]) -> int:
        return self.cluster.append(self.name, epoch, outputs)

    def poll(self, _timeout_s: float) -> int:
        if self._lingering:
            outputs, self._lingering = self._lingering, []
            self._sent = True
            self._in_flight += 1
            self._send(outputs)
        if self._fatal is not None:
            raise KafkaException(self._fatal)
        return 0

    def flush(self, timeout_s: float) -> int:
        give_up = self.world.now + timeout_s
        while self._in_flight and self.world.now < give_up:
            self.world.sleep(0.002)
        return self._in_flight

    def purge(self, **_how: Any) -> None:
        self._in_flight = 0


class PlainProducer(SimProducer):
    """Idempotent, without transactions."""

    def _append(self, _epoch: int, outputs: list[Any]) -> int:
        return self.cluster.append_plain(outputs)


class SimConsumer:
    """What requests on the poller's thread find: confluent_kafka.Consumer's methods."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.member: Member | None = None
        self.positions: dict[int, int] = {}

    def _identity(self) -> tuple[str, int]:
        return (self.member.name, self.member.generation) if self.member is not None else ("nobody", -1)

    def consumer_group_metadata(self) -> tuple[str, int]:
        return self._identity()

    def assignment(self) -> list[_TopicPartition]:
        return [_TopicPartition(INPUT, p) for p in self.positions]

    def seek(self, tp: _TopicPartition) -> None:
        self.positions[tp.partition] = tp.offset

    def committed(self, tps: list[_TopicPartition], timeout: float) -> list[_TopicPartition]:
        found = [self.cluster.stable_offset(tp.partition) for tp in tps]
        if None in found:
            raise KafkaException(KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT))
        return [_TopicPartition(INPUT, tp.partition, offset) for tp, offset in zip(tps, found, strict=True)]

    def commit(self, offsets: list[_TopicPartition], asynchronous: bool) -> list[Any]:
        code = self.cluster.commit_plain(self._identity(), {tp.partition: tp.offset for tp in offsets})
        if code != OK:
            raise KafkaException(KafkaError(code))
        return [SimpleNamespace(topic=tp.topic, partition=tp.partition, error=None) for tp in offsets]


def named(partitions: set[int]) -> set[TopicPartition]:
    """As our code names them."""
    return {TopicPartition(INPUT, p) for p in partitions}
