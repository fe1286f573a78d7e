"""SIGKILL at every step of the commit path, on real processes: what came out is counted, and where it was repeated."""

import signal
import time
from dataclasses import dataclass, field

import pytest

from benchmarks import clients, job, ours
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.records import TopicPartition
from tests.faults import crashing
from tests.faults.conftest import Judge, Make
from tests.faults.observing import SESSION, predictions
from tests.pipelines import PATIENCE_S, Pipeline, Process, eventually

pytestmark = pytest.mark.timeout(480)

#: More than are ever sent: a crash ends the sending.
EVENTS_MAX = 400_000
SLICE_EVENTS, SLICE_EVERY_S = 200, 0.02
SETTINGS = {"delivery.commit_interval_ms": 200, "scoring.step_max": 2_000}
#: A member that is known by name takes its partitions back at once; others wait for the dead one's session to end.
STATIC = {"kafka.consumer_options": {"group.instance.id": "the-one", "session.timeout.ms": "30000"}}
DYNAMIC = {
    "kafka.consumer_options": SESSION,
    # What a dead worker left open holds readers up for so long, if nobody starts it again.
    "delivery.transaction_timeout_ms": 10_000,
}


class Feed:
    """The standard job's events, sent little by little."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._topic = pipeline.job.input_topic
        self._sender = clients.Sender(pipeline.bootstrap_servers)
        self._values, self._keys = job.encode_events(EVENTS_MAX), job.keys(EVENTS_MAX).tolist()
        self.sent = 0

    def send(self) -> None:
        """The next few, and a breath."""
        piece = slice(self.sent, self.sent + SLICE_EVENTS)
        assert piece.stop <= EVENTS_MAX, "so many events, and no crash"
        self._sender.send(self._topic, self._values[piece], self._keys[piece])
        self.sent = piece.stop
        time.sleep(SLICE_EVERY_S)

    def flush(self) -> None:
        """All of it on the broker."""
        self._sender.flush()


def start(pipeline: Pipeline, step: str, slot: int = 1) -> Process:
    """A worker that dies at `step`."""
    return pipeline.start("run", "worker", "--slot", str(slot), launcher=("tests.faults.crashing", step))


def crash(pipeline: Pipeline, step: str, feed: Feed) -> None:
    """Start a worker that dies at `step`, and feed it until it does; a step of the drain needs a SIGTERM, too."""
    worker, give_up = start(pipeline, step), time.monotonic() + PATIENCE_S
    to_be_told = crashing.STEPS[step].within == crashing.DRAIN
    while worker.popen.poll() is None:
        assert time.monotonic() < give_up, f"never reached: {step}\n{worker.log()[-4000:]}"
        if '"rebalanced"' not in worker.log():
            time.sleep(SLICE_EVERY_S)
            continue
        before = pipeline.committed() if to_be_told else 0
        feed.send()
        if to_be_told:
            eventually(lambda before=before: pipeline.committed() > before, "a commit")  # type: ignore[misc]
            feed.send()  # done, or nearly, and not committed when the signal comes
            worker.signal(signal.SIGTERM)
            to_be_told = False
    died(worker, step)


def died(worker: Process, step: str) -> None:
    """It was this crash, and no other end."""
    assert worker.wait() == -signal.SIGKILL, f"{step}: {worker.log()[-4000:]}"
    assert f"killed at {step}" in worker.log()


def finish(pipeline: Pipeline, feed: Feed) -> None:
    """A worker that nobody kills does the rest."""
    feed.flush()
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(feed.sent)
    assert worker.terminate() == 0, worker.log()[-4000:]


@dataclass
class Crashes:
    """What the broker held at each crash: committed offsets by partition, and where the predictions ended."""

    committed: list[list[int]] = field(default_factory=list)
    ends: list[list[int]] = field(default_factory=list)

    def note(self, pipeline: Pipeline) -> None:
        """Look now."""
        admin = make_admin(ClientOptions(pipeline.bootstrap_servers))
        before, now = [-1], [0]
        while before != now:  # the dead worker's last requests may still be on their way into the log
            time.sleep(0.2)
            before, now = now, clients.end_offsets(pipeline.admin, pipeline.job.output_topic, pipeline.partitions)
        done = topics.committed(admin, ours.group(pipeline.name))
        inputs = [TopicPartition(pipeline.job.input_topic, p) for p in range(pipeline.partitions)]
        self.committed.append([done.get(tp, 0) for tp in inputs])
        self.ends.append(now)


@pytest.mark.case("F1", "F2", "F3", "F4", "F35")
def test_exactly_once_through_a_crash_at_every_step(make: Make, judge: Judge) -> None:
    """One worker after the other dies at the next step of its commit, abort, replay or drain: 0 lost, 0 doubled."""
    pipeline = make(settings={**SETTINGS, **STATIC, "delivery.mode": "exactly_once"})
    feed = Feed(pipeline)
    for step in crashing.EXACTLY_ONCE:
        crash(pipeline, step, feed)
    finish(pipeline, feed)
    judge(pipeline, feed.sent, "exactly_once", crashes=len(crashing.EXACTLY_ONCE))


@pytest.mark.case("F1", "F2", "F3", "F4", "F35")
def test_at_least_once_repeats_only_what_was_not_committed(make: Make, judge: Judge) -> None:
    """One worker after the other dies at the next step: 0 lost, and each begins exactly where the last commit ended."""
    pipeline = make(settings={**SETTINGS, **STATIC})
    feed, crashes = Feed(pipeline), Crashes()
    for step in crashing.AT_LEAST_ONCE:
        crash(pipeline, step, feed)
        crashes.note(pipeline)
    finish(pipeline, feed)
    crashes.note(pipeline)
    found = judge(pipeline, feed.sent, "at_least_once", crashes=len(crashing.AT_LEAST_ONCE))
    assert found["duplicated"] > 0, "no crash left anything to repeat"
    for partition, offsets in predictions(pipeline).items():
        begin = 0
        for crashed, end in enumerate(ends[partition] for ends in crashes.ends):
            run = offsets[begin:end]
            # In one life of the worker: nothing before the commit it found, nothing twice, nothing left out.
            first = crashes.committed[crashed - 1][partition] if crashed else 0
            assert run.tolist() == list(range(first, first + len(run))), f"life {crashed}, partition {partition}"
            begin = end


@pytest.mark.case("F35", "F10")
@pytest.mark.parametrize(
    ("mode", "step"),
    [("at_least_once", list(crashing.REVOKE)[-1]), *(("exactly_once", step) for step in crashing.REVOKE)],
)
def test_a_crash_while_partitions_go_to_another(make: Make, judge: Judge, mode: str, step: str) -> None:
    """A second worker joins, the first dies as it hands over: the second does the rest, and in exactly_once no more."""
    pipeline = make(settings={**SETTINGS, **DYNAMIC, "delivery.mode": mode})
    feed = Feed(pipeline)
    first = start(pipeline, step)
    first.await_log('"running"')
    second = pipeline.start("run", "worker", "--slot", "2")
    while first.popen.poll() is None:
        feed.send()
    died(first, step)
    feed.flush()
    pipeline.await_committed(feed.sent)
    assert second.terminate() == 0, second.log()[-4000:]
    eventually(lambda: not pipeline.held_up(pipeline.job.output_topic), "the dead worker's transaction ended")
    judge(pipeline, feed.sent, mode)
