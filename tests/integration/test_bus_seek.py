"""Reading on from another offset, on a real consumer, whatever it does with the partition just then."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from benchmarks import clients
from pipeline.bus.resets import read_from

RECORDS = 100


class Refusing:
    """A real consumer that refuses to seek, as librdkafka now and then does: seen right behind a damaged batch."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def seek(self, place: TopicPartition) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE, f"Failed to seek to offset {place.offset}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


@pytest.mark.parametrize("made", [lambda consumer: consumer, Refusing], ids=["seeks", "refuses"])
def test_a_partition_is_read_from_where_it_is_told(
    kafka: str, unique: Callable[[str], str], made: Callable[[Any], Any]
) -> None:
    """Forward and back, whether librdkafka seeks or refuses to; another error is passed on."""
    topic = unique("seek")
    clients.create_topic(clients.make_admin(kafka), topic, 1)
    sender = clients.Sender(kafka)
    sender.send(topic, [b"%d" % n for n in range(RECORDS)], [None] * RECORDS)
    sender.flush()
    consumer = clients.make_consumer(kafka, topic)

    def next_offset() -> int:
        (message,) = consumer.consume(1, 30.0)
        assert message.error() is None, message.error()
        return int(message.offset())

    try:
        consumer.incremental_assign([TopicPartition(topic, 0, 0)])
        assert next_offset() == 0
        for offset in (50, 20):
            read_from(made(consumer), TopicPartition(topic, 0, offset))
            assert next_offset() == offset
        with pytest.raises(KafkaException):
            read_from(consumer, TopicPartition(topic, 7, 0))
    finally:
        consumer.close()
