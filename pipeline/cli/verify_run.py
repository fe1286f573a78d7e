"""One pass of `verify`: load, faults one after the other, and the count when all is over."""

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.status import Status

from pipeline.bus import topics
from pipeline.bus.clients import Admin
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.cli.context import stderr
from pipeline.cli.processes import roles
from pipeline.cli.verify_fleet import Fleet
from pipeline.cli.verify_load import Load
from pipeline.cli.verify_scratch import Scratch
from pipeline.cli.verify_watch import Watch, held_back
from pipeline.errors import UnreachableError
from pipeline.testing import faults
from pipeline.testing.counting import Balance, OutcomeCounter

LOOK_EVERY_S = 0.1
#: Without a terminal, a line this often.
PLAIN_EVERY_S = 5.0
#: How often the committed offsets are asked for while they are waited for.
ASK_EVERY_S = 0.5
#: A pipeline that has work and commits nothing for so long is given up: twice the default transaction timeout.
STANDSTILL_S = 120.0
#: Events that go well before the first fault, between faults and after the last one.
CALM_S = 1.0


@dataclass
class Happened:
    """One fault: when it began, how long it took, how long after its end everything sent until then was done."""

    name: str
    at_s: float
    took_s: float = 0.0
    #: None: not done when the run gave up.
    recovered_s: float | None = None
    steps: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What the run found; it holds if there are no problems."""

    balance: Balance
    #: Outcomes of the broken records among the events: dead letters, if they were broken.
    broken: int
    uncommitted: int
    #: Records of transactions that nobody ended.
    held_back: int
    happened: list[Happened]
    #: Roles that ended by themselves.
    surprises: list[str]
    problems: list[str]
    seconds: float


class Run:
    """A pipeline under load (testing.faults.Subject). On the main thread; load and readers have their own."""

    def __init__(
        self,
        scratch: Scratch,
        admin: Admin,
        load: Load,
        watch: Watch,
        counter: OutcomeCounter,
        stop: threading.Event,
        *,
        broker: EmbeddedKafka | None = None,
        network: faults.Network | None = None,
    ) -> None:
        settings = scratch.settings
        self.broker: faults.Broker | None = broker
        self.network = network
        self.session_s = float(admin.client_options.for_consumer("")["session.timeout.ms"]) / 1000
        self.fleet = Fleet(
            scratch.flags.as_arguments(),
            scratch.logs,
            settings.delivery.shutdown_deadline_s,
            self.until,
            self._surprised,
        )
        self.workers: faults.Workers = self.fleet
        self._settings, self._admin = settings, admin
        self._load, self._watch, self._counter, self._stop = load, watch, counter, stop
        self._began = time.monotonic()
        self._console = stderr()
        self._status: Status | None = None
        self._told_at = self._asked_at = 0.0
        self._committed = 0
        self._happened: list[Happened] = []
        self._surprises: list[str] = []

    # -- what a person sees ------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def tell(self, message: str) -> None:
        """Say what happens, with its time; it becomes a step of the fault under way."""
        name = ""
        if self._happened and self._happened[-1].recovered_s is None:
            self._happened[-1].steps.append(f"{self.elapsed_s:.1f} s: {message}")
            name = f"{self._happened[-1].name}: "
        self._console.print(f"{self.elapsed_s:7.1f} s  {name}{message}", markup=False)

    def _surprised(self, message: str) -> None:
        self._surprises.append(message)
        self.tell(message)

    def _show(self, status: Status | None) -> None:
        line = f"sent {self._load.sent:,}  done {self._counter.settled:,}  committed {self._committed:,}"
        if status is not None:
            status.update(line)
        elif time.monotonic() - self._told_at >= PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            self._console.print(f"{self.elapsed_s:7.1f} s  {line}", markup=False)

    # -- waiting -----------------------------------------------------------------------------

    def look(self) -> None:
        """Raise if something that must go on has ended, or a person wants to stop; start again what may end."""
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._load.check()
        self._watch.check()
        self.fleet.look()

    def until(self, condition: Callable[[], bool], _what: str, patience_s: float) -> bool:
        """Whether `condition` came true in time; everything else goes on meanwhile."""
        give_up = time.monotonic() + patience_s
        while not condition():
            self.look()
            self._show(self._status)
            if time.monotonic() > give_up:
                return False
            time.sleep(LOOK_EVERY_S)
        return True

    def wait(self, seconds: float) -> None:
        """Let the load go on."""
        self.until(lambda: False, "time", seconds)

    def committed(self) -> int:
        """Events that the workers have committed, asked for now and then; the last answer while the broker is away."""
        if time.monotonic() - self._asked_at >= ASK_EVERY_S:
            try:
                done = topics.committed(self._admin, self._settings.group("worker"), self._settings.topic("events"))
                self._committed = sum(done.values())
            except UnreachableError:
                pass
            self._asked_at = time.monotonic()
        return self._committed

    def _await_committed(self, events: int) -> bool:
        """Whether the workers got so far; given up when they stand still."""
        while True:
            before = self._committed
            if self.until(lambda: self.committed() >= events, "commits", STANDSTILL_S):
                return True
            if self._committed == before:
                return False

    # -- faults ------------------------------------------------------------------------------

    def spoil(self, records: int) -> None:
        self._load.spoil(records)

    def signal_broker(self, number: int) -> None:
        assert self.broker is not None
        if (pid := self.broker.pid) is not None:
            os.kill(pid, number)

    def _inject(self, fault: faults.Fault, rng: random.Random) -> bool:
        """One fault and the recovery from it; whether there was one."""
        happened = Happened(fault.name, round(self.elapsed_s, 1))
        self._happened.append(happened)
        began = time.monotonic()
        fault.inject(self, rng)
        ended = time.monotonic()
        happened.took_s = round(ended - began, 1)
        sent = self._load.sent
        if not self._await_committed(sent):
            self.tell(f"NOT recovered: {self._committed:,} of {sent:,} events committed, no more in {STANDSTILL_S:g} s")
            return False
        recovered_s = round(time.monotonic() - ended, 1)
        self.tell(f"recovered: all {sent:,} events sent until then are committed, {recovered_s:.1f} s later")
        happened.recovered_s = recovered_s
        return True

    # -- the whole ---------------------------------------------------------------------------

    def go(self, plan: Sequence[faults.Fault], events: int, workers: int, seed: int) -> Verdict:
        """Run it.

        1. Start the roles, then the load; see the first events done.
        2. Inject the faults, each after the recovery from the one before.
        3. Go on to `events`; stop the load; wait until everything is committed.
        4. Stop the roles in order, read what is left to read, count.
        """
        rng = random.Random(seed)  # noqa: S311 (chosen by a seed, not secret)
        with self._console.status("starting the roles") as status:
            self._status = status if self._console.is_terminal else None
            for role in roles("all", workers, self._settings):
                self.fleet.spawn(role)
            self.fleet.await_running()
            self._watch.start()
            self._load.start()
            self.tell(f"{workers} workers run; the load begins")
            well = self._await_committed(1)
            self.wait(CALM_S)
            for fault in plan if well else ():
                well = self._inject(fault, rng)
                if not well:
                    break
                self.wait(CALM_S)
            if well:
                self.until(lambda: self._load.sent >= events, "all events", float("inf"))
            sent = self._load.finish(self.look)
            self.tell(f"the load ends: {sent:,} events")
            self._await_committed(sent)
            return self._count(sent)

    def _count(self, sent: int) -> Verdict:
        settings = self._settings
        # The broker writes the last transaction's markers after it has said that it is committed.
        self.until(
            lambda: not held_back(self._admin, settings),
            "the last transaction",
            settings.delivery.transaction_timeout_ms / 1000,
        )
        problems = self.fleet.stop()
        lag = sum(topics.lag(self._admin, settings.group("worker"), settings.topic("events")).values())
        held = held_back(self._admin, settings)
        self._watch.finish()
        ends = topics.watermarks(self._admin, settings.topic("events"))
        balance = self._counter.balance({tp.partition: end for tp, (_, end) in ends.items()})
        problems += balance.problems(settings.delivery.mode)
        if balance.events != sent:
            problems.append(f"the load itself went wrong: {sent:,} events sent, {balance.events:,} are on the topic")
        if lag:
            problems.append(f"{lag:,} events not committed")
        if held:
            problems.append(f"{held:,} records held back by a transaction that nobody ended")
        problems += [f"{h.name}: not recovered from" for h in self._happened if h.recovered_s is None]
        return Verdict(
            balance, self._load.broken, lag, held, self._happened, self._surprises, problems, round(self.elapsed_s, 1)
        )
