"""What `pipeline evaluate` and `pipeline gate` have in common around scoring: arguments, models, progress, files."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cli.context import stderr
from pipeline.cli.evaluate_source import Bound, Source
from pipeline.cli.processes import stop_signals
from pipeline.errors import BundleError, DataError
from pipeline.models import bundle as bundles
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.scoring.engine import TorchModel

#: Points of the timeline unless told otherwise, and rows of each at the least: the accuracy of 500 is known to
#: 1.96 x 0.5 / sqrt(500), about 0.04, and their PSI has about 0.03 by chance.
WINDOWS, WINDOW_ROWS_MIN = 40, 500


def bound(text: str | None, flag: str) -> Bound | None:
    """Where a range begins or ends, as a flag says it. Raises BadParameter."""
    try:
        return None if text is None else Bound.parse(text)
    except (ValueError, OverflowError):
        what = "neither a whole number nor a time such as 2024-06-01 or 2024-06-01T12:00Z"
        raise typer.BadParameter(f"{text!r} is {what}", param_hint=flag) from None


def fitting(path: Path, schema: str) -> bundles.Bundle:
    """A bundle that fits the events. Raises BundleError, a line for each thing that does not."""
    found = bundles.read(path)
    if misfits := bundles.check_fits(found, schema):
        raise BundleError("\n".join(f"{path}: does not fit the events: {misfit}" for misfit in misfits))
    return found


def load_models(settings: Settings, *packed: bundles.Bundle) -> "list[TorchModel]":
    """The models of bundles, warmed up. For the inside of `reading`: importing torch and faust takes seconds."""
    from pipeline.topology.serving import load_model  # noqa: PLC0415  after what can be refused

    return [load_model(settings, bundle) for bundle in packed]


@contextmanager
def reading(source: Source) -> Iterator[Callable[[int], None]]:
    """Around reading and scoring a source; yields what is to be told how many rows were read.

    Ctrl-C and SIGTERM are raised there, as KeyboardInterrupt: raised in the midst of an import they may be swallowed by
    it. A DataError is told with the source's name.
    """
    with stop_signals() as stop, _progress(source.size) as show:

        def on_read(rows: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            show(rows)

        try:
            yield on_read
        except DataError as error:
            name = str(source.described()["name"])
            raise DataError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if that is a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _n: None
        return
    columns = (TextColumn("evaluate"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task, started = bar.add_task("", total=total, rate="-"), time.monotonic()

        def show(read: int) -> None:
            bar.update(task, completed=read, rate=f"{read / max(time.monotonic() - started, 1e-3):,.0f}")

        yield show


def write(path: Path, text: str) -> None:
    """All of the file or nothing: an earlier evaluation stays whole until this one is."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
