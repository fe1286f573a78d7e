"""What each fault does to a pipeline, in which order, and that it leaves nothing stopped, cut or paused behind."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.testing import faults
from pipeline.testing.faults import FAULTS, plan


class Stage:
    """A subject, its workers, broker and network in one, that writes down what is done to it (faults.Subject)."""

    session_s = 10.0

    def __init__(self, interrupt: bool = False) -> None:
        self.done: list[Any] = []
        self.running = {1, 2}
        self.interrupt = interrupt
        self.pid: int | None = 1
        self.workers: Any = self
        self.network: Any = self
        self.broker: Any = _Broker(self.done)

    def tell(self, message: str) -> None:
        self.done.append(message)

    def wait(self, seconds: float) -> None:
        self.done.append(("wait", seconds))
        if self.interrupt:
            raise KeyboardInterrupt

    def slots(self) -> list[int]:
        return sorted(self.running)

    def start(self, slot: int) -> int:
        self.running.add(slot)
        self.done.append(("start", slot))
        return 100 + slot

    def signal(self, slot: int, number: int) -> int:
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self.running.discard(slot)
        self.done.append(("signal", slot, signal.Signals(number).name))
        return 100 + slot

    def await_end(self, slot: int) -> int:
        self.done.append(("ended", slot))
        return 0

    def spoil(self, records: int) -> None:
        self.done.append(("spoil", records))

    def signal_broker(self, number: int) -> None:
        self.done.append(("broker", signal.Signals(number).name))

    def refuse(self, refusing: bool = True) -> None:
        self.done.append(("refuse", refusing))

    @contextmanager
    def stall(self) -> Iterator[None]:
        yield from self._within("stall")

    @contextmanager
    def delay(self, *, seconds: float, jitter_s: float) -> Iterator[None]:
        yield from self._within("delay")

    def _within(self, name: str) -> Iterator[None]:
        self.done.append((name, "begins"))
        try:
            yield
        finally:
            self.done.append((name, "ends"))

    def deeds(self, name: str) -> list[Any]:
        """What fault `name` does, without what it says."""
        FAULTS[name].inject(self, random.Random(1))
        return [deed for deed in self.done if not isinstance(deed, str)]


class _Broker:
    pid = 7

    def __init__(self, done: list[Any]) -> None:
        self._done = done

    def kill(self) -> None:
        self._done.append("kill broker")

    def stop(self) -> None:
        self._done.append("stop broker")

    def start(self, timeout_s: float) -> None:
        self._done.append("start broker")


@pytest.mark.parametrize(("name", "number"), [("kill-worker", "SIGKILL"), ("stop-worker", "SIGTERM")])
def test_a_worker_that_is_ended_is_started_again(name: str, number: str) -> None:
    """Signal, end, start, of one and the same worker."""
    deeds = Stage().deeds(name)
    slot = deeds[0][1]
    assert deeds == [("signal", slot, number), ("ended", slot), ("start", slot)]


def test_a_pause_is_longer_than_the_session() -> None:
    """SIGSTOP, more than the session timeout, SIGCONT to the same worker."""
    stop, (_, pause_s), cont = Stage().deeds("pause-worker")
    assert stop == ("signal", stop[1], "SIGSTOP")
    assert pause_s > Stage.session_s
    assert cont == ("signal", stop[1], "SIGCONT")


def test_scaling_takes_a_new_slot_and_gives_it_back() -> None:
    """The third worker joins, stays a while, and leaves in order."""
    stage = Stage()
    assert stage.deeds("scale") == [
        ("start", 3),
        ("wait", faults.STAY_S),
        ("signal", 3, "SIGTERM"),
        ("ended", 3),
    ]
    assert stage.running == {1, 2}


@pytest.mark.parametrize("name", ["kill-broker", "restart-broker"])
def test_a_broker_that_is_ended_is_started_again(name: str) -> None:
    """Whichever way it went."""
    stage = Stage()
    stage.deeds(name)
    acts = [deed for deed in stage.done if deed in {"kill broker", "stop broker", "start broker"}]
    assert acts == [f"{name.partition('-')[0].replace('restart', 'stop')} broker", "start broker"]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("pause-worker", "SIGSTOP", "SIGCONT"),
        ("pause-broker", ("broker", "SIGSTOP"), ("broker", "SIGCONT")),
        ("cut-network", ("refuse", True), ("refuse", False)),
        ("stall-network", ("stall", "begins"), ("stall", "ends")),
        ("slow-network", ("delay", "begins"), ("delay", "ends")),
    ],
)
def test_an_interrupted_fault_is_undone(name: str, first: Any, last: Any) -> None:
    """Ctrl-C in the middle of it leaves no process stopped and no network broken."""
    stage = Stage(interrupt=True)
    with pytest.raises(KeyboardInterrupt):
        stage.deeds(name)
    deeds = [deed for deed in stage.done if not isinstance(deed, str)]
    ends = [(deed[-1] if name == "pause-worker" else deed) for deed in (deeds[0], deeds[-1])]
    assert ends == [first, last]


def test_every_fault_says_what_it_does() -> None:
    """At least one line each, so that the verdict can be read beside what happened."""
    for name, fault in FAULTS.items():
        stage = Stage()
        stage.deeds(name)
        assert fault.name == name
        assert any(isinstance(deed, str) for deed in stage.done)


def test_a_plan_follows_from_its_seed() -> None:
    """Each fault once a round, in an order that the seed alone decides."""
    names = list(FAULTS)
    order = [fault.name for fault in plan(names, 3, seed=5)]
    assert order == [fault.name for fault in plan(names, 3, seed=5)]
    for start in range(0, len(order), len(names)):
        assert sorted(order[start : start + len(names)]) == sorted(names)
    assert len({tuple(f.name for f in plan(names, 1, seed)) for seed in range(5)}) > 1
