"""`pipeline replay`: the rows of a file as events, at the rate a person asks for."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.bus.producer import BatchProducer
from pipeline.cli.context import say, settings_of, stderr
from pipeline.cli.events import EventEncoder
from pipeline.cli.wiring import connect, ensure_topics
from pipeline.codec import event_schema, registry_of
from pipeline.errors import DataError, DrainTimeoutError
from pipeline.retraining import tables

#: 100 sends a second: smooth for any consumer, and at 100,000 events/s still 1,000 records a call.
TICK_S = 0.01
#: Rows encoded at once: columnar encoding needs a few thousand to be at full speed; 10 ms of work.
CHUNK_ROWS = 5_000
#: At a given rate no more than this much is encoded ahead: an event without a time of its own gets that of its
#: encoding, and should not look older than it is.
AHEAD_S = 0.01
#: After Ctrl-C, what is in flight may take this long to be acknowledged.
STOP_FLUSH_S = 10.0


class Pace(Protocol):
    """When which row is due."""

    def due(self, elapsed_s: float) -> int:
        """How many rows, counted from the first, should have been sent after `elapsed_s`."""
        ...


class Rate:
    """Evenly, `rate` a second; 0 is as fast as it goes."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def due(self, elapsed_s: float) -> int:
        return int(elapsed_s * self._rate) + 1 if self._rate else sys.maxsize


class Clockwork:
    """As it happened, `speed` times faster: each row when its time says, never before an earlier row."""

    def __init__(self, times_ms: npt.NDArray[np.int64], speed: float, loop: bool) -> None:
        since_ms = np.maximum.accumulate(times_ms - times_ms[0])
        self._due_s = since_ms / (1000.0 * speed)
        # A loop begins again one mean step after its last row.
        self._lap_s = float(self._due_s[-1]) * (1 + 1 / max(len(times_ms) - 1, 1)) if loop else 0.0

    def due(self, elapsed_s: float) -> int:
        laps, within_s = divmod(elapsed_s, self._lap_s) if self._lap_s > 0 else (0, elapsed_s)
        return int(laps) * len(self._due_s) + int(np.searchsorted(self._due_s, within_s, side="right"))


def replay(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet file.")],
    rate: Annotated[float, typer.Option(min=0.0, help="Events a second; 0: as fast as it goes.")] = 1000.0,
    from_row: Annotated[int, typer.Option("--from", metavar="ROW", min=0, help="First row, counted from 0.")] = 0,
    to_row: Annotated[int | None, typer.Option("--to", metavar="ROW", min=1, help="Row to stop before.")] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Instead of --rate: as it happened by the time field, X times faster."),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, until Ctrl-C.")] = False,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for a broker at the start.")] = 60.0,
) -> None:
    """Send the rows of a file to the events topic, in the event schema; each acknowledged before this ends.

    The label column is not sent. While the broker is away, it waits. Ctrl-C finishes what is in flight.

    [bold]Examples[/bold]

    pipeline replay orders.csv --rate 500

    pipeline replay orders.csv --from 1000 --to 2000 --rate 0

    pipeline replay orders.csv --speed 60
    """
    if speed is not None and _given(ctx, "rate"):
        raise typer.BadParameter("give --rate or --speed, not both", param_hint="--speed")
    settings = settings_of(ctx)
    table = _rows(file, from_row, to_row)
    schema = event_schema(settings)
    topic = settings.topic("events")
    events = settings.events
    dry = EventEncoder(schema, 0, events.id_field, events.key_field, events.time_field)
    _explaining(file, lambda: dry.columns(table.slice(0, CHUNK_ROWS), from_row))
    pace = Rate(rate) if speed is None else _clockwork(file, dry, table, speed, loop)

    options, admin = connect(settings, wait_s)
    ensure_topics(settings, admin)
    schema_id = registry_of(settings).register(f"{topic}-value", schema)
    encoder = EventEncoder(schema, schema_id, events.id_field, events.key_field, events.time_field)
    producer = BatchProducer(options.for_producer())
    with _stop_signals() as stop, _progress(None if loop else table.num_rows) as on_sent:
        started = time.monotonic()
        chunk = chunk_rows(rate) if speed is None else CHUNK_ROWS
        encoded = _explaining_each(file, encode_rows(encoder, table, from_row, chunk, loop=loop))
        sent = send(producer, topic, encoded, pace, stop.wanted, on_sent)
        _flush(producer, stop)
        elapsed_s = time.monotonic() - started
    typer.echo(f"sent {sent:,} events in {elapsed_s:.1f} s ({sent / max(elapsed_s, 1e-9):,.0f}/s)")
    if stop.number:
        say("interrupted" if loop else f"interrupted: {table.num_rows - sent:,} of {table.num_rows:,} rows not sent")
        raise typer.Exit(128 + stop.number)


Encoded = tuple[Sequence[bytes | None], Sequence[bytes | None]]


def chunk_rows(rate: float) -> int:
    """How many rows to encode at once for `rate` events a second (0: as fast as it goes)."""
    return min(max(int(rate * AHEAD_S), 1), CHUNK_ROWS) if rate else CHUNK_ROWS


def encode_rows(
    encoder: EventEncoder, table: pa.Table, first_row: int, chunk: int = CHUNK_ROWS, *, loop: bool = False
) -> Iterator[Encoded]:
    """Keys and values in chunks; with `loop`, for ever, the row number going on so that made ids stay unique."""
    while True:
        for start in range(0, table.num_rows, chunk):
            yield encoder.encode(table.slice(start, chunk), first_row + start)
        if not loop:
            return
        first_row += table.num_rows


def send(
    producer: BatchProducer,
    topic: str,
    encoded: Iterator[Encoded],
    pace: Pace,
    stopped: Callable[[], bool] = lambda: False,
    on_sent: Callable[[int], None] = lambda _n: None,
) -> int:
    """Enqueue everything at its pace; how many it was. Delivery is confirmed by `producer.flush`.

    Raises DeliveryError when the broker refused a record.
    """
    sent, started = 0, time.monotonic()
    for keys, values in encoded:
        at = 0
        while at < len(values):
            if stopped():
                return sent
            n = min(pace.due(time.monotonic() - started) - sent, len(values) - at)
            if n <= 0:
                time.sleep(TICK_S)
                continue
            producer.send_batch(topic, keys[at : at + n], values[at : at + n])
            at, sent = at + n, sent + n
            on_sent(sent)
            if at < len(values):
                time.sleep(TICK_S)
    return sent


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _rows(file: Path, from_row: int, to_row: int | None) -> pa.Table:
    table = tables.read(file)
    if to_row is not None and to_row <= from_row:
        raise typer.BadParameter(f"--to {to_row} is not after --from {from_row}", param_hint="--to")
    chosen = table.slice(from_row, None if to_row is None else to_row - from_row)
    if not chosen.num_rows:
        raise DataError(f"{file}: no rows from {from_row}: it has {table.num_rows:,}")
    return chosen


def _clockwork(file: Path, encoder: EventEncoder, table: pa.Table, speed: float, loop: bool) -> Clockwork:
    times_ms = _explaining(file, lambda: encoder.event_times_ms(table))
    if times_ms is None:
        raise DataError(f"{file}: --speed needs a time column, and events.time_field has none; use --rate")
    return Clockwork(times_ms, speed, loop)


def _explaining(file: Path, work: Callable[[], Any]) -> Any:
    """Name the file in what the encoder, which knows only columns, has to say."""
    try:
        return work()
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _explaining_each(file: Path, encoded: Iterator[Encoded]) -> Iterator[Encoded]:
    while (chunk := _explaining(file, lambda: next(encoded, None))) is not None:
        yield chunk


class _Stop:
    """The first Ctrl-C or SIGTERM ends the replay in good order; a second one ends it at once."""

    def __init__(self) -> None:
        self.number = 0

    def wanted(self) -> bool:
        return self.number != 0

    def __call__(self, number: int, _frame: Any) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        say("stopping: waiting for what is in flight; Ctrl-C again to give it up")


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flush(producer: BatchProducer, stop: _Stop) -> None:
    """Wait for every acknowledgement: as long as it takes, but not after a stop."""
    while not stop.wanted():
        try:
            producer.flush(1.0)
        except DrainTimeoutError:
            continue
        return
    producer.flush(STOP_FLUSH_S)


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if that is a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _n: None
        return
    columns = (
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task, started = bar.add_task("", total=total, rate="-"), time.monotonic()

        def show(sent: int) -> None:
            bar.update(task, completed=sent, rate=f"{sent / max(time.monotonic() - started, 1e-3):,.0f}")

        yield show
