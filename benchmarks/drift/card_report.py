"""CARD.md: pure, from card.json and elec2.json alone."""

from statistics import mean
from typing import Any

from benchmarks.drift.card_rows import Row, detections, rows
from benchmarks.drift.counting import Detections, spread


def page(found: dict[str, Any]) -> str:
    """All of it."""
    made = rows(found)
    held = sum(row.held for row in made)
    return f"""# Drift: the score card

Written by `python -m benchmarks.drift` on {found["when"]} ({found["machine"]}; {found["took_s"] / 60:.0f} minutes).
{found["seeds"]} seeds a task, default settings of the monitor, which watches 16 features and how they go together.
The results of every seed are in [card.json](card.json), what each task asks in [tasks.py](tasks.py),
[shifts.py](shifts.py) and [labelled_tasks.py](labelled_tasks.py). {held} of {len(made)} targets are held.

| task | pipeline | beside | target | held |
| --- | --- | --- | --- | --- |
{chr(10).join(_line(row) for row in made)}

Delays are rows from the drift to its trigger, to the end of the commit it came in: median and range. A drift is half a
standard deviation in one of 16 features, over 5,000 rows where it is gradual, there and back where it recurs; its
deviation doubles; a pair with correlation 0.8 loses it, or four features get it; a class of 20 % becomes one of 40 %; a
feature that lacks in 1 % of the rows lacks in 6 %. A season is a sine of one standard deviation in 8 of the 16
features; the baseline has five of it. *River raw* is River's ADWIN with its defaults on every value of every signal,
any of them alarming. *Periodic* retrains as often as the monitor triggered, at even distances; its delay is the wait
for the next time. The first comes after a twentieth of the distance in the first stream, three in the second, up to
nineteen in the tenth. On streams where nothing changes it would retrain as often as the monitor by its definition.

## Where it falls short

{chr(10).join(f"- **{row.task}**: {row.why}" for row in made if not row.held)}

## Alarms, counted

The first alarm after a drift finds it; all others are false, a second one of the same drift among them.

| drift, rho | monitor | missed | false | F1 | River raw | missed | false | F1 | periodic | missed | false | F1 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(_counted(name, results) for name, results in found["shift"].items())}

Where River alarms every few rows, its delay says nothing. {_told_again(found["shift"])}

![Delays of each stream](card-delays.svg)

## Accuracy without labels

Elec2, the first model for ever. *Recalibrated* is what `pipeline calibrate` on the labels there are makes of the
confidence, every 1,000 rows; what its checks refuse is not used. It takes the newest 20,000 labels, unless told to take
fewer.

![Estimated and true accuracy](card-estimate.svg)

## Poisoned labels

One of ten producers flips half of its labels, {_flipped(found):.1%} of all; a successor learns 10,000 rows with them,
default guards and gate. Errors are of 20,000 other rows with true labels, mean of the seeds.

| labels follow, flipped | champion errs | successor errs | worse | released | released worse | a guard spoke |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(_poisoned(name, results) for name, results in found["poison"].items())}

## Telemetry

{_shuttle(found["shuttle"]["columns"])}

## Cost

40 signals, microseconds an event on one core.

| what | us |
| --- | ---: |
{chr(10).join(f"| {what} | {cost:.2f} |" for what, cost in found["cost"].items())}
"""


def _line(row: Row) -> str:
    return f"| {row.task} | {row.figure} | {row.baseline} | {row.target} | {'yes' if row.held else '**no**'} |"


def _counted(name: str, results: list[dict[str, Any]]) -> str:
    cells = [_cells(detections(results, of)) for of in ("monitor", "river", "periodic")]
    return f"| {name} | {' | '.join(cells)} |"


def _told_again(tasks: dict[str, list[dict[str, Any]]]) -> str:
    """Of gradual drifts."""
    results = [r for name, found in tasks.items() if name.startswith("gradual") for r in found]
    again = sum(r["triggers"] > 1 for r in results)
    return (
        f"A gradual drift goes on after its trigger: in {again} of {len(results)}\nstreams "
        "what came since was told again, after the cooldown, and counts as false."
    )


def _cells(of: Detections) -> str:
    return f"{spread(of.delays)} | {of.missed} | {of.false:,} | {of.f1:.2f}"


def _flipped(found: dict[str, Any]) -> float:
    return mean(r["flipped"] for results in found["poison"].values() for r in results)


def _poisoned(name: str, results: list[dict[str, Any]]) -> str:
    accepted = [r for r in results if r["released"]]
    errors = [mean(r[of] for r in results) for of in ("champion", "challenger")]
    counts = [sum(r["worse"] for r in results), len(accepted), sum(r["worse"] for r in accepted)]
    counts.append(sum(bool(r["guards_failed"]) for r in results))
    return f"| {name} | {errors[0]:.2%} | {errors[1]:.2%} | {' | '.join(str(count) for count in counts)} |"


def _shuttle(results: list[dict[str, Any]]) -> str:
    still, moved = results[0], Detections.total(results[1:])
    return (
        f"NASA's Shuttle in file order (River's): {still['triggers']} triggers in {still['rows']:,} unchanged rows.\n"
        f"Three standard deviations added to one of its nine columns, each in turn: {moved}."
    )
