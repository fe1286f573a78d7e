"""From what librdkafka has fetched to record batches: the poller's part of the hot path.

`MessageFetch`, which workers use, makes an object of each record first. `ColumnFetch`, with _fetch.c where it is built,
takes records from librdkafka's queue into columns, most of it without the interpreter's lock: on one loaded core 0.5
against 2.8 µs an event of 98 bytes (`python -m benchmarks.fetching`). It is not in use yet, see `open_fetch`.
"""

import ctypes
import time
from array import array
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import confluent_kafka
import structlog
from confluent_kafka import Consumer, KafkaError, Message, cimpl

from pipeline.bus.messages import Notice, headers_of
from pipeline.bus.sizes import size_bytes
from pipeline.records import RecordBatch, TopicPartition

try:
    from pipeline.bus import _fetch
except ImportError:  # not built: there was no C compiler
    _fetch = None  # type: ignore[assignment]

log = structlog.get_logger(__name__)

#: How late a queue that librdkafka has turned away from us is turned back; 0.5 µs a partition each time.
TURN_BACK_S = 0.05
#: _fetch.c knows librdkafka by these, in this order.
_HOT = (
    "rd_kafka_consume_batch_queue",
    "rd_kafka_message_destroy",
    "rd_kafka_message_timestamp",
    "rd_kafka_message_headers",
    "rd_kafka_header_get_all",
    "rd_kafka_topic_name",
)


class Fetched(NamedTuple):
    """Record batches, one a topic-partition (or more, in order), and what else there was."""

    batches: list[RecordBatch]
    notices: list[Notice]


class Fetch(Protocol):
    """How the poller gets at records. Everything runs on the thread that owns the consumer."""

    def fetch(self, most: int, wait_s: float) -> Fetched:
        """Up to about `most` records; waits for the first one only. Rebalance callbacks run in here."""
        ...

    def follow(self, partitions: Iterable[TopicPartition]) -> None:
        """These are about to be assigned."""
        ...

    def leave(self, partitions: Iterable[TopicPartition]) -> None:
        """These are assigned no longer."""
        ...

    def close(self) -> None:
        """Let go of the consumer, which is about to close."""
        ...


def open_fetch(consumer: Consumer) -> Fetch:
    """Messages, until tests/faults/test_unstable_offsets.py passes by way of columns on a busy machine, too."""
    return MessageFetch(consumer)


# --------------------------------------------------------------------------- message by message


class MessageFetch:
    """By way of confluent_kafka's Message objects."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def fetch(self, most: int, wait_s: float) -> Fetched:
        # `consume` waits its whole timeout for as many as it is asked for: at low rates one call would hold every
        # record back for so long.
        messages: list[Message] = self._consumer.consume(1, wait_s)
        if messages and most > 1:
            messages += self._consumer.consume(most - 1, 0)
        return sort(messages)

    def follow(self, partitions: Iterable[TopicPartition]) -> None:
        """Nothing to do."""

    def leave(self, partitions: Iterable[TopicPartition]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def sort(messages: list[Message]) -> Fetched:
    """Messages as one record batch per topic-partition, in the order they were fetched; and what else is among them."""
    # Calls by way of `map`, in C, take half the time of a loop's.
    notices: list[Notice] = []
    if any(map(Message.error, messages)):
        notices = [Notice.of(message) for message in messages if message.error() is not None]
        messages = [message for message in messages if message.error() is None]
    groups: dict[tuple[str, int], list[Message]] = {}
    start = 0
    for place, run in groupby(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)):
        end = start + sum(1 for _ in run)
        groups.setdefault(place, []).extend(messages[start:end])
        start = end
    return Fetched([_record_batch(*place, group) for place, group in groups.items()], notices)


def _record_batch(topic: str, partition: int, messages: list[Message]) -> RecordBatch:
    keys, values, headers = list(map(Message.key, messages)), list(map(Message.value, messages)), headers_of(messages)
    some_headers = headers if any(headers) else None
    return RecordBatch(
        topic,
        partition,
        array("q", map(Message.offset, messages)),
        keys,
        values,
        array("q", [time_ms for _, time_ms in map(Message.timestamp, messages)]),
        some_headers,
        size_bytes(keys, values, some_headers),
    )


# --------------------------------------------------------------------------- as columns


class ColumnFetch:
    """By way of _fetch.c, from a queue of our own to which the assigned partitions' queues are forwarded.

    confluent_kafka's `consume` stays in use for all that is not a partition's: its callbacks (rebalances, errors,
    statistics) want it on the stack. Records that come by it all the same are taken in first: they are of a time before
    their queue was turned to us, since librdkafka throws away what it fetched before an assignment or a seek.

    librdkafka turns a queue away when a partition's fetching stops, which it does some time after it is told to: after
    a partition has gone and come again at once, that is after we have turned it to us. So all are turned again, every
    TURN_BACK_S; nothing is lost meanwhile, it waits.
    """

    def __init__(self, consumer: Consumer, library: ctypes.CDLL) -> None:
        self._messages = MessageFetch(consumer)
        self._library = library
        # The first field of confluent_kafka's objects, after Python's own: rd_kafka_t *rk (confluent_kafka.h, Handle).
        self._client = ctypes.c_void_p.from_address(id(consumer) + object.__basicsize__).value
        self._queue: int = library.rd_kafka_queue_new(self._client)
        self._sources: dict[TopicPartition, int] = {}
        self._turn_at = 0.0

    def fetch(self, most: int, wait_s: float) -> Fetched:
        batches, notices = self._messages.fetch(most, 0)
        now = time.monotonic()
        if now >= self._turn_at:
            self._turn_at = now + TURN_BACK_S
            for source in self._sources.values():
                self._library.rd_kafka_queue_forward(source, self._queue)
        wait_ms = 0 if batches or notices else int(wait_s * 1000)
        columns, said = _fetch.fetch(self._queue, most, wait_ms)
        batches += [_from_columns(*found) for found in columns]
        notices += [Notice(topic, partition, at, KafkaError(code, text)) for topic, partition, at, code, text in said]
        return Fetched(batches, notices)

    def follow(self, partitions: Iterable[TopicPartition]) -> None:
        for tp in partitions:
            self._drop(tp)
            source = self._library.rd_kafka_queue_get_partition(self._client, tp.topic.encode(), tp.partition)
            if source:
                self._sources[tp] = source
                self._library.rd_kafka_queue_forward(source, self._queue)

    def leave(self, partitions: Iterable[TopicPartition]) -> None:
        for tp in partitions:
            self._drop(tp)

    def close(self) -> None:
        self.leave(list(self._sources))
        if self._queue:
            self._library.rd_kafka_queue_destroy(self._queue)
            self._queue = 0

    def _drop(self, tp: TopicPartition) -> None:
        source = self._sources.pop(tp, None)
        if source is not None:
            self._library.rd_kafka_queue_destroy(source)


def _from_columns(
    topic: str, partition: int, offsets: bytes, keys: Any, values: Any, times_ms: bytes, headers: Any, size: int
) -> RecordBatch:
    return RecordBatch(topic, partition, _longs(offsets), keys, values, _longs(times_ms), headers, size)


def _longs(content: bytes) -> Sequence[int]:
    longs = array("q")
    longs.frombytes(content)
    return longs


def _library() -> ctypes.CDLL | None:
    """The librdkafka that confluent_kafka uses, with the functions that we need; None where that cannot be had."""
    if _fetch is None or confluent_kafka.version()[0].split(".")[0] != "2":  # of others the objects are not known
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    try:
        library = ctypes.CDLL(cimpl.__file__)  # it depends on librdkafka: symbols are found through it
        for name, answer, *arguments in (
            ("rd_kafka_queue_new", pointer, pointer),
            ("rd_kafka_queue_get_partition", pointer, pointer, ctypes.c_char_p, number),
            ("rd_kafka_queue_forward", None, pointer, pointer),
            ("rd_kafka_queue_destroy", None, pointer),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = answer, arguments
        if library.rd_kafka_version() != confluent_kafka.libversion()[1]:
            return None
        _fetch.bind(*(ctypes.cast(getattr(library, name), pointer).value or 0 for name in _HOT))
    except (OSError, AttributeError) as error:
        log.info("records are fetched message by message", reason=str(error))
        return None
    return library
