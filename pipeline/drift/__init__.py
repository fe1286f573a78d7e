"""Drift: is the stream still like the data the model was trained on? In reading order:

    seasons.py     what the time of the day explains, taken out first
    bins.py        bounded values: which bin, which level
    baseline.py    signal names, baselines, autocorrelation times
    parts.py       signals of categories and slices, by their names
    joint.py       how features go together, as signals of their own
    summaries.py   on the hot path: what a worker adds up per partition
    merge.py       one stream out of many partitions, by arrival, each event once
    detector.py    one signal: ADWIN proposes, a test with effective sample sizes decides
    history.py     the recent past in the signals' own units
    spread.py      signals that scatter otherwise around the same mean
    evidence.py    KL, PSI, severity, advice, trigger
    monitor.py     all of it together; pure and restartable
    station.py     the monitor with its durable state, for an agent
    state_file.py  a file that is whole after any crash
    errors.py      the same detector on a model's errors, once labels are there
    verdict.py     real drift (errors moved) or virtual (inputs alone), and what to do
    error_station.py  the watch of errors with its durable state, for an agent

River is imported by detector.py, so by DriftMonitor and MonitorStation only: they are loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from pipeline.drift.baseline import measure_baseline, signal_names
from pipeline.drift.evidence import trigger_from_dict, trigger_to_dict
from pipeline.drift.summaries import SignalSummariser, summary_from_dict, summary_to_dict

if TYPE_CHECKING:
    from pipeline.drift.monitor import DriftMonitor, MonitorSettings
    from pipeline.drift.station import MonitorStation

__all__ = [
    "DriftMonitor",
    "MonitorSettings",
    "MonitorStation",
    "SignalSummariser",
    "measure_baseline",
    "signal_names",
    "summary_from_dict",
    "summary_to_dict",
    "trigger_from_dict",
    "trigger_to_dict",
]

_LATE = {
    "DriftMonitor": "pipeline.drift.monitor",
    "MonitorSettings": "pipeline.drift.monitor",
    "MonitorStation": "pipeline.drift.station",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 (needed on first use only)

    return getattr(import_module(_LATE[name]), name)
