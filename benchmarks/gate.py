"""`python -m benchmarks.gate [--write]`: how often the gate accepts an equal and a better challenger, seeds fixed.

No model is needed: two classifiers of given accuracies that mostly err on the same rows, each as sure as it is right.
All checks but that of latency are at work. Prints the tables of docs/gate.md; --write puts them there. About ten
minutes of one core; --quick takes one, with a tenth of the runs.
"""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipeline.measures import Scored
from pipeline.measures.paired import paired_bootstrap
from pipeline.records import OutputContract
from pipeline.retraining.comparing import block_means, compare
from pipeline.retraining.gate import Contestant, judge
from pipeline.settings import GateSettings

Numbers = npt.NDArray[np.float64]

PAGE = Path(__file__).parents[1] / "docs/gate.md"
SETTINGS = GateSettings()
OUTPUT = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
ACCURACY = 0.8
#: Correlation of what makes the two err: then they differ in 1 row of 10, as a model and its retrained successor do.
COMMON = 0.9
SLICES = list("abcde")
GAINS = (0.01, 0.02, 0.05)
#: Rows -> simulations of equal challengers, and of each gain. The standard error of 5 % is 0.7 points of 1,000 runs,
#: 1.0 of 500, 1.3 of 300; that of 50 % is 4 to 6 points of 150 to 80.
RUNS = {1_000: (1_000, 150), 5_000: (500, 150), 20_000: (300, 80)}
AUTOCORRELATIONS = (0.0, 0.7, 0.9)


def series(random: np.random.Generator, rows: int, rho: float) -> Numbers:
    """(rows,) first-order autoregression of variance 1."""
    values = random.normal(size=rows)
    if rho:
        values[1:] *= math.sqrt(1 - rho * rho)
        for row in range(1, rows):
            values[row] += rho * values[row - 1]
    return values


def contestants(seed: int, rows: int, gain: float, rho: float) -> tuple[Contestant, Contestant]:
    """A champion that is right in 80 % of rows and a challenger right in `gain` more, in five slices.

    rho: autocorrelation of the series whose low values make a row right.
    """
    random = np.random.default_rng(seed)
    truth, common = random.integers(0, 2, rows), series(random, rows, rho)
    slices = {"slice": random.choice(SLICES, rows)}
    made = []
    for version, accuracy in (("1", ACCURACY), ("2", ACCURACY + gain)):
        latent = math.sqrt(COMMON) * common + math.sqrt(1 - COMMON) * series(random, rows, rho)
        sure = np.where(latent < NormalDist().inv_cdf(accuracy), accuracy, 1 - accuracy)
        outputs = np.where(truth == 1, sure, 1 - sure)[:, None]
        made.append(Contestant(version, OUTPUT, Scored(outputs, truth, np.arange(rows), slices)))
    return made[0], made[1]


def accepted(rows: int, gain: float, rho: float, runs: int) -> float:
    """Share of simulations in which the challenger is accepted."""
    verdicts = (judge(*contestants(seed, rows, gain, rho), SETTINGS, seed=seed) for seed in range(runs))
    return sum(verdict.accepted for verdict in verdicts) / runs


def acceptance(share: float) -> str:
    """The table of acceptance; `share` of the runs."""
    lines = [
        "| rows | equal | equal, rho 0.7 | equal, rho 0.9 | 1 point better | 2 points | 5 points |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rows, (of_equal, of_better) in RUNS.items():
        cells = [accepted(rows, 0.0, rho, max(10, round(share * of_equal))) for rho in AUTOCORRELATIONS]
        cells += [accepted(rows, gain, 0.0, max(10, round(share * of_better))) for gain in GAINS]
        lines.append(f"| {rows:,} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def bounds(share: float) -> str:
    """How often each kind of upper bound calls an equal challenger better, of a loss that is an autoregression."""
    lines = ["| rho | rows | bootstrap | block means | the wider |", "| ---: | ---: | ---: | ---: | ---: |"]
    runs = max(10, round(share * 1_000))
    for rho in (0.0, 0.7, 0.9):
        for rows in (1_000, 5_000):
            random, below = np.random.default_rng(1), np.zeros(3)
            for seed in range(runs):
                zeros, values = np.zeros(rows), series(random, rows, rho)
                alpha = SETTINGS.alpha
                highs = (
                    paired_bootstrap(zeros, values, block_rows=None, confidence=1 - 2 * alpha, seed=seed).high,
                    block_means(values, alpha).high,
                    compare(zeros, values, alpha, seed=seed).high,
                )
                below += np.array(highs) < 0
            lines.append(f"| {rho:g} | {rows:,} | " + " | ".join(f"{100 * n / runs:.1f} %" for n in below) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def placed(page: str, name: str, table: str) -> str:
    """The page with `table` where a table stands after the comment that names it."""
    found, count = re.subn(rf"(<!-- {name} -->\n\n)(?:\|.*\n)*", lambda m: f"{m[1]}{table}\n", page)
    assert count == 1, f"docs/gate.md has no <!-- {name} -->"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gate.md")
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    options = parser.parse_args(arguments)
    share = 0.1 if options.quick else 1.0
    tables = {"bounds": bounds(share), "acceptance": acceptance(share)}
    if options.write:
        page = PAGE.read_text("utf-8")
        for name, table in tables.items():
            page = placed(page, name, table)
        PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
