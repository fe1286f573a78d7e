"""Bad input on a real Kafka: everything that can be wrong with a record, among good ones, through the real worker."""

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiokafka
import numpy as np
import pyarrow as pa
import pytest
from aiokafka.producer import message_accumulator
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from benchmarks import clients, job, ours
from pipeline import codec
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract, Reason, Stage
from pipeline.scoring.fields import FIRST_TIME_MS, LAST_TIME_MS
from tests.faults import bad_events as events
from tests.faults.bad_events import BROKEN, STRANGE, Case
from tests.faults.conftest import Make
from tests.pipelines import PATIENCE_S, ROOT, Pipeline, Process, eventually

pytestmark = pytest.mark.timeout(300)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Good events around and between the others: enough that all of them are taken in a few batches.
NEIGHBOURS = 3
#: Written in transactions that were aborted: nobody may ever see them.
ABORTED = 40
#: What a worker takes with nothing to do is about 350 MiB, most of it torch.
PEAK_MIB_MAX = 800


def rich(make: Make, schema: str, bundle: bundles.Bundle, **settings: Any) -> tuple[Pipeline, codec.FileRegistry]:
    """A pipeline of one partition for events of another schema and model than the standard job's."""
    pipeline = make(partitions=1, settings={"input.bad_share_max": 1.0, "observe.port": 0, **settings})
    project = pipeline.folder / "project"
    (project / "schemas" / "event.avsc").write_text(schema, "utf-8")
    bundles.write(bundle, project / "models" / "champion", overwrite=True)
    # Kafka 4 refuses dates that are more than an hour ahead, unless told otherwise; so it did not before.
    ahead = ConfigEntry("message.timestamp.after.max.ms", str(2**63 - 1), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, pipeline.job.input_topic, incremental_configs=[ahead])
    for done in pipeline.admin.incremental_alter_configs([resource]).values():
        done.result(PATIENCE_S)
    return pipeline, codec.FileRegistry(project / "registry")


class Input:
    """Sends records one by one, and knows which offset each has."""

    def __init__(self, pipeline: Pipeline) -> None:
        common = {"bootstrap.servers": pipeline.bootstrap_servers, "message.max.bytes": 16_777_216, "log_level": 2}
        self._plain = Producer(common)
        self._packed = Producer({**common, "compression.type": "gzip"})
        self._topic = pipeline.job.input_topic
        self.offsets: dict[int, int] = {}
        self._failed: list[str] = []

    def send(self, number: int, case: Case, value: bytes | None) -> None:
        """Record `number` of the run."""

        def delivered(error: Any, message: Message) -> None:
            if error is not None:
                self._failed.append(f"{case.name}: {error}")
            self.offsets[number] = message.offset()

        stamp = {} if case.timestamp_ms is None else {"timestamp": case.timestamp_ms}
        producer = self._packed if case.compressed else self._plain
        producer.produce(self._topic, value, case.key, 0, on_delivery=delivered, headers=case.headers or None, **stamp)
        producer.poll(0)

    def flush(self) -> None:
        for producer in (self._plain, self._packed):
            assert producer.flush(PATIENCE_S) == 0
        assert self._failed == []


class RawName:
    """A header's name that no Python client lets pass."""

    def encode(self, *_: str) -> bytes:
        return b"\xff\xfe"


async def send_raw_header(pipeline: Pipeline, values: list[bytes]) -> list[int]:
    """Records whose header has a name that is no UTF-8, as a C or Rust client may write it; their offsets."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=pipeline.bootstrap_servers, enable_idempotence=False)
    await producer.start()
    try:
        offsets = []
        for value in values:
            batch = producer.create_batch()
            batch.append(key=b"k", value=value, timestamp=None, headers=[(RawName(), b"x"), ("fine", b"y")])
            batch.close()
            offsets.append((await (await producer.send_batch(batch, pipeline.job.input_topic, partition=0))).offset)
        return offsets
    finally:
        await producer.stop()


def abort_some(pipeline: Pipeline, values: list[bytes]) -> None:
    """Write records in a transaction and abort it."""
    producer = Producer(
        {"bootstrap.servers": pipeline.bootstrap_servers, "transactional.id": pipeline.name, "log_level": 2}
    )
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    for value in values:
        producer.produce(pipeline.job.input_topic, value, b"k", 0)
    producer.flush(PATIENCE_S)
    producer.abort_transaction(PATIENCE_S)


def read(pipeline: Pipeline, topic: str) -> list[Message]:
    group = f"{pipeline.name}.verify"
    return [m for some in clients.read_all(pipeline.bootstrap_servers, topic, group, PATIENCE_S) for m in some]


def scrape(worker: Process) -> dict[str, float]:
    """Every series of a worker's /metrics."""
    worker.await_log("/metrics")
    url = re.findall(r"http://127\.0\.0\.1:\d+/metrics", worker.log())[-1]
    with urlopen(url, timeout=PATIENCE_S) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def peak_mib(process: Process) -> int:
    """The most memory (RSS) that a process has used, MiB."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text("ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


def shown(pipeline: Pipeline, *arguments: str) -> str:
    """What a command prints, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--config", str(pipeline.config), *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return (done.stdout + done.stderr).decode()


@pytest.mark.case(*(f"B{n}" for n in range(1, 28)), "B32", "B33", "B35")
@pytest.mark.parametrize(("mode", "log_format"), [("at_least_once", "json"), ("exactly_once", "console")])
def test_whatever_is_wrong_with_a_record_its_neighbours_are_scored(
    make: Make, counted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, mode: str, log_format: str
) -> None:
    """Every kind of bad event, among good ones: each exactly one dead letter, with its bytes, key, reason and place;
    every good and every merely strange one exactly one prediction, and the right one; all of it committed.
    """
    monkeypatch.setattr(message_accumulator, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    settings = {"delivery.mode": mode, "observe.log_format": log_format, "scoring.retry_backoff_ms": 10.0}
    pipeline, registry = rich(make, events.SCHEMA, events.bundle(), **settings)
    subject = f"{pipeline.name}-other"
    ids = events.Ids(
        registry.register(subject, events.SCHEMA),
        pipeline.foreign_schema_id(),
        registry.register(f"{subject}-old", events.WITHOUT_X),
    )
    cases: dict[int, Case] = {}
    values: dict[int, bytes | None] = {}
    sender = Input(pipeline)
    for case in [*STRANGE, *BROKEN, *STRANGE[:1]]:
        for one in [*[Case("good", lambda n, ids: events.encode(events.good(n), ids.event), None)] * NEIGHBOURS, case]:
            number = len(cases)
            cases[number], values[number] = one, one.value(number, ids)
            sender.send(number, one, values[number])
        if len(cases) == 40:
            sender.flush()
            abort_some(pipeline, [events.encode(events.good(1), ids.event)] * ABORTED)
    sender.flush()
    for reason in (None, Reason.WRONG_MAGIC):
        number = len(cases)
        cases[number] = Case("B25: a header whose name is no text", lambda *_: b"{}", reason)
        values[number] = b"{}" if reason else events.encode(events.good(number), ids.event)
        (sender.offsets[number],) = asyncio.run(send_raw_header(pipeline, [values[number] or b""]))

    worker = pipeline.start("run", "worker")
    end = max(sender.offsets.values()) + 1
    pipeline.await_committed(end)
    series, used_mib = scrape(worker), peak_mib(worker)
    assert worker.terminate() == 0, worker.log()[-3000:]

    letters = read(pipeline, f"{pipeline.name}.dead-letters")
    _check_letters(pipeline, letters, {sender.offsets[n]: (cases[n], values[n]) for n in cases if cases[n].reason})
    scored = {sender.offsets[n]: values[n] for n in cases if cases[n].reason is None}
    _check_predictions(pipeline, registry, scored)
    assert used_mib < PEAK_MIB_MAX
    bad = sum(case.reason is not None for case in cases.values())
    assert sum(n for name, n in series.items() if name.startswith("pipeline_rejections_total")) == bad
    counted(mode=mode, events=len(cases), bad=bad, dead_letters=len(letters), lost=0, duplicated=0, peak_mib=used_mib)
    _check_nothing_told(worker.log(), [*series], letters, log_format)
    _check_terminal(pipeline)


def _check_letters(pipeline: Pipeline, letters: list[Message], expected: dict[int, tuple[Case, bytes | None]]) -> None:
    found = Counter(int(dict(m.headers())["__connect.errors.offset"]) for m in letters)
    assert found == Counter(dict.fromkeys(expected, 1))
    for letter in letters:
        headers = {name: (value or b"").decode() for name, value in letter.headers()}
        case, value = expected[int(headers["__connect.errors.offset"])]
        left_out = headers.get("pipeline.left.out")
        assert (left_out, headers["pipeline.reason"]) == (case.left_out, case.reason), (case.name, headers)
        assert headers["__connect.errors.stage"] == case.stage, case.name
        assert letter.value() == (None if "value" in (left_out or "") else value), case.name
        assert letter.key() == (None if "key" in (left_out or "") else case.key), case.name
        assert headers["__connect.errors.topic"] == pipeline.job.input_topic
        assert headers["__connect.errors.partition"] == "0"
        assert headers["pipeline.attempt"] == "0"
        names = [name for name, _ in letter.headers()]
        assert all(names.count(name) == 1 for name in names if name.startswith(("pipeline.", "__connect.errors.")))
        own = [h for h in letter.headers() if not h[0].startswith(("pipeline.", "__connect.errors."))]
        kept = [h for h in case.headers if not str(h[0]).startswith(("pipeline.", "__connect.errors."))]
        assert own == ([] if left_out else kept), case.name


def _check_predictions(pipeline: Pipeline, registry: codec.FileRegistry, scored: dict[int, bytes | None]) -> None:
    rows = codec.RowCodec(registry)
    predictions = [rows.decode(m.value()) for m in read(pipeline, pipeline.job.output_topic)]
    assert Counter(p["offset"] for p in predictions) == Counter(dict.fromkeys(scored, 1))
    reader = codec.ColumnarDecoder(registry, events.SCHEMA)
    for prediction in predictions:
        columns = reader.decode([scored[prediction["offset"]]]).columns
        (time_ms,) = columns.column("time").cast(pa.int64()).to_pylist()
        (event,) = columns.drop_columns(["time"]).to_pylist()
        assert prediction["event_id"] == event["id"]
        is_date = FIRST_TIME_MS <= time_ms <= LAST_TIME_MS
        assert (
            (prediction["event_time"] - EPOCH).total_seconds() * 1000 == time_ms
            if is_date
            else (prediction["event_time"] is None)
        )
        assert prediction["outputs"] == [pytest.approx(events.score(event), rel=1e-6)]


def _check_nothing_told(log: str, series: list[str], letters: list[Message], log_format: str) -> None:
    """What a record holds is in its bytes, and nowhere else; and what a fault says stays on its line."""
    told = [v for m in letters for n, v in m.headers() if n.startswith(("pipeline.", "__connect.")) and v is not None]
    for text in [log.encode(), *(name.encode() for name in series), *told]:
        assert not any(secret in text for secret in (b"secret", b"1e+39", b"3e+38", b"never seen", b"iiiii", b"KKKKK"))
    assert all(text.decode().isprintable() and len(text) <= 1_024 for text in told)
    lines = log.splitlines()
    assert any("model failed, trying again" in line and "forged" in line for line in lines)
    for line in lines:
        assert line.isprintable()
        assert json.loads(line)["timestamp"] if log_format == "json" else re.match(r"\d{4}-\d\d-\d\dT", line), line


def _check_terminal(pipeline: Pipeline) -> None:
    """Nothing that a record holds reaches the terminal as anything but text."""
    commands = [
        *(("tail", stream, "--from-beginning", "--until-end") for stream in ("events", "predictions", "dead-letters")),
        ("tail", "events", "--from-beginning", "--until-end", "--json"),
        ("dead-letters", "list", "--max", "100"),
        ("dead-letters", "list", "--json"),
    ]
    for command in commands:
        lines = shown(pipeline, *command).split("\n")
        assert len(lines) > 5, command
        assert [line for line in lines if not line.isprintable()] == [], command


# --------------------------------------------------------------------------- many categories

MANY = 1_000_000
_VISIT = {"id": "string", "at": "long", "shop": "string", "x": "float"}
VISIT = json.dumps({"type": "record", "name": "Visit", "fields": [{"name": n, "type": t} for n, t in _VISIT.items()]})


@pytest.mark.case("B31")
def test_a_million_unseen_categories_take_no_memory(make: Make, counted: Callable[..., None]) -> None:
    """Each event names a shop that nobody has seen: all are scored as unknown, in the memory of the first of them,
    and there are as many metric series as before.
    """
    contract = FeatureContract(
        (Feature("shop", "category", vocabulary=("a",)), Feature("x", "number")), OutputContract("regression", 1)
    )
    bundle = bundles.make(
        model_id="visits",
        architecture=Architecture(module="tests.faults.bad_events:Visits"),
        contract=contract,
        weights=loading.weights_of(events.Visits()),
    )
    pipeline, registry = rich(make, VISIT, bundle, **{"events.time_field": "at", "events.key_field": "id"})
    encoder = codec.ColumnarEncoder(VISIT, registry.register("visits", VISIT))
    worker = pipeline.start("run", "worker")
    sender, part = clients.Sender(pipeline.bootstrap_servers), MANY // 5
    used_mib, series = [], []
    for first in range(0, MANY, part):
        names = [f"shop-{n:08d}" for n in range(first, first + part)]
        rows = {"id": names, "at": range(first, first + part), "shop": names, "x": np.ones(part, np.float32)}
        values = encoder.encode(pa.record_batch(rows))
        sender.send(pipeline.job.input_topic, values, [None] * part)
        sender.flush()
        pipeline.await_committed(first + part)
        used_mib.append(peak_mib(worker))
        series.append(len(scrape(worker)))
    imputed = {name: n for name, n in scrape(worker).items() if "shop:unknown" in name and "_total" in name}
    assert worker.terminate() == 0
    assert list(imputed.values()) == [MANY]
    assert pipeline.predicted() == MANY
    assert series[-1] == series[0]
    assert used_mib[-1] < used_mib[1] * 1.1, used_mib
    counted(mode="at_least_once", events=MANY, lost=0, duplicated=0, series=series[-1], peak_mib=used_mib[-1])


# --------------------------------------------------------------------------- a damaged batch


@pytest.mark.case("B36")
@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_a_damaged_batch_is_never_scored_and_never_skipped(
    make: Make, counted: Callable[..., None], tmp_path: Path, mode: str
) -> None:
    """A bit of a stored batch turned over: the worker scores and commits what is before it, stops with exit code 11 and
    says where; nothing of the batch or behind it. Once the group's offset was set behind it, the rest is scored.
    """
    part = 1_000
    values = job.encode_events(3 * part)
    with EmbeddedKafka(tmp_path / "kafka", port=0) as kafka:
        pipeline = make(kafka.bootstrap_servers, partitions=1, settings={"delivery.mode": mode})
        for first in range(0, 3 * part, part):  # three batches, or more
            pipeline.send(values[first : first + part], first)
        kafka.stop()
        (segment,) = (tmp_path / "kafka" / "data").glob(f"{pipeline.job.input_topic}-0/*.log")
        stored = bytearray(segment.read_bytes())
        stored[stored.index(b"e%015d" % (part + part // 2))] ^= 1
        segment.write_bytes(stored)
        kafka.start()

        worker = pipeline.start("run", "worker")
        assert worker.wait() == 11, worker.log()[-3000:]
        told = worker.log().splitlines()[-1]
        place = re.search(re.escape(pipeline.job.input_topic) + r"\[0\]@(\d+): a batch of records is damaged", told)
        assert place, told
        damaged = int(place[1])
        assert damaged <= part + part // 2
        assert pipeline.committed() == damaged
        assert np.sort(pipeline.outputs().numbers).tolist() == list(range(damaged))

        _give_up(pipeline, 2 * part)
        worker = pipeline.start("run", "worker")
        eventually(lambda: pipeline.committed() == 3 * part, "the rest committed")
        assert worker.terminate() == 0
        numbers = pipeline.outputs().numbers
    counts = np.bincount(numbers, minlength=3 * part)
    assert counts[damaged : 2 * part].sum() == 0
    assert (counts[2 * part :] == 1).all()
    counted(mode=mode, events=3 * part, damaged=2 * part - damaged, scored_of_them=0)


def _give_up(pipeline: Pipeline, offset: int) -> None:
    """Set the workers' group behind the batch, as `kafka-consumer-groups --reset-offsets` does."""
    consumer = Consumer({"bootstrap.servers": pipeline.bootstrap_servers, "group.id": ours.group(pipeline.name)})
    consumer.commit(offsets=[TopicPartition(pipeline.job.input_topic, 0, offset)], asynchronous=False)
    consumer.close()


def test_the_tables_are_complete() -> None:
    """Every reason that an event can have is shown by a case, and every stage; those of labels are not events'."""
    assert {case.reason for case in BROKEN} >= set(Reason) - {
        Reason.NULL_FEATURE,
        Reason.MISSING_ID,
        Reason.MISSING_LABEL,
    }
    assert {case.stage for case in BROKEN} == set(Stage) - {Stage.LABEL}
