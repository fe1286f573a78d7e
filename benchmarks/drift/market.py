"""Elec2 as an event stream: rows, a project whose first model learnt the first fifth, and a log in memory.

Labels come DELAY rows after their events. Class UP: the price is above its mean of the last 24 hours.
"""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from benchmarks.drift.memory import TableLog
from pipeline.cli.inference import Columns, infer
from pipeline.cli.init import make_project
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


class MemoryLog(TableLog):
    """The market's events, and the outcomes of those that the first model did not see."""

    def __init__(self, settings: Settings) -> None:
        times_ms = START_MS + np.arange(rows().num_rows) * STEP_MS
        super().__init__(settings, rows(), "move", times_ms, first=first_rows(), delay=DELAY, delay_ms=DELAY * STEP_MS)
