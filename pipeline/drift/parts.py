"""Signals of parts of the stream by their names: which slice a score is of, and what to say of a share that moved.

    category:FIELD=VALUE    slice:FIELD=VALUE    score:OUTPUT@FIELD=VALUE

scoring/parts.py makes the names. A field of an Avro record has no "=" and no "@" in its name: the first "=" ends it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.records import OTHER, SignalEvidence

#: Signals of what the model says, rather than of what it is given.
OUTPUTS = ("score:", "class:", "rejected")
SHARES = ("category:", "slice:")
#: Characters of a value that are told in a sentence; the evidence has all of it.
TOLD_MAX = 40
#: Fields whose shares are told in a sentence, and slices that are.
TOLD_FIELDS, TOLD_SLICES = 2, 3

#: Values whose mean is about normal: a slice of a twentieth has them after 600 events.
VALUES_MIN = 30

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


def moved_by_slices(signals: Sequence[SignalEvidence], variances: Mapping[str, float], z: float) -> set[str]:
    """Scores and classes of the whole stream that moved for no other reason than that slices did.

    Those where the rest of the stream, without the slices of one field that moved, moved by less than z standard
    errors, and would have by z + 2 if it had as the slices did: a rest too small to tell explains nothing.
    variances: of one independent value, by signal.
    """
    named = {s.signal: s for s in signals}
    parts: dict[tuple[str, str], list[SignalEvidence]] = {}
    for s in signals:
        if (part := slice_score(s.signal)) is not None:
            parts.setdefault((part.whole, part.field), []).append(s)
    found = set[str]()
    for (name, _), slices in parts.items():
        whole = named.get(name)
        if whole is None or _rest_stays(whole, slices, variances[name], z):
            found |= {name, "class:" + name.removeprefix("score:")}
    return found


def strength(evidence: SignalEvidence, variance: float) -> float:
    """|z| of the change of a mean; 0 without enough values for a normal one. variance: of one independent value."""
    fewest = min(evidence.before_count, evidence.after_count)
    error = math.sqrt(variance * (1 / max(1, evidence.before_count) + 1 / max(1, evidence.after_count)))
    return abs(evidence.after_mean - evidence.before_mean) / error if fewest >= VALUES_MIN and error > 0 else 0.0


def _rest_stays(whole: SignalEvidence, slices: Sequence[SignalEvidence], variance: float, z: float) -> bool:
    before = whole.before_count - sum(s.before_count for s in slices)
    after = whole.after_count - sum(s.after_count for s in slices)
    if min(before, after) <= 0:
        return False
    sum_before = whole.before_mean * whole.before_count - sum(s.before_mean * s.before_count for s in slices)
    sum_after = whole.after_mean * whole.after_count - sum(s.after_mean * s.after_count for s in slices)
    error = math.sqrt(variance * (1 / before + 1 / after))
    least = min(abs(s.after_mean - s.before_mean) for s in slices)
    return abs(sum_after / after - sum_before / before) < z * error and least >= (z + 2) * error


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
