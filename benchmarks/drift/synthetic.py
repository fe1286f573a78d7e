"""False alarms, delays and cost of the drift room on made-up signals, seeds fixed: `python -m benchmarks.drift`.

Rows run through the summariser and the monitor as in the pipeline: spread over partitions by chance, in
drains of random size, partitions of a drain in random order.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from river.drift import ADWIN

from pipeline.drift import DriftMonitor, MonitorSettings, SignalSummariser, measure_baseline
from pipeline.records import Baseline, BatchSummary, ModelIdentity, RetrainingTrigger

Floats = npt.NDArray[np.float32]

IDENTITY = ModelIdentity("bench", "1")
SIGNALS = tuple(f"feature:{i}" for i in range(16))
BASELINE_ROWS = 10_000


def autoregressive(generator: np.random.Generator, rows: int, signals: int, rho: float) -> Floats:
    """Stationary AR(1) series of unit variance, (rows, signals) float32."""
    values = generator.normal(size=(rows, signals))
    values[1:] *= np.sqrt(1.0 - rho * rho)
    if rho:
        for row in range(1, rows):
            values[row] += rho * values[row - 1]
    return values.astype(np.float32)


def summaries(
    rows: Floats,
    summariser: SignalSummariser,
    generator: np.random.Generator,
    *,
    partitions: int = 4,
    drain: tuple[int, int] = (20, 200),
) -> Iterator[tuple[int, BatchSummary]]:
    """Rows read by the end of a drain, and each summary of it; event times are row numbers in ms."""
    places = generator.integers(partitions, size=len(rows))
    offsets = np.zeros(partitions, dtype=np.int64)
    start = 0
    while start < len(rows):
        end = min(len(rows), start + int(generator.integers(*drain)))
        for partition in generator.permutation(partitions).tolist():
            chosen = start + np.flatnonzero(places[start:end] == partition)
            own = offsets[partition] + np.arange(len(chosen))
            summariser.add("events", partition, own, chosen.astype(np.int64), rows[chosen])
            offsets[partition] += len(chosen)
        for summary in summariser.drain():
            yield end, summary
        start = end


def monitor_for(baseline: Baseline, settings: MonitorSettings | None = None) -> DriftMonitor:
    """A fresh monitor."""
    return DriftMonitor(baseline, pipeline="bench", model_id="bench", model_version="1", settings=settings)


def watch(
    rows: Floats, baseline: Baseline, generator: np.random.Generator, *, drain: tuple[int, int] = (20, 200)
) -> list[tuple[int, RetrainingTrigger]]:
    """Triggers over all rows, with the rows read when each came."""
    monitor = monitor_for(baseline)
    found = []
    for read, summary in summaries(rows, SignalSummariser(baseline, IDENTITY), generator, drain=drain):
        trigger = monitor.take(summary)
        if trigger is not None:
            found.append((read, trigger))
    return found


def stationary(kind: str, rho: float, seed: int, rows: int) -> tuple[Floats, Baseline, np.random.Generator]:
    """Rows without a change, and the baseline measured on rows before them."""
    generator = np.random.default_rng(seed)
    values = autoregressive(generator, BASELINE_ROWS + rows, len(SIGNALS), rho)
    if kind == "lognormal":
        values = np.exp(2.0 * values)
    return values[BASELINE_ROWS:], measure_baseline(SIGNALS, values[:BASELINE_ROWS]), generator


def river_alone(rows: Floats) -> list[int]:
    """Rows read at each alarm of River's ADWIN with its defaults on each raw signal, bounded by the normal CDF."""
    bounded = 1.0 / (1.0 + np.exp(-1.702 * rows.astype(np.float64)))  # within 0.01 of the normal CDF
    found = []
    for column in bounded.T.tolist():
        adwin = ADWIN()
        for row, value in enumerate(column, 1):
            adwin.update(value)
            if adwin.drift_detected:
                found.append(row)
    return sorted(found)


@dataclass
class Card:
    """How a detector did on streams with one drift each."""

    delays: list[int] = field(default_factory=list)
    missed: int = 0
    false: int = 0

    def count(self, alarms: Sequence[int], drift: int) -> None:
        """One stream. alarms: rows read at each; the first one after row `drift` finds it, all others are false."""
        late = [read - drift for read in alarms if read > drift]
        self.false += len(alarms) - bool(late)
        self.missed += not late
        self.delays += late[:1]

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        return 2 * len(self.delays) / max(1, 2 * len(self.delays) + self.false + self.missed)

    def __str__(self) -> str:
        span = "-"
        if self.delays:
            span = f"{statistics.median(self.delays):.0f} ({min(self.delays)} to {max(self.delays)})"
        return f"{span}; {self.missed} missed, {self.false} false, F1 {self.f1:.2f}"


def false_alarms(seeds: int, rows: int) -> None:
    """Triggers where nothing changed."""
    print(f"\nstationary, 16 signals, {seeds} x {rows:,} rows, 4 partitions: triggers per 100,000 rows")
    for kind, rho in (("normal", 0.0), ("normal", 0.7), ("normal", 0.9), ("lognormal", 0.0)):
        total = 0
        for seed in range(seeds):
            values, baseline, generator = stationary(kind, rho, seed, rows)
            total += len(watch(values, baseline, generator, drain=(20, 1500)))
        alone = len(river_alone(stationary(kind, rho, 0, 50_000)[0])) * 2
        print(f"  {kind:9} rho {rho}: {total / (seeds * rows) * 1e5:.3f}   (River's default, raw: {alone})", flush=True)


def delays(seeds: int, before: int) -> None:
    """Rows between a step in one feature and its trigger, to the end of the drain it came in; beside River's ADWIN."""
    print(f"\nstep in one of 16 signals after {before:,} rows: delay in rows, median (range) of {seeds}")
    for step in (0.5, 1.0, 3.0):
        for rho in (0.0, 0.7, 0.9):
            ours, river = Card(), Card()
            for seed in range(seeds):
                values, baseline, generator = stationary("normal", rho, 1000 + seed, before + 20_000)
                values[before:, 3] += step
                ours.count([read for read, _ in watch(values, baseline, generator)], before)
                river.count(river_alone(values), before)
            print(f"  {step} sd, rho {rho}: {ours}\n    River's default, raw: {river}", flush=True)


def many_at_once(seeds: int) -> None:
    """Triggers for one drift in eight signals."""
    counts = []
    for seed in range(seeds):
        values, baseline, generator = stationary("normal", 0.7, 2000 + seed, 40_000)
        values[20_000:, :8] += 0.5
        triggers = watch(values, baseline, generator)
        counts.append((len(triggers), len(triggers[0][1].signals)))
    print(f"\none drift in 8 signals at once: (triggers, signals named) {counts}")


def cost() -> None:
    """Microseconds an event on one core."""
    signals = (
        *(f"feature:{i}" for i in range(18)),
        *(f"null:{i}" for i in range(19)),
        "class:1",
        "class:2",
        "rejected",
    )
    generator = np.random.default_rng(0)
    rows = np.zeros((40_000, len(signals)), dtype=np.float32)
    rows[:, :18] = generator.normal(size=(40_000, 18))
    baseline = measure_baseline(signals, rows[:10_000])
    print(f"\ncost, {len(signals)} signals, us an event")
    for batch in (64, 256, 1024):
        summariser = SignalSummariser(baseline, IDENTITY)
        numbers = np.arange(len(rows), dtype=np.int64)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            for start in range(0, len(rows), batch):
                part = slice(start, start + batch)
                summariser.add("events", start // batch % 4, numbers[part], numbers[part], rows[part])
            summariser.drain()
            best = min(best, time.perf_counter() - started)
        print(f"  summariser, batches of {batch}: {best / len(rows) * 1e6:.2f}")
    for rate in (1_500, 20_000, 200_000):
        size = rate // 2
        long = np.tile(rows, (max(1, 4 * size // len(rows) + 1), 1))[: max(20_000, 4 * size)]
        given = [s for _, s in summaries(long, SignalSummariser(baseline, IDENTITY), generator, drain=(size, size + 1))]
        monitor = monitor_for(baseline)
        started = time.perf_counter()
        for summary in given:
            monitor.take(summary)
        spent = time.perf_counter() - started
        print(f"  monitor at {rate:,} events/s, commits each 0.5 s: {spent / len(long) * 1e6:.2f}")


def shuttle() -> None:
    """River's Shuttle telemetry in file order: alarms without a shift, delay with one."""
    from river.datasets import Shuttle  # noqa: PLC0415 (slow to read)

    rows = np.array([list(x.values()) for x, _ in Shuttle()], dtype=np.float32)
    signals = tuple(f"feature:f{i + 1}" for i in range(rows.shape[1]))
    baseline = measure_baseline(signals, rows[15_000:20_000])
    time_of = max(s.autocorrelation_time for s in baseline.signals)
    live, drain = rows[20_000:], (600, 900)  # 0.5 s at 1,500 events/s
    alarms = len(watch(live, baseline, np.random.default_rng(0), drain=drain))
    print(f"\nShuttle: rows {len(rows):,}, longest autocorrelation time {time_of:.2f}")
    print(f"  baseline rows 15,000-20,000, {len(live):,} rows watched unchanged: {alarms} triggers")
    for column in range(rows.shape[1]):
        shifted = live[:25_000].copy()
        shifted[12_500:, column] += 3.0 * np.sqrt(baseline.signals[column].variance)
        triggers = watch(shifted, baseline, np.random.default_rng(column), drain=drain)
        shown = [f"{read - 12_500:+,} rows, PSI {t.signals[0].psi:.2f}, {t.severity}" for read, t in triggers]
        print(f"  3 sd in f{column + 1} from row 12,500 on: {shown}")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=200_000, help="stationary rows a seed")
    options = parser.parse_args()
    cost()
    shuttle()
    many_at_once(min(3, options.seeds))
    delays(options.seeds, 20_000)
    false_alarms(options.seeds, options.rows)
