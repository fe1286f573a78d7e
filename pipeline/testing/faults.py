"""What can go wrong with a running pipeline, each as a function that makes it go wrong and ends when it is over.

    kill-worker      SIGKILL, then a new one
    stop-worker      SIGTERM under load, then a new one
    pause-worker     SIGSTOP beyond the session timeout: its partitions have gone to others when it wakes up
    scale            a further worker joins and leaves
    garbage          records that are no events
    kill-broker      SIGKILL, then a new start on the same data
    restart-broker   an orderly stop and start
    pause-broker     SIGSTOP for some seconds: accepts connections and answers nothing
    cut-network      every connection to the broker is reset, and new ones are refused for some seconds
    stall-network    nothing gets through for some seconds; connections stay
    slow-network     every request takes longer

What they act on is a Subject: a few processes, a broker, a network. They know nothing else of a pipeline.
"""

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

#: How long a broker or network is away, hangs or stalls: long enough for every client to notice.
OUTAGE_S = 5.0
#: Beyond the session timeout: the coordinator looks for dead members every few seconds.
SESSION_MARGIN_S = 3.0
#: Between the joining and the leaving of a further worker: a rebalance, and some events in its new shape.
STAY_S = 5.0
#: A broker recovers its data in 2 to 4 s; here it shares its cores with the workers, the load and the count.
BROKER_START_S = 180.0
#: 100 ms a request, give or take all of it: far more than any network one would run Kafka over.
DELAY_S, JITTER_S = 0.1, 0.1
#: Several of each way to break an event (breakage.WAYS), and far from the share at which workers refuse their input.
BROKEN = 100


class Network(Protocol):
    """Between the clients and the broker (testing.Proxy)."""

    def refuse(self, refusing: bool = True) -> None: ...
    def stall(self) -> AbstractContextManager[object]: ...
    def delay(self, *, seconds: float, jitter_s: float) -> AbstractContextManager[object]: ...


class Broker(Protocol):
    """The broker's process (bus.embedded.EmbeddedKafka)."""

    @property
    def pid(self) -> int | None: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...
    def start(self, timeout_s: float) -> object: ...


class Workers(Protocol):
    """Worker processes by their slots."""

    def slots(self) -> list[int]: ...
    def start(self, slot: int) -> int:
        """Start one and return, once it is running, its process id."""
        ...

    def signal(self, slot: int, number: int) -> int:
        """Send a signal; the process id."""
        ...

    def await_end(self, slot: int) -> int:
        """Wait for the end of one that was told to; its exit code."""
        ...


class Subject(Protocol):
    """A pipeline under load. `tell` says what happens; `wait` lets the load go on for some seconds."""

    workers: Workers
    #: None: not ours to harm.
    broker: Broker | None
    network: Network | None
    #: After so long without a heartbeat a worker has lost its place.
    session_s: float

    def tell(self, message: str) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def spoil(self, records: int) -> None:
        """Break the next `records` events."""
        ...

    def signal_broker(self, number: int) -> None: ...


@dataclass(frozen=True)
class Fault:
    """`inject` returns once the fault is over; the pipeline may still be recovering."""

    name: str
    says: str
    inject: Callable[[Subject, random.Random], None]
    #: Needs a broker, or a network, that belongs to nobody else.
    needs: str = ""


def plan(names: Sequence[str], rounds: int, seed: int) -> Iterator[Fault]:
    """Each fault once a round, in an order that follows from the seed."""
    shuffler = random.Random(seed)  # noqa: S311 (chosen by a seed, not secret)
    for _ in range(rounds):
        yield from (FAULTS[name] for name in shuffler.sample(list(names), len(names)))


# --------------------------------------------------------------------------- workers


def _kill_worker(subject: Subject, rng: random.Random) -> None:
    slot = rng.choice(subject.workers.slots())
    subject.tell(f"SIGKILL to worker {slot} (process {subject.workers.signal(slot, signal.SIGKILL)})")
    subject.workers.await_end(slot)
    subject.tell(f"worker {slot} runs again (process {subject.workers.start(slot)})")


def _stop_worker(subject: Subject, rng: random.Random) -> None:
    slot = rng.choice(subject.workers.slots())
    subject.tell(f"SIGTERM to worker {slot} (process {subject.workers.signal(slot, signal.SIGTERM)})")
    subject.tell(f"worker {slot} ended with exit code {subject.workers.await_end(slot)}")
    subject.tell(f"worker {slot} runs again (process {subject.workers.start(slot)})")


def _pause_worker(subject: Subject, rng: random.Random) -> None:
    slot = rng.choice(subject.workers.slots())
    pause_s = subject.session_s + SESSION_MARGIN_S
    subject.tell(f"SIGSTOP to worker {slot} (process {subject.workers.signal(slot, signal.SIGSTOP)}), {pause_s:.0f} s")
    try:
        subject.wait(pause_s)
    finally:
        subject.workers.signal(slot, signal.SIGCONT)
    subject.tell(f"SIGCONT to worker {slot}")


def _scale(subject: Subject, _rng: random.Random) -> None:
    slot = max(subject.workers.slots()) + 1
    subject.tell(f"worker {slot} joins (process {subject.workers.start(slot)})")
    subject.wait(STAY_S)
    subject.workers.signal(slot, signal.SIGTERM)
    subject.tell(f"worker {slot} leaves with exit code {subject.workers.await_end(slot)}")


def _garbage(subject: Subject, _rng: random.Random) -> None:
    subject.spoil(BROKEN)
    subject.tell(f"{BROKEN} broken records among the events")
    subject.wait(1.0)


# --------------------------------------------------------------------------- broker


def _kill_broker(subject: Subject, _rng: random.Random) -> None:
    assert subject.broker is not None
    subject.tell(f"SIGKILL to the broker (process {subject.broker.pid})")
    subject.broker.kill()
    subject.wait(OUTAGE_S)
    subject.broker.start(BROKER_START_S)
    subject.tell("the broker runs again")


def _restart_broker(subject: Subject, _rng: random.Random) -> None:
    assert subject.broker is not None
    subject.tell(f"orderly stop of the broker (process {subject.broker.pid})")
    subject.broker.stop()
    subject.broker.start(BROKER_START_S)
    subject.tell("the broker runs again")


def _pause_broker(subject: Subject, _rng: random.Random) -> None:
    subject.tell(f"SIGSTOP to the broker, {OUTAGE_S:.0f} s")
    subject.signal_broker(signal.SIGSTOP)
    try:
        subject.wait(OUTAGE_S)
    finally:
        subject.signal_broker(signal.SIGCONT)
    subject.tell("SIGCONT to the broker")


# --------------------------------------------------------------------------- network


def _cut_network(subject: Subject, _rng: random.Random) -> None:
    assert subject.network is not None
    subject.network.refuse()
    try:
        subject.tell(f"all connections reset, new ones refused, {OUTAGE_S:.0f} s")
        subject.wait(OUTAGE_S)
    finally:
        subject.network.refuse(refusing=False)
    subject.tell("the broker can be reached again")


def _stall_network(subject: Subject, _rng: random.Random) -> None:
    assert subject.network is not None
    with subject.network.stall():
        subject.tell(f"nothing gets through, {OUTAGE_S:.0f} s")
        subject.wait(OUTAGE_S)
    subject.tell("what was held goes on")


def _slow_network(subject: Subject, _rng: random.Random) -> None:
    assert subject.network is not None
    with subject.network.delay(seconds=DELAY_S, jitter_s=JITTER_S):
        subject.tell(f"every request up to {(DELAY_S + JITTER_S) * 1000:.0f} ms late, {OUTAGE_S:.0f} s")
        subject.wait(OUTAGE_S)
    subject.tell("as fast as before")


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("kill-worker", "SIGKILL a worker, then start it again", _kill_worker),
        Fault("stop-worker", "SIGTERM a worker under load, then start it again", _stop_worker),
        Fault("pause-worker", "SIGSTOP a worker beyond its session, then SIGCONT", _pause_worker),
        Fault("scale", "a further worker joins and leaves", _scale),
        Fault("garbage", f"{BROKEN} broken records among the events", _garbage),
        Fault("kill-broker", "SIGKILL the broker, then start it again", _kill_broker, "broker"),
        Fault("restart-broker", "stop the broker in order, then start it again", _restart_broker, "broker"),
        Fault("pause-broker", "SIGSTOP the broker for a while", _pause_broker, "broker"),
        Fault("cut-network", "reset all connections, refuse new ones for a while", _cut_network, "network"),
        Fault("stall-network", "let nothing through for a while", _stall_network, "network"),
        Fault("slow-network", "delay every request for a while", _slow_network, "network"),
    )
}
