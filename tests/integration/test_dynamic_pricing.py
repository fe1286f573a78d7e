"""The dynamic-pricing example as a reader runs it: one command, and every half-hour accounted for."""

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import clients
from pipeline import codec
from pipeline.settings import Settings, load

EXAMPLE = Path(__file__).parents[2] / "examples/dynamic-pricing"
DAYS = 14


def on_topic(settings: Settings, role: str) -> list[dict[str, Any]]:
    """All records of a topic, as a consumer of committed ones has them."""
    rows = codec.RowCodec(codec.registry_of(settings))
    servers, topic = settings.kafka.bootstrap_servers, settings.topic(role)
    chunks = clients.read_all(servers, topic, f"{settings.name}-test", 60.0)
    return [rows.decode(message.value()) for messages in chunks for message in messages]


@pytest.mark.timeout(600)
def test_every_half_hour_has_a_prediction_and_an_outcome(
    kafka: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Two weeks: each event is once on both topics, with its own label and slice; nothing else is; plots are drawn."""
    folder, name = tmp_path / "pricing", unique("pricing")
    environment = {"PIPELINE__KAFKA__BOOTSTRAP_SERVERS": kafka, "PIPELINE__NAME": name}
    command = [sys.executable, str(EXAMPLE / "run.py"), str(folder), "--days", str(DAYS)]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    log = folder / "run.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text("utf-8") if log.exists() else "")

    with (folder / "market.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    settings = load(folder / "pipeline.toml", environment=environment)
    predictions, outcomes = on_topic(settings, "predictions"), on_topic(settings, "outcomes")
    assert len(rows) == DAYS * 48
    assert Counter(one["event_id"] for one in predictions) == Counter(rows.keys())
    assert Counter(one["event_id"] for one in outcomes) == Counter(rows.keys())
    for one in outcomes:
        row = rows[one["event_id"]]
        assert (one["label"], one["slices"]) == (row["move"], {"period_of_day": row["period_of_day"]})
        assert one["event_time"].isoformat() == row["time"]
        assert (one["label_time"] - one["event_time"]).days == 1
    assert clients.end_offsets(clients.make_admin(kafka), settings.topic("dead_letters"), 1) == [0]

    said = f"{len(rows)} events, {len(rows)} predictions, {len(rows)} labels, {len(rows)} outcomes"
    assert said in done.stdout
    right = sum(one["predicted"] == one["label"] for one in outcomes) / len(outcomes)
    assert f"accuracy: {right:.4f}" in done.stdout
    for plot in ("accuracy", "periods", "reliability"):
        assert ET.fromstring((folder / f"plots/{plot}.svg").read_text("utf-8")).tag.endswith("svg")
