"""Redriving dead letters, attacked: killed in the middle, letters that fail again and again, headers that lie."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer

from benchmarks import clients, job
from pipeline import codec
from tests.faults.conftest import Make
from tests.pipelines import PATIENCE_S, Pipeline, eventually

pytestmark = pytest.mark.timeout(300)

#: All of the input may be bad.
EXACT = {"delivery.mode": "exactly_once", "delivery.commit_interval_ms": 50, "input.bad_share_max": 1.0}
STEPS = (
    "before send offsets to transaction",
    "after send offsets to transaction",
    "before commit transaction",
    "after commit transaction",
)


def redrive(pipeline: Pipeline, *arguments: str) -> str:
    """A redrive's report."""
    process = pipeline.start("dead-letters", "redrive", *arguments)
    assert process.wait() == 0, process.log()
    return process.log()


def events_with_headers(pipeline: Pipeline) -> list[tuple[bytes, dict[str, bytes]]]:
    """Value and headers of each event, as a read_committed reader finds them."""
    read = clients.read_all(pipeline.bootstrap_servers, pipeline.job.input_topic, "verify", PATIENCE_S)
    return [(message.value(), dict(message.headers() or [])) for messages in read for message in messages]


def bury(pipeline: Pipeline, letters: int) -> None:
    """Write dead letters of this pipeline's events, of two reasons in turn."""
    sender = Producer({"bootstrap.servers": pipeline.bootstrap_servers})
    for number in range(letters):
        headers = [
            ("__connect.errors.topic", pipeline.job.input_topic.encode()),
            ("pipeline.reason", (b"unknown_schema", b"null_feature")[number % 2]),
        ]
        sender.produce(f"{pipeline.name}.dead-letters", str(number).encode(), f"k{number}".encode(), headers=headers)
        sender.poll(0)
    assert sender.flush(PATIENCE_S) == 0


@pytest.mark.case("B34")
def test_a_redrive_killed_at_any_step_sends_each_letter_once(make: Make, counted: Callable[..., None]) -> None:
    """SIGKILL around sending and remembering: what was sent is remembered, and what was not is sent by the next."""
    letters = 20_000
    pipeline = make()
    assert pipeline.start("topics", "create").wait() == 0
    bury(pipeline, letters)
    for step in STEPS:
        process = pipeline.start("dead-letters", "redrive", launcher=("tests.faults.crashing", step))
        assert process.wait() == -signal.SIGKILL, f"{step}: {process.log()[-2000:]}"
    assert "sent" in redrive(pipeline)
    assert "nothing to redrive" in redrive(pipeline)
    counts = Counter(value for value, _ in events_with_headers(pipeline))
    lost, duplicated = letters - len(counts), counts.total() - len(counts)
    counted(letters=letters, kills=len(STEPS), lost=lost, duplicated=duplicated)
    assert (lost, duplicated) == (0, 0)


@pytest.mark.case("B34")
def test_a_letter_that_fails_again_is_parked_at_the_limit(make: Make, counted: Callable[..., None]) -> None:
    """Through real workers: the attempt rises by one a redrive, stops at three; forged headers change little."""
    pipeline = make(settings=EXACT)
    pipeline.start("run", "worker")
    forged = {"high": b"3", "absurd": b"999999", "negative": b"-5", "garbage": b"\xff"}
    producer = Producer({"bootstrap.servers": pipeline.bootstrap_servers})
    producer.produce(pipeline.job.input_topic, b"no event at all", b"honest")
    for key, attempt in forged.items():
        producer.produce(pipeline.job.input_topic, b"no event at all", key, headers=[("pipeline.attempt", attempt)])
    assert producer.flush(PATIENCE_S) == 0

    def await_letters(wanted: Counter[bytes | None]) -> None:
        eventually(lambda: Counter(d.key for d in pipeline.dead_letters()) == wanted, f"letters: {wanted}")

    expected: Counter[bytes | None] = Counter({b"honest": 1, **{key.encode(): 1 for key in forged}})
    for number in range(3):
        await_letters(expected)
        report = redrive(pipeline)
        assert report.count("parked") == (number == 0)  # the one that claims to have been redriven three times
        expected += Counter(key for key in expected if key != b"high")
    await_letters(expected)
    report = redrive(pipeline)
    assert report.count("parked") == 4
    assert "nothing to redrive" in report
    attempts = sorted(d.headers["pipeline.attempt"] or b"" for d in pipeline.dead_letters() if d.key == b"honest")
    counted(redrives=4, letters=expected.total(), parked=5)
    assert attempts == [b"0", b"1", b"2", b"3"]


@pytest.mark.case("B5")
def test_letters_are_scored_once_their_cause_is_mended(make: Make, counted: Callable[..., None]) -> None:
    """Events of a schema that nobody had registered: dead letters; registered and redriven: each predicted once."""
    events = 1_000
    pipeline = make(settings=EXACT)
    registry = codec.open_registry(None, pipeline.config.parent / "registry", None)
    worker = pipeline.start("run", "worker")
    worker.await_log('"running"')
    wider: dict[str, Any] = {**job.EVENT_SCHEMA, "fields": [*job.EVENT_SCHEMA["fields"]]}
    wider["fields"].append({"name": "note", "type": "string", "default": ""})
    unknown_id = registry.register(f"{pipeline.name}.scratch-value", '"bytes"') + 1
    values = [b"\0" + unknown_id.to_bytes(4, "big") + value[5:] + b"\0" for value in job.encode_events(events)]
    pipeline.send(values)
    eventually(lambda: len(pipeline.dead_letters()) == events, "all of them dead letters")
    assert {d.reason for d in pipeline.dead_letters()} == {"unknown_schema"}
    assert registry.register(f"{pipeline.job.input_topic}-value", json.dumps(wider)) == unknown_id
    assert worker.terminate() == 0
    worker = pipeline.start("run", "worker")
    assert f"sent {events:,}" in redrive(pipeline)
    pipeline.await_committed(2 * events)
    assert worker.terminate() == 0
    numbers = Counter(pipeline.outputs().numbers.tolist())
    counted(events=events, lost=events - len(numbers), duplicated=numbers.total() - len(numbers))
    assert numbers == Counter(range(events))
