"""Workers killed at random under load, and workers that come and go every second: every event is counted."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import job
from tests.faults.conftest import Judge, Make
from tests.faults.observing import SESSION, passers_by
from tests.soak.supervisor import FAULTS, Plan, Soak
from tests.soak.verdict import judge as judge_soak

pytestmark = pytest.mark.timeout(480)

EVENTS = 400_000
STORM_S = 16.0


@pytest.mark.case("F36")
def test_fifteen_kills_at_random_moments(tmp_path: Path, counted: Callable[..., None]) -> None:
    """The soak, a minute of it: three workers under load, one killed every 4 s; 0 lost, 0 doubled, 0 out of order."""
    plan = Plan(steady_s=60.0, kill_every_s=4.0, peak_s=6.0)
    found = judge_soak(Soak(plan, tmp_path).run(), plan)
    counts = {name: found[name] for name in FAULTS}
    counted(mode="exactly_once", events=found["events"], **counts, kills=found["kills"])
    assert found["passed"], found["faults"]
    assert found["kills"] == 15
    assert found["predicted"] == found["events"] > 0


@pytest.mark.case("F9", "F10")
@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_a_storm_of_rebalances(make: Make, judge: Judge, mode: str) -> None:
    """From 1 to 3 workers and back, twice, while others join and leave without a pause: 0 lost, 0 doubled, in order."""
    pipeline = make(settings={"delivery.mode": mode, "kafka.consumer_options": SESSION}, partitions=6)
    values = job.encode_events(EVENTS)
    steady = pipeline.start("run", "worker", "--slot", "1")
    steady.await_log('"running"')
    sent = 0
    with passers_by(pipeline) as visits:
        for _ in range(2):
            guests = [pipeline.start("run", "worker", "--slot", str(slot)) for slot in (2, 3)]
            until = time.monotonic() + STORM_S / 2
            while time.monotonic() < until or not all('"rebalanced"' in guest.log() for guest in guests):
                piece = values[sent : sent + 1_000]
                pipeline.send(piece, sent)
                sent += len(piece)
                time.sleep(0.1)
            for guest in guests:
                assert guest.terminate() == 0, guest.log()[-4000:]
    pipeline.await_committed(sent)
    assert steady.terminate() == 0, steady.log()[-4000:]
    rebalances = sum(process.log().count('"rebalanced"') for process in pipeline.processes)
    assert sum(got > 0 for got in visits) >= 3, f"too few got partitions: {visits}"
    found = judge(pipeline, sent, mode, rebalances=rebalances, visits=len(visits))
    assert (found["duplicated"], found["reordered"]) == (0, 0)


@pytest.mark.case("F9", "F10")
@pytest.mark.parametrize(
    ("option", "value"),
    [("partition.assignment.strategy", "range"), ("group.protocol", "consumer")],
)
def test_a_group_it_cannot_serve_is_refused(make: Make, option: str, value: str) -> None:
    """Eager assignment and KIP-848 take partitions without the handler that commits: exit code 2 and one line."""
    pipeline = make(settings={"kafka.consumer_options": {option: value}})
    worker = pipeline.start("run", "worker")
    assert worker.wait() == 2
    lines = [line for line in worker.log().splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert "kafka.consumer_options" in lines[0]
    assert option in lines[0]
