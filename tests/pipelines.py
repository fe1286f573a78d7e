"""A whole pipeline under test: the standard job's project, its real processes, and the count of what came out."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from benchmarks import clients, job, ours, verify
from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.records import Reason, TopicPartition
from pipeline.testing.breakage import FOREIGN_SCHEMA, WAYS

ROOT = Path(__file__).parents[1]
#: Far above what anything here takes on two busy cores; a test that gets this far has failed.
PATIENCE_S = 120.0


def eventually(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once `condition()` holds; fail the test naming `what` if it never does."""
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up, f"never: {what}"
        time.sleep(0.05)


@dataclass
class Process:
    """One `pipeline` process and its log."""

    popen: "subprocess.Popen[bytes]"
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {patience_s:g} s:\n{self.log()[-4000:]}") from None

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def await_log(self, text: str) -> None:
        """Wait until it has logged `text`; fail if it ends before."""

        def said() -> bool:
            if text in self.log():
                return True
            assert self.popen.poll() is None, (
                f"ended with {self.popen.returncode} before {text!r}:\n{self.log()[-4000:]}"
            )
            return False

        eventually(said, f"{text!r} in {self.log_file}")


@dataclass(frozen=True)
class DeadLetter:
    """One record of the dead letters topic."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None] = field(compare=False, hash=False)

    @property
    def reason(self) -> str:
        return (self.headers.get("pipeline.reason") or b"").decode()


class Pipeline:
    """A project of the standard job in `folder`; processes started here end with the test (`close`)."""

    def __init__(
        self,
        folder: Path,
        bootstrap_servers: str,
        name: str,
        *,
        partitions: int = 4,
        replicas: int = 1,
        settings: dict[str, Any] | None = None,
        module: str = "benchmarks.ours:Mlp",
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.name, self.partitions = folder, name, partitions
        self.bootstrap_servers = bootstrap_servers
        self.job = job.Job(bootstrap_servers, f"{name}.events", f"{name}.predictions", name, 0)
        given = {"topics.partitions": partitions, "topics.replication_factor": replicas, **(settings or {})}
        self.config = ours.make_project(folder / "project", self.job, given, module, arguments)
        self.admin = clients.make_admin(bootstrap_servers)
        self.processes: list[Process] = []
        clients.create_topic(self.admin, self.job.input_topic, partitions, replicas)

    def start(self, *arguments: str, launcher: Sequence[str] = ("pipeline.cli",), **environment: str) -> Process:
        """Start `pipeline ARGUMENTS` on this project; launcher: a module that runs it, and that module's arguments."""
        said = "-".join(arguments).replace("/", "_")[-100:]
        log_file = self.folder / f"{len(self.processes)}-{said}.log"
        with log_file.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", *launcher, "--config", str(self.config), *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        self.processes.append(Process(popen, log_file))
        return self.processes[-1]

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()

    # -- in ------------------------------------------------------------------------------

    def foreign_schema_id(self) -> int:
        """Id of a schema, known to the registry, that no event can be read with."""
        registry = codec.open_registry(None, self.folder / "project" / "registry", None)
        return registry.register(f"{self.name}.foreign-value", FOREIGN_SCHEMA)

    def send(self, values: Sequence[bytes | None], first: int = 0) -> None:
        """Send events first, first + 1, ... under the job's keys, all acknowledged."""
        sender = clients.Sender(self.bootstrap_servers)
        keys = job.keys(first + len(values))[first:].tolist()
        for at in range(0, len(values), 10_000):
            sender.send(self.job.input_topic, values[at : at + 10_000], keys[at : at + 10_000])
        sender.flush()

    # -- out -----------------------------------------------------------------------------

    def count(self, topic: str) -> int:
        """Records of a topic."""
        return sum(clients.end_offsets(self.admin, topic, clients.partition_count(self.admin, topic)))

    def predicted(self) -> int:
        """Predictions so far; 0 before the topic exists and has leaders."""
        try:
            return self.count(self.job.output_topic)
        except KafkaException:
            return 0

    def committed(self) -> int:
        """Input records committed by the workers' group."""
        return clients.committed(self.bootstrap_servers, ours.group(self.name), self.job.input_topic, self.partitions)

    def await_committed(self, events: int) -> None:
        """Until the workers have committed `events` records; a process that ends before fails the test."""

        def done() -> bool:
            for process in self.processes:
                code = process.popen.poll()
                assert code in (None, 0, -signal.SIGKILL), f"ended with {code}:\n{process.log()[-4000:]}"
            return self.committed() >= events

        eventually(done, f"{events} records committed; {self.committed()} are")

    def outputs(self) -> verify.Outputs:
        """Every prediction, in the order of its partition."""
        reader = verify.read_predictions(ours.prediction_schema())
        return verify.read(self.bootstrap_servers, self.job.output_topic, f"{self.name}.verify", reader)

    def dead_letters(self) -> list[DeadLetter]:
        """Every dead letter."""
        topic = f"{self.name}.dead-letters"
        return [
            DeadLetter(m.key(), m.value(), dict(m.headers() or []))
            for messages in clients.read_all(self.bootstrap_servers, topic, f"{self.name}.verify", PATIENCE_S)
            for m in messages
        ]

    def held_up(self, topic: str) -> dict[int, tuple[int, int]]:
        """See `held_up`."""
        return held_up(self.admin, topic)

    def uncommitted_partitions(self) -> dict[int, tuple[int, int]]:
        """Partition -> (committed, end) where these differ."""
        admin = make_admin(ClientOptions(self.bootstrap_servers))
        done = topics.committed(admin, ours.group(self.name))
        marks = topics.watermarks(admin, self.job.input_topic)
        return {tp.partition: (done.get(tp, 0), end) for tp, (_, end) in marks.items() if done.get(tp, 0) != end}


@dataclass(frozen=True)
class Spoiled:
    """Events of which some were broken."""

    values: list[bytes | None]
    #: Indices of the broken ones, and how each must be refused.
    rows: list[int]
    reasons: list[Reason]

    @classmethod
    def every(cls, step: int, events: int, foreign_id: int) -> "Spoiled":
        """Break one event in `step`, each way of `WAYS` in turn."""
        values: list[bytes | None] = [*job.encode_events(events)]
        rows = list(range(step // 2, events, step))
        ways = [way for _, way in zip(rows, _cycle(list(WAYS.values())), strict=False)]
        for row, way in zip(rows, ways, strict=True):
            value = values[row]
            assert value is not None
            values[row] = way.spoil(value, foreign_id)
        return cls(values, rows, [way.reason for way in ways])

    def good(self) -> npt.NDArray[np.bool_]:
        """(n,) which events were left whole."""
        mask = np.ones(len(self.values), dtype=np.bool_)
        mask[self.rows] = False
        return mask

    def expected_dead_letters(self) -> Counter[tuple[bytes | None, bytes | None, str]]:
        """(key, value, reason) of each."""
        keys = job.keys(len(self.values)).tolist()
        return Counter(
            (keys[r], self.values[r], reason.value) for r, reason in zip(self.rows, self.reasons, strict=True)
        )


def balance(pipeline: Pipeline, events: int) -> dict[str, int]:
    """What a read_committed reader finds, after everything was committed: lost, duplicated, reordered.

    Whatever happened, nothing is foreign, wrong or under another key; the group has committed all there is; and
    no transaction is left open that would hold readers up. (A read before its end would miss what lies behind it.)
    """
    eventually(lambda: not pipeline.held_up(pipeline.job.output_topic), "the predictions' last transaction ended")
    outputs = pipeline.outputs()
    found = verify.compare(outputs, events)
    assert (found.foreign, found.wrong_scores, found.wrong_keys) == (0, 0, 0), str(found)
    assert pipeline.uncommitted_partitions() == {}
    return {"lost": found.lost, "duplicated": found.duplicated, "reordered": out_of_order(outputs)}


def held_up(admin: AdminClient, topic: str) -> dict[int, tuple[int, int]]:
    """Partition -> (last stable offset, end) where a transaction that nobody ends holds readers up."""
    tps = [TopicPartition(topic, p) for p in range(clients.partition_count(admin, topic))]
    stable, ends = topics.offsets(admin, tps, committed_only=True), topics.offsets(admin, tps)
    return {tp.partition: (stable[tp], ends[tp]) for tp in tps if stable[tp] != ends[tp]}


def _cycle(ways: list[Any]) -> Any:
    while True:
        yield from ways


def out_of_order(outputs: verify.Outputs) -> int:
    """Predictions that come after one of a later event of the same key."""
    order = np.argsort(outputs.keys, kind="stable")
    keys, numbers = outputs.keys[order], outputs.numbers[order]
    return int(((keys[1:] == keys[:-1]) & (numbers[1:] < numbers[:-1])).sum())
