"""`python -m benchmarks.drift.elec2`: the whole loop on Elec2 and Kafka, beside what else one could do.

Writes benchmarks/drift/RESULTS.md, elec2.json and elec2.svg, and the score card's lines of it. The loop takes about ten
minutes of two cores, what it is compared with as long again; --rows ends the stream sooner, to see whether everything
runs.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift import card, market, policies
from benchmarks.drift.elec2_report import page, plot
from benchmarks.drift.loop import SETTINGS, Loop, Told
from benchmarks.drift.policies import Numbers
from benchmarks.drift.rehearsal import rehearse
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.cli.context import quiet_logs
from pipeline.cli.processes import ProcessGroup
from pipeline.settings import Settings

HERE = Path(__file__).parent
#: What the offline policies retrain on. Every 1,000 rows it gives an accuracy of 0.767, and 1,000 rows give 0.758; with
#: up to 60 epochs 0.767 and 0.761, and 4,000 rows 0.753.
WINDOW = 2_000
EVERY = 1_000
#: Seeds of training with which the loop is rehearsed without Kafka, to see how much is luck.
SEEDS = 3
#: Rows of one point of the plot.
PLOT_ROWS = 1_000


def loop(last_row: int | None) -> tuple[Told, float]:
    """The loop's answers, and how long it took in seconds."""
    with tempfile.TemporaryDirectory(prefix="elec2-") as scratch, EmbeddedKafka(port=0, ephemeral=True) as kafka:
        folder = Path(scratch)
        settings = market.make(folder / "project", "elec2", kafka.bootstrap_servers, SETTINGS)
        flags = ["--config", str(folder / "project" / "pipeline.toml")]
        with ProcessGroup(flags, settings.delivery.shutdown_deadline_s, folder) as group:
            started = time.monotonic()
            return Loop(settings, group, _say).run(last_row), time.monotonic() - started


def compared(settings: Settings, trainings: int) -> dict[str, tuple[Numbers, int | None]]:
    """Policy -> its answers and retrainings. trainings: the loop's, successors that were refused among them."""
    log = market.MemoryLog(settings)
    _say("static, no change")
    found: dict[str, tuple[Numbers, int | None]] = {
        "no change: the label of 48 rows before": (policies.no_change(), None),
        "static": (static := policies.answers(log, policies.first_model(settings)), 0),
        "static, calibrated each week": (policies.calibrated(settings, static), 0),
    }
    if trainings:
        rows = policies.evenly(trainings)
        found["periodic, as often"] = (policies.retrained(settings, rows, WINDOW, _say), len(rows))
    rows = policies.every(EVERY)
    found[f"every {EVERY:,} rows"] = (policies.retrained(settings, rows, WINDOW, _say), len(rows))
    _say("River's ARF")
    found["River's ARF, every row"] = (policies.forest(), None)
    return found


def summary(name: str, predicted: Numbers, retrainings: int | None) -> dict[str, Any]:
    """One line of the table, and the accuracy over time."""
    right = (predicted >= 0.5) == market.truth()
    first = market.first_rows()
    ends = range(first + PLOT_ROWS, len(right) + 1, PLOT_ROWS)
    return {
        "policy": name,
        "retrainings": retrainings,
        **policies.measured(predicted),
        "timeline": [[end, float(right[end - PLOT_ROWS : end].mean())] for end in ends],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="end the loop at this row, print what it did and write nothing")
    options = parser.parse_args(arguments)
    quiet_logs()
    told, took_s = loop(options.rows)
    _say(f"the loop took {took_s:.0f} s: {told.triggers} triggers, {len(told.retrainings)} trainings")
    if options.rows:
        return
    missing = int(np.isnan(told.predicted[market.first_rows() :]).sum())
    assert not missing, f"{missing} events have no outcome"
    with tempfile.TemporaryDirectory(prefix="elec2-") as scratch:
        settings = market.make(Path(scratch) / "project", "elec2", settings=SETTINGS)
        others = compared(settings, len(told.retrainings))
        rehearsed = [rehearse(settings, seed) for seed in range(SEEDS)]
    rows = [summary(name, *answer) for name, answer in others.items()]
    rows.append(summary("the loop on Kafka", told.predicted, len(told.retrainings)))
    found = {
        "when": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "took_s": round(took_s),
        "settings": SETTINGS,
        "window": WINDOW,
        "triggers": told.triggers,
        "overtaken": told.overtaken,
        "held": told.held,
        "calibrations": told.calibrations,
        "released": sum(one.accepted for one in told.retrainings),
        "retrainings": [asdict(one) for one in told.retrainings],
        "policies": rows,
        "rehearsed": [[policies.measured(r.predicted)["accuracy"], r.trainings, r.released] for r in rehearsed],
    }
    (HERE / "elec2.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (HERE / "elec2.svg").write_text(plot(found), "utf-8")
    (HERE / "RESULTS.md").write_text(page(found), "utf-8")
    card.draw(card.read())  # it has lines of this run
    _say(page(found))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
