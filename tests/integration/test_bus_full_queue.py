"""A local queue smaller than what is sent: it takes a part, and the rest must follow in order."""

from collections.abc import Callable

import pytest

from benchmarks import clients
from pipeline.bus.clients import ClientOptions
from pipeline.bus.producer import BatchProducer

RECORDS = 50_000


@pytest.mark.parametrize("limit", ["queue.buffering.max.messages", "queue.buffering.max.kbytes"])
def test_order_survives_a_full_queue(kafka: str, unique: Callable[[str], str], limit: str) -> None:
    """50,000 records of one partition through a queue of 700 records, or of 64 KiB: all there, in order."""
    topic = unique("full")
    clients.create_topic(clients.make_admin(kafka), topic, 1)
    small = {"queue.buffering.max.messages": "700", "queue.buffering.max.kbytes": "64"}[limit]
    # Without a linger the broker thread takes records while others are still added.
    producer = BatchProducer(ClientOptions(kafka, producer={limit: small, "linger.ms": "0"}).for_producer())
    values = [b"%08d" % n + b"x" * (n % 100) for n in range(RECORDS)]
    for at in range(0, RECORDS, 5_000):
        producer.send_batch(topic, [b"k"] * 5_000, values[at : at + 5_000])
    producer.flush()
    found = [m.value() for batch in clients.read_all(kafka, topic, f"{topic}-read", 60.0) for m in batch]
    assert found == values
