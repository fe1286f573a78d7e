"""The loop on Kafka: `pipeline run` worker, labels, quality, monitor and retrainer, fed day by day in virtual time.

A day of 48 events is sent, then the labels of the day before; the next one begins once all of it is predicted, joined
and seen by monitor and quality, and, where a trigger has as many labels as the retrainer waits for, once a successor is
in service or refused. So training takes no time of the stream, as it would take none of half-hours in life, and the
result does not depend on how fast the machine is.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from benchmarks import clients
from benchmarks.drift import market
from benchmarks.drift.market import DELAY, START_MS, STEP_MS
from pipeline import codec, drift
from pipeline.cli.events import EventEncoder
from pipeline.cli.processes import ProcessGroup, RoleProcess, roles
from pipeline.cli.releasing import open_releases
from pipeline.cli.wiring import connect, ensure_topics
from pipeline.records import RetrainingTrigger
from pipeline.settings import Settings
from pipeline.topology.succession import rows_min

#: What is not a default, and why.
SETTINGS = """\
[topics]
partitions = 1                # days come in order
[labels]
enabled = true
[observe]
enabled = false               # no ports
[delivery]
commit_interval_ms = 20       # a day is seen by all roles in 0.2 s
[drift]
cooldown_events = 4000        # twelve weeks; 10,000 would allow for three triggers of inputs in all
[calibration]
every_outcomes = 336          # a week
rows = 2000                   # six weeks: what retraining on a schedule goes by, too
judge_by = "errors"           # at a change of this market classes become rarer
[retraining]
enabled = true
epochs_max = 10               # windows are short: more of them learn the window by heart
per_day_max = 1000            # two years pass in minutes
flips_max = 1.0               # half of the classes of this market turn over at a change
separation_max = 1.0          # the price of the neighbour alone tells the classes apart at times (AUC 0.96)
[gate]
rows_min = 200                # four days; with a fifth of the window: three weeks since a change
alpha = 0.2                   # so few rows show five points at best
ece_worse_max = 1.0           # nor do they show a calibration
log_loss_worse_max = 1.0
latency_ratio_max = 1000      # models of microseconds on a machine that is busy with five roles
"""
#: For one day to pass through all roles. They take 0.2 s; the first day waits for five imports of torch.
DAY_TIMEOUT_S = 180.0
#: The retrainer looks for labels every 15 s; then it trains.
RETRAINING_TIMEOUT_S = 300.0
POLL_S = 0.01


@dataclass
class Retraining:
    """What became of one trigger. Rows count from the first of the data."""

    trigger_id: str
    signals: list[str]
    change_row: int
    #: Rows that had happened at the trigger, and at the verdict.
    triggered_row: int
    judged_row: int
    accepted: bool
    says: str


@dataclass
class Told:
    """What the loop did."""

    #: (n,) probability of UP as of the outcomes topic, NaN for rows without an outcome.
    predicted: npt.NDArray[np.float64]
    versions: list[str | None]
    retrainings: list[Retraining] = field(default_factory=list)
    triggers: int = 0
    #: Calibrations that came into service.
    calibrations: int = 0
    #: Triggers of a model that was replaced meanwhile, and of inputs where accuracy holds, which are let be.
    overtaken: int = 0
    held: int = 0


class _Topic:
    """One partition of a topic, read to its end as it grows."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._consumer = clients.make_consumer(bootstrap_servers, f"{topic}.benchmark")
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        #: Behind the last record read.
        self.end = 0

    def read(self) -> list[bytes]:
        messages = clients.consume(self._consumer, POLL_S)
        if messages:
            self.end = messages[-1].offset() + 1
        return [message.value() for message in messages]


class _Group:
    """What a role's group has committed of a partition; asks without joining."""

    def __init__(self, bootstrap_servers: str, group: str, topic: str) -> None:
        options = {**clients.CONSUMER, "bootstrap.servers": bootstrap_servers, "group.id": group}
        self._consumer, self._at = Consumer(options), TopicPartition(topic, 0)

    def committed(self) -> int:
        (found,) = self._consumer.committed([self._at], clients.REQUEST_TIMEOUT_S)
        return max(int(found.offset), 0)


class Loop:
    """All roles on one broker, and the days they are given."""

    def __init__(self, settings: Settings, group: ProcessGroup, say: Callable[[str], None]) -> None:
        """settings: one partition a topic, so that days come in order."""
        self._settings, self._processes, self._say = settings, group, say
        self._servers = servers = settings.kafka.bootstrap_servers
        _, admin = connect(settings)
        ensure_topics(settings, admin)
        self._registry = codec.registry_of(settings)
        self._rows = codec.RowCodec(self._registry)
        self._sender = clients.Sender(servers)
        topic, role = settings.topic, settings.group
        names = ("predictions", "outcomes", "batch_summaries", "retraining_triggers")
        self._topics = {name: _Topic(servers, topic(name)) for name in names}
        self._worker = _Group(servers, role("worker"), topic("events"))
        self._watchers = [
            (_Group(servers, role("monitor"), topic("batch_summaries")), "batch_summaries"),
            (_Group(servers, role("quality"), topic("outcomes")), "outcomes"),
        ]
        self._calibrator = _Group(servers, role("calibrate"), topic("outcomes"))
        self._calibration: str | None = None
        self._releases = open_releases(settings, create=True)
        n = market.rows().num_rows
        self._told = Told(np.full(n, np.nan), [None] * n)
        self._events, self._labels = self._encoded()
        self._counts = {"predictions": 0, "outcomes": 0}
        self._pending: list[tuple[RetrainingTrigger, int]] = []
        self._champion: str | None = None

    def run(self, last_row: int | None = None) -> Told:
        """Feed all days from the first that the first model did not see."""
        self._start()
        first, end = market.first_rows(), last_row or market.rows().num_rows
        for row in range(first, end, DELAY):
            upto = min(row + DELAY, end)
            self._day(first, row, upto)
            self._triggers(upto)
            self._calibrations()
            self._successions(first, upto)
            if (row - first) // DELAY % 50 == 0:
                self._say(f"row {row:,}: {len(self._told.retrainings)} retrainings of {self._told.triggers} triggers")
        self._day(first, end, end + DELAY, labels_only=True)
        return self._told

    def _start(self) -> None:
        self._processes.start(roles("all", 1, self._settings))

    # -- one day ----------------------------------------------------------------------------------

    def _day(self, first: int, row: int, upto: int, *, labels_only: bool = False) -> None:
        if not labels_only:
            self._send("events", self._events[row:upto], row)
            self._await(lambda: self._count("predictions") >= upto - first, f"predictions to row {upto}")
            self._await(lambda: self._worker.committed() >= upto - first, f"commits to row {upto}")
        labels = (max(first, row - DELAY), upto - DELAY)
        if labels[1] > labels[0]:
            self._send("labels", self._labels[labels[0] : labels[1]], labels[0])
            self._await(lambda: self._count("outcomes") >= labels[1] - first, f"outcomes to row {labels[1]}")
        while self._topics["batch_summaries"].read():
            pass
        for group, name in self._watchers:
            self._await(lambda g=group, n=name: g.committed() >= self._topics[n].end, f"{name} watched to row {upto}")  # type: ignore[misc]

    def _send(self, topic: str, values: Sequence[bytes | None], row: int) -> None:
        keys = [f"e{row + number}".encode() for number in range(len(values))]
        self._sender.send(self._settings.topic(topic), values, keys)
        self._sender.flush()

    def _count(self, name: str) -> int:
        for value in self._topics[name].read():
            self._counts[name] += 1
            if name == "outcomes":
                outcome = self._rows.decode(value)
                row = int(outcome["event_id"][1:])
                self._told.predicted[row] = outcome["outputs"][-1]
                self._told.versions[row] = outcome["model_version"]
        return self._counts[name]

    # -- triggers and what comes of them ----------------------------------------------------------

    def _triggers(self, upto: int) -> None:
        for value in self._topics["retraining_triggers"].read():
            trigger = drift.trigger_from_dict(self._rows.decode(value))
            self._told.triggers += 1
            self._pending.append((trigger, upto))

    def _calibrations(self) -> None:
        """Wait where enough outcomes have come for another try, until the worker has what comes of it."""
        end = self._topics["outcomes"].end
        if end - self._calibrator.committed() < self._settings.calibration.every_outcomes:
            return
        self._await(lambda: self._calibrator.committed() >= end, "another calibration tried")
        held = list(self._releases.state().calibrations.values())
        newest = max(held, key=lambda one: one.calibrated_at_ms).calibration_id if held else None
        if newest != self._calibration:
            self._calibration, log = newest, self._processes.log_file(RoleProcess("worker"))
            self._told.calibrations += 1
            self._await(lambda: _logged(log, "in service", str(newest)), "the calibration in service")

    def _successions(self, first: int, upto: int) -> None:
        """Wait for the retrainer where it has enough labels for the trigger it is at."""
        needed = rows_min(self._settings)
        while self._pending:
            trigger, at = self._pending[0]
            if self._champion is not None and trigger.model_version != self._champion:
                self._told.overtaken += 1
                self._pending.pop(0)
                continue
            change = (trigger.change_event_time_ms - START_MS) // STEP_MS
            if upto - DELAY - max(change, first) < needed:
                return
            self._pending.pop(0)
            self._take(trigger, change, at, upto)

    def _take(self, trigger: RetrainingTrigger, change: int, at: int, upto: int) -> None:
        folder = self._settings.path(self._settings.retraining.exchange) / f"trigger-{trigger.trigger_id}"
        retrainer, lines = (
            self._processes.log_file(RoleProcess("retrainer")),
            ("asks for no training", trigger.trigger_id),
        )
        done = (folder / "result.json").exists
        said = f"a verdict on {trigger.trigger_id}"
        self._await(lambda: done() or _logged(retrainer, *lines), said, RETRAINING_TIMEOUT_S)
        if not done():
            self._told.held += 1
            self._say(f"row {upto:,}: accuracy holds since row {change:,}")
            return
        result = json.loads((folder / "result.json").read_text("utf-8"))
        accepted = bool(result["report"]["accepted"])
        signals = [evidence.signal for evidence in trigger.signals]
        done = Retraining(trigger.trigger_id, signals, change, at, upto, accepted, result["says"])
        self._told.retrainings.append(done)
        self._say(f"row {upto:,}: {', '.join(signals)} since row {change:,}: {result['says']}")
        if accepted:
            self._champion = str(result["report"]["challenger_version"])
            log = self._processes.log_file(RoleProcess("worker"))
            self._await(lambda: _logged(log, "in service", str(self._champion)), "the successor in service")

    def _await(self, done: Callable[[], bool], what: str, patience_s: float = DAY_TIMEOUT_S) -> None:
        give_up = time.monotonic() + patience_s
        while not done():
            if (ended := self._processes.ended()) is not None:
                raise RuntimeError(f"{ended[0]} ended with {ended[1]}: {self._processes.log_file(ended[0])}")
            if time.monotonic() > give_up:
                raise TimeoutError(f"not within {patience_s:g} s: {what}")
            time.sleep(POLL_S)

    # -- what is sent -----------------------------------------------------------------------------

    def _encoded(self) -> tuple[list[bytes | None], list[bytes | None]]:
        """Value of each event and of each label."""
        settings, rows = self._settings, market.rows()
        fields, schema = settings.events, codec.event_schema(settings)
        schema_id = self._registry.register(f"{settings.topic('events')}-value", schema)
        encoder = EventEncoder(schema, schema_id, fields.id_field, fields.key_field, fields.time_field)
        events: list[bytes | None] = [*encoder.encode(rows)[1]]
        label_schema = codec.load_schema("label")
        label_id = self._registry.register(f"{settings.topic('labels')}-value", label_schema)
        at = pa.array(START_MS + (np.arange(rows.num_rows) + DELAY) * STEP_MS).cast(pa.timestamp("ms", tz="UTC"))
        columns: dict[str, Any] = {
            "event_id": rows.column("no"),
            "label": rows.column("move"),
            "value": pa.nulls(rows.num_rows, pa.float64()),
            "time": at,
        }
        names = codec.arrow_schema(label_schema)
        table = pa.table([columns[f.name].cast(f.type) for f in names], schema=names).combine_chunks()
        labels = codec.ColumnarEncoder(label_schema, label_id).encode(table.to_batches()[0])
        return events, [*labels]


def _logged(log: Path, *texts: str) -> bool:
    """Whether one line has them all."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return any(all(text in line for text in texts) for line in lines)
