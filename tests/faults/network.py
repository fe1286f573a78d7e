"""A broker behind a proxy, and a transactional producer on it whose requests can be held: for faults of the network."""

import struct
from dataclasses import dataclass

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition

from benchmarks import clients
from pipeline.bus.clients import ClientOptions
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.bus.transactions import TransactionalProducer
from pipeline.records import TopicPartition
from pipeline.testing import Api, Frame, Proxy
from tests.pipelines import held_up

#: Where Kafka's answers have their error code: correlation id i32, throttle time i32, error i16.
_ERROR_AT = 8
#: INVALID_PRODUCER_EPOCH, PRODUCER_FENCED.
FENCED = (47, 90)
#: What a group's offset is before its first commit.
NOTHING = OFFSET_INVALID
#: What goes to the coordinator of a group, but for finding it.
OF_THE_GROUP = (
    Api.OFFSET_COMMIT,
    Api.OFFSET_FETCH,
    Api.JOIN_GROUP,
    Api.HEARTBEAT,
    Api.LEAVE_GROUP,
    Api.SYNC_GROUP,
    Api.TXN_OFFSET_COMMIT,
)


def asks_for_a_group(find_coordinator: Frame) -> bool:
    """Whether the coordinator of a group is asked for, not of a transaction: the last byte of versions 1 and 2."""
    assert find_coordinator.version in (1, 2)
    return find_coordinator.payload[-1] == 0


@dataclass(frozen=True)
class Network:
    """A broker that advertises the proxy's port; `broker.bootstrap_servers` is its own, for a first connection."""

    proxy: Proxy
    broker: EmbeddedKafka

    @property
    def servers(self) -> str:
        return self.proxy.bootstrap_servers

    def values(self, topic: str) -> list[bytes | None]:
        """Every committed value of a topic of one partition, in order; a transaction left open is not waited for."""
        messages = clients.read_all(self.servers, topic, "verify", 30.0)
        return [m.value() for chunk in messages for m in chunk]

    def members(self, group: str) -> int | None:
        """Members that the broker counts in `group`; None while it is too busy to say."""
        admin = clients.make_admin(self.servers)
        try:
            return len(admin.describe_consumer_groups([group])[group].result(30.0).members)
        except KafkaException:
            return None

    def error_of(self, answer: Frame) -> int:
        """Error code of an answer of InitProducerId, AddOffsetsToTxn, EndTxn."""
        code: int = struct.unpack_from(">h", answer.payload, _ERROR_AT)[0]
        return code


class Writer:
    """Our TransactionalProducer, with a topic of its own and a group to commit offsets of an input for."""

    def __init__(self, network: Network, name: str, timeout_ms: int = 10_000) -> None:
        self.network, self.name = network, name
        self._admin = clients.make_admin(network.servers)
        for topic in (name, f"{name}.in"):
            clients.create_topic(self._admin, topic, 1)
        options = ClientOptions(network.servers, producer={"client.id": name, "socket.timeout.ms": "2000"})
        self.producer = TransactionalProducer(options.for_producer(), f"{name}-1", timeout_ms=timeout_ms)
        # Joins nothing: its metadata says so, and is accepted while the group has no members.
        self._consumer = Consumer({"bootstrap.servers": network.servers, "group.id": f"{name}.group"})

    def send(self, *values: bytes) -> None:
        """Send and wait for the broker's acknowledgements; the transaction stays open."""
        self.producer.send_batch(self.name, [None] * len(values), list(values), [0] * len(values))
        self.producer.flush()

    def commit(self, offset: int) -> None:
        """Commit what was sent, with the offset of the input."""
        group = self._consumer.consumer_group_metadata()
        self.producer.commit({TopicPartition(f"{self.name}.in", 0): offset}, group)

    def committed(self) -> int:
        """The offset that the group has; NOTHING before the first."""
        reader = Consumer({"bootstrap.servers": self.network.servers, "group.id": f"{self.name}.group"})
        try:
            return int(reader.committed([_TopicPartition(f"{self.name}.in", 0)], 15.0)[0].offset)
        finally:
            reader.close()

    def values(self) -> list[bytes | None]:
        return self.network.values(self.name)

    def held_up(self) -> dict[int, tuple[int, int]]:
        """Partition -> (last stable offset, end) where an open transaction holds readers up."""
        return held_up(self._admin, self.name)

    def close(self) -> None:
        self.producer.close()
        self._consumer.close()
