"""What `pipeline retrain` reads of the log: outcomes, the events they are of, a trigger. No group's offsets move."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.reading import Span, read, unless_silent
from pipeline.cli.evaluate_source import CHUNK_ROWS, Bound, Range, spans
from pipeline.cli.wiring import connect
from pipeline.errors import DataError
from pipeline.records import Longs, OffsetRange
from pipeline.retraining import window
from pipeline.retraining.window import Newest, Wanted
from pipeline.settings import Settings

#: Sender of each event, as text: no Avro name has a dot.
SENDER = "event.sender"
#: Setting that takes the Kafka key for it.
KEY = "key"
#: Outcomes of each partition looked at to find the newest event's time.
TAIL_ROWS = 1_000
_HEADER_BYTES = 5

#: Records read, records there are.
Progress = Callable[[int, int], None]


@dataclass
class Found:
    """Events that were asked for."""

    events: window.Events
    #: Asked for, but no longer on the topic.
    gone: int
    #: There, but not decodable.
    refused: int
    schema_ids: tuple[int, ...]


@dataclass
class _Parts:
    """Decoded events as they come."""

    columns: list[pa.Table] = field(default_factory=list)
    places: list[Longs] = field(default_factory=list)
    schema_ids: set[int] = field(default_factory=set)
    met: int = 0


class Log:
    """The topics of one pipeline. Raises UnreachableError where no broker answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._options, self._admin = connect(settings)
        self._group = f"{settings.name}-retrain"
        self._registry = codec.registry_of(settings)
        self.schema = codec.event_schema(settings)
        #: Of the outcomes that were read.
        self.outcome_schema_ids: set[int] = set()

    # -- outcomes ---------------------------------------------------------------------------------

    def labelled(self, wanted: Wanted, rows_before: int, progress: Progress, changed_ms: int | None = None) -> pa.Table:
        """Labelled events in order of time: those wanted, and about `rows_before` older ones if there are.

        changed_ms: none of those wanted is older, where that is known (a trigger's change). Raises DataError if there
        are none.
        """
        rows_max = self._settings.retraining.rows_max
        if wanted.last is not None:
            rows = self._newest(min(wanted.last + rows_before, rows_max), progress)
        else:
            since_ms = wanted.from_ms if wanted.before_ms is None else self._newest_ms() - wanted.before_ms
            since_ms = changed_ms if since_ms is None else since_ms
            # How many events came before a moment is not known: all of them are looked at, the newest kept.
            rows = self._since(None if rows_before else since_ms, rows_max, progress)
        if not rows.num_rows:
            raise DataError(
                f"topic {self._settings.topic('outcomes')}: no outcomes yet; an event has one once its label has come "
                "and been joined (labels.enabled, `pipeline run labels`)"
            )
        return rows

    def _newest_ms(self) -> int:
        """Time of the newest labelled event, or nearly: labels come in any order."""
        found = self._newest(TAIL_ROWS, lambda _read, _size: None)
        return int(found.column(window.TIME_MS)[-1].as_py()) if found.num_rows else 0

    def _newest(self, rows: int, progress: Progress) -> pa.Table:
        """The newest of the last outcomes of each partition, read further back until they are `rows` or all."""
        topic = self._settings.topic("outcomes")
        back = rows
        while True:
            at = spans(self._admin, topic, Range(Bound(str(-back), number=-back)))
            kept = Newest(rows)
            self._take_outcomes(topic, at, kept, progress)
            found = kept.rows()
            first = {tp.partition: low for tp, (low, _) in topics.watermarks(self._admin, topic).items()}
            if found.num_rows >= rows or all(span.start <= first[p] for p, span in at.items()):
                return found
            back *= 2  # canary and shadow have outcomes of the same events, transactions take offsets

    def _since(self, time_ms: int | None, rows_max: int, progress: Progress) -> pa.Table:
        """Labelled events since a moment; None: all. An outcome is written after its event has happened."""
        topic = self._settings.topic("outcomes")
        # Events dated in the future (a replay) may have been written long before.
        known = time_ms is not None and time_ms < time.time() * 1000
        wanted = Range(Bound("", time_ms=max(time_ms or 0, 0))) if known else Range()
        kept = Newest(rows_max, time_ms)
        self._take_outcomes(topic, spans(self._admin, topic, wanted), kept, progress)
        return kept.rows()

    def _take_outcomes(self, topic: str, at: Mapping[int, Span], kept: Newest, progress: Progress) -> None:
        decoder = codec.ColumnarDecoder(self._registry, codec.load_schema("outcome"))
        for messages in self._chunks(topic, at, progress):
            values = [m.value() for m in messages]
            self.outcome_schema_ids |= _schema_ids(values)
            columns = decoder.decode(values).columns
            kept.add(window.facts(columns))

    # -- events -----------------------------------------------------------------------------------

    def events(self, rows: pa.Table, progress: Progress) -> Found:
        """The events of labelled rows, decoded as a worker does, and how many of them are not to be had."""
        topic = self._settings.topic("events")
        asked = {p: set(offsets.tolist()) for p, offsets in window.wanted_messages(rows).items()}
        stretches = window.spans(rows)
        low = {tp.partition: first for tp, (first, _) in topics.watermarks(self._admin, topic).items()}
        decoder = codec.ColumnarDecoder(self._registry, self.schema)
        parts = _Parts()
        done, size = 0, sum(end - start for found in stretches.values() for start, end in found)
        for number in range(max(map(len, stretches.values()))):
            at = {p: Span(*found[number]) for p, found in stretches.items() if number < len(found)}
            at = {p: Span(max(s.start, low.get(p, 0)), s.end) for p, s in at.items() if p in low}
            for messages in self._chunks(topic, at, lambda n, _size, before=done: progress(before + n, size)):  # type: ignore[misc]
                self._take_events([m for m in messages if m.offset() in asked[m.partition()]], decoder, parts)
            done += sum((s.end or 0) - s.start for s in at.values())
        empty = codec.arrow_schema(self.schema).append(pa.field(SENDER, pa.string())).empty_table()
        columns = pa.concat_tables([empty, *parts.columns])
        places = np.concatenate([np.empty(0, np.int64), *parts.places])
        total = sum(map(len, asked.values()))
        events = window.Events(columns, places)
        return Found(events, total - parts.met, parts.met - len(places), tuple(sorted(parts.schema_ids)))

    def _take_events(self, messages: list[Message], decoder: codec.ColumnarDecoder, parts: _Parts) -> None:
        if not messages:
            return
        values = [m.value() for m in messages]
        decoded = decoder.decode(values)
        kept = [messages[row] for row in decoded.rows.tolist()]
        table = pa.Table.from_batches([decoded.columns])
        parts.columns.append(table.append_column(SENDER, pa.array(self._senders(table, kept), pa.string())))
        parts.places.append(window.place([m.partition() for m in kept], [m.offset() for m in kept]))
        parts.schema_ids |= _schema_ids(values)
        parts.met += len(messages)

    def _senders(self, table: pa.Table, messages: list[Message]) -> list[str | None]:
        """Who sent each event, as far as the settings say how to tell."""
        settings = self._settings.retraining
        if settings.producer_field == KEY:
            texts = [(m.key() or b"").decode("utf-8", "replace") for m in messages]
            return [text.split(settings.producer_separator)[0] or None for text in texts]
        if settings.producer_field is None:
            return [None] * table.num_rows
        if settings.producer_field not in table.column_names:
            raise DataError(
                f"retraining.producer_field: events have no field {settings.producer_field!r} "
                f"({', '.join(self._fields())})"
            )
        return [None if v is None else str(v) for v in table.column(settings.producer_field).to_pylist()]

    def _fields(self) -> list[str]:
        return [name for name in codec.arrow_schema(self.schema).names if name != SENDER]

    # -- triggers ---------------------------------------------------------------------------------

    def trigger(self, trigger_id: str) -> tuple[tuple[OffsetRange, ...], int]:
        """Window and time of the change of a trigger. Raises DataError for an id that the topic does not have."""
        topic = self._settings.topic("retraining_triggers")
        rows = codec.RowCodec(self._registry)
        known: list[str] = []
        for messages in self._chunks(topic, spans(self._admin, topic, Range()), lambda _n, _size: None):
            for message in messages:
                if (message.key() or b"").decode("utf-8", "replace") != trigger_id:
                    known.append((message.key() or b"").decode("utf-8", "replace"))
                    continue
                found = rows.decode(message.value())
                ranges = tuple(OffsetRange(**r) for r in found["window"])
                return ranges, int(found["change_event_time_ms"])
        last = f"; the last one is {known[-1]}" if known else ""
        raise DataError(f"topic {topic}: no trigger {trigger_id!r} among {len(known):,}{last}")

    def _chunks(self, topic: str, at: Mapping[int, Span], progress: Progress) -> Iterator[list[Message]]:
        """Records of the spans, CHUNK_ROWS at a time. Raises UnreachableError when nothing comes any more."""
        size = sum((span.end or span.start) - span.start for span in at.values())
        done, waiting = 0, list[Message]()
        found = read(self._options, self._group, topic, at, auto_offset_reset="earliest")
        for batch in unless_silent(found, topic):
            waiting += batch
            if len(waiting) >= CHUNK_ROWS:
                done += len(waiting)
                progress(min(done, size), size)
                yield waiting
                waiting = []
        if waiting:
            yield waiting
        progress(size, size)


def _schema_ids(values: list[bytes | None]) -> set[int]:
    """Ids in the headers of what is in the Confluent wire format."""
    heads = {value[:_HEADER_BYTES] for value in values if value and len(value) > _HEADER_BYTES and value[0] == 0}
    return {int.from_bytes(head[1:], "big") for head in heads}
