"""The commands against a real Kafka, as a person types them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner, Result

from pipeline.cli import make_app

ROWS = 300
FEATURES = ("amount", "items", "shop", "member")


class Project:
    """A project folder with its pipeline, and the commands run in it."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        self.folder, self.bootstrap_servers = folder, bootstrap_servers
        self.name = f"cli-{uuid.uuid4().hex[:8]}"
        self.data = folder / "orders.csv"
        with self.data.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("order no", "at", *FEATURES, "fraud"))
            for n in range(ROWS):
                shop = "" if n % 7 == 0 else f"shöp {n % 3}"
                at = f"2024-01-01T00:{n // 60:02}:{n % 60:02}"
                writer.writerow((f"o{n}", at, n / 8, n % 5, shop, str(n % 2 == 0).lower(), int(n % 3 == 0)))
        fields = [
            {"name": "order_no", "type": "string", "column": "order no"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "amount", "type": "double"},
            {"name": "items", "type": "long"},
            {"name": "shop", "type": ["null", "string"], "default": None},
            {"name": "member", "type": "boolean"},
        ]
        schema = {"type": "record", "name": "Order", "namespace": "test.v1", "fields": fields}
        (folder / "event.avsc").write_text(json.dumps(schema), "utf-8")
        (folder / "pipeline.toml").write_text(
            f'name = "{self.name}"\n[kafka]\nbootstrap_servers = "{bootstrap_servers}"\n[topics]\npartitions = 3\n'
            '[events]\nschema_file = "event.avsc"\nid_field = "order_no"\ntime_field = "at"\n[observe]\nport = 0\n',
            "utf-8",
        )

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(make_app(), ["--config", str(self.folder / "pipeline.toml"), *arguments])

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def records(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok(*arguments).splitlines()]


@pytest.fixture
def project(tmp_path: Path, kafka: str) -> Iterator[Project]:
    made = Project(tmp_path, kafka)
    made.ok("topics", "create")
    yield made
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.delete_topics([n for n in admin.list_topics(timeout=10).topics if made.name in n]).values():
        future.result()


def bury(project: Project, n: int, reason: str, attempt: int = 0, origin: str | None = None) -> None:
    """Write `n` dead letters as a worker does."""
    producer = Producer({"bootstrap.servers": project.bootstrap_servers})
    for i in range(n):
        headers = [
            ("traceparent", b"00-abc"),
            ("__connect.errors.topic", (origin or f"{project.name}.events").encode()),
            ("__connect.errors.partition", b"1"),
            ("__connect.errors.offset", str(i).encode()),
            ("__connect.errors.stage", b"decode"),
            ("__connect.errors.exception.message", f"what was wrong with {i}".encode()),
            ("pipeline.reason", reason.encode()),
            ("pipeline.attempt", str(attempt).encode()),
        ]
        producer.produce(
            f"{project.name}.dead-letters", key=f"k{i}", value=f"{reason} {i}\xff".encode("latin-1"), headers=headers
        )
    assert producer.flush(20) == 0


def raw(project: Project, topic: str) -> list[Any]:
    """Every record of a topic, read with confluent-kafka alone."""
    consumer = Consumer(
        {"bootstrap.servers": project.bootstrap_servers, "group.id": "raw", "enable.partition.eof": True}
    )
    partitions = [TopicPartition(f"{project.name}.{topic}", p, 0) for p in range(3)]
    consumer.assign(partitions)
    found, ended = [], 0
    while ended < len(partitions):
        message = consumer.poll(20)
        assert message is not None
        if message.error() is None:
            found.append(message)
        else:
            ended += 1
    consumer.close()
    return found


def test_replayed_rows_come_back_from_tail(project: Project) -> None:
    """Every row of the file is on the topic once, each field with its value, and the label is not among them."""
    assert f"sent {ROWS} events" in project.ok("replay", str(project.data), "--rate", "0")
    found = {r["order_no"]: r for r in project.records("tail", "events", "--from-beginning", "--until-end", "--json")}
    assert len(found) == ROWS
    with project.data.open(encoding="utf-8") as file:
        for n, row in enumerate(csv.DictReader(file)):
            assert found[f"o{n}"] == {
                "order_no": row["order no"],
                "at": 1_704_067_200_000 + n * 1000,
                "amount": float(row["amount"]),
                "items": int(row["items"]),
                "shop": row["shop"] or None,
                "member": row["member"] == "true",
            }


def test_replay_of_a_part_keeps_keys_and_order(project: Project) -> None:
    """--from and --to send exactly these rows, keyed by id, in file order within a partition."""
    project.ok("replay", str(project.data), "--from", "10", "--to", "50", "--rate", "0")
    sent = raw(project, "events")
    assert {m.key().decode() for m in sent} == {f"o{n}" for n in range(10, 50)}
    for partition in range(3):
        numbers = [int(m.key()[1:]) for m in sent if m.partition() == partition]
        assert numbers == sorted(numbers)


def test_replay_keeps_to_its_rate(project: Project) -> None:
    """100 events at 200 a second take half a second: not at once, and not much longer."""
    started = time.monotonic()
    project.ok("replay", str(project.data), "--to", "100", "--rate", "200")
    assert time.monotonic() - started >= 0.45
    out = project.ok("replay", str(project.data), "--to", "121", "--speed", "240")
    assert 0.5 <= float(out.split(" in ")[1].split(" s")[0]) < 10, out


def test_interrupted_replay_says_what_it_sent(project: Project) -> None:
    """Ctrl-C ends with exit code 130; what it says it sent is what is on the topic."""
    command = [sys.executable, "-m", "pipeline.cli", "replay", str(project.data), "--rate", "100", "--loop"]
    process = subprocess.Popen(
        command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    try:
        deadline = time.monotonic() + 60
        # Until the replay has made the topic, tail says that there is none.
        while not (seen := project.run("tail", "events", "--from-beginning", "--max", "1", "--json")).stdout:
            assert seen.exit_code in (0, 1)
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"sent {len(raw(project, 'events'))} events" in out
    assert "Traceback" not in err


def test_tail_stops_and_filters(project: Project) -> None:
    """--max counts what was shown, --filter compares as JSON shows it, --partition and --offset choose."""
    project.ok("replay", str(project.data), "--rate", "0")
    base = ("tail", "events", "--json")
    assert len(project.records(*base, "--from-beginning", "--max", "7")) == 7
    empty = project.records(*base, "--from-beginning", "--until-end", "--filter", "shop=null")
    assert {r["order_no"] for r in empty} == {f"o{n}" for n in range(0, ROWS, 7)}
    both = ("--filter", "member=true", "--filter", "items=3")
    assert all(
        r["member"] and r["items"] == 3 for r in project.records(*base, "--from-beginning", "--until-end", *both)
    )
    last = project.records(*base, "--partition", "1", "--offset", "-4", "--until-end")
    assert len(last) == 4
    first = project.ok("tail", "events", "--from-beginning", "--max", "1")
    assert first.count("\n") == 1
    assert "order_no=o" in first


def test_tail_leaves_out_what_is_no_avro(project: Project) -> None:
    """A broken record among the events is reported on stderr and does not stop the others."""
    producer = Producer({"bootstrap.servers": project.bootstrap_servers})
    for broken in (b"", b"not avro", b"\x00\x00\x00\xff\xff", None):
        producer.produce(f"{project.name}.events", key=b"x", value=broken)
    producer.flush(20)
    project.ok("replay", str(project.data), "--to", "20", "--rate", "0")
    result = project.run("tail", "events", "--from-beginning", "--until-end", "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 20
    assert "4 records could not be decoded" in result.stderr


def test_dead_letters_are_counted_and_shown_with_their_bytes(project: Project) -> None:
    """`list` counts by reason; `--json` and `tail` give every header and the original bytes as base64."""
    bury(project, 5, "undecodable")
    bury(project, 2, "null_feature")
    text = project.ok("dead-letters", "list")
    assert [w for w in text.split() if w.isdigit()][:3] == ["5", "2", "7"]
    assert "what was wrong with 1" in text
    found = project.records("dead-letters", "list", "--json", "--reason", "null_feature")
    assert sorted(r["value"] for r in found) == ["bnVsbF9mZWF0dXJlIDD/", "bnVsbF9mZWF0dXJlIDH/"]
    assert {r["__connect.errors.stage"] for r in found} == {"decode"}
    tailed = project.records("tail", "dead-letters", "--from-beginning", "--until-end", "--json")
    assert len(tailed) == 7


def test_redrive_sends_the_original_once(project: Project) -> None:
    """Key, bytes and foreign headers go back unchanged with the attempt counted; a second call sends nothing."""
    bury(project, 4, "unknown_schema", attempt=1)
    assert "would send 4" in project.ok("dead-letters", "redrive", "--dry-run")
    assert raw(project, "events") == []
    assert "sent 4" in project.ok("dead-letters", "redrive")
    assert "nothing to redrive" in project.ok("dead-letters", "redrive")
    sent = raw(project, "events")
    assert {(m.key(), m.value()) for m in sent} == {
        (f"k{i}".encode(), f"unknown_schema {i}".encode() + b"\xff") for i in range(4)
    }
    assert all(dict(m.headers()) == {"traceparent": b"00-abc", "pipeline.attempt": b"2"} for m in sent)


def test_redrive_of_one_reason_leaves_the_others_for_later(project: Project) -> None:
    """Redriving one reason moves no other reason's progress; redriving all then sends exactly the rest."""
    bury(project, 3, "unknown_schema")
    bury(project, 3, "null_feature")
    bury(project, 3, "unknown_schema")
    redrive = ("dead-letters", "redrive")
    assert "sent 2 " in project.ok(*redrive, "--reason", "null_feature", "--max", "2")
    assert "sent 1 " in project.ok(*redrive, "--reason", "null_feature")
    assert "nothing" in project.ok(*redrive, "--reason", "null_feature")
    assert "sent 6 " in project.ok(*redrive)
    assert "nothing" in project.ok(*redrive, "--reason", "unknown_schema")
    bury(project, 1, "null_feature")
    assert "sent 1 " in project.ok(*redrive)
    counts = Counter(m.value()[:-1].decode() for m in raw(project, "events"))
    assert {counts[f"unknown_schema {i}"] for i in range(3)} == {2}
    assert [counts[f"null_feature {i}"] for i in range(3)] == [2, 1, 1]


def test_redrive_parks_what_failed_three_times(project: Project) -> None:
    """The loop guard: after three redrives a record stays where it is, and that is said."""
    bury(project, 1, "undecodable", attempt=3)
    bury(project, 1, "undecodable", attempt=2)
    result = project.run("dead-letters", "redrive")
    assert result.exit_code == 0
    assert "sent 1 " in result.stdout
    assert "parked: p" in result.stderr
    assert [dict(m.headers())["pipeline.attempt"] for m in raw(project, "events")] == [b"3"]


def test_redrive_to_a_topic_that_is_gone_is_refused(project: Project) -> None:
    """Nothing is sent and nothing is marked as sent when the original topic no longer exists."""
    bury(project, 2, "undecodable", origin="gone.events")
    result = project.run("dead-letters", "redrive")
    assert result.exit_code == 1
    assert "topic gone.events" in result.stderr
    assert project.run("dead-letters", "redrive").exit_code == 1


def test_status_counts_lag(project: Project) -> None:
    """Lag is what the workers' group has not committed yet, per partition."""
    project.ok("replay", str(project.data), "--rate", "0")
    consumer = Consumer({"bootstrap.servers": project.bootstrap_servers, "group.id": f"{project.name}-worker"})
    consumer.commit(offsets=[TopicPartition(f"{project.name}.events", 0, 10)], asynchronous=False)
    consumer.close()
    found = json.loads(project.ok("status", "--json"))
    assert found["lag"] == ROWS - 10
    assert sorted(found["lag_by_partition"]) == ["0", "1", "2"]
    assert found["last_trigger"] is None
    assert found["missing_topics"] == []
    assert "partition 2" in project.ok("status")


def test_topics_list_shows_what_is_there(project: Project) -> None:
    """Each role with its topic, partitions and records; creating again changes nothing."""
    made = project.ok("topics", "create")
    text = project.ok("topics", "list")
    there = set(re.findall(rf"{project.name}\.[a-z-]+", text))
    assert there >= {
        f"{project.name}.{role}" for role in ("events", "predictions", "batch-summaries", "model-releases")
    }
    assert sorted(made.splitlines()) == sorted(f"{topic}: exists" for topic in there)
    assert "missing" not in text


def test_check_reports_every_problem_at_once(project: Project) -> None:
    """A schema without its time field, a missing bundle, a missing topic: three problems from one call."""
    text = (project.folder / "pipeline.toml").read_text("utf-8").replace('time_field = "at"', 'time_field = "when"')
    extra = 'predictions = "not.there"\ncreate = false\n'
    (project.folder / "pipeline.toml").write_text(text.replace("partitions = 3\n", extra), "utf-8")
    result = project.run("check")
    assert result.exit_code == 1
    errors = result.stderr.splitlines()
    assert sum("events.time_field" in e for e in errors) == 1, errors
    assert sum("champion" in e for e in errors) == 1, errors
    assert sum("topics.predictions: not.there does not exist" in e for e in errors) == 1, errors
    assert all(e.startswith("error: ") for e in errors)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
