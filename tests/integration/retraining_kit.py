"""A small market whose rule changes half-way: a project, its events and their outcomes on a real Kafka."""

import csv
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from pipeline import codec, drift
from pipeline.cli.context import quiet_logs
from pipeline.cli.events import EventEncoder
from pipeline.records import OffsetRange, RetrainingTrigger, SignalEvidence
from pipeline.settings import Settings, load

ROWS, CHANGE, PARTITIONS = 6000, 2000, 2
START_MS, STEP_MS, DELAY_MS = 831_168_000_000, 1_800_000, 24 * 1_800_000  # half-hours of 1996, labels half a day late
ROOT = Path(__file__).parents[2]


class Market:
    """Rows of demand, price of the neighbour and period; class UP follows from them by a rule that turns at CHANGE."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        quiet_logs()
        self.folder, self.bootstrap_servers = folder, bootstrap_servers
        self.name = f"retrain-{uuid.uuid4().hex[:8]}"
        random = np.random.default_rng(3)
        self.demand, self.price = random.normal(0.5, 0.2, ROWS), random.normal(0.4, 0.15, ROWS)
        score = np.where(np.arange(ROWS) < CHANGE, self.demand - 0.5, 0.4 - self.price) + random.normal(0, 0.05, ROWS)
        self.labels: npt.NDArray[np.str_] = np.where(score > 0, "UP", "DOWN")
        self.period = np.where(np.arange(ROWS) % 48 < 24, "night", "day")
        self.places: list[tuple[int, int]] = []
        #: What was started in the background, the latest last; it ends with `close`.
        self.running: list[subprocess.Popen[bytes]] = []
        self._init()

    @property
    def config(self) -> Path:
        return self.folder / "project" / "pipeline.toml"

    @property
    def settings(self) -> Settings:
        return load(self.config, environment={})

    def _init(self) -> None:
        """A project whose model learnt the first rule."""
        data = self.folder / "market.csv"
        with data.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("no", "at", "demand", "price", "period", "move"))
            for n in range(CHANGE):
                at = np.datetime64(START_MS + n * STEP_MS, "ms").astype(str)
                writer.writerow((f"e{n}", at, self.demand[n], self.price[n], self.period[n], self.labels[n]))
        columns = ("--label", "move", "--time", "at", "--id", "no", "--name", self.name)
        assert self.run("init", str(self.folder / "project"), "--data", str(data), *columns, config=False)[0] == 0
        text = self.config.read_text("utf-8").replace("127.0.0.1:9092", self.bootstrap_servers)
        more = f"[topics]\npartitions = {PARTITIONS}\n[labels]\nenabled = true\n"
        self.config.write_text(
            f"{text}\n{more}[retraining]\nepochs_max = 12\nlearning_rate = 0.004\nnice = 0\n", "utf-8"
        )
        assert self.run("topics", "create")[0] == 0

    def start(
        self, *arguments: str, sets: tuple[str, ...] = (), launcher: tuple[str, ...] = ("pipeline.cli",)
    ) -> "subprocess.Popen[bytes]":
        """`pipeline ARGUMENTS` in the background; what it says goes to `processes.log`."""
        flags = ["--config", str(self.config)]
        for assignment in sets:
            flags += ["--set", assignment]
        with (self.folder / "processes.log").open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", *launcher, *flags, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        self.running.append(popen)
        return popen

    def close(self) -> None:
        """Kill what is left."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()

    def log(self) -> str:
        """What processes in the background have said."""
        return (self.folder / "processes.log").read_text("utf-8", "replace")

    def run(self, *arguments: str, config: bool = True, sets: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `pipeline ARGUMENTS`."""
        flags = ["--config", str(self.config)] if config else []
        for assignment in sets:
            flags += ["--set", assignment]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *flags, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    # -- what is on the topics --------------------------------------------------------------------

    def send_events(self) -> None:
        """All rows, alternately to each partition."""
        registry = codec.registry_of(self.settings)
        schema = codec.event_schema(self.settings)
        schema_id = registry.register(f"{self.name}.events-value", schema)
        table = pa.table(
            {
                "no": [f"e{n}" for n in range(ROWS)],
                "at": pa.array(START_MS + np.arange(ROWS) * STEP_MS).cast(pa.timestamp("ms", tz="UTC")),
                "demand": self.demand,
                "price": self.price,
                "period": self.period,
            }
        )
        fields = self.settings.events
        _, values = EventEncoder(schema, schema_id, fields.id_field, None, fields.time_field).encode(table)
        self.places = self._send(f"{self.name}.events", values, [f"{'ab'[n % 3 > 0]}:{n}" for n in range(ROWS)])

    def send_outcomes(
        self,
        rows: npt.NDArray[np.int64],
        roles: tuple[str, ...] = ("champion",),
        *,
        model_version: str = "1",
        outputs: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Outcomes of some rows, in that order, one of each role, as the labels role writes them.

        outputs: (n,) probabilities of the second class; by default the model knows nothing.
        """
        given = np.full(len(rows), 0.5) if outputs is None else outputs
        registry = codec.registry_of(self.settings)
        schema = codec.load_schema("outcome")
        schema_id = registry.register(f"{self.name}.outcomes-value", schema)
        at = START_MS + rows * STEP_MS
        for role in roles:
            n, stamp = len(rows), pa.timestamp("ms", tz="UTC")
            made = {
                "event_id": pa.array([f"e{n}" for n in rows]),
                "event_time": pa.array(at).cast(stamp),
                "model_id": pa.array([self.name] * n),
                "model_version": pa.array([model_version] * n),
                "role": pa.array([role] * n),
                "outputs": pa.array([[p] for p in given.tolist()], pa.list_(pa.float32())),
                "predicted": pa.array(["UP"] * n),
                "label": pa.array(self.labels[rows]),
                "value": pa.nulls(n, pa.float64()),
                "label_time": pa.array(at + DELAY_MS).cast(stamp),
                "predicted_at": pa.array(at).cast(stamp),
                "partition": pa.array([self.places[r][0] for r in rows], pa.int32()),
                "offset": pa.array([self.places[r][1] for r in rows], pa.int64()),
                "slices": pa.array(
                    [[("period", str(self.period[r]))] for r in rows], pa.map_(pa.string(), pa.string())
                ),
                "calibration_id": pa.nulls(n, pa.string()),
                "uncalibrated_outputs": pa.nulls(n, pa.list_(pa.float32())),
            }
            fields = codec.arrow_schema(schema)
            batch = pa.RecordBatch.from_arrays([made[f.name].cast(f.type) for f in fields], schema=fields)
            self._send(f"{self.name}.outcomes", codec.ColumnarEncoder(schema, schema_id).encode(batch))

    def _send(self, topic: str, values: list[bytes], keys: list[str] | None = None) -> list[tuple[int, int]]:
        """Partition and offset of each value."""
        found: dict[int, tuple[int, int]] = {}
        producer = Producer({"bootstrap.servers": self.bootstrap_servers, "queue.buffering.max.messages": 200_000})
        for n, value in enumerate(values):
            producer.produce(
                topic,
                value,
                key=None if keys is None else keys[n],
                partition=n % PARTITIONS,
                on_delivery=lambda error, m, n=n: (
                    found.__setitem__(n, (m.partition(), m.offset())) if not error else None
                ),
            )
            producer.poll(0)
        assert producer.flush(30) == 0
        assert len(found) == len(values)
        return [found[n] for n in range(len(values))]

    def send_trigger(
        self,
        trigger_id: str,
        window: list[tuple[int, int, int]],
        change_ms: int,
        model_version: str = "1",
        moved: Sequence[str] = (),
    ) -> None:
        """A trigger that suggests to train on these (partition, first offset, last offset); moved: names of signals."""
        trigger = RetrainingTrigger(
            trigger_id=trigger_id,
            pipeline=self.name,
            model_id=self.name,
            model_version=model_version,
            signals=[SignalEvidence(name, "adwin", 0.0, 1.0, 1000, 1000, 0.5, 0.3) for name in moved],
            change_event_time_ms=change_ms,
            change_events_ago=100,
            evidence=[],
            window=[OffsetRange(f"{self.name}.events", *place) for place in window],
            severity="major",
            advice="retrain",
            events_seen=1000,
            detected_event_time_ms=change_ms,
            next_allowed_after_events=0,
            produced_at_ms=change_ms,
        )
        registry, schema = codec.registry_of(self.settings), codec.load_schema("retraining-trigger")
        topic = f"{self.name}.retraining-triggers"
        schema_id = registry.register(f"{topic}-value", schema)
        value = codec.RowCodec(registry).encode(schema_id, schema, drift.trigger_to_dict(trigger))
        producer = Producer({"bootstrap.servers": self.bootstrap_servers})
        producer.produce(topic, value, key=trigger_id)
        assert producer.flush(30) == 0

    def groups(self) -> list[str]:
        """Consumer groups that have to do with this market."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        found = admin.list_consumer_groups(request_timeout=20).result()
        return [group.group_id for group in found.valid if self.name in group.group_id]
