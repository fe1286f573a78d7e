"""Apache Kafka of several nodes on 127.0.0.1: what one node cannot show, such as a leader that dies.

Each node is an EmbeddedKafka, broker and controller in one, and keeps its folder and its ports through every
stop, kill and start. A majority of the nodes must run for any of them to be ready.
Measured on 2 idle cores, three nodes: 6.6 s from nothing to all ready, 230 MB of memory a node.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.bus.embedded import EmbeddedKafka, free_port, resolve_jars
from pipeline.bus.node import Membership, Node, ProxyPorts, new_cluster_id
from pipeline.errors import EmbeddedBrokerError

T = TypeVar("T")

_POLL_S = 0.05
_REQUEST_TIMEOUT_S = 5.0


class EmbeddedCluster:
    """Nodes 1, 2, ... as a context manager, which removes all data at the end. Not thread-safe.

    nodes: three copies of everything are kept, two of them must be in sync (node.properties); with fewer, fewer.
    heap_mb, fast_start, server_properties, progress: of each node; see EmbeddedKafka.
    advertised_ports: one a node, of a proxy before it; see EmbeddedKafka. `bootstrap_servers` leads past them
        for the first question only.

    Methods that take `ids` mean all nodes if none is given.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        heap_mb: int = 256,
        fast_start: bool = True,
        advertised_ports: Sequence[int] | None = None,
        server_properties: Mapping[str, str] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if advertised_ports is not None and len(advertised_ports) != nodes:
            raise ValueError(f"{len(advertised_ports)} advertised_ports for {nodes} nodes")
        self._progress = progress
        self._folder = tempfile.TemporaryDirectory(prefix="pipeline-kafka-", ignore_cleanup_errors=True)
        self._paused: set[int] = set()
        voters = _choose_ports(nodes, advertised_ports)
        cluster_id = new_cluster_id()
        self.nodes: dict[int, EmbeddedKafka] = {
            node.id: EmbeddedKafka(
                Path(self._folder.name) / str(node.id),
                heap_mb=heap_mb,
                fast_start=fast_start,
                server_properties=server_properties,
                membership=Membership(node, voters, cluster_id),
                progress=progress,
            )
            for node in voters
        }

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """Every node's own address, whether it runs or not."""
        return ",".join(node.bootstrap_servers for node in self.nodes.values())

    # -- what happens to nodes ---------------------------------------------------------------

    def start(self, *ids: int, timeout_s: float = 60.0) -> None:
        """Start nodes side by side and wait until each serves clients. Raises EmbeddedBrokerError."""
        resolve_jars(self._progress)
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda node: node.start(timeout_s), self._named(ids)):
                pass

    def stop(self, *ids: int) -> None:
        """End nodes one after the other, each handing over what it leads. Raises EmbeddedBrokerError."""
        for node in self._named(ids):
            node.stop()

    def kill(self, *ids: int) -> None:
        """SIGKILL, as near to at once as can be."""
        named = self._named(ids)
        for node in named:
            if node.pid is not None:
                os.kill(node.pid, signal.SIGKILL)
        for node in named:
            node.kill()
        self._paused -= set(ids or self.nodes)

    def pause(self, *ids: int) -> None:
        """SIGSTOP: the node's connections stay open and nothing answers."""
        self._signal(ids, signal.SIGSTOP)
        self._paused |= set(ids or self.nodes)

    def resume(self, *ids: int) -> None:
        """SIGCONT."""
        self._signal(ids, signal.SIGCONT)
        self._paused -= set(ids or self.nodes)

    def close(self) -> None:
        """Kill what runs and remove all data."""
        self.kill()
        self._folder.cleanup()

    # -- who is what -------------------------------------------------------------------------

    def leader(self, topic: str, partition: int = 0) -> int:
        """The node that leads a partition, as those tell that run; waits for one. Raises EmbeddedBrokerError."""
        return self._eventually(
            lambda: self._awake(self._partition(topic, partition).leader), f"leader of {topic}/{partition}"
        )

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The nodes whose copies of a partition are in sync."""
        return self._eventually(lambda: set(self._partition(topic, partition).isrs), f"{topic}/{partition}")

    def group_coordinator(self, group: str) -> int:
        """The node that a consumer group commits to. Raises EmbeddedBrokerError before there was any group."""
        return self._coordinator("__consumer_offsets", group)

    def transaction_coordinator(self, transactional_id: str) -> int:
        """The node that ends the transactions of an id. Raises EmbeddedBrokerError before there was any."""
        return self._coordinator("__transaction_state", transactional_id)

    def controller(self) -> int:
        """The active controller: the leader of the quorum, of which clients hear nothing (KIP-595's quorum-state)."""
        return self._eventually(lambda: self._awake(max(self._quorum_views(), default=(0, -1))[1]), "controller")

    def await_in_sync(self, timeout_s: float = 60.0) -> None:
        """Wait until all copies of every partition are in sync, and every partition has a leader."""

        def whole() -> bool | None:
            found = [p for topic in self._topics().values() for p in topic.partitions.values()]
            return all(len(p.isrs) == len(p.replicas) and p.leader >= 0 for p in found) or None

        self._eventually(whole, "copies in sync", timeout_s)

    # -- below -------------------------------------------------------------------------------

    def _named(self, ids: Sequence[int]) -> list[EmbeddedKafka]:
        return [self.nodes[node_id] for node_id in ids or self.nodes]

    def _signal(self, ids: Sequence[int], number: int) -> None:
        for node_id in ids or self.nodes:
            pid = self.nodes[node_id].pid
            if pid is None:
                raise EmbeddedBrokerError(f"embedded cluster: node {node_id} does not run; start it first")
            os.kill(pid, number)

    def _awake(self, node_id: int) -> int | None:
        awake = node_id in self.nodes and self.nodes[node_id].running and node_id not in self._paused
        return node_id if awake else None

    def _topics(self) -> dict[str, Any]:
        awake = [node.bootstrap_servers for node_id, node in self.nodes.items() if self._awake(node_id)]
        options = {"bootstrap.servers": ",".join(awake), "log_level": 0, "error_cb": lambda _error: None}
        found: dict[str, Any] = AdminClient(options).list_topics(timeout=_REQUEST_TIMEOUT_S).topics
        return found

    def _partition(self, topic: str, partition: int) -> Any:
        return self._topics()[topic].partitions[partition]

    def _coordinator(self, topic: str, name: str) -> int:
        """Leader of the partition that Kafka keeps `name` in."""
        count = self._eventually(lambda: len(self._topics()[topic].partitions), topic)
        return self.leader(topic, partition_of(name, count))

    def _quorum_views(self) -> Iterator[tuple[int, int]]:
        """(epoch, leader) as each node that is awake has it."""
        for node_id, node in self.nodes.items():
            if self._awake(node_id):
                said = json.loads((node.data_dir / "data/__cluster_metadata-0/quorum-state").read_text("utf-8"))
                yield said["leaderEpoch"], said["leaderId"]

    def _eventually(self, ask: Callable[[], T | None], what: str, timeout_s: float = 30.0) -> T:
        """The first answer that is not None; unknown topics and absent nodes are asked again."""
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                answer = ask()
            except (KafkaException, KeyError, OSError, ValueError):
                answer = None
            if answer is not None:
                return answer
            if time.monotonic() > give_up:
                raise EmbeddedBrokerError(f"embedded cluster: {what}: nobody says within {timeout_s:g} s")
            time.sleep(_POLL_S)


def _choose_ports(nodes: int, advertised_ports: Sequence[int] | None) -> list[Node]:
    taken = set(advertised_ports or ())

    def port() -> int:
        taken.add(found := free_port(taken))
        return found

    proxies = [None] * nodes if advertised_ports is None else [ProxyPorts(p, port()) for p in advertised_ports]
    return [Node(number, port(), port(), proxy) for number, proxy in enumerate(proxies, 1)]


def partition_of(name: str, count: int) -> int:
    """Where a coordinator's topic keeps a group or transactional id: Utils.abs(name.hashCode()) % count in Java.

    For characters below U+10000.
    """
    value = 0
    for character in name:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return (abs(signed) & 0x7FFFFFFF) % count
