"""`pipeline retrain`: a successor of the model in service, from labelled events of the log, in a process of its own.

What asks and what trains are two processes, which meet in a folder (`retraining.exchange`):

    request.json, parent.tar      written by the one that asks
    bundle.tar, result.json       written by the one that trains, with `pipeline retrain --request request.json`

The one that trains is started here (executor "process") or by a command of the user's, on whatever machine
(executor "command"). The bundle is verified here and then put where it was wanted, whole or not at all.
"""

import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.cli import render
from pipeline.cli.context import Flags, printable, say, settings_of, stderr, stdout, table
from pipeline.cli.processes import end_with_parent, stop_signals
from pipeline.errors import BundleError, DataError
from pipeline.models import bundle as bundles
from pipeline.records import OffsetRange
from pipeline.retraining import executor
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings

REQUEST, PARENT, BUNDLE, RESULT = "request.json", "parent.tar", "bundle.tar", "result.json"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
#: As a shell says that Ctrl-C ended something.
INTERRUPTED = 130


def retrain(
    ctx: typer.Context,
    last: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train on the newest so many labelled events.  [dim]Else retraining.window_rows.[/dim]"
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="7d", help="On those of so long before the newest labelled one, or since an ISO time."),
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(metavar="ID", help="On the window that this retraining trigger suggests.")
    ] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="P:FIRST-LAST", help="On those in these offsets of the events topic (repeatable)."
        ),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="What to begin from.  [dim]Else the one of model.bundle.[/dim]"),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Folder, or archive: .tar, .tar.gz, .tgz, .zip.")] = Path(
        "models/candidate"
    ),
    seed: Annotated[int, typer.Option(min=0, help="The same events and seed make the same model.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it, in one line.")] = False,
    request: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Do what this file asks for, here; for retraining.command.",
            rich_help_panel="Elsewhere",
        ),
    ] = None,
    child_of: Annotated[int | None, typer.Option("--child-of", help="End with this process.", hidden=True)] = None,
) -> None:
    """Train a successor of the model in service on labelled events, measure both on the newest, and pack it.

    Needs outcomes, which the labels role writes. Nothing is put into service: `pipeline gate` judges the successor.
    Training runs in a process of its own, with limits of memory and time, behind scoring (nice); or elsewhere.

    [bold]Examples[/bold]

    pipeline retrain

    pipeline retrain --since 7d --out models/2024-06.tar.gz

    pipeline retrain --trigger 3f9a0c52d1b7e846 --json | jq .metrics
    """
    settings = settings_of(ctx)
    if request is not None:
        _train_here(settings, request, child_of)
        return
    wanted = _wanted(settings, last, since, trigger, offsets or [])
    bundles.check_free(out, overwrite=force)  # before the work, not after it
    parent = parent or settings.path(settings.model.bundle)
    begun = bundles.read(parent)
    asked = {**wanted, "seed": seed, "trigger_id": trigger, "executor": settings.retraining.executor}
    with _exchange(settings) as folder:
        bundles.write(begun, folder / PARENT)
        (folder / REQUEST).write_text(json.dumps(asked, indent=1), "utf-8")
        _run(settings, ctx.obj, folder / REQUEST)
        made, result = _collected(folder)
    bundles.write(made, out, overwrite=force)
    result["bundle"] = str(out)
    if as_json:
        sys.stdout.write(render.to_json(result) + "\n")
    else:
        _show(result)
    say(f"wrote {out}: {made.model_id} {made.model_version}, successor of {begun.model_version}")


# --------------------------------------------------------------------------- what is asked for


def _wanted(
    settings: Settings, last: int | None, since: str | None, trigger: str | None, offsets: list[str]
) -> dict[str, Any]:
    """The window as plain data, and as text. Raises BadParameter for more than one, or none that can be read."""
    given = [
        name for name, value in (("--last", last), ("--since", since), ("--trigger", trigger)) if value is not None
    ]
    given += ["--range"] if offsets else []
    if len(given) > 1:
        raise typer.BadParameter(f"give one of {' and '.join(given)}", param_hint=given[-1])
    if since is not None:
        return {"since": _since_ms(since), "told": f"--since {since}"}
    if trigger is not None:
        return {"told": f"--trigger {trigger}"}
    if offsets:
        return {"ranges": [_range(text) for text in offsets], "told": " ".join(f"--range {o}" for o in offsets)}
    rows = last or settings.retraining.window_rows
    return {"last": rows, "told": f"--last {rows}"}


def _since_ms(text: str) -> dict[str, int]:
    """{"before_ms": a duration} or {"from_ms": a moment}."""
    if found := re.fullmatch(r"(\d{1,9})([smhdw])", text):
        return {"before_ms": int(found[1]) * _UNITS_S[found[2]] * 1000}
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        what = "neither a duration such as 7d, 12h or 90m nor a time such as 2024-06-01T12:00Z"
        raise typer.BadParameter(f"{text!r} is {what}", param_hint="--since") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return {"from_ms": int(moment.timestamp() * 1000)}


def _range(text: str) -> list[int]:
    found = re.fullmatch(r"(\d{1,6}):(\d{1,13})-(\d{1,13})", text)
    if not found or int(found[2]) > int(found[3]):
        raise typer.BadParameter(f"{text!r} is not PARTITION:FIRST-LAST, such as 0:1200-8000", param_hint="--range")
    return [int(part) for part in found.groups()]


# --------------------------------------------------------------------------- the one that asks


@contextmanager
def _exchange(settings: Settings) -> Iterator[Path]:
    """A folder for one request, which goes with it."""
    root = settings.path(settings.retraining.exchange)
    folder = root / f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"retraining.exchange: {folder}: cannot be made: {error.strerror}") from None
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(settings: Settings, flags: Flags, request: Path) -> None:
    """Run the one that trains to its end; what ended it ends this process, too."""
    chosen = settings.retraining
    command, limits = executor.chosen(chosen, request, flags.as_arguments())
    with stop_signals() as stop:
        code = executor.run(command, limits, stop)
    if code is None:
        say("interrupted: training was ended, nothing was written")
        raise typer.Exit(INTERRUPTED)
    if code:
        if chosen.executor == "command" or code > 128:
            say(
                f"training ended with exit code {code}: {command[0] if chosen.executor == 'command' else 'the process'}"
            )
        raise typer.Exit(code)


def _collected(folder: Path) -> tuple[bundles.Bundle, dict[str, Any]]:
    """The bundle, every digest right, and what is said of it."""
    if not (folder / RESULT).exists():
        raise BundleError(
            f"{folder / RESULT}: the command ended well but left no result; it must run `pipeline retrain "
            "--request FILE` to its end, on a machine that sees this folder under the same name"
        )
    made = bundles.read(folder / BUNDLE)
    result: dict[str, Any] = json.loads((folder / RESULT).read_text("utf-8"))
    return made, result


# --------------------------------------------------------------------------- the one that trains


def _train_here(settings: Settings, path: Path, child_of: int | None) -> None:
    from pipeline.cli.retrain_data import Request  # noqa: PLC0415
    from pipeline.cli.retrain_job import retrain as work  # noqa: PLC0415  torch, two seconds

    try:
        asked = json.loads(path.read_text("utf-8"))
        since = asked.get("since") or {}
        wanted = Wanted(
            last=asked.get("last"),
            before_ms=since.get("before_ms"),
            from_ms=since.get("from_ms"),
            ranges=tuple(OffsetRange(settings.topic("events"), *found) for found in asked.get("ranges", ())),
        )
        names = ("rows_min", "judge", "bundle_uri", "cause", "calibration")
        more = {name: asked[name] for name in names if name in asked}
        request = Request(wanted, asked["told"], asked["seed"], asked["trigger_id"], **more)
        nice = settings.retraining.nice if asked["executor"] == "process" else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no request of `pipeline retrain`: {error}") from None
    if child_of is not None:
        end_with_parent(child_of)
    if nice:
        os.nice(nice)
    parent = bundles.read(path.with_name(PARENT))
    with _progress() as show:
        made = work(settings, parent, request, show, int(time.time() * 1000))
    bundles.write(made.bundle, path.with_name(BUNDLE), overwrite=True)
    partial = path.with_name(f".{RESULT}")
    partial.write_text(render.to_json(made.result), "utf-8")
    partial.replace(path.with_name(RESULT))  # last of all: where it is, the bundle is whole


@contextmanager
def _progress() -> Iterator[Any]:
    """What is being done, on stderr: a bar on a terminal, else a line for each step."""
    console = stderr()
    if not console.is_terminal:
        told: set[str] = set()

        def tell(what: str, _done: int, size: int) -> None:
            step = what.split(" (", maxsplit=1)[0]
            if step not in told:
                told.add(step)
                say(f"{step} ..." if not size else f"{step}: {size:,} ...")

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, count="")

        def show(what: str, done: int, size: int) -> None:
            count = f"{done:,} of {size:,}" if size else ""
            bar.update(task, description=what, completed=done, total=size or None, count=count)

        yield show


# --------------------------------------------------------------------------- what a person sees


def _show(result: dict[str, Any]) -> None:
    console, rows = stdout(), result["rows"]
    console.print(Text(printable(f"{result['model_id']} {result['model_version']}"), "bold"))
    used = [(what, f"{n:,}") for what, n in rows.items() if n]
    console.print(table("events", ("used for", "count"), used, right=("count",)))
    before, now = result["metrics_of_parent"], result["metrics"]
    metrics = [(name, f"{before[name]:.4g}" if name in before else "-", f"{value:.4g}") for name, value in now.items()]
    names = ("metric", "parent", "successor")
    console.print(
        table(f"on the newest {rows['newest']:,} events, which neither learnt from", names, metrics, right=names[1:])
    )
    if known := result["parent_learnt_from_newest"]:
        say(f"warning: the parent may have learnt from {known:,} of the newest events: it knows their answers")
    for found in result["findings"]:
        if not found["passed"]:
            say(f"warning: {found['name']}: {found['says']}")
