"""Elec2 as an event stream: rows, a project whose first model learnt the first fifth, and a log in memory.

Labels come DELAY rows after their events. Class UP: the price is above its mean of the last 24 hours.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from pipeline import codec
from pipeline.cli.inference import Columns, infer
from pipeline.cli.init import make_project
from pipeline.cli.retrain_log import SENDER, Found, Log
from pipeline.records import Longs
from pipeline.retraining import window
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings, load

DATA = Path(__file__).parents[2] / "examples/dynamic-pricing/elec.csv"
START_MS, STEP_MS = 831_427_200_000, 1_800_000  # 7 May 1996, half-hours
DELAY = 48
FEATURES = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
UP, DOWN = "UP", "DOWN"
#: The first model learns from these, and is measured on the newest fifth of them.
FIRST_SHARE = 0.2


@functools.cache
def rows() -> pa.Table:
    """The n rows with id, time and class as text, in order of time."""
    table = csv.read_csv(DATA)
    n = table.num_rows
    at = pa.array(START_MS + np.arange(n) * STEP_MS).cast(pa.timestamp("ms", tz="UTC"))
    move = np.where(table.column("class").to_numpy() == 1, UP, DOWN)
    made = {"no": pa.array([f"e{row}" for row in range(n)]), "at": at, "move": pa.array(move)}
    return pa.table({**made, **{name: table.column(name).cast(pa.float64()) for name in FEATURES}})


def truth() -> npt.NDArray[np.bool_]:
    """(n,) whether each row is UP."""
    found: npt.NDArray[np.bool_] = rows().column("move").to_numpy(zero_copy_only=False) == UP
    return found


def first_rows() -> int:
    """Rows that the first model may see."""
    return int(rows().num_rows * FIRST_SHARE)


def make(folder: Path, name: str, bootstrap_servers: str = "127.0.0.1:9092", settings: str = "") -> Settings:
    """A project in `folder` with the first model; `settings`: more of pipeline.toml."""
    first = rows().slice(0, first_rows())
    columns = Columns("move", "at", "no")
    make_project(folder, name, first, columns, infer(first, columns, name), bootstrap_servers)
    with (folder / "pipeline.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{settings}")
    return load(folder / "pipeline.toml", environment={})


class MemoryLog(Log):
    """Events in one partition, row by row, and the outcomes of those whose label has come."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.schema = codec.event_schema(settings)
        self.outcome_schema_ids = set()
        #: Rows before this one have happened.
        self.now = 0

    @functools.cached_property
    def _facts(self) -> pa.Table:
        n = rows().num_rows
        times = START_MS + np.arange(n) * STEP_MS
        columns = {
            window.EVENT_ID: rows().column("no"),
            window.TIME_MS: pa.array(times),
            window.LABEL: rows().column("move"),
            window.VALUE: pa.nulls(n, pa.float64()),
            window.LABEL_TIME_MS: pa.array(times + DELAY * STEP_MS),
            window.SLICES: pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
            window.PARTITION: pa.array(np.zeros(n, np.int32)),
            window.OFFSET: pa.array(np.arange(n)),
        }
        return pa.table([columns[name] for name in window.FACTS.names], schema=window.FACTS)

    @functools.cached_property
    def events_table(self) -> pa.Table:
        """All rows as columns of the event schema."""
        fields = codec.arrow_schema(self.schema)
        named = {"id": rows().column("no"), "time": rows().column("at")}
        columns = [named[f.name] if f.name in named else rows().column(f.name) for f in fields]
        return pa.table([column.cast(f.type) for column, f in zip(columns, fields, strict=True)], schema=fields)

    def labelled(
        self, wanted: Wanted, rows_before: int, progress: Callable[[int, int], None], changed_ms: int | None = None
    ) -> pa.Table:
        """See Log: those whose label is known by now."""
        del wanted, rows_before, progress, changed_ms
        return self._facts.slice(first_rows(), max(0, self.now - DELAY - first_rows()))

    def events(self, rows: pa.Table, progress: Callable[[int, int], None]) -> Found:
        """See Log."""
        del progress
        at: Longs = rows.column(window.OFFSET).to_numpy()
        table = self.events_table.take(pa.array(at))
        table = table.append_column(SENDER, pa.nulls(len(at), pa.string()))
        return Found(window.Events(table, window.place([0] * len(at), at.tolist())), 0, 0, ())
