"""How far the events evaluated are from what the model was trained on: each watched signal, window by window."""

from typing import Any

import numpy as np

from pipeline.drift.baseline import as_watched
from pipeline.drift.evidence import PSI_MAJOR, PSI_MINOR, divergences
from pipeline.records import Baseline, Floats, Longs, SignalBaseline

#: Rows of a window whose PSI says something: 16 bins of 500 independent rows have 0.03 of it by chance.
PSI_ROWS_MIN = 500


def timeline(signals: Floats, times_ms: Longs, baseline: Baseline, rows: int) -> dict[str, Any]:
    """Every signal against its baseline, over all rows and by windows of `rows`.

    signals: (n, signals of `baseline.given`) float32, NaN for no value, in order of time; the joint ones are made here,
    and what is known of seasons taken out. Plain data:

        signals [{signal, baseline_mean, mean, count, psi, psi_by_chance}]
        windows [{first_time_ms, last_time_ms, rows, signals: {signal: {mean, count, psi, psi_by_chance}}}]

    psi_by_chance is what PSI is on average where nothing has moved. Signals without a baseline are left out.
    """
    signals = as_watched(baseline, signals, times_ms)
    watched = [(column, signal) for column, signal in enumerate(baseline.signals) if signal.count]
    overall = [
        {"signal": signal.name, "baseline_mean": signal.mean, **_compared(signals[:, column], signal)}
        for column, signal in watched
    ]
    windows = []
    for start in range(0, len(signals), rows) if watched else ():
        part = signals[start : start + rows]
        windows.append(
            {
                "first_time_ms": int(times_ms[start]),
                "last_time_ms": int(times_ms[start + len(part) - 1]),
                "rows": len(part),
                "signals": {signal.name: _compared(part[:, column], signal) for column, signal in watched},
            }
        )
    return {"signals": overall, "windows": windows}


def severity(compared: dict[str, Any]) -> str:
    """How the report colours one comparison: none, calm, minor or major.

    As drift/evidence.py reads PSI, above what chance alone makes.
    """
    if not compared["count"]:
        return "none"
    beyond = compared["psi"] - compared["psi_by_chance"]
    return "major" if beyond >= PSI_MAJOR else "minor" if beyond >= PSI_MINOR else "calm"


def _compared(column: Floats, baseline: SignalBaseline) -> dict[str, Any]:
    values = column[np.isfinite(column)]
    if not len(values):
        return {"mean": None, "count": 0, "psi": None, "psi_by_chance": None}
    cuts = np.array(baseline.edges[1:-1], dtype=np.float32)
    histogram = np.bincount(np.searchsorted(cuts, values, side="left"), minlength=len(baseline.histogram))
    _, psi = divergences(histogram.astype(np.float64), baseline)
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "count": len(values),
        "psi": psi,
        "psi_by_chance": _psi_by_chance(len(values), baseline),
    }


def _psi_by_chance(count: int, baseline: SignalBaseline) -> float:
    """Mean PSI of `count` further values of the baseline's own distribution.

    For independent values (bins - 1) (1/n + 1/N) (Yurdakul 2018, "Statistical properties of the population stability
    index"). Values that hang together are worth fewer, but a count of bins is not worth as few as a mean: of a
    first-order normal process with autocorrelation r, the k-th of the bins - 1 components (Hermite polynomials, whose
    autocorrelation is r^k by Mehler's formula) has an autocorrelation time of (1 + r^k) / (1 - r^k).
    """
    bins = sum(1 for rows in baseline.histogram if rows)
    time = baseline.autocorrelation_time
    powers = ((time - 1) / (time + 1)) ** np.arange(1, max(bins, 1))
    return float(((1 + powers) / (1 - powers)).sum()) * (1 / count + 1 / baseline.count)
