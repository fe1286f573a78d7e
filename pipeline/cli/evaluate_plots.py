"""Small plots as inline SVG: no script, no library, one style sheet for light and dark.

Every function returns a `<svg>` as text. Colours are classes of `STYLE`, so that a plot follows the page; all text
is escaped here, for labels and the values of slices come from data.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

#: Series in the order of their colours (Okabe and Ito 2008: told apart by the colour-blind, too); then they repeat.
COLOURS = 6
#: Vertices of one line: more than the pixels of a plot, so that a curve of a million rows is still a small file.
POINTS_MAX = 400

WIDTH, HEIGHT = 420, 300
#: Room for the ticks and the names of the axes.
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 42

STYLE = """
svg.plot { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif; }
svg.plot text { fill: var(--faint); }
svg.plot .grid { stroke: var(--line); stroke-width: 1; }
svg.plot .axis { stroke: var(--faint); stroke-width: 1; }
svg.plot .ideal { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 4 4; fill: none; }
svg.plot .whisker { stroke-width: 1; opacity: 0.6; }
svg.plot polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg.plot .s0 { stroke: var(--c0); } svg.plot .d0 { fill: var(--c0); }
svg.plot .s1 { stroke: var(--c1); } svg.plot .d1 { fill: var(--c1); }
svg.plot .s2 { stroke: var(--c2); } svg.plot .d2 { fill: var(--c2); }
svg.plot .s3 { stroke: var(--c3); } svg.plot .d3 { fill: var(--c3); }
svg.plot .s4 { stroke: var(--c4); } svg.plot .d4 { fill: var(--c4); }
svg.plot .s5 { stroke: var(--c5); } svg.plot .d5 { fill: var(--c5); }
svg.plot .none { fill: var(--line); } svg.plot .calm { fill: var(--calm); }
svg.plot .minor { fill: var(--minor); } svg.plot .major { fill: var(--major); }
"""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its name, its ends, and how a number on it is written."""

    name: str
    low: float = 0.0
    high: float = 1.0
    text: Callable[[float], str] = "{:g}".format
    #: Where the ticks are; round numbers unless given.
    at: tuple[float, ...] = ()

    def ticks(self) -> Sequence[float]:
        """Where this axis has ticks."""
        return self.at or ticks(self.low, self.high)

    def share(self, value: float) -> float:
        """Where `value` lies between the ends, 0 to 1."""
        return (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True, slots=True)
class Series:
    """A named line through points; `dots` marks them."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def spanning(name: str, values: Iterable[float], text: Callable[[float], str] = "{:g}".format) -> Axis:
    """An axis from the least to the greatest finite value, with a little room; from 0 to 1 without one."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return Axis(name, text=text)
    low, high = min(finite), max(finite)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(name, low - room, high + room, text)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within an axis: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000
#: Months from the year 0 to 1970, so that ticks are at round years.
_EPOCH_MONTHS = 1970 * 12
#: Steps between ticks of a time axis: milliseconds, and months.
STEPS_MS = (
    *(n * _SECOND for n in (1, 5, 15, 30)),
    *(n * _MINUTE for n in (1, 5, 15, 30)),
    *(n * _HOUR for n in (1, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 7, 14)),
)
STEPS_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200)


def time_axis(name: str, first_ms: float, last_ms: float, about: int = 4) -> Axis:
    """An axis of times, milliseconds since the epoch, with ticks at whole seconds, hours, days, months, ... of UTC."""
    span = last_ms - first_ms
    step = next((s for s in STEPS_MS if span / s <= about), 0)
    if step:
        at = [n * step for n in range(math.ceil(first_ms / step), math.floor(last_ms / step) + 1)]
    else:
        first, last = (
            int(np.datetime64(int(t), "ms").astype("datetime64[M]").astype(int)) for t in (first_ms, last_ms)
        )
        months = next((m for m in STEPS_MONTHS if (last - first) / m <= about), STEPS_MONTHS[-1])
        numbers = range(first + -(first + _EPOCH_MONTHS) % months, last + 1, months)
        at = [int(np.datetime64(n, "M").astype("datetime64[ms]").astype(int)) for n in numbers]
    if not step:
        shown = slice(0, 7)
    elif step >= _DAY:
        shown = slice(0, 10)
    elif span >= _DAY:
        shown = slice(5, 16)
    else:
        shown = slice(11, 16 if step >= _MINUTE else 19)

    def text(value_ms: float) -> str:
        return str(np.datetime64(int(value_ms), "ms"))[shown].replace("T", " ")

    return Axis(name, first_ms, last_ms, text, tuple(t for t in at if first_ms <= t <= last_ms))


def lines(
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    diagonal: bool = False,
    whiskers: Sequence[tuple[float, float, float]] = (),
) -> str:
    """Lines on two axes.

    diagonal: from corner to corner, what to compare with. whiskers: (x, low, high) of intervals of the first line.
    """
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [_frame(x, y)]
    if diagonal:
        parts.append(f'<path class="ideal" d="M{LEFT} {TOP + height}L{LEFT + width} {TOP}"/>')
    for at, low, high in whiskers:
        ends = (TOP + (1 - y.share(v)) * height for v in (low, high))
        parts.append('<path class="s0 whisker" d="M{:.1f} {:.1f}V{:.1f}"/>'.format(LEFT + x.share(at) * width, *ends))
    for number, one in enumerate(series):
        points = [
            (LEFT + x.share(a) * width, TOP + (1 - y.share(b)) * height)
            for a, b in thinned(list(zip(one.x, one.y, strict=True)))
            if math.isfinite(a) and math.isfinite(b)
        ]
        colour = number % COLOURS
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="s{colour}" points="{path}"><title>{escape(one.name)}</title></polyline>')
        if one.dots:
            parts += [f'<circle class="d{colour}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in points]
    return _svg(WIDTH, HEIGHT, parts, f"{y.name} by {x.name}") + legend([one.name for one in series])


def thinned(points: list[tuple[float, float]], most: int = POINTS_MAX) -> list[tuple[float, float]]:
    """At most `most` of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return points
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def legend(names: Sequence[str]) -> str:
    """Colours and names; nothing for a single series, which the heading names."""
    if len(names) < 2:
        return ""
    entries = "".join(
        f'<span><i style="background:var(--c{number % COLOURS})"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{entries}</p>'


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference and its confidence interval."""

    name: str
    value: float
    low: float
    high: float


def intervals(found: Sequence[Interval], name: str) -> str:
    """A forest plot: one row a difference, its interval as a line, 0 as the ideal. Those that leave 0 out stand out."""
    row_height, names_width, right = 20, 210, 14
    ends = [v for one in found for v in (one.low, one.high, 0.0)]
    x = spanning(name, ends)
    width, height = WIDTH + 120, TOP + len(found) * row_height + BOTTOM
    span, floor = width - names_width - right, TOP + len(found) * row_height

    def at(value: float) -> float:
        return names_width + x.share(value) * span

    parts = []
    for tick in x.ticks():
        parts.append(f'<path class="grid" d="M{at(tick):.1f} {TOP}V{floor}"/>')
        parts.append(f'<text x="{at(tick):.1f}" y="{floor + 15}" text-anchor="middle">{x.text(tick)}</text>')
    parts.append(f'<path class="ideal" d="M{at(0):.1f} {TOP}V{floor}"/>')
    for number, one in enumerate(found):
        y = TOP + (number + 0.5) * row_height
        colour = 0 if one.low <= 0.0 <= one.high else 1
        line = f"M{at(one.low):.1f} {y:.1f}H{at(one.high):.1f}"
        parts.append(_row_name(one.name, names_width - 8, y + 4))
        parts.append(f'<path class="s{colour}" stroke-width="2" d="{line}"/>')
        parts.append(f'<circle class="d{colour}" cx="{at(one.value):.1f}" cy="{y:.1f}" r="3.5"/>')
    parts.append(_name_of_x(x, names_width + span / 2, height))
    return _svg(width, height, parts, name)


class Cell(NamedTuple):
    """A stretch of a strip: its colour ("none", "calm", "minor" or "major"), its ends, what a pointer on it is told."""

    kind: str
    left: float
    right: float
    told: str


def strips(rows: Sequence[tuple[str, Sequence[Cell]]], x: Axis) -> str:
    """One strip of coloured cells a row."""
    row_height, names_width, right = 16, 190, 14
    width, height = 2 * WIDTH, TOP + len(rows) * row_height + BOTTOM
    span, floor = width - names_width - right, TOP + len(rows) * row_height
    parts = []
    for number, (name, cells) in enumerate(rows):
        y = TOP + number * row_height
        parts.append(_row_name(name, names_width - 8, y + 12))
        for cell in cells:
            begin, end = (names_width + x.share(at) * span for at in (cell.left, cell.right))
            place = f'x="{begin:.1f}" y="{y + 1}" width="{max(end - begin - 0.7, 0.7):.1f}" height="{row_height - 2}"'
            parts.append(f'<rect class="{cell.kind}" {place}><title>{escape(cell.told)}</title></rect>')
    for tick in x.ticks():
        at = names_width + x.share(tick) * span
        parts.append(f'<text x="{at:.1f}" y="{floor + 15}" text-anchor="middle">{escape(x.text(tick))}</text>')
    parts.append(_name_of_x(x, names_width + span / 2, height))
    return _svg(width, height, parts, f"by {x.name}")


def shortened(text: str, most: int) -> str:
    """`text`, cut where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _frame(x: Axis, y: Axis) -> str:
    """Grid, ticks and the names of both axes."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    floor = TOP + height
    parts = []
    for tick in x.ticks():
        at = LEFT + x.share(tick) * width
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 15}" text-anchor="middle">{escape(x.text(tick))}</text>')
    for tick in y.ticks():
        at = TOP + (1 - y.share(tick)) * height
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{LEFT + width}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y.text(tick))}</text>')
    middle = TOP + height / 2
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{LEFT + width}" fill="none"/>')
    parts.append(_name_of_x(x, LEFT + width / 2, HEIGHT))
    turned = f'text-anchor="middle" transform="rotate(-90 12 {middle:.1f})"'
    parts.append(f'<text x="12" y="{middle:.1f}" {turned}>{escape(y.name)}</text>')
    return "".join(parts)


def _row_name(name: str, right: float, y: float) -> str:
    shown, told = escape(shortened(name, 30)), escape(name)
    return f'<text x="{right}" y="{y:.1f}" text-anchor="end">{shown}<title>{told}</title></text>'


def _name_of_x(x: Axis, middle: float, height: float) -> str:
    return f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">{escape(x.name)}</text>'


def _svg(width: float, height: float, parts: Iterable[str], told: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )
