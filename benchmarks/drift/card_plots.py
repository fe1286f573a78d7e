"""Plots of the card as SVG: pure, from card.json alone."""

from math import log10
from typing import Any

from benchmarks.drift.card_rows import OTHER_MAX, STEP_MAX
from benchmarks.drift.elec2_report import INK, percent_lines

#: Okabe and Ito 2008: told apart by the colour-blind, too.
OURS, RIVER, PERIODIC, TARGET, FEW = "#d55e00", "#56b4e9", "#999999", "#009e73", "#e69f00"
WIDTH, LEFT, RIGHT, TOP, LINE = 900, 190, 30, 60, 22
#: Delays of the axis, rows.
FIRST_DECADE, LAST_DECADE = 1, 4.6


def plots(found: dict[str, Any]) -> dict[str, str]:
    """File name -> SVG."""
    return {"card-delays.svg": _delays(found["shift"]), "card-estimate.svg": _estimate(found["estimate"]["elec2"][0])}


def _delays(tasks: dict[str, list[dict[str, Any]]]) -> str:
    """A line a drift: delays of each stream on a logarithmic axis, and the target."""
    bottom = TOP + LINE * len(tasks)

    def at(delay: float) -> float:
        share = (log10(max(delay, 10.0)) - FIRST_DECADE) / (LAST_DECADE - FIRST_DECADE)
        return LEFT + min(share, 1.0) * (WIDTH - LEFT - RIGHT)

    parts = [*_head("Delay of each drift, rows", bottom + 30)]
    for left, colour, what in (
        (LEFT, OURS, "monitor"),
        (LEFT + 120, RIVER, "River raw"),
        (LEFT + 240, PERIODIC, "periodic"),
    ):
        parts.append(f'<circle cx="{left}" cy="40" r="4" fill="{colour}"/><text x="{left + 10}" y="44">{what}</text>')
    parts.append(f'<path d="M{LEFT + 360},34 v12" stroke="{TARGET}" stroke-width="3"/>')
    parts.append(f'<text x="{LEFT + 370}" y="44">target</text>')
    for delay in (10, 100, 1_000, 10_000):
        parts.append(f'<path d="M{at(delay):.1f},{TOP} V{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{at(delay):.1f}" y="{bottom + 18}" text-anchor="middle">{delay:,}</text>')
    for number, (name, results) in enumerate(tasks.items()):
        y = TOP + LINE * number + LINE / 2
        kind, _, rho = name.partition(", ")
        limit = None if kind == "eight at once" else STEP_MAX[rho] if kind == "step" else OTHER_MAX
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.0f}" text-anchor="end">{kind}, rho {float(rho):g}</text>')
        if limit is not None:
            parts.append(f'<path d="M{at(limit):.1f},{y - 8:.0f} v16" stroke="{TARGET}" stroke-width="3"/>')
        for of, colour, shift in (("periodic", PERIODIC, 4), ("river", RIVER, 0), ("monitor", OURS, -4)):
            parts += [
                f'<circle cx="{at(delay):.1f}" cy="{y + shift:.0f}" r="3" fill="{colour}" fill-opacity="0.7"/>'
                for result in results
                for delay in result[of]["delays"]
            ]
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _estimate(kinds: dict[str, list[dict[str, Any]]]) -> str:
    """Lines over the windows: accuracy, and what was estimated."""
    height, bottom = 390, 330
    lines = [("accuracy", INK, 3.0, [w["accuracy"] for w in kinds["raw"]])]
    colours = {"raw": PERIODIC, "threshold": RIVER, "calibrated": OURS, "calibrated on few": FEW}
    names = {"raw": "raw confidence", "threshold": "threshold (ATC)", "calibrated": "recalibrated"}
    names["calibrated on few"] = "on the newest 2,000"
    lines += [(names[kind], colours[kind], 1.5, [w["estimated"] for w in windows]) for kind, windows in kinds.items()]
    values = [value for *_, line in lines for value in line]
    low, high = min(values), max(values)
    left, count = 60, len(kinds["raw"])

    def at(window: int, value: float) -> str:
        x = left + window / max(count - 1, 1) * (WIDTH - left - RIGHT)
        return f"{x:.1f},{TOP + (high - value) / max(high - low, 1e-9) * (bottom - TOP):.1f}"

    parts = [
        *_head("Elec2, static model: accuracy in 1,000 rows from each on, and as estimated without labels", height),
        *percent_lines(lambda value: at(0, value), low, high, WIDTH - RIGHT),
    ]
    for window in range(0, count, 5):
        x = at(window, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{window * 1_000:,}</text>')
    for number, (name, colour, width, line) in enumerate(lines):
        points = " ".join(at(window, value) for window, value in enumerate(line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        x = left + number * 170
        parts.append(f'<path d="M{x},{height - 14} h20" stroke="{colour}" stroke-width="{width}"/>')
        parts.append(f'<text x="{x + 26}" y="{height - 10}">{name}</text>')
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _head(title: str, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>',
        f'<g font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<text x="20" y="24" font-size="14">{title}</text>',
    ]
