"""Nodes of a cluster killed, paused and restarted under load: both delivery modes go on by themselves, and are counted.

One cluster of three and two pipelines on it, one a delivery mode, serve all tests: what a test breaks it mends, and
their workers must live through all of it. Events flow while nodes fail; each test counts all events sent so far.
"""

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from confluent_kafka import ElectionType
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from benchmarks import clients, job, ours
from pipeline.bus.cluster import EmbeddedCluster
from tests.faults.conftest import Judge
from tests.pipelines import PATIENCE_S, Pipeline, Process, eventually

pytestmark = pytest.mark.timeout(400)

MODES = ("exactly_once", "at_least_once")
#: 2,000 events/s, in each pipeline: a node that is away for a minute leaves more than any buffer's slice behind.
CHUNK, CHUNK_INTERVAL_S = 500, 0.25
#: As many as the tests can send in ten minutes.
EVENTS_MAX = 1_200_000
#: How long all nodes are down at once; the matrix asks for 60 s.
OUTAGE_S = float(os.environ.get("PIPELINE_TEST_OUTAGE_S", "15"))
#: A node paused for longer than its session with the controller (3 s) and than any session of a client (10 s).
PAUSE_S = 20.0


#: Of a stop, in which nothing can be finished without a broker.
DEADLINE_S = 3.0


class Line:
    """One pipeline, its worker, and the events it is fed."""

    def __init__(self, folder: Path, servers: str, mode: str, replicas: int) -> None:
        self.mode = mode
        settings = {
            "delivery.mode": mode,
            "delivery.commit_interval_ms": 100,
            "delivery.shutdown_deadline_s": DEADLINE_S,
        }
        name = f"cluster-{uuid.uuid4().hex[:10]}"
        self.pipeline = Pipeline(folder, servers, name, replicas=replicas, settings=settings)
        self.worker: Process = self.pipeline.start("run", "worker")
        self.sent = 0
        self._sender = clients.Sender(servers)

    @property
    def transactional_id(self) -> str:
        return f"{self.pipeline.name}-worker-{socket.gethostname()}-1"

    @contextmanager
    def fed(self, values: list[bytes], keys: list[bytes]) -> Iterator[None]:
        """Events arrive, and in the end all of them have."""
        enough, failures = Event(), list[BaseException]()

        def feed() -> None:
            try:
                while not enough.wait(CHUNK_INTERVAL_S):
                    chunk = slice(self.sent, self.sent + CHUNK)
                    assert len(values[chunk]) == CHUNK, "more events are needed"
                    self._sender.send(self.pipeline.job.input_topic, [*values[chunk]], [*keys[chunk]])
                    self.sent += CHUNK
                self._sender.flush(PATIENCE_S)
            except BaseException as error:  # noqa: BLE001 (raised below, where it fails the test)
                failures.append(error)

        thread = Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()
        if failures:
            raise failures[0]


class Attacked:
    """A cluster and the pipelines on it."""

    def __init__(self, cluster: EmbeddedCluster, folder: Path) -> None:
        self.cluster = cluster
        replicas = len(cluster.nodes)
        self.lines = {mode: Line(folder / mode, cluster.bootstrap_servers, mode, replicas) for mode in MODES}
        for line in self.lines.values():
            line.worker.await_log('"running"')  # and has created its topics
        self._values: list[bytes] = job.encode_events(EVENTS_MAX)
        self._keys: list[bytes] = job.keys(EVENTS_MAX).tolist()

    @property
    def exact(self) -> Pipeline:
        return self.lines["exactly_once"].pipeline

    @contextmanager
    def load(self, judge: Judge, **noted: Any) -> Iterator[dict[str, Any]]:
        """Events flow; in the end every copy is in sync again and every event is counted.

        Yields what is noted for the matrix.
        """
        self.cluster.start(timeout_s=PATIENCE_S)  # nothing to do, unless the test before has failed
        self.await_progress()
        with ExitStack() as stack:
            for line in self.lines.values():
                stack.enter_context(line.fed(self._values, self._keys))
            self.await_progress(CHUNK)
            yield noted
            self.cluster.await_in_sync()
        for mode, line in self.lines.items():
            line.pipeline.await_committed(line.sent)
            assert line.worker.popen.poll() is None, line.worker.log()[-4000:]
            judge(line.pipeline, line.sent, mode, **noted)

    def await_progress(self, events: int = 0) -> float:
        """Wait until what is sent now, and `events` more, is committed in every line; seconds it took."""
        started = time.monotonic()
        for line in self.lines.values():
            line.pipeline.await_committed(line.sent + events)
        return round(time.monotonic() - started, 1)

    def progress(self) -> list[int]:
        """Input records that each line has committed.

        (What readers see of the predictions cannot be asked: without enough copies a new leader does not say where they
        end. Those of an open transaction count as before: its offsets are sent after its last record is acknowledged.)
        """
        return [line.pipeline.committed() for line in self.lines.values()]

    def await_sent(self, events: int) -> None:
        """Wait until so many more events were handed to the producers."""
        for line in self.lines.values():
            target = line.sent + events
            eventually(lambda line=line, target=target: line.sent >= target, "events sent")  # type: ignore[misc]

    def close(self) -> list[int]:
        """Exit codes of the workers, stopped in an orderly way."""
        try:
            return [line.worker.terminate() for line in self.lines.values()]
        finally:
            for line in self.lines.values():
                line.pipeline.close()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """Three nodes; all groups, and all transactions, have the same coordinator."""
    one = {"offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1"}
    with EmbeddedCluster(3, server_properties=one) as cluster:
        found = Attacked(cluster, tmp_path_factory.mktemp("cluster"))
        yield found
        assert found.close() == [0, 0], "the workers did not live through all of this"


def leader_of_predictions(attacked: Attacked) -> int:
    return attacked.cluster.leader(attacked.exact.job.output_topic)


def transaction_coordinator(attacked: Attacked) -> int:
    return attacked.cluster.transaction_coordinator(attacked.lines["exactly_once"].transactional_id)


def group_coordinator(attacked: Attacked) -> int:
    return attacked.cluster.group_coordinator(ours.group(attacked.exact.name))


def controller(attacked: Attacked) -> int:
    return attacked.cluster.controller()


@pytest.mark.parametrize(
    "find",
    [
        pytest.param(leader_of_predictions, marks=pytest.mark.case("F12")),
        pytest.param(transaction_coordinator, marks=pytest.mark.case("F13")),
        pytest.param(group_coordinator, marks=pytest.mark.case("F14")),
        pytest.param(controller, marks=pytest.mark.case("F15")),
    ],
    ids=lambda find: find.__name__,
)
def test_a_node_is_killed(attacked: Attacked, judge: Judge, find: Callable[[Attacked], int]) -> None:
    """SIGKILL under load of the node that has this office: events flow again before it is back."""
    with attacked.load(judge) as noted:
        victim = find(attacked)
        attacked.cluster.kill(victim)
        noted["recovery_s"] = attacked.await_progress(CHUNK)
        assert find(attacked) != victim
        attacked.cluster.start(victim, timeout_s=PATIENCE_S)


@pytest.mark.case("F16")
def test_a_leader_is_paused(attacked: Attacked, judge: Judge) -> None:
    """SIGSTOP of a leader for longer than all sessions: events flow again meanwhile, and after its return."""
    with attacked.load(judge) as noted:
        victim = leader_of_predictions(attacked)
        paused_at = time.monotonic()
        attacked.cluster.pause(victim)
        noted["recovery_s"] = attacked.await_progress(CHUNK)
        eventually(lambda: time.monotonic() > paused_at + PAUSE_S, "the end of the pause")
        attacked.cluster.resume(victim)
        noted["paused_s"] = round(time.monotonic() - paused_at, 1)
        attacked.await_progress(CHUNK)


@pytest.mark.case("F17", "F42")
def test_all_nodes_restart_one_after_the_other(attacked: Attacked, judge: Judge) -> None:
    """Each in an orderly way; then partitions, those of the coordinators too, go back to their preferred leaders."""
    with attacked.load(judge) as noted:
        for node_id in attacked.cluster.nodes:
            attacked.cluster.stop(node_id)
            attacked.cluster.start(node_id, timeout_s=PATIENCE_S)
            attacked.cluster.await_in_sync()
        attacked.await_progress(CHUNK)
        moved = attacked.exact.admin.elect_leaders(ElectionType.PREFERRED).result()
        noted["leaders_moved"] = sum(error is None for error in moved.values())
        assert noted["leaders_moved"] > 0
        attacked.await_progress(CHUNK)


@pytest.mark.case("F18")
def test_all_nodes_are_down(attacked: Attacked, judge: Judge) -> None:
    """SIGKILL of all: the workers wait, as large as they were, and go on by themselves."""
    with attacked.load(judge, down_s=OUTAGE_S) as noted:
        attacked.cluster.kill()
        down_at = time.monotonic()
        attacked.await_sent(int(5 / CHUNK_INTERVAL_S) * CHUNK)  # by now what was in flight has come to rest
        before = [rss_mib(line.worker) for line in attacked.lines.values()]
        eventually(lambda: time.monotonic() > down_at + OUTAGE_S, "the end of the outage")
        grown = [rss_mib(line.worker) - rss for line, rss in zip(attacked.lines.values(), before, strict=True)]
        attacked.cluster.start(timeout_s=PATIENCE_S)
        noted["recovery_s"] = attacked.await_progress(CHUNK)
        noted["rss_grown_mib"] = round(max(grown), 1)
        assert max(grown) < 0.05 * min(before)


@pytest.mark.case("F39")
def test_two_of_three_nodes_are_down(attacked: Attacked, judge: Judge) -> None:
    """SIGKILL of two: the one left can commit nothing, the workers wait without haste; then all goes on."""
    with attacked.load(judge) as noted:
        attacked.cluster.kill(1, 2)
        down_at, before = time.monotonic(), [cpu_s(line.worker) for line in attacked.lines.values()]
        attacked.await_sent(20 * CHUNK)
        # (No question to an admin client here: while it waits for a dead broker it takes a whole core; identities.py.)
        used_s = [cpu_s(line.worker) - cpu for line, cpu in zip(attacked.lines.values(), before, strict=True)]
        noted["cpu_share"] = round(max(used_s) / (time.monotonic() - down_at), 2)
        assert noted["cpu_share"] < 0.5
        attacked.cluster.start(1, 2, timeout_s=PATIENCE_S)
        noted["recovery_s"] = attacked.await_progress(CHUNK)


@pytest.mark.case("F19")
def test_too_few_replicas_in_sync(attacked: Attacked, judge: Judge) -> None:
    """The predictions demand three copies and have two: no offset advances; they flow once there are three again."""
    names = [line.pipeline.job.output_topic for line in attacked.lines.values()]
    set_replicas_min(attacked, names, "3")
    try:
        with attacked.load(judge) as noted:
            attacked.cluster.stop(3)
            for name in names:
                for p in range(attacked.exact.partitions):
                    eventually(lambda name=name, p=p: len(attacked.cluster.in_sync(name, p)) == 2, "two copies")  # type: ignore[misc]
            attacked.await_sent(4 * CHUNK)  # what was acknowledged before is committed by now
            before = attacked.progress()
            attacked.await_sent(20 * CHUNK)
            assert attacked.progress() == before
            attacked.cluster.start(3, timeout_s=PATIENCE_S)
            noted["recovery_s"] = attacked.await_progress(CHUNK)
    finally:
        set_replicas_min(attacked, names, None)


@pytest.mark.case("F5", "F18")
def test_a_stop_keeps_its_deadline_while_no_node_answers(attacked: Attacked, judge: Judge) -> None:
    """SIGTERM in the middle of an outage: an end in time, with 8 if anything was open; nothing is lost or doubled."""
    with attacked.load(judge, deadline_s=DEADLINE_S):
        attacked.cluster.kill()
        attacked.await_sent(4 * CHUNK)
        for line in attacked.lines.values():
            line.worker.signal(signal.SIGTERM)
        for line in attacked.lines.values():
            assert line.worker.wait(DEADLINE_S + 15) in (0, 8), line.worker.log()[-4000:]
            line.pipeline.processes.remove(line.worker)
        attacked.cluster.start(timeout_s=PATIENCE_S)
        for line in attacked.lines.values():
            line.worker = line.pipeline.start("run", "worker")


@pytest.mark.case("F18")
def test_a_lone_broker_is_restarted_and_killed(tmp_path: Path, judge: Judge) -> None:
    """An orderly restart under load, then SIGKILL: the workers wait and go on."""
    with EmbeddedCluster(1) as cluster:
        attacked = Attacked(cluster, tmp_path)
        with attacked.load(judge) as noted:
            cluster.stop()
            cluster.start()
            noted["restart_recovery_s"] = attacked.await_progress(CHUNK)
            cluster.kill()
            cluster.start()
            noted["kill_recovery_s"] = attacked.await_progress(CHUNK)
        assert attacked.close() == [0, 0]


def rss_mib(worker: Process) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{worker.popen.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(worker: Process) -> float:
    """Processor time a process has used."""
    fields = Path(f"/proc/{worker.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def set_replicas_min(attacked: Attacked, topics: list[str], value: str | None) -> None:
    """Set min.insync.replicas of topics; None: the broker's default again."""
    operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
    wanted = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[ConfigEntry("min.insync.replicas", value, incremental_operation=operation)],
        )
        for topic in topics
    ]
    for future in attacked.exact.admin.incremental_alter_configs(wanted).values():
        future.result(PATIENCE_S)
