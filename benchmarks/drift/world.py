"""A made-up stream with labels whose every law is known: six normal features, two classes, ten producers.

P(YES) is the sigmoid of a weighted sum of the features, so that the best model there is errs in 16 % of the rows. A
project's first model learns the first rows, with default settings; labels come DELAY rows late.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.drift.memory import TableLog
from benchmarks.drift.synthetic import Floats
from pipeline.cli.inference import Columns, infer
from pipeline.cli.init import make_project
from pipeline.records import Longs
from pipeline.settings import Settings, load

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: Rows that the first model may see, and how late labels come. A row a second.
FIRST, DELAY = 10_000, 200
START_MS, STEP_MS = 1_700_000_000_000, 1_000
FEATURES = ("x0", "x1", "x2", "x3", "x4", "x5")
WEIGHTS = np.array([2.0, 2.0, 1.0, -1.0, 0.5, 0.0])
NO, YES = "NO", "YES"
PRODUCERS = 10
SETTINGS = """\
[topics]
partitions = 1
[labels]
enabled = true
[retraining]
enabled = true
producer_field = "key"
[gate]
latency_ratio_max = 1000      # so that a busy machine changes no verdict
"""


@dataclass(frozen=True)
class World:
    """n rows: features (n, 6), labels as they are and as they are told, who sent them."""

    features: Floats
    truth: Flags
    told: Flags
    producers: Longs

    def table(self) -> pa.Table:
        """As columns: no, at, label, and the features."""
        n = len(self.truth)
        at = pa.array(START_MS + np.arange(n) * STEP_MS).cast(pa.timestamp("ms", tz="UTC"))
        named = {name: self.features[:, i].astype(np.float64) for i, name in enumerate(FEATURES)}
        label = pa.array(np.where(self.told, YES, NO))
        return pa.table({"no": pa.array([f"e{row}" for row in range(n)]), "at": at, "label": label, **named})


def make(
    seed: int, rows: int, *, weights_since: Numbers | None = None, moved: Numbers | None = None, at: int = 0
) -> World:
    """Rows of which those from `at` on have other weights (real drift) or moved features (virtual drift)."""
    generator = np.random.default_rng(7_000 + seed)
    features = generator.normal(size=(rows, len(FEATURES)))
    if moved is not None:
        features[at:] += moved
    logits = features @ WEIGHTS
    if weights_since is not None:
        logits[at:] = features[at:] @ weights_since
    truth = generator.random(rows) < 1.0 / (1.0 + np.exp(-logits))
    return World(features.astype(np.float32), truth, truth, generator.integers(PRODUCERS, size=rows))


def poisoned(world: World, since: int, how: str, seed: int) -> World:
    """The first producer flips half of its labels from row `since` on, which is 5 % of all.

    how: "at random", or "all above 0", those of rows with x0 > 0.
    """
    chosen = world.producers == 0
    chosen[:since] = False
    half = np.random.default_rng(seed).random(len(chosen)) < 0.5 if how == "at random" else world.features[:, 0] > 0
    return replace(world, told=world.told ^ (chosen & half))


def project(folder: Path, world: World) -> Settings:
    """A project whose model has learnt the first rows."""
    rows = world.table().slice(0, FIRST)
    columns = Columns("label", "at", "no")
    make_project(folder, "world", rows, columns, infer(rows, columns, "world"))
    with (folder / "pipeline.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{SETTINGS}")
    return load(folder / "pipeline.toml", environment={})


def log_of(settings: Settings, world: World) -> TableLog:
    """Its topics."""
    times_ms = START_MS + np.arange(len(world.truth)) * STEP_MS
    senders = pa.array([f"p{number}" for number in world.producers.tolist()])
    return TableLog(
        settings, world.table(), "label", times_ms, first=FIRST, delay=DELAY, delay_ms=DELAY * STEP_MS, senders=senders
    )
