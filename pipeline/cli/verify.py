"""`pipeline verify`: this project's pipeline under load and faults, and every event counted."""

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import typer

from pipeline.bus import topics
from pipeline.bus.clients import Admin
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.cli import verify_load, verify_report
from pipeline.cli.context import Flags, say, settings_of, stderr
from pipeline.cli.processes import stop_signals
from pipeline.cli.replay import Encoded
from pipeline.cli.verify_run import Run, Verdict
from pipeline.cli.verify_scratch import ScratchFolder, clear_broker, clear_registry, scratch_of
from pipeline.cli.verify_watch import Watch
from pipeline.cli.wiring import connect
from pipeline.codec import event_schema
from pipeline.errors import BundleError, PipelineError, SettingsError
from pipeline.models import bundle as bundles
from pipeline.settings import Settings
from pipeline.testing.counting import OutcomeCounter
from pipeline.testing.faults import BROKER_START_S, FAULTS, plan
from pipeline.testing.proxy import Proxy

#: Enough for every fault to happen under load, little enough for any laptop; the load's Python makes 8,000/s.
RATE = 2_000.0
EVENTS = 20_000


class Mode(StrEnum):
    """Delivery modes."""

    AT_LEAST_ONCE = "at_least_once"
    EXACTLY_ONCE = "exactly_once"


FaultName = StrEnum("FaultName", {name: name for name in FAULTS})  # type: ignore[misc]


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    faults: list[str]
    events: int
    rate: float
    rounds: int
    workers: int
    mode: str
    seed: int
    data: Path | None
    use_broker: bool
    keep: bool

    def command(self, flags: Flags) -> str:
        """The command line that does the same again."""
        words = ["pipeline", *flags.as_arguments(), "verify", "--mode", self.mode]
        for name in self.faults:
            words += ["--fault", name]
        words += ["--events", str(self.events), "--rate", f"{self.rate:g}", "--rounds", str(self.rounds)]
        words += ["--workers", str(self.workers), "--seed", str(self.seed)]
        words += ["--data", str(self.data)] if self.data else []
        return shlex.join([*words, *(["--use-broker"] if self.use_broker else [])])


def verify(
    ctx: typer.Context,
    faults: Annotated[
        bool, typer.Option("--faults/--no-faults", help="Inject every fault that the broker allows, each once a round.")
    ] = False,
    fault: Annotated[
        list[FaultName] | None,
        typer.Option(
            metavar="NAME",
            help="Inject this one (repeatable): " + "; ".join(f"{f.name}: {f.says}" for f in FAULTS.values()) + ".",
        ),
    ] = None,
    events: Annotated[
        int, typer.Option(min=1, max=50_000_000, help="At least so many; the load goes on while there are faults.")
    ] = EVENTS,
    rate: Annotated[float, typer.Option(min=1.0, help="Events a second.")] = RATE,
    rounds: Annotated[int, typer.Option(min=1, help="How often each fault.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
    mode: Annotated[Mode | None, typer.Option(help="Delivery mode. [dim]Else the project's.[/dim]")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or Parquet file to send, again and again. [dim]Else events are made up.[/dim]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of faults, their victims, and made-up events.")] = 1,
    use_broker: Annotated[
        bool,
        typer.Option(
            "--use-broker", help="On kafka.bootstrap_servers, under a name of its own; else on a Kafka of its own."
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave logs, data and topics behind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict as one JSON object.")] = False,
) -> None:
    """Run this project's pipeline on a Kafka of its own, under load and faults, and count every event.

    Your settings, schema and model are used as they are; topics, groups, state and registry are temporary ones of their
    own. An independent reader of committed records counts each event by partition and offset: predicted or
    dead-lettered once, lost, duplicated, out of order. It needs about 10 bytes of memory an event.
    Exit code 0: the delivery mode's promise was kept (exactly_once: nothing lost, duplicated or out of order;
    at_least_once: nothing lost); 1: it was not.

    [bold]Examples[/bold]

    pipeline verify

    pipeline verify --faults --mode exactly_once

    pipeline verify --fault kill-worker --fault kill-broker --rounds 5 --data orders.csv
    """
    project = settings_of(ctx)
    # That the broker goes away is the point; what is announced says it better.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    names = [str(name.value) for name in fault or []]
    if faults and not names:
        names = [f.name for f in FAULTS.values() if not (use_broker and f.needs)]
    options = Options(
        list(dict.fromkeys(names)),
        events,
        rate,
        rounds,
        workers,
        str(mode.value) if mode is not None else project.delivery.mode,
        seed,
        data,
        use_broker,
        keep,
    )
    if use_broker and (barred := [name for name in options.faults if FAULTS[name].needs]):
        raise SettingsError(f"--fault {barred[0]}: needs a broker of its own; leave --use-broker out")
    bundle = _checked(project)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        folder = stack.enter_context(ScratchFolder("all" if keep else "nothing"))
        verdict = _verify(stack, project, bundle, ctx.obj, folder.path, options, stop)
        again = options.command(ctx.obj)
        if as_json:
            typer.echo(json.dumps(verify_report.as_json(verdict, options.mode, options.seed, again)))
        else:
            verify_report.show(verdict, options.mode, again)
        if verdict.problems:
            folder.keep_logs()
    if verdict.problems:
        raise typer.Exit(1)


def _checked(project: Settings) -> bundles.Bundle:
    """The project's bundle. Raises what `check` would report first."""
    path = project.path(project.model.bundle)
    bundle = bundles.read(path)
    if misfits := bundles.check_fits(bundle, event_schema(project)):
        raise BundleError(f"{path}: does not fit {project.events.schema_file}: {'; '.join(misfits)}")
    return bundle


def _verify(
    stack: ExitStack,
    project: Settings,
    bundle: bundles.Bundle,
    flags: Flags,
    folder: Path,
    options: Options,
    stop: threading.Event,
) -> Verdict:
    """Make all that is needed, run, and leave its removal to `stack`."""
    faults = list(plan(options.faults, options.rounds, options.seed))
    broker = proxy = None
    if not options.use_broker:
        if any(fault.needs == "network" for fault in faults):
            proxy = stack.enter_context(Proxy(seed=options.seed))
        broker = _start_broker(stack, folder, proxy)
    servers = (proxy or broker).bootstrap_servers if broker is not None else None
    scratch = scratch_of(project, flags, folder, options.mode, servers)
    settings = scratch.settings
    client_options, admin = connect(settings)
    if not options.keep:
        stack.callback(_clear, settings, admin, options.use_broker)
    topics.create(admin, topics.specs(settings))
    say(f"pipeline {settings.name} on {settings.kafka.bootstrap_servers}, {options.mode}, seed {options.seed}")
    events: Callable[[int], Iterator[Encoded]] = (
        partial(verify_load.made_events, settings, bundle, options.seed)
        if options.data is None
        else partial(verify_load.file_events, settings, options.data)
    )
    counter = OutcomeCounter()
    load = stack.enter_context(verify_load.Load(settings, client_options, events, options.rate))
    watch = stack.enter_context(Watch(settings, client_options, counter))
    run = Run(scratch, admin, load, watch, counter, stop, broker=broker, network=proxy)
    stack.callback(run.fleet.kill)
    return run.go(faults, options.events, options.workers, options.seed)


def _start_broker(stack: ExitStack, folder: Path, proxy: Proxy | None) -> EmbeddedKafka:
    with stderr().status("starting Apache Kafka") as status:
        broker = EmbeddedKafka(
            folder / "kafka",
            port=0,
            advertised_port=proxy.port if proxy is not None else None,
            progress=status.update,
        )
        stack.callback(broker.kill)
        broker.start(BROKER_START_S)
    if proxy is not None:
        proxy.upstream = broker.bootstrap_servers
    return broker


def _clear(settings: Settings, admin: Admin, use_broker: bool) -> None:
    """Take our own out of what is not ours; never in the way of what is being raised."""
    left = []
    try:
        left += clear_broker(settings, admin) if use_broker else []
        left += clear_registry(settings)
    except PipelineError as error:
        left.append(str(error))
    for line in left:
        say(f"could not be deleted: {line}")
