"""`pipeline run`: one role in this process, or several in a supervised group."""

import asyncio
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Annotated

import structlog
import typer

from pipeline.cli.context import Flags, print_error, settings_of
from pipeline.cli.processes import ProcessGroup, end_with_parent, roles
from pipeline.cli.supervisor import Supervisor
from pipeline.errors import PipelineError, SettingsError
from pipeline.observe import logs
from pipeline.settings import Settings

#: Idle threads are gone within milliseconds of being let go.
STUCK_AFTER_S = 1.0
#: Where cores are short, predictions come first: a worker then gets three times the time of a role that reads labels
#: (1.25 ** 5).
LABELS_NICENESS = 5


class RoleName(StrEnum):
    """What can be run."""

    WORKER = "worker"
    LABELS = "labels"
    QUALITY = "quality"
    MONITOR = "monitor"
    RETRAINER = "retrainer"
    ALL = "all"


def run(
    ctx: typer.Context,
    role: Annotated[
        RoleName, typer.Argument(metavar="ROLE", help="worker, labels, quality, monitor, retrainer, or all.")
    ],
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes of the one consumer group.")] = 1,
    slot: Annotated[
        int | None,
        typer.Option(min=1, help="Number of this worker among those on this machine, if started one by one."),
    ] = None,
    parent: Annotated[int | None, typer.Option(help="End with this process.", hidden=True)] = None,
) -> None:
    """Run workers, the join of labels, the drift monitor, or all of them, until Ctrl-C or SIGTERM.

    A stop drains what is in flight, commits it and leaves the group, within delivery.shutdown_deadline_s.
    Several processes are supervised: one that crashes is started again, up to supervisor.restarts_max times.
    Exit code 0: stopped in order. Other codes: see the documentation; the last line says the cause.

    [bold]Examples[/bold]

    pipeline run all --workers 2

    pipeline run worker

    pipeline run monitor
    """
    settings = settings_of(ctx)
    logs.configure(settings.observe.log_level, settings.observe.log_format)
    if parent is not None:
        end_with_parent(parent)
    if role is RoleName.MONITOR and not settings.drift.enabled:
        raise SettingsError("drift.enabled: is false, so there is nothing to monitor")
    if role is RoleName.LABELS and not settings.labels.enabled:
        raise SettingsError("labels.enabled: is false, so there is nothing to join")
    if role is RoleName.QUALITY and not (settings.labels.enabled and settings.quality.enabled):
        key = "quality.enabled" if settings.labels.enabled else "labels.enabled"
        raise SettingsError(f"{key}: is false, so there are no outcomes to watch")
    if role is RoleName.RETRAINER and not settings.retraining.enabled:
        raise SettingsError("retraining.enabled: is false, so no trigger is acted on")
    if role in {RoleName.QUALITY, RoleName.MONITOR, RoleName.RETRAINER} and workers > 1:
        raise typer.BadParameter(f"one {role.value} reads all there is; --workers is for worker and labels")
    if role is RoleName.ALL or workers > 1:
        code = _run_group(settings, ctx.obj, role, workers)
        if code:
            raise typer.Exit(code)
    else:
        _run_here(settings, ctx.obj, role, slot or 1)


def _run_here(settings: Settings, flags: Flags, role: RoleName, slot: int) -> None:
    structlog.contextvars.bind_contextvars(role=f"{role.value}-{slot}")
    if role in {RoleName.LABELS, RoleName.QUALITY} and hasattr(os, "nice"):
        os.nice(LABELS_NICENESS)
    from pipeline.cli.role import run_role  # noqa: PLC0415 (faust and torch: 2 s that `--help` need not wait for)

    with asyncio.Runner() as runner:
        executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
        runner.get_loop().set_default_executor(executor)
        fault = runner.run(run_role(settings, role.value, slot, flags.as_arguments()))
        # Its idle threads end. The runner's own end waits for the busy ones too, for as long as they take.
        executor.shutdown(wait=False)
        _leave_if_stuck(fault)
        if fault is not None:
            raise fault


def _leave_if_stuck(fault: PipelineError | None) -> None:
    """Exit here and now if a thread would hold up the end: in a model, or waiting for a broker that does not answer."""
    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    give_up = time.monotonic() + STUCK_AFTER_S
    for thread in others:
        thread.join(max(give_up - time.monotonic(), 0.0))
    if any(thread.is_alive() for thread in others):
        if fault is not None:
            print_error(str(fault))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if fault is None else fault.exit_code)


def _run_group(settings: Settings, flags: Flags, role: RoleName, workers: int) -> int:
    stop = threading.Event()
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ProcessGroup(flags.as_arguments(), settings.delivery.shutdown_deadline_s) as group:
            wanted = roles(role.value, workers, settings)
            return Supervisor(group, settings.supervisor).run(wanted, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
