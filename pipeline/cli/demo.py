"""`pipeline demo`: the whole loop on real data and a Kafka of its own, from the first event to a new model's."""

import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from pipeline.bus import topics
from pipeline.bus.embedded import EmbeddedKafka, free_port, port_fault
from pipeline.cli import demo_view
from pipeline.cli.context import print_error, quiet_logs, say, stderr, stdout
from pipeline.cli.demo_data import LABEL, TRAINING_ROWS, Plan, shuttle
from pipeline.cli.demo_feed import Feed
from pipeline.cli.demo_summary import Verdict
from pipeline.cli.inference import Columns, infer
from pipeline.cli.init import make_project, measured
from pipeline.cli.processes import ProcessGroup, RoleProcess, roles, stop_signals
from pipeline.cli.wiring import connect, ensure_topics
from pipeline.codec import RowCodec, registry_of
from pipeline.errors import PipelineError
from pipeline.models import bundle as bundles
from pipeline.settings import ObserveSettings, Settings, load

NAME = "demo"
WORKERS = 2
#: 35,000 events take about 30 s, and what waits for the successor some seconds more.
RATE = 1_200.0
#: Five processes import torch or Faust and warm up; on a cold disk, or two busy cores, that takes longest.
START_TIMEOUT_S = 120.0
#: After the events stopped to wait for it, a successor must serve within this: some seconds of training, again after
#: 15 s if the labels were too few. With ten other processes on the two cores it took a minute.
SUCCESSOR_TIMEOUT_S = 240.0
#: After the last event was sent, everything must be out, labelled and committed within this.
FINISH_TIMEOUT_S = 30.0
#: Ports up to this leave room for the roles' own above them.
PORT_MAX = 65_000
REFRESH_S = 0.25
#: Without a terminal, a line this often, and at each step of the loop.
PLAIN_EVERY_S = 5.0
#: What is switched on, and what is smaller than a month of production.
SETTINGS = """
[labels]
enabled = true

# One shift, one alarm: a second one, by the errors or after the usual 10,000 events, would train a second successor
# while the first is on trial.
[quality]
enabled = false

[drift]
cooldown_events = 50_000

[retraining]
enabled = true
# Of some thousand events a pass takes a tenth of a second: the default of 60 would do, at six times the wait.
epochs_max = 10
learning_rate = 0.004
# Scoring has cores to spare at this rate, and a person waits for the successor.
nice = 0

[gate]
# As many show a gain of five points, and this one is of seventy; a fifth of the first 2,500 labels after the shift.
rows_min = 500
# Both models take some microseconds, and the processes of the demo share a few cores: their times are mostly noise.
latency_ratio_max = 10
# A second or two of the stream are enough of a trial then.
release_as = "canary"
canary_share = 0.5

[trial]
outcomes_min = 200
every_s = 0.5
"""


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave Kafka and the pipeline running afterwards, until Ctrl-C.")
    ] = False,
    rate: Annotated[float, typer.Option(min=1.0, max=20_000.0, help="Events a second.")] = RATE,
    rows: Annotated[int | None, typer.Option(min=8_000, help="Events to send. [dim]Else all there are.[/dim]")] = None,
) -> None:
    """Show the whole loop at work: events, labels, a shift, a drift trigger, a successor that serves.

    A model is trained on the first part of NASA Shuttle telemetry (shipped with River); the rest is replayed to two
    workers, each label half a second after its event, one record in a thousand broken in one of many ways. Then a
    sensor reads too high, and the model is wrong in most rows. The monitor notices, the retrainer learns from the
    labels since, the gate judges, and the workers swap models; the last events wait for that.
    It ends by itself with a balance. Exit code 0: every event accounted for, the shift found, a better model in
    service; 1: not so.

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
        config = folder / "pipeline.toml"
        settings = load(config, {"observe.port": _port(load(config))})
        flags = ["--config", str(config), "--set", f"observe.port={settings.observe.port}"]
        group = ProcessGroup(flags, settings.delivery.shutdown_deadline_s, log_dir=folder)
        stack.enter_context(group)
        run = Run(settings, plan, group, stop)
        status.update(f"starting {', '.join(map(str, run.roles))}")
        group.start(run.roles)
        run.await_ready()
        status.stop()
        verdict = run.go(rate)
        stdout().print(verdict.summary())
        say(f"took {time.monotonic() - started:.0f} s in all")
        problems = verdict.problems()
        for problem in problems:
            print_error(problem)
        _next_steps(settings, folder, kept=keep)
        if keep:
            run.await_stop()
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
    with (folder / "pipeline.toml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    stderr().print(measured(report))
    return Plan.of(data, TRAINING_ROWS, data.num_rows - TRAINING_ROWS if rows is None else rows)


def _port(settings: Settings) -> int:
    """A monitor's port of this machine such that nothing listens now where any of the roles would."""
    wanted = roles("all", WORKERS, settings)
    while True:
        observe = ObserveSettings(port=min(free_port(), PORT_MAX))
        if all(port_fault(observe.port_of(role.name, role.slot)) is None for role in wanted):
            return observe.port


class Run:
    """One pass of the demo's data through its pipeline."""

    def __init__(self, settings: Settings, plan: Plan, group: ProcessGroup, stop: threading.Event) -> None:
        """stop: set when a person wants an end."""
        self._settings, self._plan, self._group, self._stop = settings, plan, group, stop
        self.roles = roles("all", WORKERS, settings)
        self._options, self._admin = connect(settings)
        ensure_topics(settings, self._admin)
        self._registry = registry_of(settings)
        first = bundles.read(settings.path(settings.model.bundle))
        self._version = first.model_version
        self._baseline = {s.name: (s.mean, s.variance**0.5) for s in first.baseline.signals}

    def await_ready(self) -> None:
        """Until every role answers /readyz. Raises PipelineError when one dies or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = [self._port_of(role) for role in self.roles]
        while waiting:
            self._look()
            if time.monotonic() > deadline:
                raise PipelineError(f"not ready within {START_TIMEOUT_S:g} s; {self._log_tail()}")
            waiting = [port for port in waiting if _get(port, "readyz") is None]
            time.sleep(0.1)

    def _port_of(self, role: RoleProcess) -> int:
        return self._settings.observe.port_of(role.name, role.slot)

    def go(self, rate: float) -> Verdict:
        """Send, watch, wait until all is out, labelled and committed; the balance."""
        tally = demo_view.Tally(self._plan, self._version)
        with demo_view.Watch(self._settings, self._options, RowCodec(self._registry), tally) as watch:
            watch.await_connected(START_TIMEOUT_S)
            feed = Feed(self._settings, self._options, self._registry, self._plan, rate)
            with feed, self._view(tally, feed) as show:
                ends = _Deadlines()
                while not (feed.done and self._all_out(tally, feed)):
                    self._look()
                    watch.check()
                    feed.check()
                    if (place := feed.held_at) is not None:
                        if tally.given_up or self._serves(tally, place):
                            feed.go_on(place)
                        elif ends.passed(f"held at {place}", SUCCESSOR_TIMEOUT_S):
                            say(f"no successor within {SUCCESSOR_TIMEOUT_S:g} s; {self._log_tail()}")
                            feed.go_on(place)
                    if feed.done and ends.passed("done", FINISH_TIMEOUT_S):
                        break
                    show()
                    time.sleep(REFRESH_S)
                show()
            return Verdict(tally, feed, uncommitted=self._lag())

    def _all_out(self, tally: demo_view.Tally, feed: Feed) -> bool:
        """Predictions, dead letters and outcomes of all events, the gate's report, and every offset committed."""
        good = len(self._plan) - len(feed.broken.rows)
        if tally.out < len(self._plan) or int(tally.outcomes.sum()) < good:
            return False
        return not self._lag() and (tally.successor is None or bool(tally.reports))

    def _serves(self, tally: demo_view.Tally, place: int) -> bool:
        """Whether both workers have the successor in service: beside the first model, or at last in its stead."""
        if (version := tally.successor) is None:
            return False
        workers = [role for role in self.roles if role.name == "worker"]
        pages = [_get(self._port_of(worker), "metrics") or "" for worker in workers]
        wanted = {version} if place == self._plan.champion_at else {version, tally.version}
        return all(demo_view.models_in_use(page) == wanted for page in pages)

    def await_stop(self) -> None:
        """Until a person wants an end, or a role ends by itself."""
        while not self._stop.wait(0.5):
            if self._group.ended() is not None:
                return

    def _lag(self) -> int:
        settings = self._settings
        return sum(topics.lag(self._admin, settings.group("worker"), settings.topic("events")).values())

    def _look(self) -> None:
        """Raise if a role died or a person wants to stop."""
        if self._stop.is_set():
            raise KeyboardInterrupt
        if (ended := self._group.ended()) is not None:
            role, code = ended
            raise PipelineError(f"{role} ended with exit code {code}; {self._log_tail()}")

    def _log_tail(self) -> str:
        """The last line that each role logged."""
        lines = []
        for role in self.roles:
            said = self._group.log_file(role).read_text("utf-8", errors="replace").splitlines()
            lines.append(f"{role}: {said[-1] if said else 'said nothing'}")
        return "; ".join(lines)

    @contextmanager
    def _view(self, tally: demo_view.Tally, feed: Feed) -> Iterator[Callable[[], None]]:
        """A live table on a terminal, a line now and then elsewhere."""
        console = stderr()
        if not console.is_terminal:
            last, step = 0.0, ""

            def line() -> None:
                nonlocal last, step
                if time.monotonic() - last >= PLAIN_EVERY_S or step != demo_view.step(tally, feed):
                    last, step = time.monotonic(), demo_view.step(tally, feed)
                    say(demo_view.plain(tally, feed))

            yield line
            return
        with Live(console=console, refresh_per_second=4, transient=True) as screen:

            def draw() -> None:
                text = _get(self._settings.observe.port, "metrics") or ""
                signals = demo_view.moved(demo_view.signal_means(text), self._baseline)
                screen.update(demo_view.live(tally, feed, self._lag(), signals))

            yield draw


class _Deadlines:
    """When waiting for something began, by its name."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def passed(self, what: str, timeout_s: float) -> bool:
        """Whether `timeout_s` have passed since this was first asked of `what`."""
        now = time.monotonic()
        return now - self._since.setdefault(what, now) > timeout_s


def _get(port: int, path: str) -> str | None:
    """What http://127.0.0.1:PORT/PATH says, None if it says no or nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return None


def _next_steps(settings: Settings, folder: Path, *, kept: bool) -> None:
    """What to look at, if it is still there."""
    if not kept:
        say("`pipeline demo --keep` leaves it all running, to look at it by hand: accuracy, models, rollback and more.")
        return
    port, to_it = settings.observe.port, f"  pipeline --config {folder}/pipeline.toml"
    say(
        f"Still running, until Ctrl-C. Kafka: {settings.kafka.bootstrap_servers}; project: {folder}\n"
        f"{to_it} quality              # accuracy, calibration and more of both models\n"
        f"{to_it} model history        # which model served when, and why\n"
        f"{to_it} model rollback       # back to the first model; the workers swap at once\n"
        f"{to_it} tail outcomes --offset -5\n"
        f"{to_it} status\n"
        f"  http://127.0.0.1:{port}/metrics (monitor), http://127.0.0.1:{port + 1}/metrics (worker 1)"
    )
