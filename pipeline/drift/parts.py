"""Signals of parts of the stream by their names: which slice a score is of, and what to say of a share that moved.

    category:FIELD=VALUE    slice:FIELD=VALUE    score:OUTPUT@FIELD=VALUE

scoring/parts.py makes the names. A field of an Avro record has no "=" and no "@" in its name: the first "=" ends it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.records import SignalEvidence

#: Signals of what the model says, rather than of what it is given.
OUTPUTS = ("score:", "class:", "rejected")
SHARES = ("category:", "slice:")
OTHER = "(other)"
#: Characters of a value that are told in a sentence; the evidence has all of it.
TOLD_MAX = 40
#: Fields whose shares are told in a sentence, and slices that are.
TOLD_FIELDS, TOLD_SLICES = 2, 3

_WITHIN = re.compile(r"(score:.+?)@([A-Za-z_][\w.]*)=(.*)", re.ASCII | re.DOTALL)


class SliceScore(NamedTuple):
    """A score within a slice: the signal of the whole stream that it is a part of, field and value of the slice."""

    whole: str
    field: str
    value: str


def slice_score(signal: str) -> SliceScore | None:
    """None for a signal that is of the whole stream."""
    found = _WITHIN.fullmatch(signal) if signal.startswith("score:") else None
    return SliceScore(*found.groups()) if found else None


def only_slices(signals: Sequence[SignalEvidence]) -> list[SliceScore]:
    """The slices that scores moved in, most telling evidence first; [] where an output of the whole stream did too."""
    if any(s.signal.startswith(OUTPUTS) and slice_score(s.signal) is None for s in signals):
        return []
    found: dict[tuple[str, str], SliceScore] = {}
    for s in signals:
        if (part := slice_score(s.signal)) is not None:
            found.setdefault((part.field, part.value), part)
    return [*found.values()]


def confined_to(signals: Sequence[SignalEvidence]) -> list[SliceScore]:
    """The slices that all of it is about; [] where anything else moved."""
    return only_slices(signals) if all(slice_score(s.signal) for s in signals) else []


def shares_told(signals: Sequence[SignalEvidence]) -> str:
    """Of each field the share that moved most, as `share of weather=rain 0.21 -> 0.48`; "" where there is none."""
    most: dict[str, SignalEvidence] = {}
    for s in sorted(signals, key=lambda s: -abs(s.after_mean - s.before_mean)):
        if s.signal.startswith(SHARES):
            most.setdefault(s.signal.partition(":")[2].partition("=")[0], s)
    first = [*most.values()][:TOLD_FIELDS]
    told = (f"share of {_share(s.signal)} {s.before_mean:.2g} -> {s.after_mean:.2g}" for s in first)
    return ", ".join(told) + _more(len(most) - TOLD_FIELDS)


def slices_told(slices: Sequence[SliceScore]) -> str:
    """As `in slice region=north only`."""
    told = ", ".join(_named(part.field, part.value) for part in slices[:TOLD_SLICES])
    return f"in slice{'s' if len(slices) > 1 else ''} {told}{_more(len(slices) - TOLD_SLICES)} only"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _share(signal: str) -> str:
    kind, _, rest = signal.partition(":")
    field, _, value = rest.partition("=")
    return f"other values of {field}" if kind == "category" and value == OTHER else _named(field, value)


def _named(field: str, value: str) -> str:
    """FIELD=VALUE in one printable line of bounded length: data is not to steer a terminal."""
    short = value if len(value) <= TOLD_MAX else f"{value[: TOLD_MAX - 3]}..."
    return f"{field}=" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
