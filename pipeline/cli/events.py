"""Rows of a table as Avro events: what `replay`, `demo` and the tests send."""

import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.codec import ColumnarEncoder
from pipeline.contracts import Clock
from pipeline.errors import DataError

#: Attribute of an Avro field that names the column it comes from, where that is no Avro name itself.
COLUMN_ATTRIBUTE = "column"
TIMESTAMP = pa.timestamp("ms", tz="UTC")
_ARROW = {
    "double": pa.float64(),
    "float": pa.float32(),
    "long": pa.int64(),
    "int": pa.int32(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "enum": pa.string(),
}


def avro_names(columns: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Column -> Avro name: letters, digits and _, not beginning with a digit; made unique by a number."""
    used = set(taken)
    names: dict[str, str] = {}
    for column in columns:
        base = re.sub(r"\W", "_", column, flags=re.ASCII) or "column"
        base = f"_{base}" if base[0].isdigit() else base
        name, n = base, 2
        while name in used:
            name, n = f"{base}_{n}", n + 1
        used.add(name)
        names[column] = name
    return names


class EventEncoder:
    """Turns rows into keys and Avro values, column by column.

    A field comes from the column its "column" attribute names, else from the column of its own name, else
    from the one whose sanitised name it is. Without a column, the id is `row-<n>`, the time is now, and any
    other field is its default. Raises DataError for fields that then have no source.
    """

    def __init__(
        self,
        schema: str,
        schema_id: int,
        id_field: str = "id",
        key_field: str | None = None,
        time_field: str | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._encoder = ColumnarEncoder(schema, schema_id)  # refuses what is no record
        record: Mapping[str, Any] = json.loads(schema)
        self._fields: list[dict[str, Any]] = record["fields"]
        self._id_field, self._key_field, self._time_field = id_field, key_field or id_field, time_field
        self._clock = clock
        names = {field["name"] for field in self._fields}
        for what, name in (("events.id_field", id_field), ("events.key_field", self._key_field)):
            if name not in names:
                raise DataError(f"{what}: the event schema has no field {name!r}; it has {', '.join(sorted(names))}")

    def encode(self, table: pa.Table, first_row: int = 0) -> tuple[list[bytes | None], list[bytes]]:
        """Kafka keys and Confluent-framed values of all rows; `first_row` numbers them for ids and messages."""
        batch = self.columns(table, first_row)
        keys = _as_text(batch.column(self._key_field)).cast(pa.binary()).to_pylist()
        return keys, self._encoder.encode(batch)

    def columns(self, table: pa.Table, first_row: int = 0) -> pa.RecordBatch:
        """The event's fields as Arrow columns. Raises DataError naming column and row of what does not fit."""
        arrays, missing = [], []
        for field in self._fields:
            column = self._source(field, table.column_names)
            if column is not None:
                arrays.append(_convert(_one_chunk(table.column(column)), field, column, first_row))
            elif (made := self._make(field, table.num_rows, first_row)) is not None:
                arrays.append(made)
            else:
                missing.append(field.get(COLUMN_ATTRIBUTE, field["name"]))
        if missing:
            raise DataError(f"no column {', '.join(map(repr, missing))}; there are {', '.join(table.column_names)}")
        return pa.RecordBatch.from_arrays(arrays, names=[field["name"] for field in self._fields])

    def event_times_ms(self, table: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Event times of all rows, int64 milliseconds; None if no column gives them."""
        for field in self._fields:
            if field["name"] == self._time_field and (column := self._source(field, table.column_names)):
                times: pa.Array = _convert(_one_chunk(table.column(column)), field, column, 0)
                return np.asarray(times.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
        return None

    @staticmethod
    def _source(field: Mapping[str, Any], columns: list[str]) -> str | None:
        wanted = field.get(COLUMN_ATTRIBUTE, field["name"])
        if wanted in columns:
            return str(wanted)
        return next((column for column, name in avro_names(columns).items() if name == wanted), None)

    def _make(self, field: Mapping[str, Any], rows: int, first_row: int) -> pa.Array | None:
        """The values of a field that no column holds; None if there is nothing to make them of."""
        if COLUMN_ATTRIBUTE in field:
            return None
        kind, _ = _unwrap(field["type"])
        if field["name"] == self._time_field:
            return pa.array(np.full(rows, int(self._clock() * 1000))).cast(_target(kind, field["name"]))
        if field["name"] == self._id_field and _name(kind) == "string":
            return pa.array([f"row-{n}" for n in range(first_row, first_row + rows)], pa.string())
        if "default" in field:
            return pa.array([field["default"]] * rows, _target(kind, field["name"]))
        return None


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows, or more than one array can hold
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _unwrap(avro_type: Any) -> tuple[Any, bool]:
    """The one type of an optional field, and whether null is allowed."""
    if not isinstance(avro_type, list):
        return avro_type, False
    others = [t for t in avro_type if t != "null"]
    return (others[0] if len(others) == 1 else avro_type), len(others) < len(avro_type)


def _name(kind: Any) -> str:
    return str(kind["type"] if isinstance(kind, dict) else kind)


def _target(kind: Any, field: str) -> pa.DataType:
    """The Arrow type of an Avro type. Raises DataError for types no table column can give."""
    if isinstance(kind, dict) and kind.get("logicalType") == "timestamp-millis":
        return TIMESTAMP
    if _name(kind) == "array" and isinstance(kind, dict):
        return pa.list_(_target(_unwrap(kind["items"])[0], field))
    if _name(kind) not in _ARROW:
        raise DataError(f"schema field {field!r}: {kind!r} cannot be filled from a file; give it a default")
    return _ARROW[_name(kind)]


def _convert(array: pa.Array, field: Mapping[str, Any], column: str, first_row: int) -> pa.Array:
    kind, nullable = _unwrap(field["type"])
    target = _target(kind, field["name"])
    if array.null_count and not nullable:
        row = first_row + int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise DataError(f"column {column!r}, row {row}: empty, but schema field {field['name']!r} does not allow null")
    if target == TIMESTAMP:
        return to_timestamps(array, column)
    try:
        return _as_text(array) if target == pa.string() else array.cast(target)
    except pa.ArrowException as error:
        what = str(error).splitlines()[0]
        raise DataError(f"column {column!r}: does not fit schema field {field['name']!r}, {target}: {what}") from None


def _as_text(array: pa.Array) -> pa.Array:
    """Text of any column; moments as milliseconds since the epoch."""
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms", tz=array.type.tz), safe=False).cast(pa.int64())
    return array.cast(pa.string())


def to_timestamps(array: pa.Array, column: str) -> pa.Array:
    """UTC milliseconds of a column of moments, dates, ISO 8601 text or epoch numbers.

    A moment without a zone is taken as UTC. The unit of numbers follows from their size: the years 1973 to
    5138 are 1e8 to 1e11 in seconds, 1e11 to 1e14 in milliseconds, and so on. Raises DataError for the rest.
    """
    kind = array.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            array = _parse_text(array)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _from_epoch(array, column)
        elif pa.types.is_date(kind):
            array = array.cast(pa.timestamp("ms"))
        if not pa.types.is_timestamp(array.type):
            raise DataError(f"column {column!r}: {kind} is no time")
        return array.cast(pa.timestamp("ms", tz=array.type.tz), safe=False).cast(TIMESTAMP)
    except pa.ArrowException as error:
        raise DataError(f"column {column!r}: not a time: {str(error).splitlines()[0]}") from None


def _from_epoch(array: pa.Array, column: str) -> pa.Array:
    top = pc.max(pc.abs(array)).as_py() or 0
    for limit, to_ms in ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3), (1e20, 1e-6)):
        if 1e8 <= top < limit:
            if to_ms == 1.0 and pa.types.is_integer(array.type):
                return array.cast(pa.int64()).cast(TIMESTAMP)
            return pc.round(pc.multiply(array.cast(pa.float64(), safe=False), to_ms)).cast(pa.int64()).cast(TIMESTAMP)
    raise DataError(f"column {column!r}: numbers up to {top:g} are no times since 1970")


def _parse_text(array: pa.Array) -> pa.Array:
    """ISO 8601, with or without a zone (which then all rows must have)."""
    try:
        return array.cast(pa.timestamp("ms"))
    except pa.ArrowInvalid:
        return array.cast(TIMESTAMP)
