"""Labelled events: which ones to train on, where they lie in the log, and events joined with what became of them.

    outcomes (NAME.outcomes) --facts--> Newest / chosen --spans--> events (NAME.events) --joined--> one table

Pure: a command reads the topics. An event is known by its place in the log, (partition, offset); canary and shadow
have outcomes of the same events, of which one is kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.records import Longs, OffsetRange

#: What is known of a labelled event beside its fields. No Avro name has a dot: they meet no field of an event.
EVENT_ID, TIME_MS, LABEL, VALUE = "outcome.event_id", "outcome.time_ms", "outcome.label", "outcome.value"
LABEL_TIME_MS, SLICES = "outcome.label_time_ms", "outcome.slices"
PARTITION, OFFSET = "outcome.partition", "outcome.offset"
FACTS = pa.schema(
    [
        (EVENT_ID, pa.string()),
        (TIME_MS, pa.int64()),
        (LABEL, pa.string()),
        (VALUE, pa.float64()),
        (LABEL_TIME_MS, pa.int64()),
        (SLICES, pa.map_(pa.string(), pa.string())),
        (PARTITION, pa.int32()),
        (OFFSET, pa.int64()),
    ]
)
#: Offsets between two wanted events above which they are read as two spans. Reading on costs 1 µs a record; a seek
#: and the fetch after it about 10 ms.
GAP_MAX = 10_000
#: Partitions of a topic are far fewer: a place in the log as one number.
_OFFSET_BITS = 44


def facts(outcomes: pa.RecordBatch) -> pa.Table:
    """The columns of FACTS from columns of schemas/outcome.avsc; time is the event's, else the prediction's."""
    time = pc.coalesce(outcomes.column("event_time"), outcomes.column("predicted_at"))
    columns = [
        outcomes.column("event_id"),
        time.cast(pa.int64()),
        outcomes.column("label"),
        outcomes.column("value"),
        outcomes.column("label_time").cast(pa.int64()),
        outcomes.column("slices").cast(pa.map_(pa.string(), pa.string())),
        outcomes.column("partition").cast(pa.int32()),
        outcomes.column("offset").cast(pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=FACTS)


def with_truth(rows: pa.Table, kind: Literal["classification", "regression"]) -> pa.Table:
    """Rows that have a class, or a finite number. Raises DataError if none has: the labels are of the other kind."""
    good = pc.is_valid(rows.column(LABEL)) if kind == "classification" else pc.is_finite(rows.column(VALUE))
    found = rows.filter(good)
    if not found.num_rows:
        what = "a class (field `label`)" if kind == "classification" else "a number (field `value`)"
        raise DataError(f"none of the {rows.num_rows:,} outcomes has {what}, which the model learns from")
    return found


def places(rows: pa.Table) -> Longs:
    """(n,) partition and offset of each row as one number; equal for the same event only."""
    partitions: Longs = rows.column(PARTITION).to_numpy().astype(np.int64)
    offsets: Longs = rows.column(OFFSET).to_numpy()
    return (partitions << _OFFSET_BITS) | offsets


class Newest:
    """Takes labelled events as they come, in any order, and keeps the newest: memory for twice `rows_max` rows."""

    def __init__(self, rows_max: int, since_ms: int | None = None) -> None:
        """since_ms: events before it are left out; None takes any."""
        self._rows_max, self._since_ms = rows_max, since_ms
        self._parts: list[pa.Table] = []
        self._waiting = 0
        #: Outcomes taken, before any was left out.
        self.read = 0

    def add(self, rows: pa.Table) -> None:
        """Take n rows of FACTS."""
        self.read += rows.num_rows
        if self._since_ms is not None:
            rows = rows.filter(pc.greater_equal(rows.column(TIME_MS), self._since_ms))
        self._parts.append(rows)
        self._waiting += rows.num_rows
        if self._waiting >= 2 * self._rows_max:
            self._prune()

    def rows(self) -> pa.Table:
        """What was kept: each event once, in order of event time (of one moment: by partition and offset)."""
        self._prune()
        return self._parts[0]

    def _prune(self) -> None:
        rows = pa.concat_tables([FACTS.empty_table(), *self._parts])
        # Of several outcomes of one event the one read first: they have one label.
        _, first = np.unique(places(rows), return_index=True)
        rows = _in_order(rows.take(pa.array(first)))
        rows = rows.slice(max(0, rows.num_rows - self._rows_max)).combine_chunks()
        self._parts, self._waiting = [rows], rows.num_rows


def _in_order(rows: pa.Table) -> pa.Table:
    order = np.lexsort((places(rows), rows.column(TIME_MS).to_numpy()))
    return rows.take(pa.array(order))


# --------------------------------------------------------------------------- choosing


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which labelled events to train on: exactly one of these, or all that were read."""

    #: The newest n.
    last: int | None = None
    #: Those of the last so many milliseconds before the newest labelled event.
    before_ms: int | None = None
    #: Those since a moment.
    from_ms: int | None = None
    #: Those in these offsets.
    ranges: tuple[OffsetRange, ...] = ()


def chosen(rows: pa.Table, wanted: Wanted) -> tuple[pa.Table, pa.Table]:
    """(window, what is older than its first event) of rows in order of time. Raises DataError for an empty window."""
    times = rows.column(TIME_MS).to_numpy()
    if wanted.ranges:
        inside = within(rows, wanted.ranges)
    elif wanted.from_ms is not None or wanted.before_ms is not None:
        newest = times[-1] if len(times) else 0
        inside = times >= (newest - (wanted.before_ms or 0) if wanted.from_ms is None else wanted.from_ms)
    else:
        inside = np.arange(len(times)) >= len(times) - (wanted.last or len(times))
    if not inside.any():
        raise DataError(f"none of the {len(times):,} labelled events lies in the window that was asked for")
    older = ~inside & (np.arange(len(times)) < int(np.argmax(inside)))
    return rows.filter(pa.array(inside)), rows.filter(pa.array(older))


def within(rows: pa.Table, ranges: Iterable[OffsetRange]) -> npt.NDArray[np.bool_]:
    """(n,) whether an event lies in one of the inclusive ranges."""
    partitions, offsets = rows.column(PARTITION).to_numpy(), rows.column(OFFSET).to_numpy()
    inside: npt.NDArray[np.bool_] = np.zeros(rows.num_rows, np.bool_)
    for r in ranges:
        inside |= (partitions == r.partition) & (offsets >= r.first_offset) & (offsets <= r.last_offset)
    return inside


def drawn(older: pa.Table, rows: int, seed: int) -> pa.Table:
    """At most `rows` of the older events, drawn without replacement, in order of time."""
    if older.num_rows <= rows:
        return older
    picked = np.random.default_rng(seed).choice(older.num_rows, rows, replace=False)
    return older.take(pa.array(np.sort(picked)))


# --------------------------------------------------------------------------- reading and joining


def spans(rows: pa.Table, gap_max: int = GAP_MAX) -> dict[int, list[tuple[int, int]]]:
    """Partition -> ascending stretches of offsets (end exclusive) that hold all rows, none with a gap above gap_max."""
    partitions, offsets = rows.column(PARTITION).to_numpy(), rows.column(OFFSET).to_numpy()
    found: dict[int, list[tuple[int, int]]] = {}
    for partition in np.unique(partitions).tolist():
        of_it = np.sort(offsets[partitions == partition])
        cuts = np.flatnonzero(np.diff(of_it) > gap_max)
        starts, ends = of_it[np.append(0, cuts + 1)], of_it[np.append(cuts, len(of_it) - 1)] + 1
        found[partition] = list(zip(starts.tolist(), ends.tolist(), strict=True))
    return found


@dataclass(frozen=True, slots=True)
class Events:
    """Decoded events and their places in the log; columns as the reader's schema has them."""

    columns: pa.Table
    places: Longs


def wanted_messages(rows: pa.Table) -> Mapping[int, Longs]:
    """Partition -> ascending offsets of the rows."""
    partitions, offsets = rows.column(PARTITION).to_numpy(), rows.column(OFFSET).to_numpy()
    return {p: np.unique(offsets[partitions == p]) for p in np.unique(partitions).tolist()}


def place(partitions: Sequence[int], offsets: Sequence[int]) -> Longs:
    """As `places`, of n events."""
    found: Longs = (np.asarray(partitions, np.int64) << _OFFSET_BITS) | np.asarray(offsets, np.int64)
    return found


def joined(rows: pa.Table, events: Events) -> pa.Table:
    """Rows of FACTS whose event is there, with its fields: first the event's columns, then those of FACTS."""
    order = np.argsort(events.places)
    have = events.places[order]
    asked = places(rows)
    at = np.searchsorted(have, asked)
    there = (
        (at < len(have)) & (have[np.minimum(at, len(have) - 1)] == asked) if len(have) else np.zeros(len(asked), bool)
    )
    facts_there = rows.filter(pa.array(there))
    table = events.columns.take(pa.array(order[at[there]]))
    for name in FACTS.names:
        table = table.append_column(name, facts_there.column(name))
    return table.combine_chunks()
