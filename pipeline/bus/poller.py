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
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.bus.clients import ErrorLog, make_consumer
from pipeline.bus.damage import Damage
from pipeline.bus.fetching import open_fetch
from pipeline.bus.identities import Identities
from pipeline.bus.messages import Notice
from pipeline.bus.resets import Resets
from pipeline.errors import FencedError, SettingsError
from pipeline.records import RecordBatch, TopicPartition

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: How late a request is served while no record comes; twenty wake-ups a second cost 0.1 % of a core.
POLL_S = 0.05
#: How long a full pipeline is waited for before its partitions are paused. Pausing throws away what
#: librdkafka fetched ahead (up to 64 MiB), so it is for a slow model, not for a short hiccup.
PAUSE_AFTER_S = 1.0


#: librdkafka retries these for ever, but no waiting mends them.
_HOPELESS = frozenset(
    {
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)
#: What a rebalance may take on top of the drain: the handler's own commit, and Faust's callbacks.
HANDLER_GRACE_S = 2.0


class PollerStoppedError(RuntimeError):
    """Nobody is left to do what was asked."""


class Owner(Protocol):
    """What the poller tells, from its own thread.

    `assigned`, `unassigned` and `deliver` must take effect in the order of their calls: a batch belongs to
    the assignment that was told last before it.
    """

    def assigned(self, partitions: set[TopicPartition]) -> None:
        """Records of these partitions may be delivered from now on."""
        ...

    def unassigned(self, partitions: set[TopicPartition]) -> None:
        """No more records of these partitions."""
        ...

    def deliver(self, batches: list[RecordBatch], ends: dict[TopicPartition, int]) -> None:
        """Records were fetched; `Poller.arrived` counts them once they are taken in.

        ends: where partitions end for now. Between the last record and there lie transaction markers, if anything.
        """
        ...

    def rebalance(self, kind: str, partitions: set[TopicPartition]) -> "Future[None]":
        """Partitions come ("assign"), are about to go ("revoke") or went ("lost"); done when handled."""
        ...

    def failed(self, error: BaseException) -> None:
        """The poller ended because of `error`."""
        ...


class Poller(threading.Thread):
    """Owns one consumer; see the module's docstring."""

    def __init__(
        self,
        options: Mapping[str, Any],
        owner: Owner,
        errors: ErrorLog,
        *,
        poll_records: int,
        in_flight_max: int,
        in_flight_max_bytes: int,
        identities: Identities,
        on_missed: Callable[[str, int], None],
        companions: Mapping[str, str],
    ) -> None:
        """See transport.Configuration.

        on_missed: gets a topic, and how many of its offsets were deleted before they were read.
        """
        super().__init__(name="kafka-poller", daemon=True)
        self._resets = Resets(options, on_missed)
        self._identities = identities
        self._companions = companions
        self._consumer: Consumer = make_consumer(self._resets.ask_us(options), errors)
        self._fetch = open_fetch(self._consumer)
        self._owner = owner
        self._errors = errors
        self._poll_records = poll_records
        self._requests: SimpleQueue[tuple[Callable[[Consumer], Any], Future[Any]]] = SimpleQueue()
        self._stopping = threading.Event()
        self._closed = False
        self._closing = threading.Lock()
        #: Cleared by the owner while it has enough in flight.
        self.room = threading.Event()
        self.room.set()
        #: Records (bytes) delivered; and, by the owner, taken in and in flight: its backlog counts while it is busy.
        self._delivered = self._delivered_bytes = 0
        self.arrived = self.arrived_bytes = 0
        self.in_flight = self.in_flight_bytes = 0
        self._in_flight_max = in_flight_max
        self._in_flight_max_bytes = in_flight_max_bytes
        self._paused = False
        self._damage = Damage()
        #: How long a rebalance may hold up polling while the owner drains.
        self.drain_deadline_s = 25.0

    # -- called from other threads ----------------------------------------------------

    def ask(self, request: Callable[[Consumer], T]) -> "Future[T]":
        """Run `request` on the poller's thread. The future fails with PollerStoppedError if that has ended."""
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(PollerStoppedError("the Kafka consumer has stopped"))
            else:
                self._requests.put((request, future))
        return future

    def subscribe(self, topics: list[str]) -> "Future[None]":
        """(Re)subscribe; the callbacks of this thread handle every later rebalance."""

        def request(consumer: Consumer) -> None:
            self._identities.forget()
            consumer.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

        return self.ask(request)

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
                self._identities.check()
                self._mind_room()
                self._damage.check()
                batches, notices = self._fetch.fetch(self._poll_records, POLL_S)
                ends = self._heed(notices) if notices else {}
                if batches or ends:
                    self._errors.working()
                    self._delivered += sum(map(len, batches))
                    self._delivered_bytes += sum(batch.size_bytes for batch in batches)
                    self._owner.deliver(batches, ends)
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

    def _has_room(self) -> bool:
        return (
            self.room.is_set()
            and self.in_flight + self._delivered - self.arrived < self._in_flight_max
            and self.in_flight_bytes + self._delivered_bytes - self.arrived_bytes < self._in_flight_max_bytes
        )

    def _mind_room(self) -> None:
        """Wait a little for a full owner; then pause, and poll on so that the group keeps this member."""
        if self._has_room():
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
            if not self.room.wait(0.01):
                continue
            if self._has_room() or self._stopping.is_set():
                return
            self._stopping.wait(0.01)
        self._consumer.pause(self._consumer.assignment())
        self._paused = True
        log.debug("partitions paused: enough in flight")

    def _heed(self, notices: list[Notice]) -> dict[TopicPartition, int]:
        """Where partitions end; errors are dealt with."""
        ends: dict[TopicPartition, int] = {}
        for notice in notices:
            if notice.error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (has no public name)
                assert notice.topic is not None, "librdkafka names it"
                ends[TopicPartition(notice.topic, notice.partition)] = notice.offset or 0
            elif not self._damage.holds(self._consumer, notice):
                self._consumer_error(notice)
        return ends

    def _consumer_error(self, notice: Notice) -> None:
        error = notice.error
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001
            # librdkafka reports the kind of a fatal consumer error in its text alone.
            if error.code() == KafkaError.FENCED_INSTANCE_ID or "fenced" in error.str():
                raise FencedError("consumer: another member has joined with this group.instance.id; stopping at once")
            raise KafkaException(error)
        if error.code() in _HOPELESS:
            raise SettingsError(f"kafka.consumer_options: the broker refuses this consumer: {error.str()}")
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            place = self._resets.answer(self._consumer, notice)
            if self._paused and place is not None:
                self._consumer.pause([place])
            return
        # Retried by librdkafka; error_cb has logged broker absence once.
        log.warning("consumer error", kind=error.name().lstrip("_").lower(), error=error.str())

    # -- rebalance callbacks, within consume() ------------------------------------------

    def _assigned(self, consumer: Consumer, given: list[_TopicPartition]) -> None:
        partitions = self._with_companions(given)
        if partitions:
            self._resets.place(consumer, partitions)
        self._fetch.follow(_named(partitions))
        consumer.incremental_assign(partitions)
        if not partitions:  # a rebalance that changed nothing here
            return
        # librdkafka remembers a pause beyond the assignment: say either way.
        (consumer.pause if self._paused else consumer.resume)(partitions)
        self._identities.watch(tp.topic for tp in partitions)
        self._owner.assigned(_named(partitions))
        self._wait_for_owner("assign", partitions)

    def _revoked(self, consumer: Consumer, taken: list[_TopicPartition]) -> None:
        partitions = self._with_companions(taken)
        self._wait_for_owner("revoke", partitions)
        consumer.incremental_unassign(partitions)
        self._fetch.leave(_named(partitions))
        self._owner.unassigned(_named(partitions))

    def _lost(self, consumer: Consumer, taken: list[_TopicPartition]) -> None:
        partitions = self._with_companions(taken)
        self._owner.unassigned(_named(partitions))
        self._wait_for_owner("lost", partitions)
        consumer.incremental_unassign(partitions)
        self._fetch.leave(_named(partitions))

    def _with_companions(self, partitions: list[_TopicPartition]) -> list[_TopicPartition]:
        """And those that come along; librdkafka reads and commits what its group did not assign all the same."""
        along = ((self._companions.get(tp.topic), tp.partition) for tp in partitions)
        return partitions + [_TopicPartition(topic, partition) for topic, partition in along if topic is not None]

    def _wait_for_owner(self, kind: str, partitions: list[_TopicPartition]) -> None:
        """Do what the owner asks until it has handled the rebalance, or the drain has taken too long."""
        if self._stopping.is_set() or not partitions:  # drained before the stop
            return
        handled = self._owner.rebalance(kind, _named(partitions))
        started = time.monotonic()
        while not handled.done():
            if time.monotonic() - started >= self.drain_deadline_s + HANDLER_GRACE_S:
                log.warning("rebalance goes on without the event loop, which is busy", kind=kind)
                return
            try:
                request, future = self._requests.get(timeout=0.01)
            except Empty:
                continue
            self._do(request, future)

    def _close(self) -> None:
        self._identities.close()
        self._fetch.close()
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.warning("consumer did not close cleanly", error=str(error))
        with self._closing:  # nobody may wait for ever for a request that came too late
            self._closed = True
        while True:
            try:
                _, future = self._requests.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(PollerStoppedError("the Kafka consumer has stopped"))


def _named(partitions: list[_TopicPartition]) -> set[TopicPartition]:
    return {TopicPartition(tp.topic, tp.partition) for tp in partitions}
