"""Draw what happened, from what is on the pipeline's topics.

    python plot.py         # in the project folder, after `pipeline evaluate ... --out first-model`

Writes plots/accuracy.svg, plots/periods.svg and plots/reliability.svg, and prints their figures. All it reads comes
from `pipeline tail`, `pipeline quality` and `pipeline evaluate`, as JSON.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import svg

PERIODS = ("night", "morning", "afternoon", "evening")
#: Two weeks: half-hours of a point of the accuracy. Of so many, chance alone moves it by 2 points.
POINT_ROWS = 672
WEEK_ROWS = 336
#: Outcomes of a model from which on its reliability is drawn.
RELIABLE_ROWS = 1_000

Record = dict[str, Any]


def main() -> None:
    """Read, draw, print."""
    outcomes = sorted(tail("outcomes"), key=lambda one: one["event_time"])
    triggers, reports = list(tail("triggers")), list(tail("reports"))
    (quality,) = asked("quality", "--json")
    alone = json.loads(Path("first-model/evaluation.json").read_text("utf-8"))
    folder = Path("plots")
    folder.mkdir(exist_ok=True)
    for name, picture in {
        "accuracy": accuracy(outcomes, triggers, reports, alone),
        "periods": periods(outcomes),
        "reliability": reliability(quality),
    }.items():
        (folder / f"{name}.svg").write_text(picture, "utf-8")
        print(f"wrote {folder / name}.svg")


def asked(*arguments: str) -> Iterable[Record]:
    """What a command of the pipeline prints, an object a line."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return map(json.loads, done.stdout.splitlines())


def tail(topic: str) -> Iterable[Record]:
    """All that is on a topic."""
    return asked("tail", topic, "--from-beginning", "--until-end", "--json")


# ------------------------------------------------------------------------------- accuracy over time


def accuracy(outcomes: Sequence[Record], triggers: Sequence[Record], reports: Sequence[Record], alone: Record) -> str:
    """What the pipeline said, beside the first model left alone; triggers and verdicts where they came."""
    right = [one["predicted"] == one["label"] for one in outcomes]
    times = [one["event_time"] for one in outcomes]
    ours = [(times[part.stop - 1], share(right[part])) for part in parts(len(right), POINT_ROWS)]
    windows = [window for window in alone["windows"] if window["rows"] >= POINT_ROWS]
    static = [(window["last_time_ms"], window["metrics"]["accuracy"]) for window in windows]
    repeated = [(window["last_time_ms"], window["metrics"]["accuracy_of_no_change"]) for window in windows]
    panel = svg.Panel(
        "Accuracy in each two weeks", months(times[0], times[-1]), svg.share_axis(0.5, 1.0, "accuracy"), height=410
    )
    for trigger in triggers:
        panel.mark(trigger["detected_event_time_ms"], svg.GREY, "trigger", dashes="3 3")
    for report in reports:
        colour = svg.GREEN if report["accepted"] else svg.RED
        panel.mark(
            market_time(outcomes, report["created_at_ms"]),
            colour,
            "released" if report["accepted"] else "refused",
            row=1,
        )
    panel.line(repeated, svg.GREY, "no change: yesterday's label")
    panel.line(static, svg.BLACK, "the first model, left alone")
    panel.line(ours, svg.ORANGE, "the pipeline", width=3)
    kept = alone["metrics"]
    print(f"accuracy: {share(right):.4f}; the first model alone {kept['accuracy']:.4f}", end="")
    print(f"; no change {kept['accuracy_of_no_change']:.4f}; {len(right):,} outcomes")
    return svg.picture("Accuracy over time", panel)


def parts(count: int, rows: int) -> list[slice]:
    """Consecutive parts of `rows`; what is left over is none."""
    return [slice(at, at + rows) for at in range(0, count - rows + 1, rows)]


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def market_time(outcomes: Sequence[Record], clock_ms: int) -> int:
    """The time of the market when the clock on the wall said so: that of the last event scored by then."""
    return max(one["event_time"] for one in outcomes if one["predicted_at"] <= clock_ms)


def months(first_ms: int, last_ms: int) -> svg.Axis:
    """A tick at the first of each month."""
    ticks = []
    for number in range(1996 * 12, 1999 * 12):
        start = datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)
        if first_ms <= start.timestamp() * 1000 <= last_ms:
            ticks.append(
                (start.timestamp() * 1000, f"{start:%b %Y}" if start.month == 1 or not ticks else f"{start:%b}")
            )
    return svg.Axis(first_ms, last_ms, ticks)


# ------------------------------------------------------------------------------- by period of the day


def periods(outcomes: Sequence[Record]) -> str:
    """Accuracy, and how often the answer is UP, with what is uncertain about both."""
    ticks = [(at, name) for at, name in enumerate(PERIODS)]
    axis = svg.Axis(-0.5, len(PERIODS) - 0.5, ticks, "period of the day, six hours each")
    shown = ("Accuracy", svg.share_axis(0.5, 1.0)), ("Share of the answer UP", svg.share_axis(0.0, 1.0))
    left, right = (svg.Panel(title, axis, y, width=450, offset=450 * at) for at, (title, y) in enumerate(shown))
    for at, name in enumerate(PERIODS):
        mine = [one for one in outcomes if one["slices"]["period_of_day"] == name]
        correct = interval([one["predicted"] == one["label"] for one in mine], WEEK_ROWS // len(PERIODS))
        selected = interval([one["predicted"] == "UP" for one in mine], WEEK_ROWS // len(PERIODS))
        true = share([one["label"] == "UP" for one in mine])
        last = at == len(PERIODS) - 1
        for panel, (mean, low, high) in ((left, correct), (right, selected)):
            panel.whisker(at, low, high, svg.BLUE)
            panel.dots([(at, mean)], svg.BLUE, "the pipeline, 95 % interval" if last else "")
        right.dots([(at + 0.15, true)], svg.BLACK, "the truth" if last else "", hollow=True)
        figures = "  ".join("{:.3f} ({:.3f} to {:.3f})".format(*found) for found in (correct, selected))
        print(f"{name:10} accuracy, answer UP: {figures}  truth UP: {true:.3f}  of {len(mine):,}")
    return svg.picture("Accuracy and selection rate by period of the day", left, right)


def interval(flags: Sequence[bool], block: int) -> tuple[float, float, float]:
    """A share and its 95 % interval by the means of blocks (weeks): half-hours of one week resemble each other."""
    means = [share(flags[part]) for part in parts(len(flags), block)]
    mean = share(flags)
    error = 1.96 * statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return mean, mean - error, mean + error


# ------------------------------------------------------------------------------- reliability


def reliability(quality: Record) -> str:
    """What each model said, and how often that came true: `pipeline quality` has it by version."""
    axes = svg.share_axis(0.0, 1.0, "probability of UP that the model said"), svg.share_axis(0.0, 1.0)
    panel = svg.Panel("How often UP came true", *axes, width=720, height=520)
    panel.diagonal()
    models = [found for found in quality["versions"] if found["rows"] >= RELIABLE_ROWS][::-1]
    for found, colour in zip(models, (svg.BLACK, svg.ORANGE, svg.BLUE, svg.GREEN), strict=False):
        bins = found["reliability"]
        for one in bins:
            panel.whisker(one["confidence"], one["low"], one["high"], colour)
        points = [(one["confidence"], one["frequency"]) for one in bins]
        panel.line(points, colour)
        panel.dots(points, colour, f"{found['model_version'][:8]}, {found['rows']:,} outcomes")
        print(
            f"{found['model_version']}: ECE {found['metrics']['ece']:.3f}, accuracy {found['metrics']['accuracy']:.3f}"
        )
    return svg.picture("Reliability of each model", panel)


if __name__ == "__main__":
    main()
