"""`python -m benchmarks.trial [--write]`: what the trial decides of equal, worse and better canaries, seeds fixed.

No model is needed: two classifiers of given error rates, each as sure as it is right. A look is taken each 250 outcomes
of the canary. Prints the table of docs/releases.md; --write puts it there. About six minutes of one core; --quick takes
a tenth of the runs.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal, stats

from pipeline.measures.scored import Numbers, Scored
from pipeline.records import OutputContract
from pipeline.retraining.trial import Trial, Watch
from pipeline.settings import GateSettings, TrialSettings

PAGE = Path(__file__).parents[1] / "docs/releases.md"
OUTPUT = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
#: Of all outcomes, the canary's.
SHARE = 0.2
ERROR = 0.2
LOOK_OUTCOMES, OUTCOMES_MAX = 250, 8_000
BOUNDS = TrialSettings()
#: The worst canary that may be promoted: see trial.ERROR_WORSE_MIN.
ALLOWED = ERROR * (1 + BOUNDS.worse_max) + 0.005
CANARIES = {"much better": 0.1, "better": 0.18, "equal": ERROR, "at the bound": ALLOWED, "much worse": 0.3}
AUTOCORRELATIONS = (0.0, 0.7, 0.9)
RUNS = 200


def answers(random: np.random.Generator, rows: int, error: float, rho: float, per_ms: int = 1) -> Scored:
    """`rows` outcomes, so many a ms; rho: autocorrelation of the series whose low values make an answer wrong."""
    noise = random.normal(size=rows) * np.append(1.0, np.full(rows - 1, np.sqrt(1 - rho * rho)))
    wrong = signal.lfilter([1.0], [1.0, -rho], noise) < stats.norm.ppf(error)
    truth = random.integers(0, 2, rows)
    sure = np.where(wrong, min(error, 1 - error), max(error, 1 - error))
    outputs: Numbers = np.where(truth == 1, sure, 1 - sure)[:, None]
    return Scored(outputs, truth, 1 + np.arange(rows) // per_ms)


def trial(
    seed: int, error: float, rho: float = 0.0, outcomes_max: int = OUTCOMES_MAX, **bounds: Any
) -> tuple[str, int]:
    """What is decided of a canary of this error rate, and after how many of its outcomes."""
    random = np.random.default_rng(seed)
    rate = round((1 - SHARE) / SHARE)
    mine, theirs = (answers(random, outcomes_max * n, e, rho, n) for n, e in ((1, error), (rate, ERROR)))
    found = Trial(OUTPUT, OUTPUT, SHARE, 0, bounds=TrialSettings(**bounds), gate=GateSettings())
    for end in range(LOOK_OUTCOMES, outcomes_max + 1, LOOK_OUTCOMES):
        part = slice(end - LOOK_OUTCOMES, end)
        found.add(theirs.take(slice(part.start * rate, end * rate)), mine.take(part))
        if (action := found.verdict(0).action) != "wait":
            return action, end
    return "wait", outcomes_max


def watch(
    seed: int, error: float, rho: float = 0.0, outcomes_max: int = OUTCOMES_MAX, **bounds: Any
) -> tuple[str, int]:
    """What is decided of a fresh champion of this error rate, and after how many of its outcomes."""
    random = np.random.default_rng(seed)
    found = Watch(OUTPUT, OUTPUT, bounds=TrialSettings(**bounds), gate=GateSettings())
    fresh = answers(random, outcomes_max, error, rho)
    before = answers(random, 5_000, ERROR, rho)
    for end in range(LOOK_OUTCOMES, outcomes_max + 1, LOOK_OUTCOMES):
        found.add(
            before if end == LOOK_OUTCOMES else before.take(slice(0, 0)), fresh.take(slice(end - LOOK_OUTCOMES, end))
        )
        if (action := found.verdict().action) != "wait":
            return action, end
    return "wait", outcomes_max


def table(runs: int) -> str:
    """Shares of promoted and withdrawn canaries, and the median of outcomes until then."""
    lines = [
        "| canary | error | rho | promoted | withdrawn | outcomes until then, median |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, error in CANARIES.items():
        for rho in AUTOCORRELATIONS:
            found = [trial(seed, error, rho) for seed in range(runs)]
            count = Counter(action for action, _ in found)
            ends = [end for action, end in found if action != "wait"]
            median = f"{np.median(ends):,.0f}" if len(ends) > runs / 2 else "-"
            shares = " | ".join(f"{count[action] / runs:.1%}".replace("%", " %") for action in ("promote", "withdraw"))
            lines.append(f"| {name} | {error:.3g} | {rho:g} | {shares} | {median} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    made = table(RUNS // 10 if options.quick else RUNS)
    if options.write:
        page = PAGE.read_text("utf-8")
        pattern = r"(<!-- trials -->\n\n)(?:\|.*\n)*"
        PAGE.write_text(re.sub(pattern, lambda found: found[1] + made + "\n", page), "utf-8")


if __name__ == "__main__":
    main()
