"""What the card asks of the monitor, one stream a call: plain data for JSON, the same for the same seed."""

from typing import Any

import numpy as np

from benchmarks.drift import counting, shifts, synthetic
from benchmarks.drift.counting import Detections
from benchmarks.drift.shifts import Stream
from benchmarks.drift.synthetic import Floats
from pipeline.drift import measure_baseline

#: Drains of a quiet stream: commits of 0.5 s at up to 3,000 events/s.
QUIET_DRAIN = (20, 1_500)
#: Rows of a quiet stream that River sees: it alarms often or never.
RIVER_ROWS = 50_000


def quiet(kind: str, rho: float, rows: int, seed: int) -> dict[str, Any]:
    """Triggers where nothing changes."""
    values, baseline, generator = synthetic.stationary(kind, rho, seed, rows)
    triggers = synthetic.watch(values, baseline, generator, drain=QUIET_DRAIN)
    seen = values[:RIVER_ROWS]
    return {
        "rows": len(values),
        "triggers": len(triggers),
        "river_rows": len(seen),
        "river": len(synthetic.river_alone(seen)),
        "river_unbounded": len(synthetic.river_alone(seen, bound=False)),
    }


def shift(kind: str, rho: float, seed: int) -> dict[str, Any]:
    """One drift, or one there and back: the monitor, River on each raw value, a schedule of as many retrainings."""
    stream = shifts.drifting(kind, rho, seed)
    triggers = synthetic.watch(stream.rows, stream.baseline, stream.generator)
    alarms = {
        "monitor": [read for read, _ in triggers],
        "river": synthetic.river_alone(stream.rows, stream.indicators),
        "periodic": counting.periodic(len(triggers), len(stream.rows), (seed % 10 + 0.5) / 10),
    }
    told: dict[str, Any] = {name: _detections(found, stream) for name, found in alarms.items()}
    after = [read for read in alarms["river"] if read > stream.changes[0]]
    return {
        **told,
        "joint": any(signal.name.startswith("joint:") for signal in stream.baseline.signals),
        "triggers": len(triggers),
        "signals": [[s.signal for s in trigger.signals] for _, trigger in triggers],
        "river_after": len(after),
    }


def season(rho: float, seed: int) -> dict[str, Any]:
    """Ten seasons that the baseline knows, then a step on top: the monitor, one that does not know them, River raw."""
    stream, unaware = shifts.seasonal(rho, seed)
    state = stream.generator.bit_generator.state
    found: dict[str, Any] = {}
    for name, baseline in (("monitor", stream.baseline), ("unaware", unaware)):
        stream.generator.bit_generator.state = state  # the same commits
        alarms = [read for read, _ in synthetic.watch(stream.rows, baseline, stream.generator)]
        found[name] = _detections(alarms, stream)
        found[f"{name}_in_seasons"] = sum(read <= stream.changes[0] for read in alarms)
    river = synthetic.river_alone(stream.rows)
    return {**found, "river_in_seasons": sum(read <= stream.changes[0] for read in river)}


def shuttle(column: int) -> dict[str, Any]:
    """River's Shuttle telemetry in file order, unchanged, or with 3 sd added to one column half-way (0 to 8).

    column -1: unchanged.
    """
    rows = synthetic.shuttle_rows()
    signals = tuple(f"feature:f{i + 1}" for i in range(rows.shape[1]))
    baseline = measure_baseline(signals, rows[15_000:20_000])
    live: Floats = rows[20_000:]
    drain = (600, 900)  # 0.5 s at 1,500 events/s
    if column < 0:
        return {
            "rows": len(live),
            "triggers": len(synthetic.watch(live, baseline, np.random.default_rng(0), drain=drain)),
        }
    live = live[:25_000].copy()
    live[12_500:, column] += 3.0 * np.sqrt(baseline.signals[column].variance)
    alarms = [read for read, _ in synthetic.watch(live, baseline, np.random.default_rng(column), drain=drain)]
    found = Detections()
    found.count(alarms, [12_500])
    return found.plain()


def _detections(alarms: list[int], stream: Stream) -> dict[str, Any]:
    found = Detections()
    found.count(alarms, stream.changes)
    return found.plain()
