"""A gap between a slice and the rest that widens: told once, and taken back once it has gone.

The gap of the newest rows is held against that of all rows before them. An alarm is raised where the gap is wider by
WIDENING_MIN and chance does not explain it, and taken back when half of that is left: in between it stays as it is, so
it does not flap. Meanwhile it is held against what there was when it was raised, or the new gap would become the usual.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pipeline.measures.intervals import Z
from pipeline.quality.gaps import Gap

#: Five points of a rate: what people and rules of fairness begin to talk about. Errors of a regression have no such
#: scale: a quarter of the rest's mean absolute error.
WIDENING_MIN = 0.05
ERROR_WIDENING_MIN = 0.25
#: Share of it that is left when an alarm is taken back.
CLEAR_SHARE = 0.5
#: Standard errors that a widening is above 0 at the least: one in 30,000 judgements where nothing has changed. 64
#: slices of 3 gaps, judged 24 times a day, are 4,600: by chance one a week at most, as width is needed as well.
ALARM_Z = 4.0


#: Field, value (None: all values that have no place of their own) and measure.
Key = tuple[str, str | None, str]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A gap that has widened. Differences are of the slice less the rest, in the unit of the measure."""

    field: str
    value: str | None
    measure: str
    difference: float
    before: float
    since_ms: int
    rows: int


@dataclass(slots=True)
class GapWatch:
    """Alarms of one model."""

    raised: dict[Key, Alarm] = field(default_factory=dict)

    def judge(self, before: Iterable[Gap], now: Iterable[Gap], time_ms: int) -> list[Alarm]:
        """Compare each gap of the newest rows with that of the rows before, at a time; alarms raised by this.

        A gap that is not among `before` has nothing to widen from; one that is not among `now` stays as it was judged.
        """
        earlier = {_key(gap): gap for gap in before}
        fresh = []
        for gap in now:
            key = _key(gap)
            held = self.raised.get(key)
            if held is not None:
                self._update(key, held, gap)
            elif key in earlier and _has_widened(earlier[key], gap):
                self.raised[key] = Alarm(*key, gap["difference"], earlier[key]["difference"], time_ms, gap["rows"])
                fresh.append(self.raised[key])
        return fresh

    def _update(self, key: Key, held: Alarm, now: Gap) -> None:
        if abs(now["difference"]) - abs(held.before) < CLEAR_SHARE * _needed(now):
            del self.raised[key]
        else:
            self.raised[key] = replace(held, difference=now["difference"], rows=now["rows"])


def _has_widened(before: Gap, now: Gap) -> bool:
    """Whether it has, by enough and not by chance."""
    width, width_before = abs(float(now["difference"])), abs(float(before["difference"]))
    # Independent rows: what either may be off by adds as squares (MOVER, Zou & Donner 2008).
    error = math.hypot(width - _widths(now)[0], _widths(before)[1] - width_before)
    return width - width_before >= max(_needed(now), error)


def _key(gap: Gap) -> Key:
    return gap["field"], gap["value"], gap["measure"]


def _needed(gap: Gap) -> float:
    """By how much a gap has to be wider."""
    return ERROR_WIDENING_MIN * float(gap["of_rest"]) if gap["measure"] == "mae" else WIDENING_MIN


def _widths(gap: Gap) -> tuple[float, float]:
    """How narrow and how wide a gap may be, ALARM_Z standard errors away, whatever its direction."""
    difference, scale = gap["difference"], ALARM_Z / Z
    low = difference - scale * (difference - gap["low"])
    high = difference + scale * (gap["high"] - difference)
    narrow = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return narrow, max(abs(low), abs(high))
