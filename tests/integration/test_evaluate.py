"""`pipeline evaluate` on a range of a topic of a real Kafka."""

import csv
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner, Result

from pipeline.cli import make_app

ROWS, PARTITIONS = 900, 3
START_MS = 1_704_067_200_000


class Project:
    """A project as `pipeline init` makes it; the producers' schema has the label, the project's own has not."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        self.folder, self.bootstrap_servers = folder, bootstrap_servers
        self.name = f"evaluate-{uuid.uuid4().hex[:8]}"
        self.data = folder / "orders.csv"
        random = np.random.default_rng(5)
        with self.data.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("no", "at", "amount", "shop", "fraud"))
            for n in range(ROWS):
                amount = random.uniform(0, 100)
                at = f"2024-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}"
                writer.writerow((f"o{n}", at, f"{amount:.3f}", "ab"[n % 2], int(amount + random.normal(0, 20) > 60)))
        columns = ("--label", "fraud", "--time", "at", "--id", "no", "--name", self.name)
        self.ok(None, "init", str(folder / "project"), "--data", str(self.data), *columns)
        settings, schema = (folder / "project" / name for name in ("pipeline.toml", "schemas/event.avsc"))
        text = settings.read_text("utf-8").replace("127.0.0.1:9092", bootstrap_servers)
        settings.write_text(f"{text}\n[topics]\npartitions = {PARTITIONS}\n", "utf-8")
        written = json.loads(schema.read_text("utf-8"))
        written["fields"].append({"name": "fraud", "type": ["null", "long"], "default": None})
        (schema.parent / "written.avsc").write_text(json.dumps(written), "utf-8")
        self.ok("project", "topics", "create")

    def run(self, project: str | None, *arguments: str) -> Result:
        flags = ["--config", str(self.folder / project / "pipeline.toml")] if project else []
        return CliRunner().invoke(make_app(), [*flags, *arguments])

    def ok(self, project: str | None, *arguments: str) -> str:
        result = self.run(project, *arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def replay(self, *arguments: str, labelled: bool = True) -> None:
        flags = ("--set", "events.schema_file=schemas/written.avsc") if labelled else ()
        self.ok("project", *flags, "replay", str(self.data), "--rate", "0", *arguments)

    def evaluate(self, *arguments: str) -> dict[str, Any]:
        out = ("--out", str(self.folder / "out"))
        found: dict[str, Any] = json.loads(self.ok("project", "evaluate", "--json", *out, *arguments))
        return found

    def refused(self, *arguments: str) -> str:
        result = self.run("project", "evaluate", "--out", str(self.folder / "out"), *arguments)
        assert result.exit_code == 1, (result.output, result.exception)
        (line,) = result.stderr.splitlines()
        return line


@pytest.fixture
def project(tmp_path: Path, kafka: str) -> Iterator[Project]:
    made = Project(tmp_path, kafka)
    yield made
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.delete_topics([n for n in admin.list_topics(timeout=10).topics if made.name in n]).values():
        future.result()


def test_a_topic_and_its_file_agree(project: Project) -> None:
    """Over all partitions, in order of event time, with the label that only the producers' schema has."""
    project.replay()
    of_topic = project.evaluate("--slice", "shop")
    of_file = project.evaluate("--slice", "shop", "--data", str(project.data))
    assert of_topic["rows"] == of_file["rows"]
    assert of_topic["rows"]["measured"] == ROWS
    assert of_topic["confusion"] == of_file["confusion"]
    for part in ("metrics", "slices", "windows"):
        assert flat(of_topic[part]) == pytest.approx(flat(of_file[part]), rel=1e-5), part
    assert of_topic["data"]["first_time_ms"] == START_MS
    assert sum(end - start for start, end in of_topic["data"]["offsets"].values()) == ROWS


def flat(value: Any) -> list[float]:
    """The numbers of a report, in order of their names: float32 sums depend on the size of a batch."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    return [number for inside in value for number in flat(inside)] if isinstance(value, list) else [value]


def test_a_range_by_offsets_or_by_the_brokers_time(project: Project) -> None:
    """Of every partition; negative offsets are before the end; --rows-max ends it sooner."""
    written(project, [b"not avro"] * 6, timestamp_ms=1_577_836_800_000)  # 2020
    project.replay("--to", "600")
    found = project.evaluate("--from", "10", "--to", "60")
    assert found["rows"]["read"] == 50 * PARTITIONS
    assert all(span == [10, 60] for span in found["data"]["offsets"].values())
    assert project.evaluate("--from", "-40")["rows"]["read"] == 40 * PARTITIONS
    everything = project.evaluate()["rows"]
    assert (everything["read"], everything["rejected"]) == (606, {"wrong_magic": 6})
    assert project.evaluate("--from", "2020-06-01")["rows"]["read"] == 600
    assert project.evaluate("--rows-max", "77")["rows"]["read"] == 77
    assert "none of the 6 events could be scored (wrong_magic" in project.refused("--to", "2020-06-01T12:00Z")
    assert f"topic {project.name}.events: no records from 2031-01-01" in project.refused("--from", "2031-01-01")


def written(project: Project, values: list[bytes], timestamp_ms: int = 0, transactional_id: str | None = None) -> None:
    """Records of no project's making; in a transaction that is then aborted, if it has an id."""
    options = {"bootstrap.servers": project.bootstrap_servers}
    producer = Producer(options | ({"transactional.id": transactional_id} if transactional_id else {}))
    if transactional_id:
        producer.init_transactions(30)
        producer.begin_transaction()
    failed: list[Any] = []
    for n, value in enumerate(values):
        producer.produce(
            f"{project.name}.events",
            value,
            partition=n % PARTITIONS,
            timestamp=timestamp_ms,
            on_delivery=lambda error, _message: failed.append(error) if error else None,
        )
    assert producer.flush(20) == 0
    assert failed == []
    if transactional_id:
        producer.abort_transaction(30)


def test_aborted_records_are_not_measured(project: Project) -> None:
    """As no worker would see them. The offsets of a range may hold fewer records than their difference."""
    project.replay("--to", "300")
    written(project, [b"aborted"] * 30, transactional_id=f"{project.name}-aborted")
    found = project.evaluate()
    assert found["rows"]["read"] == 300
    assert found["rows"]["rejected"] == {}


def test_events_without_a_label_are_counted(project: Project) -> None:
    """Where some producers write the truth and others do not; where none does, it is said."""
    project.replay("--to", "200", labelled=False)
    said = project.refused()
    assert f"topic {project.name}.events: its events have no field 'fraud' for the truth" in said
    project.replay("--from", "200", "--to", "500")
    found = project.evaluate()
    assert {name: found["rows"][name] for name in ("read", "scored", "unlabelled", "measured")} == {
        "read": 500,
        "scored": 500,
        "unlabelled": 200,
        "measured": 300,
    }


def test_an_empty_topic_and_one_that_is_not_there(project: Project) -> None:
    """One line each."""
    assert f"topic {project.name}.events: no records at all" in project.refused()
    assert f"topic {project.name}.gone does not exist" in project.refused("--topic", f"{project.name}.gone")
