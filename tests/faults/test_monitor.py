"""The drift monitor, attacked: killed at every step, its state lost, a second one started. Triggers are counted."""

import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clients, job
from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.records import TopicPartition
from tests.faults.monitor_steps import STEPS
from tests.pipelines import PATIENCE_S, Pipeline, Process, eventually

pytestmark = [pytest.mark.timeout(600), pytest.mark.case("F37")]

EVENTS = 40_000
#: Often, so that there are many summaries and many commits.
QUICK = {"delivery.commit_interval_ms": 50, "scoring.step_max": 1_000}


def drifting(events: int) -> list[bytes]:
    """The job's events, the first feature 1.5 standard deviations higher in the second half."""
    table = np.frombuffer(b"".join(job.encode_events(events)), job.EVENT_LAYOUT).copy()
    table["features"][events // 2 :, 0] += 1.5
    block, size = table.tobytes(), job.EVENT_LAYOUT.itemsize
    return [block[at : at + size] for at in range(0, len(block), size)]


class Watched:
    """A pipeline whose monitor reads the summaries of another, and what came of it."""

    def __init__(self, pipeline: Pipeline, settings: dict[str, Any]) -> None:
        self.pipeline, self.summaries = pipeline, settings["topics.batch_summaries"]
        self.rows = codec.RowCodec(codec.open_registry(None, Path(settings["registry.dir"]), None))

    def state_file(self, state_dir: str = "state") -> Path:
        return self.pipeline.config.parent / state_dir / "monitor.state"

    def events_seen(self, state_dir: str = "state") -> int:
        """Events that the saved monitor has counted."""
        if not (file := self.state_file(state_dir)).exists():
            return 0
        return int(json.loads(file.read_bytes().partition(b"\n")[2])["monitor"]["counters"][0])

    def monitor(self, fault: str = "SIGKILL", at: str = "none", state_dir: str = "state") -> Process:
        """Start the monitor, to have a fault at a step (monitor_steps)."""
        launcher = ("tests.faults.monitor_steps", fault, at)
        return self.pipeline.start("run", "monitor", launcher=launcher, PIPELINE__DRIFT__STATE_DIR=state_dir)

    def triggers(self) -> list[dict[str, Any]]:
        """What a read_committed reader finds on the triggers topic."""
        topic = f"{self.pipeline.name}.retraining-triggers"
        read = clients.read_all(self.pipeline.bootstrap_servers, topic, "verify", PATIENCE_S)
        return [self.rows.decode(message.value()) for messages in read for message in messages]

    def repeat_last(self) -> None:
        """Write the last summary again, as a worker may that was killed: none of its events counts twice."""
        reads = clients.read_all(self.pipeline.bootstrap_servers, self.summaries, "verify", PATIENCE_S)
        last = [message.value() for messages in reads for message in messages][-1]
        sender = clients.Sender(self.pipeline.bootstrap_servers)
        sender.send(self.summaries, [last], [None])
        sender.flush()

    def await_end(self, process: Process) -> None:
        """Until the monitor has committed all summaries, then stop it in order."""
        admin, topic = make_admin(ClientOptions(self.pipeline.bootstrap_servers)), self.summaries
        reads = clients.read_all(self.pipeline.bootstrap_servers, topic, "verify", PATIENCE_S)
        end = max(message.offset() for messages in reads for message in messages) + 1

        def done() -> bool:
            assert process.popen.poll() is None, process.log()[-3000:]
            return topics.committed(admin, f"{self.pipeline.name}-monitor", topic).get(TopicPartition(topic, 0)) == end

        process.await_log('"running"')
        eventually(done, "all summaries committed")
        assert process.terminate() == 0, process.log()[-3000:]


@pytest.fixture(scope="module")
def watching(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a pipeline that watches what one worker wrote of a stream with a drift in its middle."""
    pipeline = Pipeline(tmp_path_factory.mktemp("worker"), kafka, f"watched-{uuid.uuid4().hex[:10]}", settings=QUICK)
    values, step = drifting(EVENTS), EVENTS // 32
    worker = pipeline.start("run", "worker")
    try:
        for at in range(0, EVENTS, step):  # bit by bit, as a stream comes
            pipeline.send(values[at : at + step], at)
            pipeline.await_committed(at + step)
        assert worker.terminate() == 0
    finally:
        pipeline.close()
    registry = str(pipeline.config.parent / "registry")
    return {**QUICK, "topics.batch_summaries": f"{pipeline.name}.batch-summaries", "registry.dir": registry}


@pytest.fixture
def watch(make: Callable[..., Pipeline], watching: dict[str, Any]) -> Callable[..., Watched]:
    """Makes a Watched with further client options. Few summaries at once make many batches."""

    def new(**options: str) -> Watched:
        return Watched(make(settings={**watching, "scoring.step_max": 4, "kafka.consumer_options": options}), watching)

    return new


@pytest.fixture
def watched(watch: Callable[..., Watched]) -> Watched:
    """See Watched; its group knows it again at once after a kill."""
    return watch(**{"group.instance.id": "monitor"})


@pytest.fixture(scope="module")
def undisturbed(kafka: str, watching: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The one trigger of a monitor that nothing happened to."""
    name = f"undisturbed-{uuid.uuid4().hex[:10]}"
    watched = Watched(Pipeline(tmp_path_factory.mktemp("undisturbed"), kafka, name, settings=watching), watching)
    try:
        watched.await_end(watched.monitor())
    finally:
        watched.pipeline.close()
    (trigger,) = watched.triggers()
    return trigger


def same(trigger: dict[str, Any], undisturbed: dict[str, Any]) -> bool:
    """Whether two triggers say the same; the pipeline's name and the time of sending are their own."""
    own = ("trigger_id", "pipeline", "produced_at_ms")
    return {k: v for k, v in trigger.items() if k not in own} == {k: v for k, v in undisturbed.items() if k not in own}


def hold(
    watched: Watched,
    undisturbed: dict[str, Any],
    counted: Callable[..., None],
    state_dir: str = "state",
    **more: Any,
) -> None:
    """One trigger, that of an undisturbed run, and each event counted once."""
    triggers = watched.triggers()
    counted(events=EVENTS, events_counted=watched.events_seen(state_dir), triggers=len(triggers), **more)
    assert watched.events_seen(state_dir) == EVENTS
    assert len(triggers) == 1
    assert same(triggers[0], undisturbed)


def test_a_monitor_killed_at_every_step_sends_its_trigger_once(
    watched: Watched, undisturbed: dict[str, Any], counted: Callable[..., None]
) -> None:
    """SIGKILL at each step in turn, a new process each time: one trigger, and each event counted once."""
    for step in STEPS:
        assert watched.monitor(at=step).wait() == -signal.SIGKILL, step
    watched.await_end(watched.monitor())
    hold(watched, undisturbed, counted, kills=len(STEPS))


@pytest.mark.parametrize("step", ["raised", "committed"])
def test_a_lost_state_is_rebuilt_from_the_summaries(
    watched: Watched, undisturbed: dict[str, Any], counted: Callable[..., None], step: str
) -> None:
    """Killed before or after its trigger was committed, and the file gone: one trigger, and each event once."""
    assert watched.monitor(at=step).wait() == -signal.SIGKILL
    watched.state_file().unlink(missing_ok=True)
    watched.repeat_last()  # or there might be nothing more to read, and no reason to rebuild
    process = watched.monitor()
    watched.await_end(process)
    assert "bringing the monitor up" in process.log()
    hold(watched, undisturbed, counted, kills=1)


def test_an_aborted_trigger_is_sent_again(
    watched: Watched, undisturbed: dict[str, Any], counted: Callable[..., None]
) -> None:
    """The transaction with the trigger is aborted: its summaries are read again, the state goes back with them."""
    process = watched.monitor("abort", "offsets sent")
    watched.await_end(process)
    assert "reading again from the last commit" in process.log()
    hold(watched, undisturbed, counted, aborts=1)


@pytest.mark.case("F11")
def test_a_second_monitor_on_the_same_state_ends_at_once(watched: Watched) -> None:
    """Exit code 4, with the folder in its message; the first goes on."""
    first = watched.monitor()
    first.await_log('"running"')
    second = watched.monitor()
    assert second.wait() == 4
    assert "another monitor keeps its state there" in second.log()
    watched.await_end(first)
    assert len(watched.triggers()) == 1


@pytest.mark.case("F6")
def test_a_paused_monitor_that_was_replaced_sends_nothing(
    watch: Callable[..., Watched], undisturbed: dict[str, Any], counted: Callable[..., None]
) -> None:
    """SIGSTOP with a trigger in the open transaction, until one on another machine has sent it; then SIGCONT."""
    watched = watch(**{"session.timeout.ms": "6000"})
    zombie = watched.monitor("SIGSTOP", "produced")
    stat = Path(f"/proc/{zombie.popen.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the first stopped")
    heir = watched.monitor(state_dir="elsewhere")
    eventually(lambda: watched.triggers() != [], "a trigger of the heir")
    zombie.signal(signal.SIGCONT)
    eventually(
        lambda: zombie.popen.poll() == 4 or zombie.log().count('"rebalanced"') >= 2, "the zombie fenced, or back again"
    )
    watched.await_end(heir)
    if zombie.popen.poll() is None:
        assert zombie.terminate() == 0, zombie.log()[-3000:]
    hold(watched, undisturbed, counted, state_dir="elsewhere")
