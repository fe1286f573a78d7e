"""The dynamic-pricing example: its rows are those of elec.csv, its events fit its schema, its settings are accepted."""

import csv
import json
import subprocess
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv

from pipeline.settings import Settings, load

EXAMPLE = Path(__file__).parents[2] / "examples/dynamic-pricing"
DAYS = 3
FEATURES = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as prepare.py makes it, with three days to play."""
    made = tmp_path_factory.mktemp("market") / "pricing"
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(made), "--days", str(DAYS)]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def prepared(folder: Path) -> pa.Table:
    """Both files, one after the other, every cell as text."""
    rows: list[dict[str, str]] = []
    for name in ("first.csv", "market.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return load(folder / "pipeline.toml", environment={})


def test_rows_are_those_of_the_source_in_order(folder: Path, prepared: pa.Table) -> None:
    """Features and class, row by row; the first file ends at a midnight, where the other begins."""
    n = prepared.num_rows
    source = arrow_csv.read_csv(EXAMPLE / "elec.csv").slice(0, n)
    for name in FEATURES:
        np.testing.assert_array_equal(prepared.column(name).to_numpy().astype(float), source.column(name).to_numpy())
    up = np.array([{"UP": 1, "DOWN": 0}[move] for move in prepared.column("move").to_pylist()])
    np.testing.assert_array_equal(up, source.column("class").to_numpy())
    assert prepared.column("id").to_pylist() == [f"nsw-{row}" for row in range(n)]
    first = len((folder / "first.csv").read_text("utf-8").splitlines()) - 1
    assert n - first == DAYS * 48
    assert source.column("period")[first].as_py() == 0.0


def test_times_and_periods_of_the_day_are_the_sources(prepared: pa.Table) -> None:
    """Half-hours from 7 May 1996; elec.csv gives the half-hour of the day as a share of 47."""
    times = [datetime.fromisoformat(text) for text in prepared.column("time").to_pylist()]
    assert times[0].isoformat() == "1996-05-07T00:00:00+00:00"
    assert {after - before for before, after in pairwise(times)} == {timedelta(minutes=30)}
    half_hours = np.rint(prepared.column("period").to_numpy().astype(float) * 47).astype(int)
    assert half_hours.tolist() == [time.hour * 2 + time.minute // 30 for time in times]
    names = np.array(["night", "morning", "afternoon", "evening"])[half_hours // 12]
    assert prepared.column("period_of_day").to_pylist() == names.tolist()


def test_columns_are_the_fields_of_the_schema(prepared: pa.Table, settings: Settings) -> None:
    """Every column but the label; the slices are fields, too."""
    fields = [field["name"] for field in json.loads(settings.path(settings.events.schema_file).read_text())["fields"]]
    assert prepared.column_names == [*fields, settings.events.label_field]
    assert set(settings.events.slice_fields) <= set(fields)


def test_the_loop_is_closed(settings: Settings) -> None:
    """Labels, quality, drift and retraining are on; the gate has rows enough after three weeks."""
    assert settings.labels.enabled
    assert settings.quality.enabled
    assert settings.drift.enabled
    assert settings.retraining.enabled
    assert settings.gate.rows_min / settings.retraining.newest_share <= 21 * 48


def test_a_folder_that_is_there_is_left_alone(folder: Path) -> None:
    before = (folder / "market.csv").read_bytes()
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is there already")
    assert (folder / "market.csv").read_bytes() == before
