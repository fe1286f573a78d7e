"""`pipeline demo`: everything at work on real data, on a Kafka of its own, in about a minute."""

import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from pipeline.bus import topics
from pipeline.bus.embedded import EmbeddedKafka, free_port, port_fault
from pipeline.bus.producer import BatchProducer
from pipeline.cli import demo_view
from pipeline.cli.context import print_error, quiet_logs, say, stderr, stdout
from pipeline.cli.demo_data import LABEL, TRAINING_ROWS, Broken, Plan, shuttle
from pipeline.cli.events import EventEncoder
from pipeline.cli.inference import Columns, infer
from pipeline.cli.init import make_project, measured
from pipeline.cli.processes import ProcessGroup, roles, stop_signals
from pipeline.cli.replay import Rate, chunk_rows, send
from pipeline.cli.wiring import connect, ensure_topics
from pipeline.codec import RowCodec, event_schema, registry_of
from pipeline.errors import PipelineError
from pipeline.models import bundle as bundles
from pipeline.settings import Settings, load
from pipeline.testing.breakage import FOREIGN_SCHEMA

NAME = "demo"
WORKERS = 2
#: 35,000 events take about 30 s.
RATE = 1_200.0
#: Workers import torch and warm up; on a cold disk that takes longest.
START_TIMEOUT_S = 90.0
#: After the last event was sent, everything must be out and committed within this.
FINISH_TIMEOUT_S = 30.0
REFRESH_S = 0.25
#: Without a terminal, a line this often.
PLAIN_EVERY_S = 5.0


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave Kafka and the pipeline running afterwards, until Ctrl-C.")
    ] = False,
    rate: Annotated[float, typer.Option(min=1.0, help="Events a second.")] = RATE,
    rows: Annotated[int | None, typer.Option(min=4_000, help="Events to send. [dim]Else all there are.[/dim]")] = None,
) -> None:
    """Show everything at work: Kafka, a freshly trained model, two workers, the drift monitor, a real shift.

    A model is trained on the first part of NASA Shuttle telemetry (shipped with River); the rest is replayed,
    one sensor reading too high from half-way on, and one record in a thousand broken in one of many ways.
    It ends by itself with a balance. Exit code 0: every event accounted for and the shift found; 1: not so.

    [bold]Examples[/bold]

    pipeline demo

    pipeline demo --keep
    """
    quiet_logs()
    started = time.monotonic()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        folder = Path(tempfile.mkdtemp(prefix="pipeline-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        status = stack.enter_context(stderr().status("starting"))
        kafka = EmbeddedKafka(port=0, ephemeral=True, progress=status.update)
        stack.enter_context(kafka)
        say(f"Apache Kafka answers on {kafka.bootstrap_servers}")
        status.update("training a model on the first rows")
        plan = _prepare(folder, kafka.bootstrap_servers, rows)
        status.update(f"starting {WORKERS} workers and the monitor")
        settings = load(folder / "pipeline.toml", {"observe.port": _free_ports(WORKERS + 1)})
        flags = ["--config", str(folder / "pipeline.toml"), "--set", f"observe.port={settings.observe.port}"]
        group = ProcessGroup(flags, settings.delivery.shutdown_deadline_s, log_dir=folder)
        stack.enter_context(group)
        run = Run(settings, plan, group, stop)
        group.start(roles("all", WORKERS, settings))
        run.await_ready()
        status.stop()
        verdict = run.go(rate)
        stdout().print(verdict.summary())
        say(f"took {time.monotonic() - started:.0f} s in all")
        problems = _problems(verdict)
        for problem in problems:
            print_error(problem)
        if keep:
            _keep(run, kafka.bootstrap_servers, folder)
        if code := group.stop():
            problems.append(f"a role ended with exit code {code}")
            print_error(problems[-1])
    if problems:
        raise typer.Exit(1)


def _prepare(folder: Path, bootstrap_servers: str, rows: int | None) -> Plan:
    """A project as `pipeline init` makes it, out of the first rows; the plan for the others."""
    data = shuttle()
    training = data.slice(0, TRAINING_ROWS)
    columns = Columns(LABEL)
    report = make_project(folder, NAME, training, columns, infer(training, columns, NAME), bootstrap_servers)
    stderr().print(measured(report))
    return Plan.of(data, TRAINING_ROWS, data.num_rows - TRAINING_ROWS if rows is None else rows)


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports of this machine on which nothing listens now."""
    while True:
        first = free_port()
        if all(port_fault(first + n) is None for n in range(1, count)):
            return first


@dataclass
class Run:
    """One pass of the demo's data through its pipeline."""

    settings: Settings
    plan: Plan
    group: ProcessGroup
    stop: threading.Event
    broken: Broken = field(default_factory=Broken)
    sent: int = 0

    def __post_init__(self) -> None:
        self.options, self.admin = connect(self.settings)
        ensure_topics(self.settings, self.admin)
        self.registry = registry_of(self.settings)
        baseline = bundles.read(self.settings.path(self.settings.model.bundle)).baseline
        self._baseline = {s.name: (s.mean, s.variance**0.5) for s in baseline.signals}

    def await_ready(self) -> None:
        """Until every role answers /readyz. Raises PipelineError when one dies or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = [self.settings.observe.port + n for n in range(WORKERS + 1)]
        while waiting:
            self._look()
            if time.monotonic() > deadline:
                raise PipelineError(f"not ready within {START_TIMEOUT_S:g} s; {self._log_tail()}")
            waiting = [port for port in waiting if _get(port, "readyz") is None]
            time.sleep(0.1)

    def go(self, rate: float) -> demo_view.Verdict:
        """Send, watch, wait until all is out and committed; the balance."""
        tally = demo_view.Tally(self.plan)
        rows = RowCodec(self.registry)
        sender = threading.Thread(target=self._send, args=(rate,), name="demo-send", daemon=True)
        with demo_view.Watch(self.settings, self.options, rows, tally) as watch, self._view(tally) as show:
            watch.await_connected(START_TIMEOUT_S)
            sender.start()
            deadline = None
            while not self._all_out(tally) or self._lag():
                self._look()
                watch.check()
                if not sender.is_alive() and deadline is None:
                    deadline = time.monotonic() + FINISH_TIMEOUT_S
                if deadline is not None and time.monotonic() > deadline:
                    break
                show()
                time.sleep(REFRESH_S)
            self._await_trigger(tally)
            show()
        return demo_view.Verdict(tally, self.broken, uncommitted=self._lag())

    def _send(self, rate: float) -> None:
        events, settings = self.settings.events, self.settings
        schema = event_schema(settings)
        schema_id = self.registry.register(f"{settings.topic('events')}-value", schema)
        foreign_id = self.registry.register(f"{NAME}.foreign-value", FOREIGN_SCHEMA)
        encoder = EventEncoder(schema, schema_id, events.id_field, events.key_field, events.time_field)
        producer = BatchProducer(self.options.for_producer())
        encoded = self.plan.encoded(encoder, foreign_id, self.broken, chunk_rows(rate))

        def note(sent: int) -> None:
            self.sent = sent

        send(producer, settings.topic("events"), encoded, Rate(rate), self.stop.is_set, note)
        producer.flush()

    def _all_out(self, tally: demo_view.Tally) -> bool:
        return self.sent == len(self.plan) and tally.out >= len(self.plan)

    def _await_trigger(self, tally: demo_view.Tally) -> None:
        """The monitor may be a commit interval behind the workers."""
        deadline = time.monotonic() + 5.0
        while not tally.triggers and time.monotonic() < deadline and not self.stop.is_set():
            time.sleep(REFRESH_S)

    def _lag(self) -> int:
        lag = topics.lag(self.admin, self.settings.group("worker"), self.settings.topic("events"))
        return sum(lag.values())

    def _look(self) -> None:
        """Raise if a role died or a person wants to stop."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        if (ended := self.group.ended()) is not None:
            role, code = ended
            raise PipelineError(f"{role} ended with exit code {code}; {self._log_tail()}")

    def _log_tail(self) -> str:
        """The last line that each role logged."""
        lines = []
        for role in roles("all", WORKERS, self.settings):
            said = self.group.log_file(role).read_text("utf-8", errors="replace").splitlines()
            lines.append(f"{role}: {said[-1] if said else 'said nothing'}")
        return "; ".join(lines)

    @contextmanager
    def _view(self, tally: demo_view.Tally) -> Iterator[Callable[[], None]]:
        """A live table on a terminal, a line now and then elsewhere."""
        console = stderr()
        if not console.is_terminal:
            last = 0.0

            def line() -> None:
                nonlocal last
                if time.monotonic() - last >= PLAIN_EVERY_S:
                    last = time.monotonic()
                    say(demo_view.plain(tally, self.sent))

            yield line
            return
        with Live(console=console, refresh_per_second=4, transient=True) as screen:

            def draw() -> None:
                text = _get(self.settings.observe.port, "metrics") or ""
                signals = demo_view.moved(demo_view.signal_means(text), self._baseline)
                screen.update(demo_view.live(tally, self.sent, self._lag(), signals))

            yield draw


def _get(port: int, path: str) -> str | None:
    """What http://127.0.0.1:PORT/PATH says, None if it says no or nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return None


def _problems(verdict: demo_view.Verdict) -> list[str]:
    found = []
    for what, count in (
        ("events have no prediction", verdict.lost_events),
        ("predictions too many", verdict.duplicates),
        ("broken records have no dead letter with their bytes", verdict.lost_dead_letters),
        ("dead letters for records that were not broken", verdict.extra_dead_letters),
        ("dead letters do not say the right reason", verdict.wrong_reasons),
        ("events are not committed", verdict.uncommitted),
    ):
        if count:
            found.append(f"{count:,} {what}")
    if not any(events >= 0 for events, _ in verdict.found):
        found.append("the monitor did not find the shift")
    found += [f"a false alarm, {-events:,} events before the shift" for events, _ in verdict.found if events < 0]
    return found


def _keep(run: Run, bootstrap_servers: str, folder: Path) -> None:
    port = run.settings.observe.port
    say(
        f"Still running, until Ctrl-C. Kafka: {bootstrap_servers}; project: {folder}\n"
        f"  pipeline --config {folder}/pipeline.toml tail predictions --offset -5\n"
        f"  pipeline --config {folder}/pipeline.toml status\n"
        f"  http://127.0.0.1:{port}/metrics (monitor), http://127.0.0.1:{port + 1}/metrics (worker 1)"
    )
    while not run.stop.wait(0.5):
        if run.group.ended() is not None:
            return
