"""Faust's producer on librdkafka, and the batch calls of the hot path."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from itertools import repeat
from operator import length_hint
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as _Producer
from faust.transport import base
from faust.types import TP, RecordMetadata

from pipeline.bus.clients import ErrorLog, make_producer
from pipeline.errors import DeliveryError, DrainTimeoutError, FencedError, PipelineError
from pipeline.records import Headers

log = structlog.get_logger(__name__)

#: Slice of a flush: how late a failure or an abandoned shutdown is noticed.
FLUSH_SLICE_S = 0.25


class BatchProducer:
    """An idempotent librdkafka producer for record batches (contracts.OutputSink). Thread-safe.

    `send_*` enqueue; `flush` is where delivery is confirmed. A record that cannot be delivered makes
    the next `flush` (and every later call) raise: nothing after it may be committed.
    """

    def __init__(self, options: dict[str, Any], on_broker_error: Any = None) -> None:
        self._errors = ErrorLog("producer", on_broker_error)
        self._options = {**options, "on_delivery": self._on_delivery}
        self._producer = self._make()
        self._failure: PipelineError | None = None
        self._closed = threading.Event()

    def _make(self) -> _Producer:
        return make_producer(self._options, self._errors)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Called for failures only (`delivery.report.only.error`)."""
        if error is not None and self._failure is None:
            size = len(message.value() or b"") + len(message.key() or b"")
            self._failure = DeliveryError(
                f"topic {message.topic()}: the broker refused a record of {size} bytes: {error.str()}"
            )

    def _check(self) -> None:
        fatal = self._errors.fatal
        if fatal is not None:
            fenced = fatal.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED)  # noqa: SLF001
            kind = FencedError if fenced else DeliveryError
            raise kind(f"producer: {fatal.str()}")
        if self._failure is not None:
            raise self._failure

    def send_batch(
        self,
        topic: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Enqueue records in order; waits while the local queue is full. Raises DeliveryError, FencedError."""
        self._check()
        if not len(keys) == len(values) == len(values if partitions is None else partitions):
            raise ValueError("as many keys, and partitions, as values are needed")
        columns = (values, keys) if partitions is None else (values, keys, partitions)
        done, produce = 0, self._producer.produce
        while done < len(values):
            left = [iter(column[done:] if done else column) for column in columns]
            try:
                # 0.35 us a record; `produce_batch` takes 0.6 with the dicts it wants, and what it takes in of a full
                # queue has gaps.
                deque(map(produce, repeat(topic), *left), maxlen=0)
            except BufferError:
                done = len(values) - length_hint(left[0]) - 1  # not the one that was refused
            except KafkaException as error:
                raise DeliveryError(f"topic {topic}: {error.args[0].str()}") from error
            else:
                break
            if self._closed.is_set():
                raise DrainTimeoutError(f"topic {topic}: the producer was closed with its queue full")
            self._producer.poll(0.01)
            self._check()
        self._producer.poll(0)

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = None) -> None:
        """Enqueue one record, headers included; waits while the local queue is full."""
        self._check()
        while True:
            try:
                self._producer.produce(topic, value=value, key=key, headers=list(headers) if headers else None)
            except BufferError:
                if self._closed.is_set():
                    raise DrainTimeoutError(f"topic {topic}: the producer was closed with its queue full") from None
                self._producer.poll(0.01)
                self._check()
            except KafkaException as error:
                raise DeliveryError(f"topic {topic}: {error.args[0].str()}") from error
            else:
                return

    def flush(self, timeout_s: float | None = None) -> None:
        """Return once all enqueued records are acknowledged; without a timeout, for as long as it takes.

        Raises DeliveryError or FencedError if one was refused, DrainTimeoutError after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._unacknowledged(FLUSH_SLICE_S):
            self._check()
            if self._closed.is_set() or (deadline is not None and time.monotonic() >= deadline):
                raise DrainTimeoutError(f"producer: {len(self._producer)} records not acknowledged before the deadline")
        self._check()
        self._errors.working()

    def _unacknowledged(self, wait_s: float) -> int:
        """Records that are not acknowledged after `wait_s`. Raises FencedError or DeliveryError after a fatal error.

        confluent-kafka raises a fatal error where it is served, which a flush may be; as a SystemError, now and then.
        """
        try:
            return int(self._producer.flush(wait_s))
        except (KafkaException, SystemError) as error:
            if isinstance(error, KafkaException) and error.args[0].fatal():
                self._errors.fatal = self._errors.fatal or error.args[0]
            self._check()
            raise DeliveryError(f"producer: {error}") from error

    def close(self) -> None:
        """Give up on what is not acknowledged yet: a waiting `flush` ends with DrainTimeoutError."""
        self._closed.set()


class Producer(base.Producer):
    """Faust's producer interface: `topic.send` and friends; `batch` is the fast door beside it.

    By either door, a record that the broker refuses for good makes every later commit fail: its input must
    not be acknowledged.
    """

    logger = logging.getLogger("faust.rdkafka")  # mode logs each step of each service under its class's module

    allow_headers = True

    def __post_init__(self) -> None:
        self._single: _Producer | None = None
        self._batch: BatchProducer | None = None
        self._polling: asyncio.Task[None] | None = None
        self._single_errors = ErrorLog("producer", self.transport.hooks.on_broker_error)
        #: Sent one by one or handed to Faust's buffer, and not acknowledged yet.
        self._unconfirmed: set[asyncio.Future[Any]] = set()
        self._failure: DeliveryError | None = None

    @property
    def batch(self) -> BatchProducer:
        """The producer for record batches, transactional if the app is so configured; made on first use."""
        if self._batch is None:
            options = self.transport.options.for_producer(client_id=self.app.conf.broker_client_id)
            self._batch = self.transport.make_batch_producer(options)
        return self._batch

    def _ensure_single(self) -> _Producer:
        if self._single is None:
            options = self.transport.options.for_producer(
                client_id=self.app.conf.broker_client_id, delivery_report_only_error=False
            )
            self._single = make_producer(options, self._single_errors)
            self._polling = asyncio.get_running_loop().create_task(self._serve_reports(self._single))
        return self._single

    async def _serve_reports(self, producer: _Producer) -> None:
        """Let delivery reports out while any are due; their futures belong to this loop."""
        while True:
            producer.poll(0)
            await asyncio.sleep(0.002 if len(producer) else 0.02)

    async def on_stop(self) -> None:
        """Give up on what is not acknowledged: the app has flushed before, as far as the deadline let it."""
        await super().on_stop()
        if self._polling is not None:
            self._polling.cancel()
        if self._batch is not None:
            self._batch.close()
        for future in list(self._unconfirmed):
            if not future.done():
                future.set_exception(DrainTimeoutError("the producer was closed before the broker acknowledged"))
                future.exception()  # whoever waits gets it; nobody has to

    def send_soon(self, fut: Any) -> None:
        """Hand over to Faust's buffer; a commit waits for it too."""
        self._expect(fut)
        super().send_soon(fut)

    def _expect(self, future: "asyncio.Future[Any]") -> None:
        self._unconfirmed.add(future)
        future.add_done_callback(self._unconfirmed.discard)

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,  # noqa: ARG002 (Faust's signature)
    ) -> Awaitable[RecordMetadata]:
        """Enqueue one record; the returned future resolves when all in-sync replicas have it.

        Raises DeliveryError when it can never be sent (too large, no such partition).
        """
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()

        def delivered(error: KafkaError | None, message: Message) -> None:  # on the loop: it calls poll
            failure = None if error is None else DeliveryError(f"topic {message.topic()}: {error.str()}")
            self._failure = self._failure or failure
            if future.done():
                return
            if failure is not None:
                future.set_exception(failure)
                future.exception()  # it reaches the next commit, even if nobody awaits this future
            else:
                tp = TP(message.topic(), message.partition())
                future.set_result(RecordMetadata(*tp, tp, message.offset()))

        options: dict[str, Any] = {"on_delivery": delivered}
        if partition is not None:
            options["partition"] = partition
        if timestamp is not None:
            options["timestamp"] = int(timestamp * 1000)
        if headers:
            options["headers"] = list(headers.items()) if isinstance(headers, dict) else list(headers)
        await self._produce(topic, value, key, options)
        self._expect(future)
        return future

    async def _produce(self, topic: str, value: bytes | None, key: bytes | None, options: dict[str, Any]) -> None:
        producer = self._ensure_single()
        while True:
            try:
                producer.produce(topic, value=value, key=key, **options)
            except BufferError:
                if self.should_stop:
                    raise DrainTimeoutError(f"topic {topic}: the producer was closed with its queue full") from None
                await asyncio.sleep(0.005)
            except KafkaException as error:
                raise DeliveryError(f"topic {topic}: {error.args[0].str()}") from error
            else:
                return

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> RecordMetadata:
        """`send`, then wait for the acknowledgement."""
        return await (await self.send(*args, **kwargs))

    async def confirm(self) -> None:
        """Return once everything sent until now, by either door, is acknowledged; as long as that takes.

        What other agents send meanwhile by `send` is not waited for, or a busy app would never commit; what
        they send through `batch` is (see Consumer.commit_guard).
        Raises DeliveryError or FencedError if a record was ever refused, DrainTimeoutError once closed.
        """
        if self._unconfirmed:
            await asyncio.wait(list(self._unconfirmed))
        if self._batch is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._batch.flush)
        if self._failure is not None:
            raise self._failure

    async def flush(self) -> None:
        """`confirm`, as Faust calls it. While the app stops it is bounded by the drain deadline and never raises."""
        if not self.app.should_stop:
            await self.confirm()
            return
        self.transport.start_deadline()
        try:
            await asyncio.wait_for(self.confirm(), self.transport.deadline_left_s())
        except TimeoutError:
            log.warning("records not acknowledged by the broker at the shutdown deadline")
        except PipelineError as error:
            self.transport.hooks.on_fault(error)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic; see Transport.create_topic."""
        await self.transport.create_topic(topic, partitions, replication, **options)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Partition that librdkafka, like the Java client, gives `key`."""
        partition = self.transport.key_partition(topic, key)
        if partition is None:
            raise DeliveryError(f"topic {topic} does not exist")
        return TP(topic, partition)

    def supports_headers(self) -> bool:
        return True
