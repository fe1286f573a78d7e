"""Streams in which one thing drifts, of known kind and row, seeds fixed."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from benchmarks.drift.synthetic import BASELINE_ROWS, SIGNALS, Floats, autoregressive
from pipeline.drift import measure_baseline
from pipeline.records import Baseline

#: Rows before the drift, and after it: twice the cooldown.
BEFORE = AFTER = 20_000
#: Half a standard deviation everywhere: of a feature, of a class share of 20 %, of a missing rate of 1 %.
STEP_SD = 0.5
GRADUAL_ROWS = 5_000
#: The feature that drifts, and those whose correlation does.
ONE, FOUR = 3, slice(3, 7)
CORRELATION = 0.8
#: Rows of a season, of which the baseline has five; its size; how many pass before the step, and after it.
SEASON_ROWS, SEASON_SD, SEASONS = 2_000, 1.0, 10

#: Added signals by name, (rows,) each.
Extra = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Stream:
    """Rows to watch, (n, signals), and the rows before each drift in them."""

    baseline: Baseline
    rows: Floats
    changes: tuple[int, ...]
    generator: np.random.Generator
    #: 0/1 signals at the end of the columns.
    indicators: int


def drifting(kind: str, rho: float, seed: int) -> Stream:
    """A stream of 16 AR(1) features, one of SHIFTS after BEFORE rows, and its baseline from rows before."""
    generator = np.random.default_rng(1_000 + seed)
    changes = (BEFORE, BEFORE + AFTER) if kind == "recurring" else (BEFORE,)
    n = BASELINE_ROWS + changes[-1] + AFTER
    latent = autoregressive(generator, n, len(SIGNALS) + 1, rho)
    features, spare = latent[:, :-1].copy(), latent[:, -1]
    extra = SHIFTS[kind](features, spare, BASELINE_ROWS + BEFORE)
    rows = np.column_stack([features, *extra.values()]) if extra else features
    baseline = measure_baseline((*SIGNALS, *extra), rows[:BASELINE_ROWS])
    return Stream(baseline, rows[BASELINE_ROWS:], changes, generator, len(extra))


def seasonal(rho: float, seed: int) -> tuple[Stream, Baseline]:
    """Half of the features follow a season, each with a phase of its own; SEASONS of it, then a step on top of one.

    The stream's baseline knows the season, the other one has seen it and does not. Event times are row numbers in ms,
    as in synthetic.summaries.
    """
    generator = np.random.default_rng(3_000 + seed)
    n = BASELINE_ROWS + 2 * SEASONS * SEASON_ROWS
    features = autoregressive(generator, n, len(SIGNALS), rho)
    times_ms = np.arange(n) - BASELINE_ROWS  # the baseline's rows are whole seasons
    starts = generator.random(len(SIGNALS) // 2)
    angles = 2 * np.pi * (times_ms[:, None] / SEASON_ROWS + starts)
    features[:, : len(starts)] += (SEASON_SD * np.sin(angles)).astype(np.float32)
    before = SEASONS * SEASON_ROWS
    features[BASELINE_ROWS + before :, ONE] += STEP_SD
    first = slice(0, BASELINE_ROWS)
    known = measure_baseline(SIGNALS, features[first], times_ms[first], season_s=SEASON_ROWS / 1000)
    unaware = measure_baseline(SIGNALS, features[first])
    return Stream(known, features[BASELINE_ROWS:], (before,), generator, 0), unaware


def _step(features: Floats, _spare: Floats, at: int) -> Extra:
    features[at:, ONE] += STEP_SD
    return {}


def _gradual(features: Floats, _spare: Floats, at: int) -> Extra:
    ramp = np.minimum(1.0, np.arange(len(features) - at) / GRADUAL_ROWS)
    features[at:, ONE] += (STEP_SD * ramp).astype(np.float32)
    return {}


def _recurring(features: Floats, _spare: Floats, at: int) -> Extra:
    features[at : at + AFTER, ONE] += STEP_SD
    return {}


def _variance(features: Floats, _spare: Floats, at: int) -> Extra:
    features[at:, ONE] *= 2.0
    return {}


def _correlation_lost(features: Floats, _spare: Floats, at: int) -> Extra:
    """A pair: each feature by itself is as before."""
    mixed = CORRELATION * features[:at, ONE] + np.sqrt(1 - CORRELATION**2) * features[:at, ONE + 1]
    features[:at, ONE + 1] = mixed
    return {}


def _correlation_arises(features: Floats, spare: Floats, at: int) -> Extra:
    """Four features: each by itself is as before."""
    own, common = np.sqrt(1 - CORRELATION), np.sqrt(CORRELATION)
    features[at:, FOUR] = own * features[at:, FOUR] + common * spare[at:, None]
    return {}


def _class_share(_features: Floats, spare: Floats, at: int) -> Extra:
    return {"class:1": _flags(spare, at, 0.2, 0.4)}


def _missing_rate(features: Floats, spare: Floats, at: int) -> Extra:
    missing = _flags(spare, at, 0.01, 0.06)
    features[missing > 0, ONE] = np.nan
    return {f"null:{ONE}": missing}


def _flags(latent: Floats, at: int, before: float, after: float) -> npt.NDArray[np.float32]:
    """0 or 1, with a share of 1 before and after row `at`; as autocorrelated as a threshold leaves it."""
    limits = np.full(len(latent), NormalDist().inv_cdf(1 - before))
    limits[at:] = NormalDist().inv_cdf(1 - after)
    return (latent > limits).astype(np.float32)


def _many(features: Floats, _spare: Floats, at: int) -> Extra:
    features[at:, :8] += STEP_SD
    return {}


SHIFTS: dict[str, Callable[[Floats, Floats, int], Extra]] = {
    "step": _step,
    "gradual": _gradual,
    "recurring": _recurring,
    "variance": _variance,
    "correlation lost": _correlation_lost,
    "correlation arises": _correlation_arises,
    "class share": _class_share,
    "missing rate": _missing_rate,
    "eight at once": _many,
}
