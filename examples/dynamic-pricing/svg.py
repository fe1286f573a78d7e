"""Lines, bars of uncertainty and marks as SVG text, without a library: what plot.py draws with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

#: Okabe and Ito 2008: told apart by the colour-blind, too.
GREY, BLACK, ORANGE, BLUE, GREEN, RED = "#999999", "#000000", "#e69f00", "#0072b2", "#009e73", "#d55e00"
INK, LINE = "#333333", "#dddddd"
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 40, 76


@dataclass(frozen=True)
class Axis:
    """From low to high, with named ticks."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    name: str = ""


def share_axis(low: float, high: float, name: str = "") -> Axis:
    """In steps of ten per cent, of five where that would be few."""
    step = 0.1 if high - low > 0.35 else 0.05
    count = range(round(low / step), round(high / step) + 1)
    return Axis(low, high, [(n * step, f"{n * step:.0%}") for n in count], name)


@dataclass
class Panel:
    """One pair of axes, `offset` from the left of the picture."""

    title: str
    x: Axis
    y: Axis
    width: float = 900
    height: float = 380
    offset: float = 0
    parts: list[str] = field(default_factory=list)
    _entries: int = 0

    def __post_init__(self) -> None:
        self._text(self.offset + LEFT, 22, self.title, size=14)
        for value, name in self.y.ticks:
            y = self.at_y(value)
            self._path(f"M{self.offset + LEFT:.1f},{y:.1f} H{self.offset + self.width - RIGHT:.1f}", LINE)
            self._text(self.offset + LEFT - 8, y + 4, name, "end")
        for value, name in self.x.ticks:
            self._text(self.at_x(value), self.height - BOTTOM + 18, name, "middle")
        if self.x.name:
            self._text(self.offset + (LEFT + self.width - RIGHT) / 2, self.height - BOTTOM + 36, self.x.name, "middle")

    def at_x(self, value: float) -> float:
        """Where `value` is, in pixels."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return self.offset + LEFT + share * (self.width - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        """The same from above; what is beyond the axis is at its end."""
        share = (min(max(value, self.y.low), self.y.high) - self.y.low) / (self.y.high - self.y.low)
        return TOP + (1 - share) * (self.height - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], colour: str, name: str = "", width: float = 1.8) -> None:
        """A line through points, with an entry in the legend if it has a name."""
        path = " ".join(f"{self.at_x(x):.1f},{self.at_y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        self._entry(name, lambda x, y: self._path(f"M{x:.1f},{y:.1f} h20", colour, width))

    def dots(self, points: Sequence[tuple[float, float]], colour: str, name: str = "", *, hollow: bool = False) -> None:
        """A mark at each point."""
        for x, y in points:
            self._dot(self.at_x(x), self.at_y(y), colour, hollow)
        self._entry(name, lambda x, y: self._dot(x + 10, y, colour, hollow))

    def whisker(self, x: float, low: float, high: float, colour: str) -> None:
        """From low to high."""
        self._path(f"M{self.at_x(x):.1f},{self.at_y(low):.1f} V{self.at_y(high):.1f}", colour, 1.8)

    def mark(self, x: float, colour: str, name: str, *, row: int = 0, dashes: str = "") -> None:
        """A line from top to bottom, its name in one of the rows at the top."""
        self._path(f"M{self.at_x(x):.1f},{TOP} V{self.height - BOTTOM}", colour, 1.4, dashes)
        self._text(self.at_x(x) + 3, TOP + 10 + 13 * row, name, size=10, colour=colour)

    def diagonal(self) -> None:
        """What is said comes true."""
        low, high = max(self.x.low, self.y.low), min(self.x.high, self.y.high)
        ends = (self.at_x(low), self.at_y(low), self.at_x(high), self.at_y(high))
        self._path("M{:.1f},{:.1f} L{:.1f},{:.1f}".format(*ends), GREY, 1, "4 4")

    def _entry(self, name: str, draw: Callable[[float, float], None]) -> None:
        if not name:
            return
        x, y = self.offset + LEFT + self._entries, self.height - 14
        self._entries += 40 + round(6.8 * len(name))
        draw(x, y - 4)
        self._text(x + 26, y, name)

    def _dot(self, x: float, y: float, colour: str, hollow: bool) -> None:
        fill = "white" if hollow else colour
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
        )

    def _path(self, path: str, colour: str, width: float = 1, dashes: str = "") -> None:
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def _text(self, x: float, y: float, text: str, anchor: str = "start", size: float = 12, colour: str = INK) -> None:
        style = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>')


def picture(title: str, *panels: Panel) -> str:
    """All panels as one SVG file, white behind them."""
    width = max(panel.offset + panel.width for panel in panels)
    height = max(panel.height for panel in panels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
    parts = [part for panel in panels for part in panel.parts]
    body = ['<g font-family="sans-serif">', *parts, "</g>", "</svg>"]
    return (
        "\n".join([head, f"<title>{escape(title)}</title>", '<rect width="100%" height="100%" fill="white"/>', *body])
        + "\n"
    )
