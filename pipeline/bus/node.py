"""What `server.properties` says for one node of the embedded Kafka, alone or among others."""

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import EmbeddedBrokerError

HOST = "127.0.0.1"

#: These keep the promises made above; server_properties cannot change them.
_RESERVED = frozenset(
    {"process.roles", "node.id", "listeners", "controller.listener.names", "controller.quorum.voters"}
    | {"inter.broker.listener.name", "listener.security.protocol.map", "log.dir", "log.dirs", "metadata.log.dir"}
)


@dataclass(frozen=True)
class Node:
    """One broker and controller, and its ports on 127.0.0.1.

    proxy: where clients are told to connect, and brokers among themselves at `internal`; None: both at `port`.
    """

    id: int
    port: int
    controller_port: int
    proxy: "ProxyPorts | None" = None


@dataclass(frozen=True)
class ProxyPorts:
    """A proxy listens on `advertised` and passes on to the node's `port`; no proxy touches `internal`."""

    advertised: int
    internal: int


@dataclass(frozen=True)
class Membership:
    """What makes a broker one of a cluster: its own ports, and those of all; they stay as long as the cluster."""

    node: Node
    voters: Sequence[Node]
    cluster_id: str


def properties(node: Node, voters: Sequence[Node], extra: Mapping[str, str]) -> dict[str, str]:
    """Kafka's settings for `node` of the cluster `voters`; log.dirs is relative to the data folder.

    Raises EmbeddedBrokerError if `extra` has a key that is not its own to set.
    """
    if taken := sorted(_RESERVED & extra.keys()):
        raise EmbeddedBrokerError(f"server_properties: {taken[0]}: set by the embedded broker itself; leave it out")
    copies = min(3, len(voters))
    copies_min = max(1, copies - 1)
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": ",".join(f"{v.id}@{HOST}:{v.controller_port}" for v in voters),
        "controller.listener.names": "CONTROLLER",
        **_listeners(node),
        "log.dirs": "data",
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(copies_min),
        "offsets.topic.replication.factor": str(copies),
        "offsets.topic.num.partitions": "5",
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": str(copies_min),
        "transaction.state.log.num.partitions": "5",
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": str(copies_min),
        "share.coordinator.state.topic.num.partitions": "5",
        "group.initial.rebalance.delay.ms": "0",
        # After a crash the node waits until its former self has timed out: 9 s by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # By size alone: retention by time goes by the records' own timestamps, and replayed history is old.
        "log.retention.ms": "-1",
        "log.retention.bytes": str(1 << 30),
        "log.segment.bytes": str(1 << 28),
        # The default, 128 MiB, is a quarter of the heap; 16 MiB is room for 700,000 keys in one pass.
        "log.cleaner.dedupe.buffer.size": str(1 << 24),
        **extra,
    }


def _listeners(node: Node) -> dict[str, str]:
    listening, advertised, between = {"PLAINTEXT": node.port}, {"PLAINTEXT": node.port}, "PLAINTEXT"
    if node.proxy is not None:
        between = "INTERNAL"
        listening[between] = node.proxy.internal
        advertised = {"PLAINTEXT": node.proxy.advertised, between: node.proxy.internal}
    listening["CONTROLLER"] = node.controller_port
    return {
        "listeners": _urls(listening),
        "advertised.listeners": _urls(advertised),
        "inter.broker.listener.name": between,
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listening),
    }


def _urls(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())


def render(values: Mapping[str, str]) -> str:
    """Java's properties format: ASCII, with the escapes that JSON shares with it."""
    return "".join(f"{key}={json.dumps(value)[1:-1]}\n" for key, value in values.items())


def new_cluster_id() -> str:
    """As Kafka makes its own: 16 random bytes in URL-safe base64, not taken for an option."""
    text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
    return new_cluster_id() if text.startswith("-") else text
