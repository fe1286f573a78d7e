"""Numbers to tables: medians, ranges, ratios, the machine."""

import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLUMNS = (
    "system",
    "events",
    "events/s, median [range]",
    "to echo",
    "to hand-written",
    "to pipeline",
    "CPU s per million",
    "peak RSS MiB",
    "whole process s",
    "outputs",
)
PACKAGES = (
    "confluent-kafka",
    "faust-streaming",
    "aiokafka",
    "torch",
    "numpy",
    "pyarrow",
    "pyruhvro",
    "fastavro",
)


@dataclass(frozen=True)
class Measurement:
    """One run of one system; `fault` says why the other numbers do not count."""

    system: str
    round: int
    events: int
    events_per_s: float = 0.0
    cpu_s: float = 0.0
    cpu_working_s: float = 0.0
    wall_s: float = 0.0
    rss_bytes: int = 0
    verdict: str = "right"
    uncommitted: int = 0
    fault: str | None = None

    @property
    def cpu_s_per_million(self) -> float:
        return self.cpu_working_s / self.events * 1e6


@dataclass(frozen=True)
class Range:
    """Median, least and greatest of some runs."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("a range needs at least one value")
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Summary:
    """All rounds of one system; the ranges are None when no round succeeded."""

    system: str
    events: int
    runs: int
    failed: int
    verdict: str
    events_per_s: Range | None = None
    cpu_s_per_million: Range | None = None
    wall_s: Range | None = None
    rss_mib: Range | None = None
    uncommitted: int = 0
    #: Median of the ratios within each round: neighbours in time, so that a busy minute hits both.
    to_limit: float | None = None
    to_hand: float | None = None
    to_ours: float | None = None


def summarise(
    measurements: Sequence[Measurement], limit: str = "echo", hand: str = "hand", ours: str = "ours"
) -> list[Summary]:
    """One summary a system, in the order of first appearance."""
    summaries = []
    for system in dict.fromkeys(m.system for m in measurements):
        runs = [m for m in measurements if m.system == system]
        good = [m for m in runs if m.fault is None]
        wrong = [m.verdict for m in good if m.verdict != "right"]
        base = Summary(system, runs[0].events, len(runs), len(runs) - len(good), "; ".join(wrong) or "right")
        if good:
            base = Summary(
                **{name: getattr(base, name) for name in ("system", "events", "runs", "failed", "verdict")},
                events_per_s=Range.of([m.events_per_s for m in good]),
                cpu_s_per_million=Range.of([m.cpu_s_per_million for m in good]),
                wall_s=Range.of([m.wall_s for m in good]),
                rss_mib=Range.of([m.rss_bytes / 2**20 for m in good]),
                uncommitted=max(m.uncommitted for m in good),
                to_limit=_ratio(measurements, system, limit),
                to_hand=_ratio(measurements, system, hand),
                to_ours=_ratio(measurements, system, ours),
            )
        summaries.append(base)
    return summaries


def _ratio(measurements: Sequence[Measurement], system: str, other: str) -> float | None:
    rates = {(m.system, m.round): m.events_per_s for m in measurements if m.fault is None}
    ratios = [
        rate / rates[other, number]
        for (name, number), rate in rates.items()
        if name == system and (other, number) in rates
    ]
    return statistics.median(ratios) if ratios else None


def table(summaries: Sequence[Summary], labels: Mapping[str, str]) -> str:
    """The summaries as a Markdown table."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for s in summaries:
        outputs = s.verdict if s.failed == 0 else f"{s.failed} of {s.runs} runs failed; others: {s.verdict}"
        if s.uncommitted:
            outputs += f"; {s.uncommitted:,} inputs uncommitted"
        cells = [
            labels.get(s.system, s.system),
            f"{s.events:,}",
            _rates(s.events_per_s),
            _times(s.to_limit),
            _times(s.to_hand),
            _times(s.to_ours),
            f"{s.cpu_s_per_million.median:.1f}" if s.cpu_s_per_million else "-",
            f"{s.rss_mib.median:,.0f}" if s.rss_mib else "-",
            f"{s.wall_s.median:.1f}" if s.wall_s else "-",
            outputs if s.events_per_s else "failed",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates(rates: Range | None) -> str:
    if rates is None:
        return "-"
    return f"**{_thousands(rates.median)}** [{_thousands(rates.least)}-{_thousands(rates.greatest)}]"


def _thousands(rate: float) -> str:
    return f"{rate / 1000:.0f}k" if rate >= 100_000 else f"{rate / 1000:.1f}k"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def machine(kafka: str) -> dict[str, str]:
    """What the numbers hold for; `kafka` describes the broker."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores for everything, the broker included",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "kafka": kafka,
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "load before the first run": f"{os.getloadavg()[0]:.2f}",
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def page(
    summaries: Sequence[Summary], labels: Mapping[str, str], about: Mapping[str, str], command: str, rounds: int
) -> str:
    """RESULTS.md."""
    facts = "\n".join(f"- {name}: {fact}" for name, fact in about.items())
    return f"""# Throughput: results

Written by `{command}`; the method and what the columns mean: [README.md](README.md).
{rounds} rounds, the systems one after the other in each; ratios are medians of the ratios within a round.

{table(summaries, labels)}

{facts}
"""


def as_json(measurements: Sequence[Measurement], about: Mapping[str, str], command: str) -> dict[str, Any]:
    """results.json: every single run."""
    return {"command": command, "machine": dict(about), "runs": [asdict(m) for m in measurements]}
