"""Alarms held against drifts whose rows are known: delays, misses, false alarms, and what is possible at all."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Detections:
    """How a detector did on streams with known drifts."""

    #: Rows from each drift that was found to its alarm.
    delays: list[int] = field(default_factory=list)
    missed: int = 0
    false: int = 0

    def count(self, alarms: Sequence[int], changes: Sequence[int]) -> None:
        """One stream. alarms: rows read at each; changes: rows before each drift, ascending.

        The first alarm after a drift finds it, up to the next drift; all others are false, those before the first too.
        """
        found = 0
        for change, end in zip(changes, [*changes[1:], math.inf], strict=True):
            late = [read - change for read in sorted(alarms) if change < read <= end]
            self.delays += late[:1]
            self.missed += not late
            found += bool(late)
        self.false += len(alarms) - found

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        return 2 * len(self.delays) / max(1, 2 * len(self.delays) + self.false + self.missed)

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Any]]) -> "Detections":
        """Of the `plain` data of several streams."""
        whole = cls()
        for part in parts:
            whole.delays += part["delays"]
            whole.missed += part["missed"]
            whole.false += part["false"]
        return whole

    def __str__(self) -> str:
        return f"{spread(self.delays)}; {self.missed} missed, {self.false:,} false, F1 {self.f1:.2f}"


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    if not values:
        return "-"
    return f"{statistics.median(values):,.0f} ({min(values):,} to {max(values):,})"


def periodic(count: int, rows: int, phase: float) -> list[int]:
    """Rows at which a schedule retrains `count` times in `rows` rows: evenly, the first time after `phase` of a step.

    phase: above 0 and at most 1. A drift comes at no particular time of a schedule, so phases are to be spread evenly.
    """
    step = rows / max(1, count)
    return [max(1, math.floor((phase + number) * step)) for number in range(count)]


def floor_rows(size_sd: float, rho: float, *, rows_between_false: float, tests: int) -> float:
    """Mean delay, in rows, that no detector is much below: of a step in one of several AR(1) signals, all laws known.

    size_sd: of the step, in standard deviations; rows_between_false: mean time between false alarms, of all together;
    tests: signals, twice if the step may go either way. For one test Page's CUSUM has the least delay (Lorden 1971;
    Moustakides 1986). Its delay and run length are Siegmund's (1985, Sequential Analysis, section 2.6):

        rows_between_false * tests = (e^b - b - 1) / I,   delay = (b - 1 + e^-b) / I

    I is what a row tells, in nats: size^2 / 2 times (1 - rho) / (1 + rho). The first row tells more, as the whole step
    is in its innovation: size^2 / (2 (1 - rho^2)), which is taken off. To first order it is Lorden's ln(time) / I.
    """
    told = information(size_sd, rho)
    first = size_sd**2 / (2 * (1 - rho**2))
    b = boundary(told, rows_between_false * tests)
    return max(1.0, (b - 1 + math.exp(-b) - first) / told)


def information(size_sd: float, rho: float) -> float:
    """What a row of an AR(1) signal tells of a shift, in nats: I of `floor_rows`."""
    return size_sd**2 / 2 * (1 - rho) / (1 + rho)


def boundary(told: float, rows_between_false: float) -> float:
    """b of `floor_rows`: what rows must tell, in nats, before one test alarms. told: by a row."""
    goal = rows_between_false * told
    b = math.log(goal)
    for _ in range(50):  # fixed point; contracts by 1 / goal a step
        b = math.log(goal + b + 1)
    return b
