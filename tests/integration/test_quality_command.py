"""`pipeline quality` on outcomes of a real Kafka, written with our own encoder."""

import csv
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner, Result

from pipeline import codec
from pipeline.cli import make_app
from pipeline.measures import Scored, measure
from pipeline.records import OutputContract
from pipeline.settings import load
from tests.pipelines import eventually

ROWS, PARTITIONS = 2_000, 3
OUTPUT = OutputContract("classification", 1, ("0", "1"), "sigmoid")
HOUR_MS = 3_600_000


class Project:
    """A project as `pipeline init` makes it, with labels on."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.name = f"quality-{uuid.uuid4().hex[:8]}"
        self.config = folder / "project" / "pipeline.toml"
        data = folder / "orders.csv"
        random = np.random.default_rng(5)
        with data.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("no", "amount", "fraud"))
            amounts = random.uniform(0, 100, 300)
            writer.writerows((f"o{n}", f"{x:.3f}", int(x > 60)) for n, x in enumerate(amounts))
        columns = ("--label", "fraud", "--id", "no", "--name", self.name)
        self.ok("init", str(folder / "project"), "--data", str(data), *columns, config=False)
        text = self.config.read_text("utf-8").replace("127.0.0.1:9092", bootstrap_servers)
        self.config.write_text(f"{text}\n[topics]\npartitions = {PARTITIONS}\n", "utf-8")
        self.settings = load(self.config)

    def run(self, *arguments: str, config: bool = True) -> Result:
        flags = ["--config", str(self.config), "--set", "labels.enabled=true"] if config else []
        return CliRunner().invoke(make_app(), [*flags, *arguments])

    def ok(self, *arguments: str, config: bool = True) -> Result:
        result = self.run(*arguments, config=config)
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    def create_topics(self) -> None:
        """Until each partition has its leader: for a moment a new one has none."""
        self.ok("topics", "create")
        eventually(lambda: self.run("quality").exit_code == 0, "offsets of a new topic")

    def quality(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("quality", "--json", *arguments).stdout)
        return found

    def write(self, topic: str, schema: str, columns: pa.RecordBatch, timestamps_ms: Any) -> None:
        """Rows in this order, row i to partition i % PARTITIONS."""
        registry, text = codec.registry_of(self.settings), codec.load_schema(schema)
        values = codec.ColumnarEncoder(text, registry.register(f"{topic}-value", text)).encode(columns)
        producer = Producer({"bootstrap.servers": self.bootstrap_servers})
        for row, (value, timestamp_ms) in enumerate(zip(values, timestamps_ms.tolist(), strict=True)):
            producer.produce(topic, value, f"k{row}".encode(), row % PARTITIONS, timestamp=timestamp_ms)
        assert producer.flush(30) == 0


@pytest.fixture
def project(tmp_path: Path, kafka: str) -> Iterator[Project]:
    made = Project(tmp_path, kafka)
    yield made
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.delete_topics([n for n in admin.list_topics(timeout=10).topics if made.name in n]).values():
        future.result()


class Made:
    """ROWS outcomes of the last 23 hours; in the last three the second shop is flagged more often than the first."""

    def __init__(self, now_ms: int) -> None:
        random = np.random.default_rng(7)
        self.label_times_ms = np.sort(random.integers(now_ms - 23 * HOUR_MS, now_ms - 10_000, ROWS))
        self.event_times_ms = self.label_times_ms - random.integers(0, 2 * HOUR_MS, ROWS)
        self.shops = random.choice(["a", "b"], ROWS)
        late = self.label_times_ms > now_ms - 3 * HOUR_MS
        flagged = random.random(ROWS) < np.where((self.shops == "b") & late, 0.9, 0.3)
        self.outputs = np.where(flagged, random.uniform(0.5, 1, ROWS), random.uniform(0, 0.5, ROWS))
        self.outputs = self.outputs.astype(np.float32).astype(np.float64)
        self.truth = (random.random(ROWS) < self.outputs).astype(np.int64)

    def columns(self, **constant: Any) -> pa.RecordBatch:
        rows = [
            {
                "event_id": f"e{n}",
                "event_time": int(self.event_times_ms[n]),
                "model_id": "m",
                "model_version": "1",
                "role": "champion",
                "outputs": [self.outputs[n]],
                "predicted": str(int(self.outputs[n] >= 0.5)),
                "label": str(self.truth[n]),
                "label_time": int(self.label_times_ms[n]),
                "predicted_at": int(self.event_times_ms[n]) + 5,
                "partition": n % PARTITIONS,
                "offset": n // PARTITIONS,
                "slices": [("shop", str(self.shops[n]))],
                **constant,
            }
            for n in range(ROWS)
        ]
        return pa.RecordBatch.from_pylist(rows, schema=codec.arrow_schema(codec.load_schema("outcome")))

    def predictions(self) -> pa.RecordBatch:
        """Those of the outcomes."""
        columns = self.columns()
        names = ("event_id", "event_time", "model_id", "model_version", "role", "outputs")
        arrays: dict[str, Any] = {name: columns.column(name) for name in names}
        arrays |= {"label": columns.column("predicted"), "produced_at": columns.column("predicted_at")}
        arrays |= {name: columns.column(name) for name in ("partition", "offset", "slices", "calibration_id")}
        arrays["uncalibrated_outputs"] = columns.column("uncalibrated_outputs")
        schema = codec.arrow_schema(codec.load_schema("prediction"))
        return pa.RecordBatch.from_arrays([arrays[f.name].cast(f.type) for f in schema], schema=schema)


def test_quality_of_outcomes(project: Project) -> None:
    """The numbers of `measure`, per version and slice; delays, coverage, what was left out; a gap that widened."""
    outcomes, predictions = (project.settings.topic(role) for role in ("outcomes", "predictions"))
    assert "no outcomes yet" in project.ok("quality").stderr
    project.create_topics()
    assert "no label came within 24h" in project.ok("quality").stderr

    made = Made(int(time.time() * 1000))
    in_order = np.argsort(made.event_times_ms)
    project.write(predictions, "prediction", made.predictions().take(in_order), made.event_times_ms[in_order] + 5)
    earlier = made.columns(model_version="0", role="shadow").slice(0, 500)
    project.write(outcomes, "outcome", earlier, made.label_times_ms[:500] - 48 * HOUR_MS)
    project.write(outcomes, "outcome", made.columns(), made.label_times_ms)
    stray = Producer({"bootstrap.servers": project.bootstrap_servers})
    stray.produce(outcomes, b"not avro", timestamp=int(made.label_times_ms[-1]))
    assert stray.flush(30) == 0

    found = project.quality()
    assert found["outcomes"] == {"read": ROWS + 1, "measured": ROWS, "left_out": {"undecodable": 1}}
    (version,) = found["versions"]
    assert (version["model_version"], version["role"], version["rows"]) == ("1", "champion", ROWS)
    scored = Scored(made.outputs[:, None], made.truth, made.label_times_ms, {"shop": made.shops})
    expected = measure(scored, OUTPUT)
    for name in ("accuracy", "balanced_accuracy", "f1", "log_loss", "brier"):
        assert version["metrics"][name] == pytest.approx(expected["metrics"][name]), name
    assert abs(version["metrics"]["roc_auc"] - expected["metrics"]["roc_auc"]) <= version["metrics"]["roc_auc_error"]
    assert 0.3 < version["metrics"]["accuracy_of_no_change"] < 0.7
    assert [gap["difference"] for gap in version["gaps"]] == pytest.approx(
        [gap["difference"] for gap in expected["gaps"]]
    )
    delays = (made.label_times_ms - made.event_times_ms) / 1000
    assert version["label_delay_s"]["p50"] == pytest.approx(np.median(delays), rel=0.2)
    since = found["window"]["from_ms"]
    share = (made.event_times_ms + 5 >= since).sum()
    assert found["coverage"] == {"predictions": share, "labelled": share, "share": 1.0}
    assert found["newest"]["predictions"] == ROWS
    assert version["estimate"]["accuracy"] == pytest.approx(found["newest"]["accuracy"])
    assert version["estimate"]["mean_absolute_error"] < 0.1
    assert ("shop", "b", "selection_rate") in {(a["field"], a["value"], a["measure"]) for a in version["alarms"]}

    assert [v["model_version"] for v in project.quality("--window", "4d")["versions"]] == ["1", "0"]
    printed = project.ok("quality").stdout
    for text in (
        "1 champion",
        "kappa-temporal",
        "reliability",
        "shop = b",
        "alarm: 1 champion",
        "left out: undecodable 1",
    ):
        assert text in printed, printed
    assert "only the newest 600 of" in project.ok("quality", "--rows-max", "600").stderr
    assert project.quality("--rows-max", "600")["outcomes"]["read"] in range(596, 601)


def test_what_is_asked_wrongly_is_said_so(project: Project) -> None:
    """A window that is no time, and a model whose outputs are others."""
    for text in ("soon", "0h", "-1d"):
        assert project.run("quality", f"--window={text}").exit_code == 2
    off = CliRunner().invoke(make_app(), ["--config", str(project.config), "quality"])
    assert off.exit_code == 0
    assert "set labels.enabled = true" in off.stderr
    project.create_topics()
    made = Made(int(time.time() * 1000))
    topic = project.settings.topic("outcomes")
    project.write(topic, "outcome", made.columns(outputs=[0.2, 0.3, 0.5]), made.label_times_ms)
    assert f"{topic}: 2,000 records, none of them an outcome of a model like" in project.ok("quality").stderr
    assert project.quality()["versions"] == []
