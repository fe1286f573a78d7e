"""Stops of every kind under load, on real processes: what was sent is counted afterwards, event by event."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import job
from tests.faults.conftest import Judge, Make
from tests.pipelines import eventually

pytestmark = pytest.mark.timeout(300)

both_modes = pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])


@pytest.mark.case("F5")
@both_modes
def test_sigterm_under_load_drains_and_a_restart_goes_on(make: Make, judge: Judge, mode: str) -> None:
    """SIGTERM in the middle: exit code 0, what came out is what is committed; after a restart 0 lost, 0 doubled."""
    events, pipeline = 300_000, make(settings={"delivery.mode": mode})
    pipeline.send(job.encode_events(events))
    worker = pipeline.start("run", "worker")
    eventually(lambda: pipeline.predicted() > 20_000, "20,000 predictions")
    assert worker.terminate() == 0, worker.log()[-4000:]
    assert len(pipeline.outputs().numbers) == pipeline.committed() < events

    worker = pipeline.start("run", "worker")
    pipeline.await_committed(events)
    assert worker.terminate() == 0
    assert judge(pipeline, events, mode) == {"lost": 0, "duplicated": 0, "reordered": 0}


@pytest.mark.case("F36")
@both_modes
def test_sigkill_loses_nothing(make: Make, judge: Judge, mode: str) -> None:
    """Three SIGKILLs under load: 0 lost; at least once repeats what was not committed, exactly once nothing."""
    # 6 s is the least that a broker allows; partitions of a killed worker wait for so long.
    short = {"delivery.commit_interval_ms": 100, "kafka.consumer_options": {"session.timeout.ms": "6000"}}
    events, kills, pipeline = 400_000, 3, make(settings={**short, "delivery.mode": mode})
    pipeline.send(job.encode_events(events))
    for kill in range(kills):
        worker = pipeline.start("run", "worker")
        target = pipeline.committed() + events // 10
        eventually(lambda target=target: pipeline.committed() > target, f"progress before kill {kill}")
        worker.signal(signal.SIGKILL)
        worker.wait()
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(events)
    assert worker.terminate() == 0
    found = judge(pipeline, events, mode, kills=kills)
    # One commit interval of a worker is at most a few tens of thousands of events.
    assert found["duplicated"] < kills * 100_000


@pytest.mark.case("F10")
@both_modes
def test_a_second_worker_joins_and_leaves_under_load(make: Make, judge: Judge, mode: str) -> None:
    """Cooperative rebalances in both directions lose nothing, double nothing, and keep the order of each key."""
    events, pipeline = 400_000, make(settings={"delivery.mode": mode})
    values = job.encode_events(events)
    first = pipeline.start("run", "worker", "--slot", "1")
    pipeline.send(values[:100_000])
    first.await_log('"running"')
    second = pipeline.start("run", "worker", "--slot", "2")
    for at in range(100_000, 300_000, 5_000):
        pipeline.send(values[at : at + 5_000], at)
        time.sleep(0.05)
    second.await_log("rebalanced")
    assert second.terminate() == 0, second.log()[-4000:]
    pipeline.send(values[300_000:], 300_000)
    pipeline.await_committed(events)
    assert first.terminate() == 0, first.log()[-4000:]
    assert judge(pipeline, events, mode) == {"lost": 0, "duplicated": 0, "reordered": 0}
    assert second.log().count("rebalanced") >= 1


@pytest.mark.case("F32")
def test_a_model_that_raises_ends_the_worker_and_its_batch_stays_uncommitted(make: Make) -> None:
    """Bounded retries, then exit code 6 with the cause; the poisoned event is neither scored nor committed."""
    events, poison = 50_000, 30_000
    pipeline = make(
        module="tests.faults.models:FailsOn",
        arguments={"value": float(job.features(events)[poison, 0])},
        # Small steps: the poisoned one is not the first.
        settings={"scoring.retries_max": 2, "scoring.retry_backoff_ms": 10.0, "scoring.step_max": 1_000},
    )
    pipeline.send(job.encode_events(events))
    worker = pipeline.start("run", "worker")
    assert worker.wait() == 6
    assert "this event is poison" in worker.log()
    assert "after 3 tries" in worker.log()
    outputs = pipeline.outputs()
    assert poison not in outputs.numbers
    open_partitions = pipeline.uncommitted_partitions()
    assert open_partitions
    # What is committed has its prediction.
    assert pipeline.committed() <= len(np.unique(outputs.numbers))


@pytest.mark.case("F32")
def test_a_model_that_recovers_is_tried_again(make: Make, judge: Judge, tmp_path: Path) -> None:
    """Two failures within the budget: no event is lost or doubled, and the worker lives on."""
    marks = tmp_path / "marks"
    marks.mkdir()
    events = 20_000
    pipeline = make(
        module="tests.faults.models:FailsTwice",
        arguments={"marks": str(marks)},
        settings={"scoring.retry_backoff_ms": 10.0},
    )
    pipeline.send(job.encode_events(events))
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(events)
    assert worker.terminate() == 0
    assert judge(pipeline, events, "at_least_once")["duplicated"] == 0
    assert worker.log().count("out of memory, say") == 2


@pytest.mark.case("F32")
def test_a_hung_model_cannot_hold_up_a_stop(make: Make) -> None:
    """SIGTERM while the model hangs: exit code 8 after the deadline, nothing committed."""
    pipeline = make(module="tests.faults.models:Hangs", settings={"delivery.shutdown_deadline_s": 2.0})
    pipeline.send(job.encode_events(1_000))
    worker = pipeline.start("run", "worker")
    worker.await_log("rebalanced")
    time.sleep(1.0)  # let the batch reach the model; if it did not, the exit code shows it
    worker.signal(signal.SIGTERM)
    assert worker.wait(30.0) == 8, worker.log()[-4000:]
    assert pipeline.committed() == 0
