"""A soak's results for people: a few lines, a page, a plot. Nothing in them is typed."""

import json
from html import escape
from pathlib import Path
from typing import Any

from tests.soak.supervisor import FAULTS

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP, BOTTOM = 860, 100, 120, 70, 44, 16, 40
INK, FAINT, LINE, KILL = "#333333", "#dddddd", "#1f77b4", "#d62728"


def summary(found: dict[str, Any]) -> list[str]:
    """Some lines for a terminal."""
    counts = ", ".join(f"{found[name]:,} {name}" for name in FAULTS)
    lines = [
        f"{found['events']:,} events; peak {found['peak_events_s']:,} a second",
        f"then {found['minutes']:g} min at {found['achieved_events_s']:,} a second with {found['kills']} kills",
        f"{found['predicted']:,} predicted; {counts}; at most {found['unread_events_max']:,} events behind",
    ]
    for name, role in found["roles"].items():
        if "rss_mb_start" in role:
            judged = "" if role["judged"] else " (too short to judge)"
            lines.append(
                f"{name:10} {role['rss_mb_start']:7.1f} MB {role['rss_mb_percent']:+5.1f} %   "
                f"{role['handles_start']:.0f} handles {role['handles_change']:+.0f}   "
                f"{role['threads_start']:.0f} threads {role['threads_change']:+.0f}{judged}"
            )
    return [*lines, *(f"FAULT: {fault}" for fault in found["faults"]), "passed" if found["passed"] else "FAILED"]


def write(found: dict[str, Any], folder: Path) -> None:
    """soak.json, soak.md and images/soak.svg."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (folder / "soak.md").write_text(page(found), "utf-8")
    (folder / "images" / "soak.svg").write_text(plot(found), "utf-8")


def page(found: dict[str, Any]) -> str:
    """docs/soak.md."""
    machine = found["machine"]
    rows = [
        f"| {name} | {role['generations']} | {role['rss_mb_start']:,.0f} | {role['rss_mb_percent']:+.1f} % "
        f"| {role['handles_start']:.0f} | {role['handles_change']:+.0f} | {role['threads_start']:.0f} "
        f"| {role['threads_change']:+.0f} |"
        for name, role in found["roles"].items()
        if "rss_mb_start" in role
    ]
    counts = "\n".join(f"| {name} | {found[name]:,} |" for name in (*FAULTS, "dead_letters"))
    return f"""# Soak

Written by `make soak`; the run is in [soak.json](soak.json). `make soak MINUTES=10` is a shorter one.

Three workers with `delivery.mode = "exactly_once"`, a monitor and a load share a machine with the broker. The peak rate
is measured first; then the load runs at half of it, and every {found["kill_every_s"]:g} s on average one of two workers
gets SIGKILL at a random moment and is started again. The third worker is never killed, so that its memory can be
watched for the whole time. A separate process reads the predictions with `isolation.level=read_committed`: those of
each partition must have the offsets 0, 1, 2, ... in this order, with the id, key and score of the event there.

**{"Passed" if found["passed"] else "Failed"}**, {found["when"]}, {machine["cores"]} cores ({machine["cpu"]}), Python
{machine["python"]}: {found["minutes"]:g} minutes, {found["kills"]} kills, peak {found["peak_events_s"]:,} events/s.

| | |
| --- | ---: |
| events sent | {found["events"]:,} |
| predicted | {found["predicted"]:,} |
{counts}
| events/s | {found["achieved_events_s"]:,} |
| most events behind | {found["unread_events_max"]:,} |

Growth is that of a straight line through the samples after warm-up. A worker that is killed is compared with its
former selves at the same age.

| role | processes | resident, MB | growth | handles | growth | threads | growth |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

![Resident memory of each role over the run](images/soak.svg)
{"".join(chr(10) + "- " + fault.replace(chr(10), " ")[:300] for fault in found["faults"])}"""


def plot(found: dict[str, Any]) -> str:
    """Resident memory of every role over the minutes of the run, one panel each; a red tick is a SIGKILL."""
    names = [name for name, role in found["roles"].items() if role["rss_mb"]]
    last = max((point[0] for name in names for point in found["roles"][name]["rss_mb"]), default=1.0)
    first = min((point[0] for name in names for point in found["roles"][name]["rss_mb"]), default=0.0)
    height = TOP + len(names) * (PANEL + GAP) + BOTTOM

    def x(minute: float) -> float:
        return LEFT + (minute - first) / max(last - first, 1e-9) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>Resident memory, {found['kills']} kills</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<g font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<text x="{LEFT}" y="24" font-size="14">Resident memory, MB, at {found["rate_events_s"]:,} events/s</text>',
    ]
    for number, name in enumerate(names):
        kills = [minute for minute, victim in found["killed"] if victim == name]
        parts += _panel(name, found["roles"][name], TOP + number * (PANEL + GAP), x, kills)
    bottom = height - BOTTOM
    step = next(step for step in (1, 2, 5, 10, 20, 30, 60, 120, 240, 1_000_000) if last / step <= 8)
    for minute in range(0, int(last) + 1, step):
        parts.append(f'<text x="{x(minute):.1f}" y="{bottom + 14}" text-anchor="middle">{minute}</text>')
    parts.append(f'<text x="{x(last) + 12:.1f}" y="{bottom + 14}">minutes</text>')
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _panel(name: str, role: dict[str, Any], top: float, x: Any, kills: list[float]) -> list[str]:
    points = role["rss_mb"]
    high = max(value for _, value, _ in points) * 1.15
    right, bottom = x(max(minute for minute, _, _ in points)), top + PANEL

    def y(value: float) -> float:
        return bottom - value / high * PANEL

    percent = f"{role['rss_mb_percent']:+.1f} %" if "rss_mb_percent" in role else ""
    level = points[-1][1]
    parts = [
        f'<line x1="{LEFT}" y1="{bottom}" x2="{right:.1f}" y2="{bottom}" stroke="{FAINT}"/>',
        f'<line x1="{LEFT}" y1="{y(level):.1f}" x2="{right:.1f}" y2="{y(level):.1f}" stroke="{FAINT}"/>',
        f'<text x="{LEFT - 48}" y="{top + PANEL / 2}" text-anchor="end">{escape(name)}</text>',
        f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.0f}</text>',
        f'<text x="{LEFT - 6}" y="{bottom + 4}" text-anchor="end">0</text>',
        f'<text x="{right + 8:.1f}" y="{y(level) + 4:.1f}">{percent}</text>',
    ]
    for generation in sorted({generation for _, _, generation in points}):
        path = " ".join(f"{x(minute):.1f},{y(value):.1f}" for minute, value, number in points if number == generation)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
    ticks = [f'y1="{bottom}" y2="{bottom - 6}" x1="{x(minute):.1f}" x2="{x(minute):.1f}"' for minute in kills]
    return [*parts, *(f'<line {tick} stroke="{KILL}"/>' for tick in ticks)]
