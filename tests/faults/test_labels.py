"""Labels that come late, twice, wrong or never, and the join killed meanwhile: one outcome for each labelled event."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from benchmarks import job
from tests.faults.conftest import Make
from tests.faults.labelling import Labeller
from tests.pipelines import Pipeline, eventually

pytestmark = pytest.mark.timeout(300)

EVENTS = 60_000
SETTINGS = {"labels.enabled": True, "delivery.mode": "exactly_once", "delivery.commit_interval_ms": 100}


def start(pipeline: Pipeline, events: int, keys: Sequence[bytes] | None = None) -> Labeller:
    """A worker and the join, both running, and the labeller of the events, whose keys are the job's if not given."""
    pipeline.start("run", "worker").await_log('"running"')
    labeller = Labeller(pipeline, events, keys)
    pipeline.start("run", "labels").await_log('"running"')
    return labeller


@pytest.mark.case("B28", "B29")
def test_labels_in_any_order_make_one_outcome_each(make: Make, counted: Callable[..., None]) -> None:
    """Early, late, repeated, contradicting, for nobody, broken: one outcome or dead letter each, or none where due."""
    pipeline = make(settings=SETTINGS)
    labeller = start(pipeline, EVENTS + 1_000)
    early, late = range(0, EVENTS, 3), range(1, EVENTS, 3)
    labeller.send(early)
    pipeline.send(job.encode_events(EVENTS))
    pipeline.await_committed(EVENTS)
    labeller.send(late)
    labeller.send(early[:5_000])  # again
    contradicting = late[:5_000]
    labeller.send_values([labeller.value(n, value=-1.0) for n in contradicting], contradicting)
    nobodys = range(EVENTS, EVENTS + 1_000)
    labeller.send(nobodys)
    broken = {
        "value": b"",
        "truncated": labeller.value(2)[:-4],
        "without id": labeller.value(2, event_id=""),
        "without truth": labeller.value(2, value=None),
        "not finite": labeller.value(2, value=float("nan")),
        "tombstone": None,
        "no label": b"hello",
    }
    labeller.send_values(list(broken.values()), [2] * len(broken))
    wanted = [*early, *late]
    labeller.await_outcomes(len(wanted))
    eventually(lambda: len(pipeline.dead_letters()) == len(broken), "a dead letter for each broken label")
    assert pipeline.processes[-1].terminate() == 0, pipeline.processes[-1].log()[-3000:]

    found = labeller.balance(wanted)
    counted(events=EVENTS, labels=len(wanted) + 11_000 + len(broken), dead_letters=len(broken), **found)
    assert found == {"lost": 0, "duplicated": 0, "foreign": 0}
    outcomes = labeller.outcomes()
    assert all(outcome["value"] == float(outcome["event_id"].removeprefix("e")) for outcome in outcomes)
    letters = pipeline.dead_letters()
    assert {letter.headers["__connect.errors.topic"] for letter in letters} == {labeller.topic.encode()}
    assert Counter(letter.value for letter in letters) == Counter(broken.values())
    assert {"missing_id", "missing_label", "tombstone"} <= {letter.reason for letter in letters}


@pytest.mark.case("B30", "F36")
def test_the_join_killed_at_random_loses_and_doubles_nothing(make: Make, counted: Callable[..., None]) -> None:
    """Two joins; SIGKILL of one 7 times and of the worker twice, a store deleted; nine events in ten have one key."""
    pipeline = make(settings=SETTINGS)
    keys = [b"hot" if n % 10 else b"k%d" % n for n in range(EVENTS)]
    labeller = start(pipeline, EVENTS, keys)
    joins = {1: pipeline.processes[-1], 2: pipeline.start("run", "labels", "--slot", "2")}
    joins[2].await_log('"running"')
    worker = pipeline.processes[0]
    values = job.encode_events(EVENTS)
    rng = random.Random(7)
    step = EVENTS // 10
    kills = 0
    for round_ in range(10):
        events = range(round_ * step, (round_ + 1) * step)
        labeller.send(events[: step // 2])
        labeller.send_events(values[events.start : events.stop], events.start)
        labeller.send(events[step // 2 :])
        time.sleep(rng.uniform(0.0, 0.6))
        if round_ in (3, 7):
            worker.signal(signal.SIGKILL)
            worker = pipeline.start("run", "worker")
        elif round_ < 9:
            slot = rng.choice((1, 2))
            joins[slot].signal(signal.SIGKILL)
            joins[slot].wait()
            if round_ == 5:
                shutil.rmtree(pipeline.folder / "project" / "state" / f"labels-{slot}")
            joins[slot] = pipeline.start("run", "labels", "--slot", str(slot))
            joins[slot].await_log('"running"')  # the next kill meets it at work
        kills += round_ < 9
    pipeline.await_committed(EVENTS)
    labeller.await_outcomes(EVENTS)
    for join in joins.values():
        assert join.terminate() == 0, join.log()[-3000:]
    found = labeller.balance(range(EVENTS))
    counted(events=EVENTS, kills=kills, **found)
    assert found == {"lost": 0, "duplicated": 0, "foreign": 0}
