"""A broker whose disk is full, under a running worker."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import job
from pipeline.bus.embedded import EmbeddedKafka
from tests.faults.conftest import Judge, Make
from tests.pipelines import PATIENCE_S, eventually

pytestmark = pytest.mark.timeout(400)

EVENTS = 100_000
#: What may still be written to the largest file of predictions: a tenth of what is still to come.
ROOM_BYTES = 200_000


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A Kafka of its own: this one dies."""
    kafka = EmbeddedKafka(tmp_path / "kafka", port=0)
    kafka.start(PATIENCE_S)
    yield kafka
    kafka.kill()


@pytest.mark.case("F28")
@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_a_full_disk_loses_nothing(make: Make, judge: Judge, broker: EmbeddedKafka, mode: str) -> None:
    """The broker can write no more and ends, as Kafka does; the worker waits, and goes on once there is room."""
    pipeline = make(broker.bootstrap_servers, settings={"delivery.mode": mode, "delivery.commit_interval_ms": 100})
    pipeline.send(job.encode_events(EVENTS))
    worker = pipeline.start("run", "worker")
    eventually(lambda: pipeline.predicted() > 0, "the first predictions")
    files = (broker.data_dir / "data").glob(f"{pipeline.job.output_topic}-*/*.log")
    limit = max(file.stat().st_size for file in files) + ROOM_BYTES
    assert broker.pid is not None
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (limit, limit))
    eventually(lambda: not broker.running, "the broker's end")
    assert "all log dirs" in broker.log_file.read_text("utf-8", "replace")
    assert worker.popen.poll() is None, worker.log()[-3000:]
    broker.kill()  # lets go of the folder
    broker.start(PATIENCE_S)  # without the limit: room was made
    pipeline.await_committed(EVENTS)
    assert worker.terminate() == 0, worker.log()[-3000:]
    judge(pipeline, EVENTS, mode)
