"""The soak: a load, workers that are killed, a monitor and a verifier on one broker, for as long as you like.

    load -> events -> worker 1, 2 (killed), 3 (never killed) -> predictions -> verifier
                                                             -> summaries   -> monitor

1. Start everything and wait until it works.
2. Measure the peak rate: the load keeps a fixed number of events ahead of the verifier. No kills.
3. Run at half of it. In each slot of `kill_every_s` one worker, at a random moment, gets SIGKILL.
4. Stop the load, wait until everything is predicted, stop the others in order, read the predictions to their end.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import clients
from pipeline.bus.embedded import EmbeddedKafka
from tests.pipelines import Pipeline
from tests.soak import watch
from tests.soak.roles import END_S, Role, environment

#: Two for each worker.
PARTITIONS = 6
WORKERS = 3
KILLED = 2
#: Peak rate: enough for some seconds of work, so that no worker ever waits for the load.
AHEAD_EVENTS = 400_000
#: The load waits while more is unread: 250,000 events (25 MB) and as many predictions (35 MB) of a partition.
UNREAD_EVENTS_MAX = 1_500_000
#: So a partition's 128 MB always hold what is unread, and 14 partitions use less than 3 GB of disk.
BROKER = {
    "log.retention.bytes": str(1 << 27),
    "log.segment.bytes": str(1 << 25),
    "log.retention.check.interval.ms": "10000",
    "log.segment.delete.delay.ms": "5000",
}
HEAP_MB = 512
#: The broker's whole heap from the start: what grows after that is no heap that fills up for the first time.
JVM_OPTIONS = f"-Xms{HEAP_MB}m -XX:+AlwaysPreTouch"
#: What the verifier counts; all must stay 0.
FAULTS = ("lost", "duplicated", "reordered", "wrong")
TURN_S = 0.1
START_S = 180.0
STALL_S = 150.0
SETTINGS: dict[str, Any] = {
    "delivery.mode": "exactly_once",
    # 6 s is the least that a broker allows: what a killed worker had waits for so long.
    "kafka.consumer_options": {"session.timeout.ms": "6000"},
}


@dataclass(frozen=True)
class Plan:
    """How long, how hard."""

    steady_s: float
    kill_every_s: float
    peak_s: float = 60.0
    #: Of the peak rate.
    share: float = 0.5
    seed: int = 1

    def kill_moments_s(self) -> list[float]:
        """One in each slot, at a random place in it; the last slot ends with the run."""
        generator = random.Random(self.seed)
        slots = int(self.steady_s / self.kill_every_s + 1e-9)
        return [(slot + generator.random()) * self.kill_every_s for slot in range(slots)]

    @property
    def sample_every_s(self) -> float:
        return min(5.0, max(1.0, self.steady_s / 200))

    @property
    def fit_from_s(self) -> float:
        """Of the steady part: what comes before is warm-up."""
        return min(max(60.0, 0.1 * self.steady_s), 0.3 * self.steady_s)


@dataclass
class Record:
    """What happened, for the verdict."""

    peak_events_s: float = 0.0
    steady_from_s: float = 0.0
    steady_until_s: float = 0.0
    sent: int = 0
    dead_letters: int = 0
    counts: dict[str, Any] = field(default_factory=dict)
    #: (seconds, worker, whether it was at work)
    kills: list[tuple[float, str, bool]] = field(default_factory=list)
    #: (seconds, predictions so far, events sent and not yet predicted)
    progress: list[tuple[float, int, int]] = field(default_factory=list)
    #: The load waited for room: less than the rate was sent meanwhile.
    held_back_s: float = 0.0
    #: Role -> (generation, sample)
    samples: dict[str, list[tuple[int, watch.Sample]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Soak:
    """One run. `interrupt` ends it early, in order, with the verdict so far."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None] = lambda _line: None) -> None:
        self.plan, self.folder, self.say = plan, folder, say
        self.record = Record()
        self.roles: dict[str, Role] = {}
        self._began_at = time.monotonic()
        self._sampled_at = self._said_at = 0.0
        self._progress = (0, time.monotonic())
        self._interrupted = False

    def interrupt(self) -> None:
        """End early."""
        self._interrupted = True

    def run(self) -> Record:
        """The whole soak; processes end with it, whatever happens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kafka = EmbeddedKafka(
            self.folder / "kafka", port=0, heap_mb=HEAP_MB, fast_start=False, server_properties=BROKER
        )
        try:
            with environment(JAVA_TOOL_OPTIONS=JVM_OPTIONS):
                kafka.start()
            self._kafka = kafka
            self._begin(kafka)
            self._measure_peak()
            self._run_steadily()
            self._finish()
        except AssertionError as error:
            self.record.faults.append(str(error))
        finally:
            if not self.record.counts and "verifier" in self.roles:
                self.record.counts = dict(self.roles["verifier"].said)
            for role in self.roles.values():
                role.kill()
            kafka.kill()
        return self.record

    # -- the parts ----------------------------------------------------------------------------

    def _begin(self, kafka: EmbeddedKafka) -> None:
        settings = {**SETTINGS, "observe.log_format": "json"}
        servers = kafka.bootstrap_servers
        self.pipeline = Pipeline(self.folder / "pipeline", servers, "soak", partitions=PARTITIONS, settings=settings)
        run = ["-m", "pipeline.cli", "--config", str(self.pipeline.config), "run", "--parent", str(os.getpid())]
        self.workers = [
            self._role(f"worker {slot}", [*run, "worker", "--slot", str(slot)]) for slot in range(1, WORKERS + 1)
        ]
        self._role("monitor", [*run, "monitor"])
        self._until(lambda: all(w.at_work() for w in self.workers), START_S, "all workers running")
        topics = self.pipeline.job
        self._role("verifier", ["-m", "tests.soak.verifier", servers, topics.output_topic, str(PARTITIONS)], talks=True)
        self._role("load", ["-m", "tests.soak.load", servers, topics.input_topic], talks=True)
        self._grant(AHEAD_EVENTS)
        self._until(lambda: self.predicted > 0, START_S, "the first prediction")

    def _measure_peak(self) -> None:
        """Predictions a second of the last two thirds."""
        began, measured_from = self._now_s, 0.0
        before = 0
        while self._now_s < began + self.plan.peak_s and not self._interrupted:
            self._grant(self.predicted + AHEAD_EVENTS)
            self._turn()
            if not before and self._now_s > began + self.plan.peak_s / 3:
                before, measured_from = self.predicted, self._now_s
        self.record.peak_events_s = (self.predicted - before) / max(self._now_s - measured_from, 1e-9)
        self.say(f"peak: {self.record.peak_events_s:,.0f} events/s; going on at {self.plan.share:.0%} of it")

    def _run_steadily(self) -> None:
        began, already = self._now_s, self.sent
        self.record.steady_from_s = began
        generator, moments = random.Random(self.plan.seed + 1), self.plan.kill_moments_s()
        rate = self.plan.share * self.record.peak_events_s
        while (passed_s := self._now_s - began) < self.plan.steady_s and not self._interrupted:
            due, room = already + int(rate * passed_s), self.predicted + UNREAD_EVENTS_MAX
            self._grant(min(due, room))
            if due > room:
                self.record.held_back_s += TURN_S
            if moments and passed_s >= moments[0]:
                moments.pop(0)
                self._kill_one(generator)
            self._turn()
        self.record.steady_until_s = self._now_s

    def _kill_one(self, generator: random.Random) -> None:
        """One that is at work, if there is one; it starts again at once."""
        mortal = self.workers[:KILLED]
        victim = generator.choice([w for w in mortal if w.at_work()] or mortal)
        self.record.kills.append((self._now_s, victim.name, victim.at_work()))
        victim.kill()
        victim.start()

    def _finish(self) -> None:
        self.say("stopping the load; waiting for the last predictions")
        load, verifier = self.roles["load"], self.roles["verifier"]
        load.hang_up()
        self.roles.pop("load")
        ends = clients.end_offsets(self.pipeline.admin, self.pipeline.job.input_topic, PARTITIONS)
        self.record.sent = sum(ends)
        assert self.record.sent == load.said["sent"], f"{self.record.sent} events in the topic, {load.said} sent"
        try:
            self._until(lambda: verifier.said["due"] == ends, None, "every event predicted")
        except AssertionError as error:
            self.record.faults.append(str(error))
        # One that was started a moment ago cannot be told to stop in order yet.
        self._until(lambda: all(w.at_work() for w in self.workers), START_S, "all workers running at the end")
        for role in self.roles.values():
            if role is not verifier:
                role.process.popen.terminate()
        for role in self.roles.values():
            if role is not verifier and (code := role.process.wait(END_S)) != 0:
                self.record.faults.append(f"{role.name} stopped with {code}: {role.process.log()[-2000:]}")
        verifier.hang_up()
        assert verifier.said["final"], "the verifier did not read to the end"
        self.record.counts = dict(verifier.said)
        self.record.counts["lost"] += sum(ends) - sum(verifier.said["due"])
        self.record.dead_letters = self.pipeline.count("soak.dead-letters")

    # -- one turn -----------------------------------------------------------------------------

    @property
    def predicted(self) -> int:
        """Events whose prediction the verifier has seen."""
        return int(self.roles["verifier"].said.get("predicted", 0)) if "verifier" in self.roles else 0

    @property
    def sent(self) -> int:
        return int(self.roles["load"].said.get("sent", 0)) if "load" in self.roles else self.record.sent

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began_at

    def _role(self, name: str, command: list[str], *, talks: bool = False) -> Role:
        role = self.roles[name] = Role(name, command, self.folder, talks)
        role.start()
        return role

    def _grant(self, events: int) -> None:
        self.roles["load"].tell(events)

    def _turn(self) -> None:
        """Look after everybody, then wait a little."""
        time.sleep(TURN_S)
        for role in self.roles.values():
            code = role.process.popen.poll()
            if code is None:
                continue
            fault = f"{role.name} ended with {code} by itself: {role.process.log()[-2000:]}"
            assert role in self.workers or role.name == "monitor", fault
            self.record.faults.append(fault)
            role.start()
        if self._now_s - self._sampled_at >= self.plan.sample_every_s:
            self._sampled_at = self._now_s
            self._sample()
        self._mind_progress()

    def _sample(self) -> None:
        samples, now_s = self.record.samples, self._now_s
        for role in self.roles.values():
            if found := watch.look(role.process.popen.pid, now_s, time.monotonic() - role.started_at):
                samples.setdefault(role.name, []).append((role.generation, found))
        if self._kafka.pid and (found := watch.look(self._kafka.pid, now_s, now_s)):
            samples.setdefault("broker", []).append((0, found))
        self.record.progress.append((now_s, self.predicted, max(self.sent - self.predicted, 0)))

    def _mind_progress(self) -> None:
        predicted, since = self._progress
        if self.predicted != predicted or self.predicted == self.sent:
            self._progress = (self.predicted, time.monotonic())
        else:
            assert time.monotonic() - since < STALL_S, f"no prediction for {STALL_S:g} s, {self.predicted:,} so far"
        if self._now_s - self._said_at >= 15.0:
            self._said_at = self._now_s
            counts = self.roles["verifier"].said if "verifier" in self.roles else {}
            found = ", ".join(
                f"{name} {counts.get(name, 0):,}" for name in ("lost", "duplicated", "reordered", "wrong")
            )
            lag, kills = self.sent - self.predicted, len(self.record.kills)
            self.say(f"{self._now_s:6.0f} s  {self.predicted:,} predicted, {lag:,} to go; {found}; {kills} kills")

    def _until(self, condition: Callable[[], bool], patience_s: float | None, what: str) -> None:
        """Turn until it holds; without a patience, for as long as predictions come."""
        give_up = None if patience_s is None else time.monotonic() + patience_s
        while not condition():
            assert give_up is None or time.monotonic() < give_up, f"never within {patience_s:g} s: {what}"
            self._turn()
