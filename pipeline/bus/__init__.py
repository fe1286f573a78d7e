"""Kafka: the way in and the way out.

clients.py      librdkafka clients: defaults, errors, secrets
topics.py       topics, offsets, lag
partitioner.py  murmur2, as the Java client
ledger.py       what is handed out, done, committable
poller.py       the thread that owns the consumer
fetching.py     from librdkafka's queues to record batches; with _fetch.c a faster way, not in use yet
consumer.py     Faust's consumer: one message is one record batch; the commit path
producer.py     Faust's producer, and batches
transactions.py the same, in transactions with the input offsets
transport.py    `rdkafka://`: ties them together; configure() for apps
embedded.py     Apache Kafka itself, for a first hour and for tests
"""

from typing import Any

__all__ = ["Configuration", "Hooks", "Transactions", "Transport", "batch_topic", "configure"]


def __getattr__(name: str) -> Any:
    """Import the transport (and faust with it) on first use: most commands never need it."""
    if name in __all__:
        from pipeline.bus import transport  # noqa: PLC0415

        return getattr(transport, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
