"""Exactly once, attacked: paused workers, twins, transactions that outlive their time. Everything is counted."""

import signal
import time

import pytest

from benchmarks import job
from tests.faults.conftest import Judge, Make
from tests.pipelines import eventually

pytestmark = pytest.mark.timeout(300)

EVENTS = 300_000
EXACT = {"delivery.mode": "exactly_once", "delivery.commit_interval_ms": 100}


@pytest.mark.case("F6")
def test_a_worker_paused_beyond_its_session_commits_nothing_it_lost(make: Make, judge: Judge) -> None:
    """SIGSTOP until another worker has its partitions, then SIGCONT: the zombie's transaction is aborted."""
    session = {"kafka.consumer_options": {"session.timeout.ms": "6000"}}
    pipeline = make(settings={**EXACT, **session})
    zombie = pipeline.start("run", "worker", "--slot", "1")
    values = job.encode_events(EVENTS)
    pipeline.send(values[:100_000])
    eventually(lambda: pipeline.committed() > 10_000, "the first commits")
    zombie.signal(signal.SIGSTOP)
    heir = pipeline.start("run", "worker", "--slot", "2")
    pipeline.send(values[100_000:], 100_000)
    eventually(lambda: pipeline.committed() == EVENTS, "everything committed by the heir")
    zombie.signal(signal.SIGCONT)
    eventually(lambda: zombie.log().count('"rebalanced"') >= 2, "the zombie back in its group")
    assert zombie.terminate() == 0, zombie.log()[-3000:]
    assert heir.terminate() == 0, heir.log()[-3000:]
    judge(pipeline, EVENTS, "exactly_once")


@pytest.mark.case("F7")
def test_a_transaction_that_outlived_its_time_is_begun_anew(make: Make, judge: Judge) -> None:
    """SIGSTOP past transaction.timeout.ms: the broker aborts, the worker takes a new producer and goes on."""
    pipeline = make(
        module="tests.faults.models:Slow",
        arguments={"seconds": 0.05},
        settings={
            **EXACT,
            "delivery.commit_interval_ms": 2_000,
            "delivery.transaction_timeout_ms": 5_000,
            "scoring.step_max": 1_000,
            "kafka.consumer_options": {"session.timeout.ms": "40000"},
        },
    )
    worker = pipeline.start("run", "worker")
    pipeline.send(job.encode_events(EVENTS))
    eventually(lambda: pipeline.committed() > 10_000, "the first commits")
    time.sleep(0.5)  # the next transaction is open by now, and for another second or so
    worker.signal(signal.SIGSTOP)
    # The broker looks for transactions that are too old every 10 s; the session lasts longer than all that.
    time.sleep(17.0)
    worker.signal(signal.SIGCONT)
    assert pipeline.committed() < EVENTS, "too fast to be paused"
    pipeline.await_committed(EVENTS)
    assert worker.terminate() == 0, worker.log()[-3000:]
    assert "reading again from the last commit" in worker.log()
    judge(pipeline, EVENTS, "exactly_once")


@pytest.mark.case("F11")
def test_of_two_workers_with_one_id_the_older_is_fenced(make: Make, judge: Judge) -> None:
    """The same slot twice on one machine: the first ends with exit code 4, and nothing is doubled."""
    pipeline = make(settings=EXACT)
    older = pipeline.start("run", "worker")
    values = job.encode_events(EVENTS)
    pipeline.send(values[:100_000])
    eventually(lambda: pipeline.committed() > 10_000, "the first commits")
    younger = pipeline.start("run", "worker")
    younger.await_log('"rebalanced"')
    for at in range(100_000, EVENTS, 10_000):
        pipeline.send(values[at : at + 10_000], at)
        time.sleep(0.1)
    assert older.wait() == 4, older.log()[-3000:]
    assert "another instance" in older.log()
    eventually(lambda: pipeline.committed() == EVENTS, "everything committed by the younger")
    assert younger.terminate() == 0, younger.log()[-3000:]
    judge(pipeline, EVENTS, "exactly_once")
