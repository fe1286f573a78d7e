"""librdkafka as fast as it goes with the guarantees of the job; for the load, the limit, the rivals, the verifier.

Guarantees: acks=all, idempotent, no compression, offsets committed after the outputs are acknowledged.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

REQUEST_TIMEOUT_S = 15.0
#: As `pipeline`'s default (delivery.commit_interval_ms).
COMMIT_INTERVAL_S = 0.5
#: Most records one consume call returns. The hand-written loop on 2 cores, mean of two runs:
#: 599k/s at 2,000; 685k/s at 5,000; 659k/s at 10,000; 571k/s at 20,000.
CONSUME_MAX = 5_000
QUEUE_MESSAGES = 200_000

#: How librdkafka fetches; also for the rivals that are built on it.
FETCHING: dict[str, Any] = {
    "isolation.level": "read_committed",
    "check.crcs": True,
    # 1000 ms by default: a consumer with a large local queue then waits while nothing works.
    "fetch.queue.backoff.ms": 1,
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 65_536,
    "fetch.wait.max.ms": 50,
    "log_level": 3,
}
CONSUMER: dict[str, Any] = {
    **FETCHING,
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
}
#: How librdkafka sends; also for the rivals that are built on it.
SENDING: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "compression.type": "none",
    "partitioner": "murmur2_random",
    "linger.ms": 2,
    "batch.num.messages": 10_000,
    "queue.buffering.max.messages": QUEUE_MESSAGES,
    "queue.buffering.max.kbytes": 262_144,
    "log_level": 3,
}
PRODUCER: dict[str, Any] = {
    **SENDING,
    # A callback per delivered record costs more than the record; flush() tells when all are acknowledged.
    "delivery.report.only.error": True,
}


def make_consumer(bootstrap_servers: str, group: str) -> Consumer:
    return Consumer({**CONSUMER, "bootstrap.servers": bootstrap_servers, "group.id": group})


class Sender:
    """A producer that never loses a record without a word."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._failed: list[str] = []
        options = {**PRODUCER, "bootstrap.servers": bootstrap_servers, "on_delivery": self._on_failure}
        self._producer = Producer(options)

    def send(self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None]) -> None:
        """Enqueue all, in order, waiting for room first.

        As nobody else uses this producer, room for all is certain once the queue is short enough: no record is
        refused (`produce` raises where one is) and none overtakes another. `produce_batch` would want a dict a
        record, and takes nearly twice as long.
        """
        if len(values) != len(keys):
            raise ValueError(f"{len(values)} values under {len(keys)} keys")
        while len(self._producer) + len(values) > QUEUE_MESSAGES:
            self._producer.poll(0.001)
        deque(map(self._producer.produce, repeat(topic), values, keys), maxlen=0)
        self._producer.poll(0)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return when the broker has acknowledged every record; raise RuntimeError when it has not."""
        left = self._producer.flush(timeout_s)
        if left or self._failed:
            raise RuntimeError(f"{left + len(self._failed)} records not delivered; first error: {self._failed[:1]}")

    def _on_failure(self, error: Any, _message: Message) -> None:
        if error is not None:
            self._failed.append(str(error))


def consume(consumer: Consumer, timeout_s: float = 0.1) -> list[Message]:
    """Up to CONSUME_MAX messages; raises KafkaException for an error in their place."""
    messages: list[Message] = consumer.consume(CONSUME_MAX, timeout_s)
    for message in messages:
        if message.error() is not None:
            raise KafkaException(message.error())
    return messages


def commit(consumer: Consumer) -> None:
    """Commit what `consume` has returned so far; call it once the outputs are acknowledged."""
    positions = [tp for tp in consumer.position(consumer.assignment()) if tp.offset >= 0]
    if positions:
        consumer.commit(offsets=positions, asynchronous=False)


def make_admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 3})


def create_topic(admin: AdminClient, topic: str, partitions: int, replication_factor: int = 1, **config: str) -> None:
    """Create `topic` and wait for its leaders; configuration keys use underscores for dots.

    Raises KafkaException if it exists, or has no leaders after REQUEST_TIMEOUT_S.
    """
    dotted = {key.replace("_", "."): value for key, value in config.items()}
    new = NewTopic(topic, num_partitions=partitions, replication_factor=replication_factor, config=dotted)
    admin.create_topics([new], operation_timeout=REQUEST_TIMEOUT_S)[topic].result(REQUEST_TIMEOUT_S)
    end_offsets(admin, topic, partitions)


def delete_topic(admin: AdminClient, topic: str) -> None:
    admin.delete_topics([topic], operation_timeout=REQUEST_TIMEOUT_S)[topic].result(REQUEST_TIMEOUT_S)


def partition_count(admin: AdminClient, topic: str) -> int:
    """Number of partitions of `topic`; 0 if there is no such topic."""
    found = admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(topic)
    return len(found.partitions) if found is not None else 0


def end_offsets(admin: AdminClient, topic: str, count: int) -> list[int]:
    """End offset of each of `topic`'s `count` partitions."""
    wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in range(count)}
    give_up = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            futures = admin.list_offsets(wanted, request_timeout=REQUEST_TIMEOUT_S)
            return [future.result(REQUEST_TIMEOUT_S).offset for future in futures.values()]
        except KafkaException:  # a new topic may have no leaders yet
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
            with suppress(KafkaException):  # librdkafka may never look again by itself (pipeline.bus.topics)
                admin.list_topics(timeout=REQUEST_TIMEOUT_S)


def committed(bootstrap_servers: str, group: str, topic: str, partitions: int) -> int:
    """Records of `topic` (from offset 0) that `group` has committed; 0 while the group cannot be asked.

    Asked by a consumer that joins nothing: AdminClient.list_consumer_group_offsets may end the process with a
    segmentation fault while the coordinator is loading (librdkafka issue 5040).
    """
    consumer = make_consumer(bootstrap_servers, group)
    try:
        found = consumer.committed([TopicPartition(topic, p) for p in range(partitions)], REQUEST_TIMEOUT_S)
    except KafkaException:
        return 0
    finally:
        consumer.close()
    return sum(max(tp.offset, 0) for tp in found)


def read_all(bootstrap_servers: str, topic: str, group: str, deadline_s: float) -> Iterator[list[Message]]:
    """All committed records that `topic` has now, in chunks; raises TimeoutError past the deadline.

    The last offsets of a partition may be transaction markers, which are never returned: its end is where the
    broker says so.
    """
    partitions = partition_count(make_admin(bootstrap_servers), topic)
    options = {**CONSUMER, "bootstrap.servers": bootstrap_servers, "group.id": group, "enable.partition.eof": True}
    consumer = Consumer(options)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
    left, give_up = set(range(partitions)), time.monotonic() + deadline_s
    try:
        while left:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{topic}: partitions {sorted(left)} not read to their ends within {deadline_s:g} s")
            messages = []
            for message in consumer.consume(CONSUME_MAX, 0.1):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (has no public name)
                    left.discard(message.partition())
                else:
                    raise KafkaException(error)
            yield messages
    finally:
        consumer.close()
