"""What commands share: the global flags, the two consoles, how errors and tables look."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.settings import Settings, load

#: Queries (`tail`, `status`, `topics`) give up on an absent broker after this long: a person is waiting.
BROKER_WAIT_S = 10.0


@dataclass(frozen=True)
class Flags:
    """The flags before the command's name."""

    config: Path | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    debug: bool = False

    def as_arguments(self) -> list[str]:
        """The same flags on a command line, for a process started by this one."""
        given = [] if self.config is None else ["--config", str(self.config)]
        for key, value in self.overrides.items():
            given += ["--set", f"{key}={value}"]
        return [*given, "--debug"] if self.debug else given


def settings_of(ctx: typer.Context, **flags: Any) -> Settings:
    """Settings under the global flags; `flags` are a command's own, as section__key. Raises SettingsError.

    From here on logs go to stderr, from level warning: standard output is for results.
    """
    given = ctx.obj if isinstance(ctx.obj, Flags) else Flags()
    own = {key.replace("__", "."): value for key, value in flags.items()}
    settings = load(given.config, {**given.overrides, **own})
    quiet_logs()
    return settings


def quiet_logs() -> None:
    """Logs from level warning, to stderr; what runs as a service sets up its own."""
    import structlog  # noqa: PLC0415  75 ms that `--help` need not wait for

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def stdout() -> Console:
    """Console for results. Without a terminal it is wide, so that a pipe gets whole lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def stderr() -> Console:
    """Console for progress, remarks and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """`text` with whatever is not printable escaped: data must not steer the terminal that shows it.

    Escape sequences (in their eight-bit form too), line ends of every kind and what turns the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_error(message: str) -> None:
    """Every line of `message` on stderr as an error."""
    console = stderr()
    for line in message.rstrip().split("\n") if message else ["unknown error"]:
        console.print(Text.assemble(("error: ", "bold red"), printable(line)))


def say(message: str) -> None:
    """A remark to the person, on stderr."""
    stderr().print(Text("\n".join(map(printable, message.split("\n")))))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[str] = ()) -> Table:
    """A table of plain text cells; the columns named in `right` are numbers."""
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    numbers = set(right)
    for name in columns:
        shown.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row))
    return shown


def local_time(milliseconds: int) -> str:
    """A moment in this machine's time zone, with its offset; a number that is no date is shown as it is."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return moment.isoformat(sep=" ", timespec="milliseconds")
