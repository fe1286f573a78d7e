"""What `pipeline evaluate` reads: a file or a range of a topic, either as the Kafka values that a worker is given."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.reading import Span, read, unless_silent
from pipeline.cli.events import COLUMN_ATTRIBUTE, EventEncoder, avro_names, to_timestamps
from pipeline.cli.training import _ordered, fingerprint
from pipeline.cli.wiring import connect
from pipeline.contracts import Registry
from pipeline.errors import DataError, SchemaError
from pipeline.models.bundle import Bundle
from pipeline.records import Longs, TopicPartition
from pipeline.retraining import tables
from pipeline.scoring import fields
from pipeline.settings import Settings

#: Records decoded and scored together: columnar work is at full speed from a few thousand on; 20 ms of it.
CHUNK_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive events: n values as on a topic, and what is known of them besides."""

    values: list[bytes | None]
    #: (n,) timestamps of the broker, milliseconds; numbers of the rows of a file.
    times_ms: Longs
    #: n rows of a file, all columns; None for a topic.
    table: pa.Table | None = None


class Source(Protocol):
    """Events to evaluate, in the order they are read."""

    #: Schema to read events with, and the registry that knows those they were written with.
    schema: str
    registry: Registry
    #: Events there will be at most, and those of the range that are beyond `Range.rows_max`.
    size: int
    left_out: int
    #: Whether rows have a time; otherwise their order is that of the file.
    timed: bool

    def check(self, label: str, slices: list[str]) -> None:
        """Raises DataError, a line for each name that is neither a column nor a field of the event."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """All events, each once."""
        ...

    def described(self) -> dict[str, Any]:
        """Kind, name and range, as plain data."""
        ...


@dataclass(frozen=True, slots=True)
class Bound:
    """`--from` or `--to`: an offset or row, or a moment; text is what was typed."""

    text: str
    number: int | None = None
    time_ms: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """A whole number, or an ISO 8601 date or moment (UTC if it names no zone). Raises ValueError."""
        if re.fullmatch(r"-?\d{1,18}", text):
            return cls(text, number=int(text))
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return cls(text, time_ms=int(moment.timestamp() * 1000))


@dataclass(frozen=True, slots=True)
class Range:
    """From `first` on, before `end`, `rows_max` events at most."""

    first: Bound | None = None
    end: Bound | None = None
    rows_max: int = 1_000_000


# --------------------------------------------------------------------------- a file


@dataclass(frozen=True, slots=True)
class _OneSchema:
    """Knows one schema (contracts.Registry): rows of a file are written and read with the same."""

    text: str

    def schema(self, schema_id: int) -> str:
        if schema_id != 0:
            raise SchemaError(f"there is no schema {schema_id}")
        return self.text

    def register(self, subject: str, schema: str) -> int:  # noqa: ARG002 (contracts.Registry has it)
        raise SchemaError(f"{subject}: there is nowhere to register it; a file is being read")

    def latest(self, _subject: str) -> tuple[int, str] | None:
        return 0, self.text


class FileSource:
    """Rows of a file, encoded as `pipeline replay` sends them."""

    def __init__(self, path: Path, settings: Settings, wanted: Range) -> None:
        self._path = path
        self.schema = codec.event_schema(settings)
        self.registry: Registry = _OneSchema(self.schema)
        events = settings.events
        self._encoder = EventEncoder(self.schema, 0, events.id_field, events.key_field, events.time_field)
        table = tables.read(path)
        time_column = self._column(events.time_field, table.column_names) if events.time_field else None
        self.timed = time_column is not None
        self._whole, self._time_column = table, time_column
        self.first_row, within = _rows_within(path, table, wanted, time_column)
        self._table = within.slice(0, wanted.rows_max)
        self.size = self._table.num_rows
        self.left_out = within.num_rows - self.size

    def check(self, label: str, slices: list[str]) -> None:
        """See Source."""
        names = self._table.column_names
        if label not in names:
            raise DataError(
                f"{self._path}: no column {label!r} for the truth; name it with --label-field "
                f"(there are {', '.join(names)})"
            )
        event = codec.arrow_schema(self.schema)
        missing = [name for name in slices if name not in names and not _has(event, name)]
        _refuse(str(self._path), missing, [*names, *event.names])

    def chunks(self) -> Iterator[Chunk]:
        """See Source."""
        for start in range(0, self.size, CHUNK_ROWS):
            part = self._table.slice(start, CHUNK_ROWS)
            first = self.first_row + start
            try:
                _, values = self._encoder.encode(part, first)
            except DataError as error:
                raise DataError(f"{self._path}: {error}") from None
            yield Chunk(list(values), np.arange(first, first + part.num_rows, dtype=np.int64), part)

    def described(self) -> dict[str, Any]:
        """See Source."""
        rows = {"first_row": self.first_row, "rows_of_file": self._whole.num_rows}
        return {"kind": "file", "name": str(self._path), **rows, "bytes": self._path.stat().st_size}

    def is_data_of(self, bundle: Bundle, label: str) -> bool:
        """Whether the bundle was made of this very file: its fingerprint is that of the same columns and rows."""
        wanted = [self._column(feature.name, self._whole.column_names) for feature in bundle.contract.features]
        known = bundle.training.data_sha256
        if known is None or None in wanted:
            return False
        try:
            rows = _ordered(self._whole, label, self._time_column)
        except DataError:
            return False
        return fingerprint(rows.select([*wanted, label])) == known

    def _column(self, name: str, columns: list[str]) -> str | None:
        """The column of an event field, as EventEncoder finds it."""
        of_schema = {f["name"]: f.get(COLUMN_ATTRIBUTE, f["name"]) for f in json.loads(self.schema)["fields"]}
        wanted = of_schema.get(name)
        if wanted is None or wanted in columns:
            return wanted
        return next((column for column, avro in avro_names(columns).items() if avro == wanted), None)


def _rows_within(path: Path, table: pa.Table, wanted: Range, time_column: str | None) -> tuple[int, pa.Table]:
    """Number of the first row, and the rows. Rows picked by time are numbered anew."""
    first, end = wanted.first, wanted.end
    numbers = [b.number for b in (first, end) if b is not None and b.number is not None]
    if min(numbers, default=0) < 0:
        raise DataError(f"{path}: rows are counted from 0; {min(numbers)} is none")
    start, stop = (first.number if first else None) or 0, end.number if end else None
    chosen = table.slice(start, None if stop is None else max(0, stop - start))
    for bound, keep in ((first, pc.greater_equal), (end, pc.less)):
        if bound is not None and bound.time_ms is not None:
            if time_column is None:
                raise DataError(f"{path}: {bound.text} is a time, but no column gives events.time_field; give a row")
            times = to_timestamps(chosen.column(time_column).combine_chunks(), time_column).cast(pa.int64())
            chosen = chosen.filter(keep(times, bound.time_ms))
    if not chosen.num_rows:
        raise DataError(f"{path}: no rows {_told(wanted)}: it has {table.num_rows:,}")
    return start, chosen


# --------------------------------------------------------------------------- a topic


class TopicSource:
    """Committed records of a range of every partition of a topic."""

    timed = True

    def __init__(self, topic: str, settings: Settings, wanted: Range, label: str | None) -> None:
        self._topic, self._group, self._rows_max = topic, f"{settings.name}-evaluate", wanted.rows_max
        self._options, admin = connect(settings)
        self.registry = codec.registry_of(settings)
        self.schema = _with_label(codec.event_schema(settings), self.registry, topic, label)
        self._spans = spans(admin, topic, wanted)
        there = sum(span.end - span.start for span in self._spans.values() if span.end is not None)
        if not there:
            raise DataError(f"topic {topic}: no records {_told(wanted)}")
        self.size = min(there, wanted.rows_max)
        self.left_out = there - self.size

    def check(self, label: str, slices: list[str]) -> None:
        """See Source."""
        event = codec.arrow_schema(self.schema)
        if not _has(event, label):
            raise DataError(
                f"topic {self._topic}: its events have no field {label!r} for the truth; name it with --label-field, "
                f"or evaluate a file that has it (fields: {', '.join(event.names)})"
            )
        _refuse(f"topic {self._topic}", [name for name in slices if not _has(event, name)], event.names)

    def chunks(self) -> Iterator[Chunk]:
        """See Source. Raises UnreachableError when nothing comes any more."""
        left, waiting = self._rows_max, list[Message]()
        found = read(self._options, self._group, self._topic, self._spans)
        for batch in unless_silent(found, self._topic):
            waiting += batch[: left - len(waiting)]
            if len(waiting) >= min(CHUNK_ROWS, left):
                left -= len(waiting)
                yield _chunk(waiting)
                waiting = []
                if not left:
                    return
        if waiting:
            yield _chunk(waiting)

    def described(self) -> dict[str, Any]:
        """See Source."""
        offsets = {str(p): [span.start, span.end] for p, span in sorted(self._spans.items())}
        return {"kind": "topic", "name": self._topic, "offsets": offsets}


def _chunk(messages: list[Message]) -> Chunk:
    return Chunk([m.value() for m in messages], np.array([m.timestamp()[1] for m in messages], dtype=np.int64))


def spans(admin: AdminClient, topic: str, wanted: Range) -> dict[int, Span]:
    """Offsets of each partition: bounds are offsets (negative: before the end), or moments by the broker's time.

    Raises ContractError for a topic that does not exist, UnreachableError.
    """
    marks = {tp.partition: mark for tp, mark in topics.watermarks(admin, topic).items()}
    ends = {p: end for p, (_, end) in marks.items()}
    starts = _positions(admin, topic, wanted.first, ends) or {p: first for p, (first, _) in marks.items()}
    stops = _positions(admin, topic, wanted.end, ends) or ends
    found = {}
    for partition, (first, end) in marks.items():
        start = min(max(starts[partition], first), end)
        found[partition] = Span(start, max(start, min(stops[partition], end)))
    return found


def _positions(admin: AdminClient, topic: str, bound: Bound | None, ends: Mapping[int, int]) -> dict[int, int] | None:
    if bound is None:
        return None
    if bound.time_ms is None:
        number = bound.number or 0
        return {p: end + number if number < 0 else number for p, end in ends.items()}
    spec = OffsetSpec.for_timestamp(max(bound.time_ms, 0))
    found = topics.offsets(admin, [TopicPartition(topic, p) for p in ends], spec)
    return {tp.partition: offset if offset >= 0 else ends[tp.partition] for tp, offset in found.items()}


def _with_label(schema: str, registry: Registry, topic: str, label: str | None) -> str:
    """The event schema; where only the writers' has the label, with that as one more field, null where it is absent.

    A worker needs no label, so the schema it reads with seldom has one.
    """
    if label is None or _has(codec.arrow_schema(schema), label):
        return schema
    written = registry.latest(f"{topic}-value")
    theirs = json.loads(written[1]) if written else {}
    of_label = [f for f in theirs.get("fields", ()) if f["name"] == label] if isinstance(theirs, dict) else []
    if not of_label:
        return schema
    kind = of_label[0]["type"]
    others = [branch for branch in (kind if isinstance(kind, list) else [kind]) if branch != "null"]
    record = json.loads(schema)
    record["fields"].append({"name": label, "type": ["null", *others], "default": None})
    return json.dumps(record)


def _has(schema: pa.Schema, name: str) -> bool:
    try:
        fields.locate(schema, name)
    except KeyError:
        return False
    return True


def _refuse(where: str, missing: list[str], names: list[str]) -> None:
    if missing:
        listed = ", ".join(dict.fromkeys(names))
        raise DataError("\n".join(f"{where}: --slice {name}: no such column or field ({listed})" for name in missing))


def _told(wanted: Range) -> str:
    ends = ((word, b.text) for word, b in (("from", wanted.first), ("to", wanted.end)) if b is not None)
    return " ".join(f"{word} {text}" for word, text in ends) or "at all"
