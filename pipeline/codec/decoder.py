"""Kafka values to columns: the common case in one go, every other case to the last byte.

The common case is a batch of one schema id in which every record is good. Anything else, and be it one bad record,
takes the careful way: headers one by one, a group a schema id, and in each group bisection down to a few records,
which reader.py reads. So one bad record in 1,000 costs about log2(1,000 / LEAF_RECORDS) decodings more.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.codec.columns import Beyond, ColumnReader
from pipeline.codec.framing import HEADER_BYTES, header_fault, schema_id_of
from pipeline.codec.reader import RowReader
from pipeline.codec.schemas import columns_of, parse, parse_record
from pipeline.codec.values import As, Malformed
from pipeline.contracts import Registry
from pipeline.errors import SchemaError
from pipeline.records import Decoded, Longs, Reason, Reject, Stage

#: Reading 16 events of 98 bytes one by one costs as much as the five to eight decodings that could spare some.
LEAF_RECORDS = 16
#: How long an unknown schema id is not asked for again: someone may be about to register it.
UNKNOWN_S = 5.0
#: Ids remembered; above it those refused are forgotten, so that random bytes cannot fill the memory.
REMEMBERED_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Readers:
    """How to read records of one schema id; without `columns`, one by one."""

    rows: RowReader
    columns: ColumnReader | None


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why no record of one schema id can be read; `until` is when to ask again (monotonic seconds)."""

    reason: Reason
    message: str
    until: float = float("inf")


#: Rows of a batch, ascending, and their columns.
_Part = tuple[list[int], pa.RecordBatch]


class ColumnarDecoder:
    """Decodes values of any schema that the registry knows into the columns of `reader_schema`.

    The columns are those of `schemas.arrow_schema`. Not thread-safe. Raises SchemaError for a reader schema that is
    not a valid Avro record.
    """

    def __init__(
        self, registry: Registry, reader_schema: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._reader = parse_record(reader_schema)
        self._schema = columns_of(self._reader)
        self._monotonic = monotonic
        self._ways: dict[int, _Readers | _Refused] = {}

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Columns of all decodable values, and one Reject for each other one; never raises for bad data.

        Raises UnreachableError when a schema cannot be fetched now; nothing is then decided.
        """
        columns = self._decode_uniform(values)
        if columns is not None:
            return Decoded(columns, np.arange(len(values), dtype=np.int64), [])
        return self._decode_carefully(values)

    def _decode_uniform(self, values: Sequence[bytes | None]) -> pa.RecordBatch | None:
        """The columns, if all values are good and of one schema."""
        if not values or header_fault(values[0]) or header_fault(values[-1]):
            return None
        first, last = values[0], values[-1]
        assert first is not None and last is not None, "header_fault says so"  # noqa: PT018
        if first[:HEADER_BYTES] != last[:HEADER_BYTES]:
            return None
        way = self._way(schema_id_of(first))
        if isinstance(way, _Refused) or way.columns is None:
            return None
        # A None among them is refused like any value that is no record.
        return way.columns.read(values)  # type: ignore[arg-type]

    def _decode_carefully(self, values: Sequence[bytes | None]) -> Decoded:
        rejects: list[Reject] = []
        parts: list[_Part] = []
        groups: dict[bytes | None, list[int]] = defaultdict(list)
        for row, value in enumerate(values):
            groups[value and value[:HEADER_BYTES]].append(row)
        for header, rows in groups.items():
            if fault := header_fault(header):
                rejects += [Reject(row, Stage.DECODE, *fault) for row in rows]
                continue
            assert header is not None, "header_fault says so"
            way = self._way(schema_id := schema_id_of(header))
            if isinstance(way, _Refused):
                rejects += [Reject(row, Stage.DECODE, way.reason, way.message, schema_id) for row in rows]
                continue
            good, bad = self._decode_group(way, values, rows)  # type: ignore[arg-type]
            parts += good
            rejects += [Reject(row, Stage.DECODE, fault.reason, str(fault), schema_id) for row, fault in bad.items()]
        rejects.sort(key=lambda reject: reject.row)
        return Decoded(*self._merge(parts), rejects)

    # -- one group: rows of one schema id -----------------------------------------------------

    def _decode_group(
        self, readers: _Readers, values: Sequence[bytes], rows: list[int]
    ) -> tuple[list[_Part], dict[int, Malformed]]:
        """Columns of the good rows, in parts, and what is wrong with the other rows."""
        parts: list[_Part] = []
        bad: dict[int, Malformed] = {}
        # All values of a batch were tried together already.
        todo = _halves(rows) if len(rows) == len(values) else [rows]
        while todo:
            some = todo.pop()
            columns = readers.columns and readers.columns.read([values[row] for row in some])
            if columns is not None:
                parts.append((some, columns))
            elif readers.columns and len(some) > LEAF_RECORDS:
                todo += _halves(some)
            else:
                part, faults = self._decode_rows(readers.rows, values, some)
                parts.append(part)
                bad |= faults
        return parts, bad

    def _decode_rows(
        self, reader: RowReader, values: Sequence[bytes], rows: list[int]
    ) -> tuple[_Part, dict[int, Malformed]]:
        """As `_decode_group`, record by record."""
        records: dict[int, dict[str, Any]] = {}
        bad: dict[int, Malformed] = {}
        for row in rows:
            try:
                records[row] = reader.read(values[row], HEADER_BYTES)
            except Malformed as malformed:
                bad[row] = malformed
        arrays = [pa.array([r[field.name] for r in records.values()], field.type) for field in self._schema]
        return (list(records), pa.RecordBatch.from_arrays(arrays, schema=self._schema)), bad

    def _merge(self, parts: list[_Part]) -> tuple[pa.RecordBatch, Longs]:
        """One batch of all parts, in the order of their rows."""
        if not parts:
            empty = [pa.array([], field.type) for field in self._schema]
            return pa.RecordBatch.from_arrays(empty, schema=self._schema), np.empty(0, dtype=np.int64)
        rows = np.array([row for part, _ in parts for row in part], dtype=np.int64)
        columns = parts[0][1] if len(parts) == 1 else pa.concat_batches([columns for _, columns in parts])
        if (np.diff(rows) > 0).all():
            return columns, rows
        order = np.argsort(rows)
        return columns.take(pa.array(order)), rows[order]

    # -- schemas ------------------------------------------------------------------------------

    def _way(self, schema_id: int) -> _Readers | _Refused:
        """How to read records of a schema, or why not to. Raises UnreachableError."""
        way = self._ways.get(schema_id)
        if way is None or (isinstance(way, _Refused) and way.until <= self._monotonic()):
            if len(self._ways) >= REMEMBERED_MAX:
                self._ways = {known: w for known, w in self._ways.items() if isinstance(w, _Readers)}
            way = self._ways[schema_id] = self._find_way(schema_id)
        return way

    def _find_way(self, schema_id: int) -> _Readers | _Refused:
        try:
            text = self._registry.schema(schema_id)
        except SchemaError as error:
            return _Refused(Reason.UNKNOWN_SCHEMA, str(error), self._monotonic() + UNKNOWN_S)
        try:
            writer = parse(text)
            rows = RowReader(writer, self._reader, As.ARROW)
        except SchemaError as error:
            return _Refused(Reason.SCHEMA_MISMATCH, f"schema {schema_id} cannot be read as the event schema: {error}")
        try:
            return _Readers(rows, ColumnReader(schema_id, writer, self._reader))
        except Beyond:
            return _Readers(rows, None)


def _halves(rows: list[int]) -> list[list[int]]:
    """The second half, then the first: a stack gives them back in order."""
    middle = len(rows) // 2
    return [half for half in (rows[middle:], rows[:middle]) if half]
