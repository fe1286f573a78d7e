"""Reading partitions without a consumer group: nothing a person looks at moves anybody's offsets."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.bus.clients import ClientOptions, ErrorLog, make_consumer
from pipeline.bus.damage import damage_of
from pipeline.bus.messages import Notice
from pipeline.errors import ContractError, UnreachableError
from pipeline.records import RecordBatch

#: Messages taken at once, and how late a reader notices that it should stop.
READ_MAX = 500
READ_WAIT_S = 0.1
#: A topic that brings nothing for this long, although there is more of it, is given up.
SILENCE_S = 30.0


class Span(NamedTuple):
    """Offsets of one partition, `end` exclusive; None follows for ever."""

    start: int
    end: int | None


def read(
    options: ClientOptions,
    group: str,
    topic: str,
    spans: Mapping[int, Span],
    on_end: Callable[[int], None] = lambda _partition: None,
    **extra: Any,
) -> Iterator[list[Message]]:
    """Committed records of the spans, in offset order per partition; empty lists while nothing comes.

    on_end: called with a partition each time there is nothing more in it for now.

    Ends when every span is read, or its partition has no more committed records below its end.
    `group` is only the name the client needs: nothing joins it and nothing is committed.
    Raises ContractError for a topic that is gone or forbidden, UnreachableError for a fatal client error.
    """
    left = {p: span for p, span in spans.items() if span.end is None or span.start < span.end}
    if not left:
        return
    consumer = make_consumer(options.for_consumer(group, enable_partition_eof=True, **extra), ErrorLog(group))
    try:
        consumer.assign([TopicPartition(topic, p, span.start) for p, span in left.items()])
        while left:
            batch = []
            # `consume` waits for as many as it is asked for: first for one, then for none.
            for message in consumer.consume(1, READ_WAIT_S) + consumer.consume(READ_MAX, 0):
                if message.error() is not None:
                    _at_end(message, topic, left, on_end)
                elif _belongs(message, left):
                    batch.append(message)
            yield batch
    except KafkaException as error:
        raise UnreachableError(f"topic {topic}: cannot be read: {error.args[0].str()}") from error
    finally:
        _close(consumer)


def read_to_ends(options: ClientOptions, group: str, topic: str, stop: threading.Event) -> Iterator[list[Message]]:
    """The committed records of a topic of one partition, from its first one, in lists that each reach its end so far.

    An end as a reader of committed records sees it lies before or behind a transaction, never inside, and so do the
    ends of the lists. The first comes even if it is empty; later ones when there is something new. Ends within
    READ_WAIT_S once `stop` is set. Raises as `read`.
    """
    ends: list[int] = []
    follow = {0: Span(0, None)}
    extra = {"enable_partition_eof": True, "auto_offset_reset": "earliest"}
    consumer = make_consumer(options.for_consumer(group, **extra), ErrorLog(group))
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        records: list[Message] = []
        begun = False
        while not stop.is_set():
            for message in consumer.consume(1, READ_WAIT_S) + consumer.consume(READ_MAX, 0):
                if message.error() is None:
                    records.append(message)
                    continue
                _at_end(message, topic, follow, ends.append)
                if ends and (records or not begun):
                    yield records
                    records, begun = [], True
                ends.clear()
    except KafkaException as error:
        raise UnreachableError(f"topic {topic}: cannot be read: {error.args[0].str()}") from error
    finally:
        _close(consumer)


def unless_silent(batches: Iterator[list[Message]], topic: str) -> Iterator[list[Message]]:
    """The same, until nothing has come for SILENCE_S although there is more. Raises UnreachableError then."""
    heard_at = time.monotonic()
    for messages in batches:
        if messages:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > SILENCE_S:
            raise UnreachableError(f"topic {topic}: nothing has come for {SILENCE_S:.0f} s; is Kafka there?")
        yield messages


def by_partition(topic: str, messages: list[Message]) -> Iterator[RecordBatch]:
    """Messages of a topic as one record batch a partition, in their order."""
    partitions: dict[int, list[Message]] = {}
    for message in messages:
        partitions.setdefault(message.partition(), []).append(message)
    for partition, part in partitions.items():
        yield RecordBatch(
            topic,
            partition,
            [m.offset() for m in part],
            [m.key() for m in part],
            [m.value() for m in part],
            [m.timestamp()[1] for m in part],
        )


def record_batches(
    options: ClientOptions, group: str, topic: str, partition: int, start: int, end: int
) -> Iterator[RecordBatch]:
    """Committed records of one partition from `start` to `end` (exclusive), as far as they are still there."""
    for messages in read(options, group, topic, {partition: Span(start, end)}, auto_offset_reset="earliest"):
        yield from by_partition(topic, messages)


def _belongs(message: Message, left: dict[int, Span]) -> bool:
    span = left.get(message.partition())
    if span is None:
        return False
    if span.end is None:
        return True
    if message.offset() >= span.end - 1:
        del left[message.partition()]
    return bool(message.offset() < span.end)


def _at_end(message: Message, topic: str, left: dict[int, Span], on_end: Callable[[int], None]) -> None:
    """Note the end of a partition: its last offsets may be transaction markers, which are never returned."""
    if damage := damage_of(Notice.of(message)):
        raise damage
    error: KafkaError = message.error()
    code = error.code()
    if code == KafkaError._PARTITION_EOF:  # noqa: SLF001
        on_end(message.partition())
        span = left.get(message.partition())
        if span is not None and span.end is not None:
            del left[message.partition()]
    elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):  # noqa: SLF001
        raise ContractError(f"topic {topic}: does not exist any more; `pipeline topics create` makes it")
    elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise ContractError(f"topic {topic}: this user may not read it (the broker says: {error.str()})")
    elif error.fatal():
        raise UnreachableError(f"topic {topic}: cannot be read: {error.str()}")


def _close(consumer: Consumer) -> None:
    consumer.unassign()
    consumer.close()
