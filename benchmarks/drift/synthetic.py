"""Made-up signals through the drift room, seeds fixed; and what that costs.

Rows run through the summariser and the monitor as in the pipeline: spread over partitions by chance, in
drains of random size, partitions of a drain in random order.
"""

import time
from collections.abc import Iterator

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


def river_alone(rows: Floats, indicators: int = 0, *, bound: bool = True) -> list[int]:
    """Rows read at each alarm of River's ADWIN with its defaults on each raw signal, missing values left out.

    bound: by the normal CDF, for ADWIN asks for values in [0, 1]; else as they come. indicators: columns at the end
    that are 0 or 1 already.
    """
    values = rows.astype(np.float64)
    if bound:
        numbers = values.shape[1] - indicators
        values[:, :numbers] = 1.0 / (1.0 + np.exp(-1.702 * values[:, :numbers]))  # within 0.01 of the normal CDF
    found = []
    for column in values.T:
        adwin = ADWIN()
        there = np.flatnonzero(~np.isnan(column))
        for row, value in zip((there + 1).tolist(), column[there].tolist(), strict=True):
            adwin.update(value)
            if adwin.drift_detected:
                found.append(row)
    return sorted(found)


def cost() -> dict[str, float]:
    """Microseconds an event on one core, of 40 signals; printed as they come."""
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
    found: dict[str, float] = {}

    def tell(what: str, seconds: float, events: int) -> None:
        found[what] = seconds / events * 1e6
        print(f"  {what}: {found[what]:.2f} us an event", flush=True)

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
        tell(f"summariser, batches of {batch:,}", best, len(rows))
    for rate in (1_500, 20_000, 200_000):
        size = rate // 2
        long = np.tile(rows, (max(1, 4 * size // len(rows) + 1), 1))[: max(20_000, 4 * size)]
        given = [s for _, s in summaries(long, SignalSummariser(baseline, IDENTITY), generator, drain=(size, size + 1))]
        monitor = monitor_for(baseline)
        started = time.perf_counter()
        for summary in given:
            monitor.take(summary)
        tell(f"monitor at {rate:,} events/s, commits each 0.5 s", time.perf_counter() - started, len(long))
    started = time.perf_counter()
    river_alone(rows[:5_000])
    tell("River's ADWIN, default, on each raw value", time.perf_counter() - started, 5_000)
    return found


def shuttle_rows() -> Floats:
    """River's Shuttle telemetry in file order, (46,464, 9)."""
    from river.datasets import Shuttle  # noqa: PLC0415 (slow to read)

    return np.array([list(x.values()) for x, _ in Shuttle()], dtype=np.float32)
