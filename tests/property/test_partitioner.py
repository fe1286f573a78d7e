"""Where a key goes: as the Java client, by its own test vectors, and as librdkafka on a real broker."""

from collections.abc import Callable

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bus.clients import ClientOptions
from pipeline.bus.partitioner import murmur2, partition_for
from tests.integration.bus_kit import create, read

#: org.apache.kafka.common.utils.UtilsTest.testMurmur2, signed as Java prints them.
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("data", "expected"), JAVA_VECTORS.items())
def test_murmur2_is_the_java_clients(data: bytes, expected: int) -> None:
    """The vectors of Apache Kafka's own unit test."""
    assert murmur2(data) == expected & 0xFFFFFFFF


@given(st.binary(max_size=64), st.integers(1, 10_000))
def test_a_partition_exists(key: bytes, partitions: int) -> None:
    """Any key, empty too, has a partition from 0 to n - 1, always the same."""
    found = partition_for(key, partitions)
    assert 0 <= found < partitions
    assert found == partition_for(key, partitions)


def test_librdkafka_places_keys_where_we_say(kafka: str, unique: Callable[[str], str]) -> None:
    """Our producers' options, a real broker, keys of every length: each record lies where `partition_for` says."""
    topic = create(kafka, unique("placed"), 7)
    keys = [bytes(range(n % 251 + 1)) + str(n).encode() for n in range(500)]
    producer = Producer(ClientOptions(kafka).for_producer(linger_ms=0))
    for key in keys:
        producer.produce(topic, key=key, value=b"")
    assert producer.flush(20) == 0
    found = read(kafka, topic)
    assert len(found) == len(keys)
    assert all(m.partition() == partition_for(m.key(), 7) for m in found)
