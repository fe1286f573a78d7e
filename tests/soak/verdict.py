"""What a soak's record says: counts, growth of every role, and whether all of it is as it must be."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.soak import watch
from tests.soak.supervisor import FAULTS, KILLED, Plan, Record

#: Over the run, after warm-up.
GROWTH_MAX_PERCENT = 5.0
#: A handful is a connection that came back or a segment more, whatever 5 % of few are.
HANDLES_MAX, THREADS_MAX = 10.0, 2.0
#: Less time, or fewer generations of a killed worker, show noise: then growth is shown and not judged.
JUDGED_FROM_S, JUDGED_FROM_GENERATIONS = 480.0, 8
#: A killed worker is looked at when it is so old: started, warmed up, and with partitions again.
EQUAL_AGE_S = 20.0
#: Points of a line in the plot.
POINTS_MAX = 240


def judge(record: Record, plan: Plan) -> dict[str, Any]:
    """The results as JSON-able data; `faults` is empty if the soak passed."""
    counts = record.counts
    steady_s = record.steady_until_s - record.steady_from_s
    roles = {name: _role(record, plan, name) for name in sorted(record.samples)}
    faults = [*record.faults, *counts.get("faults", [])]
    faults += [f"{counts[name]:,} {name}" for name in FAULTS if counts.get(name)]
    if counts.get("predicted") != record.sent:
        faults.append(f"{counts.get('predicted', 0):,} predictions of {record.sent:,} events")
    if record.dead_letters:
        faults.append(f"{record.dead_letters:,} dead letters")
    faults += [f"{name}: {fault}" for name, role in roles.items() for fault in role["faults"]]
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": _machine(),
        "minutes": round(steady_s / 60, 1),
        "kill_every_s": plan.kill_every_s,
        "peak_events_s": round(record.peak_events_s),
        "rate_events_s": round(record.peak_events_s * plan.share),
        "achieved_events_s": round(_rate(record)),
        "held_back_s": round(record.held_back_s, 1),
        "events": record.sent,
        "predicted": counts.get("predicted", 0),
        **{name: counts.get(name, 0) for name in FAULTS},
        "dead_letters": record.dead_letters,
        "kills": len(record.kills),
        "kills_at_work": sum(at_work for _, _, at_work in record.kills),
        "unread_events_max": max((lag for _, _, lag in record.progress), default=0),
        "roles": roles,
        "killed": [[round((at_s - record.steady_from_s) / 60, 2), victim] for at_s, victim, _ in record.kills],
        "faults": faults,
        "passed": not faults,
    }


def _machine() -> dict[str, Any]:
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []


def _rate(record: Record) -> float:
    """Predictions a second of the steady part."""
    steady = [(at_s, done) for at_s, done, _ in record.progress if at_s >= record.steady_from_s > 0]
    if len(steady) < 2 or steady[-1][0] == steady[0][0]:
        return 0.0
    return (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])


def _role(record: Record, plan: Plan, name: str) -> dict[str, Any]:
    """Growth of one role, its faults, and its resident memory over time for the plot."""
    killed = name in {f"worker {slot}" for slot in range(1, KILLED + 1)}
    every = record.samples[name]
    from_s = record.steady_from_s + plan.fit_from_s
    later = [(generation, sample) for generation, sample in every if sample.at_s >= from_s]
    fitted = _at_equal_age(later) if killed else [sample for _, sample in later]
    span_s = fitted[-1].at_s - fitted[0].at_s if fitted else 0.0
    enough = len(fitted) >= JUDGED_FROM_GENERATIONS if killed else True
    found: dict[str, Any] = {
        "never_killed": not killed,
        "generations": len({generation for generation, _ in every}),
        "judged": span_s >= JUDGED_FROM_S and enough,
        "faults": [],
        "rss_mb": [
            [round((sample.at_s - record.steady_from_s) / 60, 2), round(sample.rss_mb, 1), generation]
            for generation, sample in every[:: -(-len(every) // POINTS_MAX)]
        ],
    }
    limits: dict[str, tuple[Callable[[watch.Sample], float], float]] = {
        "rss_mb": (lambda s: s.rss_mb, 0.0),
        "handles": (lambda s: s.handles, HANDLES_MAX),
        "threads": (lambda s: s.threads, THREADS_MAX),
    }
    for measure, (of, allowed) in limits.items():
        grown = watch.growth([s.at_s for s in fitted], [of(s) for s in fitted])
        if grown is None:
            continue
        found[f"{measure}_start"] = round(grown.start, 1)
        found[f"{measure}_max"] = round(float(np.max([of(s) for s in fitted])), 1)
        found[f"{measure}_change"] = round(grown.change, 1)
        found[f"{measure}_percent"] = round(grown.percent, 1)
        if found["judged"] and grown.change > allowed and grown.percent >= GROWTH_MAX_PERCENT:
            found["faults"].append(f"{measure} grew by {grown.percent:.1f} %, from {grown.start:.1f}")
    return found


def _at_equal_age(samples: list[tuple[int, watch.Sample]]) -> list[watch.Sample]:
    """The first sample of each generation that is old enough."""
    first: dict[int, watch.Sample] = {}
    for generation, sample in samples:
        if sample.age_s >= EQUAL_AGE_S:
            first.setdefault(generation, sample)
    # A generation that was old before the warm-up ended would be older than the others.
    return [sample for sample in first.values() if sample.age_s < EQUAL_AGE_S + 2 * 5.0]
