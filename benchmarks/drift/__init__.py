"""Drift: the score card (`python -m benchmarks.drift`), and the loop on Elec2 (`... .elec2`)."""

from benchmarks.drift.synthetic import (
    IDENTITY,
    SIGNALS,
    autoregressive,
    monitor_for,
    stationary,
    summaries,
    watch,
)

__all__ = ["IDENTITY", "SIGNALS", "autoregressive", "monitor_for", "stationary", "summaries", "watch"]
