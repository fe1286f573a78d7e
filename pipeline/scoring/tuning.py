"""What a model loses at a lower precision, and which settings to advise by what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.records import FeatureContract, Floats
from pipeline.scoring.publish import prediction_labels
from pipeline.scoring.speed import Setup, Timing

REFERENCE = "float32"
#: A lower precision is worth it from this factor on, and with fewer changed rows than this share.
GAIN_MIN, CHANGED_MAX = 1.1, 0.001
#: A thread is worth it where it brings this share of what a further worker would.
THREAD_MIN = 0.8
#: The smallest batch within this share of the fastest: memory and waiting grow with it.
NEAR = 0.95
#: An output of a regression has changed when it moved by more than this share of the outputs' standard deviation.
MOVED_SD = 0.01


@dataclass(frozen=True, slots=True)
class Loss:
    """How outputs differ from those in float32, over all rows and columns."""

    largest: float
    mean: float
    #: Share of rows with another label; of a regression, of rows that moved (see MOVED_SD).
    changed: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What to set, and how it compares with what is set now (None where that was not measured)."""

    setup: Setup
    now: Setup
    rate: float
    gain: float | None


def loss_of(reference: Floats, outputs: Floats, contract: FeatureContract) -> Loss:
    """What `outputs` lose against those in float32, both (n, width).

    A row that is finite in one of them alone has changed; its difference counts in no figure.
    """
    apart = np.abs(outputs.astype(np.float64) - reference)
    finite = np.isfinite(apart).all(axis=1)
    if contract.output.kind == "regression":
        changed = (apart > MOVED_SD * reference[finite].std(axis=0)).any(axis=1)
    else:
        changed = prediction_labels(outputs, contract) != prediction_labels(reference, contract)
    broken = np.isfinite(reference).all(axis=1) != np.isfinite(outputs).all(axis=1)
    known = apart[finite]
    return Loss(
        float(known.max(initial=0.0)),
        float(known.mean()) if known.size else 0.0,
        float(np.where(finite, changed, broken).mean()),
    )


def advise(timings: Sequence[Timing], losses: Mapping[str, Loss], now: Setup) -> Advice:
    """What to set, by timings of all combinations of precision, threads and batch size.

    One after the other, each only as far as it pays:
    1. Threads, in float32: a further one must bring THREAD_MIN of what a further worker would.
    2. A lower precision must gain GAIN_MIN and change less than CHANGED_MAX of the rows.
    3. The smallest batch within NEAR of the fastest.
    """
    counts = sorted({t.setup.threads for t in timings})
    least = counts[0]
    wanted = THREAD_MIN / least * _fastest(timings, REFERENCE, least).rate  # of each thread
    threads = max(n for n in counts if n == least or _fastest(timings, REFERENCE, n).rate >= wanted * n)
    plain = best = _fastest(timings, REFERENCE, threads)
    for precision, loss in losses.items():
        found = _fastest(timings, precision, threads)
        if loss.changed < CHANGED_MAX and _gain(plain, found) >= GAIN_MIN and found.rate > best.rate:
            best = found
    alike = [t for t in timings if t.setup[:2] == best.setup[:2] and t.rate >= NEAR * best.rate]
    chosen = min(alike, key=lambda t: t.setup.batch)
    present = next((t for t in timings if t.setup == now), None)
    return Advice(chosen.setup, now, chosen.rate, None if present is None else _gain(present, chosen))


def _fastest(timings: Sequence[Timing], precision: str, threads: int) -> Timing:
    alike = [t for t in timings if (t.setup.model, t.setup.threads) == (precision, threads)]
    return max(alike, key=lambda t: t.rate)


def _gain(before: Timing, after: Timing) -> float:
    """The median of the rounds' own factors: what slowed a round down is in both."""
    pairs = zip(before.rows_per_s, after.rows_per_s, strict=True)
    return float(np.median([new / old for old, new in pairs]))
