"""The thread that owns the librdkafka consumer: it polls, rebalances and does what it is asked.

Everything that touches the consumer runs on this thread. librdkafka calls the rebalance callback from
within `consume`, so while the event loop drains what is in flight, the callback keeps doing what the
loop asks of it (commits above all): neither waits for the other.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.bus.clients import ErrorLog, make_consumer
from pipeline.errors import FencedError, PipelineError
from pipeline.records import RecordBatch, TopicPartition

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: `consume` returns at once when there is a message; this bounds how late a request is served when
#: there is none: two wake-ups per 100 ms cost 0.1 % of a core.
POLL_S = 0.05
#: How long a full pipeline is waited for before its partitions are paused. Pausing throws away what
#: librdkafka fetched ahead (up to 64 MiB), so it is for a slow model, not for a short hiccup.
PAUSE_AFTER_S = 1.0


class Owner(Protocol):
    """What the poller tells, from its own thread."""

    def deliver(self, batches: list[RecordBatch]) -> None:
        """Records were fetched."""
        ...

    def rebalance(self, kind: str, partitions: set[TopicPartition]) -> "Future[None]":
        """Partitions come ("assign"), are about to go ("revoke") or went ("lost"); done when handled."""
        ...

    def failed(self, error: BaseException) -> None:
        """The poller ended because of `error`."""
        ...


class Poller(threading.Thread):
    """Owns one consumer; see the module's docstring."""

    def __init__(self, options: Mapping[str, Any], owner: Owner, errors: ErrorLog, *, poll_records: int) -> None:
        super().__init__(name="kafka-poller", daemon=True)
        self._consumer: Consumer = make_consumer(options, errors)
        self._owner = owner
        self._errors = errors
        self._poll_records = poll_records
        self._requests: SimpleQueue[tuple[Callable[[Consumer], Any], Future[Any]]] = SimpleQueue()
        self._stopping = threading.Event()
        #: Cleared by the owner while it has enough in flight.
        self.room = threading.Event()
        self.room.set()
        self._paused = False
        #: How long a rebalance may hold up polling while the owner drains.
        self.drain_deadline_s = 25.0

    # -- called from other threads ----------------------------------------------------

    def ask(self, request: Callable[[Consumer], T]) -> "Future[T]":
        """Run `request` on the poller's thread."""
        future: Future[T] = Future()
        if not self.is_alive() and self._stopping.is_set():
            future.set_exception(RuntimeError("the poller has stopped"))
        else:
            self._requests.put((request, future))
        return future

    def subscribe(self, topics: list[str]) -> "Future[None]":
        """(Re)subscribe; the callbacks of this thread handle every later rebalance."""
        return self.ask(
            lambda c: c.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        )

    def stop(self) -> None:
        """End the loop; the consumer then leaves its group and closes. Join to wait for it."""
        self._stopping.set()
        self.room.set()

    # -- the thread -------------------------------------------------------------------

    def run(self) -> None:
        """The visible loop: serve requests, mind the room, fetch, hand over."""
        try:
            while not self._stopping.is_set():
                self._serve()
                self._mind_room()
                messages = self._consumer.consume(self._poll_records, POLL_S)
                if messages:
                    batches = self._batches(messages)
                    if batches:
                        self._errors.working()
                        self._owner.deliver(batches)
            self._serve()
        except BaseException as error:  # noqa: BLE001 (whatever ends this thread must be known)
            self._owner.failed(error)
        finally:
            self._close()

    def _serve(self) -> None:
        while True:
            try:
                request, future = self._requests.get_nowait()
            except Empty:
                return
            self._do(request, future)

    def _do(self, request: Callable[[Consumer], Any], future: "Future[Any]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(request(self._consumer))
        except BaseException as error:  # noqa: BLE001 (belongs to whoever asked)
            future.set_exception(error)

    def _mind_room(self) -> None:
        """Wait a little for a full owner; then pause, and poll on so that the group keeps this member."""
        if self.room.is_set():
            if self._paused:
                self._consumer.resume(self._consumer.assignment())
                self._paused = False
                log.debug("partitions resumed")
            return
        if self._paused:
            return
        deadline = time.monotonic() + PAUSE_AFTER_S
        while time.monotonic() < deadline:
            self._serve()
            if self.room.wait(0.01):
                return
        self._consumer.pause(self._consumer.assignment())
        self._paused = True
        log.debug("partitions paused: enough in flight")

    def _batches(self, messages: list[Message]) -> list[RecordBatch]:
        """Messages as one record batch per topic-partition, in the order they were fetched."""
        groups: dict[tuple[str, int], list[Message]] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                self._consumer_error(error)
                continue
            groups.setdefault((message.topic(), message.partition()), []).append(message)
        batches = []
        for (topic, partition), group in groups.items():
            headers = [m.headers() for m in group]
            batches.append(
                RecordBatch(
                    topic,
                    partition,
                    [m.offset() for m in group],
                    [m.key() for m in group],
                    [m.value() for m in group],
                    [m.timestamp()[1] for m in group],
                    headers if any(headers) else None,
                )
            )
        return batches

    def _consumer_error(self, error: KafkaError) -> None:
        if error.fatal():
            if error.code() == KafkaError.FENCED_INSTANCE_ID:
                raise FencedError(f"consumer: {error.str()}: another member has this group.instance.id")
            raise KafkaException(error)
        # Retried by librdkafka; error_cb has logged broker absence once.
        log.warning("consumer error", kind=error.name().lstrip("_").lower(), error=error.str())

    # -- rebalance callbacks, within consume() ------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if self._paused:
            consumer.pause(partitions)
        self._wait_for_owner("assign", partitions)

    def _revoked(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        self._wait_for_owner("revoke", partitions)
        consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        self._wait_for_owner("lost", partitions)
        consumer.incremental_unassign(partitions)

    def _wait_for_owner(self, kind: str, partitions: list[_TopicPartition]) -> None:
        handled = self._owner.rebalance(kind, {TopicPartition(tp.topic, tp.partition) for tp in partitions})
        deadline = time.monotonic() + self.drain_deadline_s
        while not handled.done():
            left = deadline - time.monotonic()
            if left <= 0:
                log.warning("rebalance goes on with work in flight; it will be done again elsewhere", kind=kind)
                return
            try:
                request, future = self._requests.get(timeout=min(left, 0.01))
            except Empty:
                continue
            self._do(request, future)
        error = handled.exception()
        if error is not None and not isinstance(error, PipelineError):
            log.error("rebalance handler failed", kind=kind, error=repr(error))

    def _close(self) -> None:
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.warning("consumer did not close cleanly", error=str(error))
        while True:  # nobody may wait for ever for a request that came too late
            try:
                _, future = self._requests.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(RuntimeError("the poller has stopped"))
