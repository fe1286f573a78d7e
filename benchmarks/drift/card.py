"""The score card of drift, by one command: `python -m benchmarks.drift`. What each task asks is in tasks.py.

Writes benchmarks/drift/card.json, CARD.md and two plots. Takes about ten minutes of two cores; all but `cost` is the
same in every run. --quick has two seeds and short streams, --only one group of tasks; neither writes anything.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.drift import card_plots, labelled_tasks, synthetic, tasks
from benchmarks.drift.card_report import page

HERE = Path(__file__).parent
SEEDS, SEEDS_QUICK = 10, 2
#: 3 million rows of each kind: no trigger in them is at most 0.1 in 100,000, with 95 % confidence.
QUIET_ROWS, QUIET_ROWS_QUICK = 300_000, 20_000
QUIET = (("normal", 0.0), ("normal", 0.7), ("normal", 0.9), ("lognormal", 0.0))
KINDS = ("gradual", "recurring", "variance", "correlation lost", "correlation arises", "class share", "missing rate")
RHOS = (0.0, 0.7)
POISONS = ("at random", "all above 0")
#: Tasks between two lines of progress: ten or twenty seconds.
SAY_EVERY = 5
GROUPS = ("quiet", "shift", "season", "virtual", "poison", "estimate", "shuttle")


@dataclass(frozen=True)
class Job:
    """One call, whose result goes into a list under group and row."""

    group: str
    row: str
    call: Callable[[], Any]


def jobs(seeds: int, quiet_rows: int) -> list[Job]:
    """All of the card, but for `cost`, which wants the machine to itself."""
    found = [Job("estimate", "elec2", labelled_tasks.estimate)]
    found += [Job("shuttle", "columns", partial(tasks.shuttle, column)) for column in range(-1, 9)]
    for seed in range(seeds):
        found += [Job("virtual", "two features", partial(labelled_tasks.virtual, seed))]
        for drifts in (False, True):
            law = "another law" if drifts else "the same law"
            found += [
                Job("poison", f"{law}, {how}", partial(labelled_tasks.poison, drifts, how, seed)) for how in POISONS
            ]
        shifts = [("step", rho) for rho in (0.0, 0.7, 0.9)]
        shifts += [(kind, rho) for kind in KINDS for rho in RHOS] + [("eight at once", 0.7)]
        found += [Job("shift", f"{kind}, {rho}", partial(tasks.shift, kind, rho, seed)) for kind, rho in shifts]
        found += [Job("season", f"known, {rho}", partial(tasks.season, rho, seed)) for rho in RHOS]
        found += [
            Job("quiet", f"{kind}, {rho}", partial(tasks.quiet, kind, rho, quiet_rows, seed)) for kind, rho in QUIET
        ]
    return found


def run(asked: Sequence[Job], processes: int) -> dict[str, dict[str, list[Any]]]:
    """Group -> row -> results in the order asked; says what is done."""
    started = time.monotonic()
    done: dict[Job, Any] = {}
    os.environ["OMP_NUM_THREADS"] = "1"  # of the children: as many processes as cores, and sums in one order
    # Not forked: torch's and Arrow's threads do not live through it.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(job.call): job for job in asked}
        for future in as_completed(futures):
            job = futures[future]
            done[job] = future.result()
            if len(done) % SAY_EVERY == 0 or len(done) == len(asked):
                _say(f"{time.monotonic() - started:5.0f} s, {len(done)} of {len(asked)}; last {job.group}, {job.row}")
    found: dict[str, dict[str, list[Any]]] = {}
    for job in asked:
        found.setdefault(job.group, {}).setdefault(job.row, []).append(done[job])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, short streams; writes nothing")
    parser.add_argument("--only", metavar="GROUP", help=f"one of {', '.join(GROUPS)}, cost; writes nothing")
    parser.add_argument("--redraw", action="store_true", help="page and plots anew from card.json; runs nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.redraw:
        draw(read())
        return
    seeds, rows = (SEEDS_QUICK, QUIET_ROWS_QUICK) if options.quick else (SEEDS, QUIET_ROWS)
    asked = [job for job in jobs(seeds, rows) if options.only in {None, job.group}]
    if not asked and options.only != "cost":
        parser.error(f"--only {options.only}: there are {', '.join(GROUPS)}, cost")
    started = time.monotonic()
    cost = synthetic.cost() if options.only in {None, "cost"} else None
    results = run(asked, options.processes)
    found = {
        "when": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "took_s": round(time.monotonic() - started),
        "seeds": seeds,
        "cost": cost,
        **results,
        **_elec2(),
    }
    if options.only:
        _say(json.dumps({**results, "cost": cost}, indent=1))
        return
    _say(page(found))
    if not options.quick:
        (HERE / "card.json").write_text(_without_elec2(found), "utf-8")
        draw(found)


def read() -> dict[str, Any]:
    """What was found: card.json, and the run of the loop beside it."""
    found: dict[str, Any] = json.loads((HERE / "card.json").read_text("utf-8"))
    return found | _elec2()


def draw(found: dict[str, Any]) -> None:
    """Write page and plots."""
    (HERE / "CARD.md").write_text(page(found), "utf-8")
    for name, drawn in card_plots.plots(found).items():
        (HERE / name).write_text(drawn, "utf-8")


def _elec2() -> dict[str, Any]:
    return {"elec2": json.loads((HERE / "elec2.json").read_text("utf-8"))}


def _without_elec2(found: dict[str, Any]) -> str:
    """It lies beside the card. A line a result, so that a diff shows which changed."""
    parts = []
    for key, value in found.items():
        if key in GROUPS:
            rows = [
                f"{json.dumps(row)}: [\n" + ",\n".join(json.dumps(one) for one in results) + "\n]"
                for row, results in value.items()
            ]
            parts.append(f"{json.dumps(key)}: {{\n" + ",\n".join(rows) + "\n}")
        elif key != "elec2":
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
