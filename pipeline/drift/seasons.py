"""Known seasons: what the time of the day, or of the week, explains of a value is taken out before anything else.

Per phase of the season the baseline keeps each signal's median and interquartile range. A value is shifted and scaled,

    x' = (x - median(t)) * range / range(t) + median

with both interpolated between the middles of the phases; `range` and `median` without a time are means over the phases.
So x' is in the signal's own unit, and whatever is done with values (ranks, products, sums) is done with x' instead.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.drift.parts import slice_score
from pipeline.errors import DataError
from pipeline.records import Floats, Longs, Season

Doubles = npt.NDArray[np.float64]

#: Seasons that a baseline must cover: of one, a slow drift cannot be told from it.
SEASONS_MIN = 2.0
#: Values that a phase needs to count; between phases that do, it is interpolated.
PHASE_VALUES_MIN = 8
#: Steps of a phase in the workers' table: interpolating to the nearest of 16 errs by 1/32 of a phase.
STEPS = 16


def measure_season(
    signals: Sequence[str], matrix: Floats, times_ms: Longs | None, period_s: float, phases: int
) -> Season:
    """The season of the features and scores in rows (n, signals).

    Raises DataError, in one line, for times that are not there or span less than two seasons.
    """
    what = f"drift.season_s = {period_s:g}"
    if times_ms is None:
        raise DataError(f"{what}: the rows have no event times to tell it by; name their column, or set it to 0")
    seasons = (int(times_ms.max()) - int(times_ms.min())) / 1000.0 / period_s
    if seasons < SEASONS_MIN:
        told = f"the rows that drift is measured against cover {seasons:.2f} seasons, {SEASONS_MIN:g} are needed"
        raise DataError(f"{what}: {told}; give more rows, or set it to 0")
    return _fit(signals, matrix, times_ms, Season(period_s, seasons, (), (), ()), phases)


def time_factor(season: Season) -> float:
    """By how much longer a signal's autocorrelation time is to be taken, since its season is known from few seasons.

    A median of n values of variance V and time tau errs by V tau pi / (2 n): in a phase of L events, of K seasons, by
    V tau pi / (2 K L). A mean over up to L events beside another errs by twice that besides its own V tau / L, so by
    1 + pi / K times as much in all; over more than L events, by less.
    """
    return 1.0 + math.pi / season.seasons


def of_season(signal: str) -> str:
    """The signal whose season a signal has: its own, or for a score within a slice that of the whole stream.

    A slice has few values in a phase, and another one may be there when a successor takes the season over.
    """
    part = slice_score(signal)
    return signal if part is None else part.whole


class Deseasoner:
    """Takes a season out of rows of signals."""

    def __init__(self, season: Season, signals: Sequence[str]) -> None:
        """signals: names of the columns of the rows. A score within a slice has the season of the whole one."""
        row_of = {name: row for row, name in enumerate(season.signals)}
        rows = [row_of.get(of_season(name)) for name in signals]
        self._columns = np.array([column for column, row in enumerate(rows) if row is not None], dtype=np.int64)
        self._period_ms = season.period_s * 1000.0
        phases = len(season.medians[0]) if season.signals else 1
        self._steps = phases * STEPS
        chosen = [row for row in rows if row is not None]
        medians, ranges = (
            np.array(side, dtype=np.float64).reshape(-1, phases)[chosen] for side in (season.medians, season.ranges)
        )
        at = (np.arange(self._steps) + 0.5) / STEPS
        middles = np.arange(phases) + 0.5
        fine = [
            np.array([np.interp(at, middles, row, period=phases) for row in side]).reshape(-1, self._steps)
            for side in (medians, ranges)
        ]
        # (steps, signals): what a row needs lies together.
        self._medians = np.ascontiguousarray(fine[0].T, dtype=np.float32)
        self._factors = np.ascontiguousarray((ranges.mean(axis=1) / fine[1].T), dtype=np.float32)
        self._usual = medians.mean(axis=1).astype(np.float32)

    def of(self, matrix: Floats, times_ms: Longs) -> Floats:
        """A copy of `matrix`, (n, columns), without the season. times_ms: (n,), milliseconds since the epoch."""
        step = (np.mod(times_ms, self._period_ms) * (self._steps / self._period_ms)).astype(np.int64)
        step = np.minimum(step, self._steps - 1)
        found = matrix.copy()
        seen = matrix[:, self._columns]
        found[:, self._columns] = (seen - self._medians[step]) * self._factors[step] + self._usual
        return found


def _fit(signals: Sequence[str], matrix: Floats, times_ms: Longs, season: Season, phases: int) -> Season:
    period_ms = season.period_s * 1000.0
    phase = np.minimum((np.mod(times_ms, period_ms) * (phases / period_ms)).astype(np.int64), phases - 1)
    order = np.argsort(phase, kind="stable")
    bounds = np.searchsorted(phase[order], np.arange(phases + 1))
    names, medians, ranges = [], [], []
    for column, name in enumerate(signals):
        if not name.startswith(("feature:", "score:")) or of_season(name) != name:
            continue
        quartiles = np.full((phases, 3), np.nan)
        for index in range(phases):
            values = matrix[order[bounds[index] : bounds[index + 1]], column]
            values = values[np.isfinite(values)]
            if len(values) >= PHASE_VALUES_MIN:
                quartiles[index] = np.quantile(values.astype(np.float64), (0.25, 0.5, 0.75))
        there = np.flatnonzero(np.isfinite(quartiles[:, 0]))
        # A signal of few values, that often has the same one, is left as it is: scaled by 0 nothing would remain.
        if len(there) * 2 < phases or (quartiles[there, 2] <= quartiles[there, 0]).any():
            continue
        quartiles = np.stack(
            [np.interp(np.arange(phases), there, quartiles[there, k], period=phases) for k in range(3)], axis=1
        )
        names.append(name)
        medians.append(_plain(quartiles[:, 1]))
        ranges.append(_plain(quartiles[:, 2] - quartiles[:, 0]))
    return replace(season, signals=tuple(names), medians=tuple(medians), ranges=tuple(ranges))


def _plain(values: Doubles) -> tuple[float, ...]:
    return tuple(values.astype(np.float32).tolist())
