"""Avro to Arrow and back with pyruhvro: many records a call, a column at a time.

pyruhvro 0.4.0 decodes 9 million events a second, but not for the pedantic. What it leaves to us, and what it costs
at 1,024 events of 98 bytes (115 µs to decode):

- it takes no header. One is two more Avro fields: a boolean (the zero byte) and a float (whose bits are the schema
  id). So values are decoded as they are (+ 12 µs), where cutting and comparing headers in Python takes 76 µs;
- it ignores what follows a record. The shortest encoding of what was decoded is added up from the columns, which is
  far cheaper than encoding again, and compared with the bytes there were: no record can have used fewer, so equal
  sums mean equal records (+ 30 µs). Where sums differ, reader.py looks at the records;
- it drops what a varint's tenth byte holds beyond 64 bits: where one has ten bytes, the columns are encoded again
  and compared with what there was (+ 115 µs);
- it cuts an int of more than 32 bits to 32: so every int is decoded as a long, and narrowed with a check;
- it takes invalid UTF-8 for text: so texts are validated (+ 8 µs). For the same reason, bytes can be decoded as
  text; should a later version refuse some, reader.py decodes them, more slowly;
- it cannot do fixed, decimals, recursion, unions of several types, empty records, and items without content (of
  which it makes as many as the bytes say): `wire_type` raises Beyond, and reader.py does the work.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from avro.compatibility import lookup_writer_field
from avro.schema import Schema

from pipeline.codec.framing import HEADER_BYTES
from pipeline.codec.reader import default_for_column
from pipeline.codec.schemas import (
    RECORDS,
    arrow_type,
    columns_of,
    decimal_digits,
    is_nullable,
    non_null_branches,
    takes_nothing,
)

#: An enum's index is then one byte.
SYMBOLS_MAX = 64
#: What the records of one type in a batch may hold together: Arrow's offsets have 31 bits.
BATCH_BYTES_MAX = (1 << 31) - 1
#: With more columns than this to be converted, a new batch is cheaper than one replaced column after the other.
REPLACED_MAX = 6

_FIXED_BYTES = {"null": 0, "boolean": 1, "float": 4, "double": 8}


class _TenBytesError(Exception):
    """There is an integer that takes ten bytes: of these, several spellings have the same size."""


class Beyond(Exception):  # noqa: N818 (a choice of path, never raised out of this room)
    """A schema that pyruhvro cannot do, or not exactly."""


# --------------------------------------------------------------------------- what pyruhvro gets to see


def wire_type(schema: Schema, numbers: Iterator[int], inside: tuple[str, ...] = ()) -> Any:  # noqa: PLR0911 (one return a kind of type)
    """Avro JSON of a type that is written as `schema` is, and that pyruhvro can do. Raises Beyond.

    `numbers` names the named types: each is spelled out wherever it stands.
    """
    kind = schema.type
    if decimal_digits(schema):
        raise Beyond("decimal")
    if kind in {"null", "boolean", "long", "float", "double", "string"}:
        return kind
    if kind == "int":
        return "long"
    if kind == "bytes":
        return "string"
    if kind == "enum" and len(schema.symbols) <= SYMBOLS_MAX:
        return {"type": "enum", "name": f"T{next(numbers)}", "symbols": list(schema.symbols)}
    if kind == "array" and not takes_nothing(schema.items):
        return {"type": "array", "items": wire_type(schema.items, numbers, inside)}
    if kind == "map":
        return {"type": "map", "values": wire_type(schema.values, numbers, inside)}
    if kind == "union" and len(schema.schemas) == 2 and is_nullable(schema):
        return [wire_type(branch, numbers, inside) for branch in schema.schemas]
    if kind in RECORDS and schema.fields and schema.fullname not in inside:
        fields = [
            {"name": f.name, "type": wire_type(f.type, numbers, (*inside, schema.fullname))} for f in schema.fields
        ]
        return {"type": "record", "name": f"T{next(numbers)}", "fields": fields}
    raise Beyond(kind)


def frame_schema(record: Schema) -> str:
    """Avro JSON of a record that begins with the Confluent header: fields 0 and 1, then those of `record`."""
    numbers = itertools.count()
    taken = {field.name for field in record.fields}
    magic, schema_id = (next(n for n in _names(stem) if n not in taken) for stem in ("magic", "schema_id"))
    fields = [{"name": magic, "type": "boolean"}, {"name": schema_id, "type": "float"}]
    fields += [{"name": f.name, "type": wire_type(f.type, numbers, (record.fullname,))} for f in record.fields]
    return json.dumps({"type": "record", "name": "Frame", "fields": fields})


def _names(stem: str) -> Iterator[str]:
    return (stem + "_" * n for n in itertools.count(1))


def header_bits(schema_id: int) -> np.int32:
    """The int32 of the same bits as the float that the id becomes: id big endian, float little endian."""
    return np.array([schema_id], dtype=">u4").view("<i4")[0]  # type: ignore[no-any-return]


# --------------------------------------------------------------------------- sizes


def encoded_bytes(column: pa.Array, schema: Schema) -> int:  # noqa: PLR0911 (one return a kind of type)
    """Bytes of the shortest encoding of all values of a column that pyruhvro has decoded (ints as longs)."""
    kind = schema.type
    if kind == "union":
        branch = non_null_branches(schema)[0]
        return len(column) + encoded_bytes(column.drop_null() if column.null_count else column, branch)
    if kind in _FIXED_BYTES:
        return _FIXED_BYTES[kind] * len(column)
    if kind == "enum":
        return len(column)
    if kind in {"int", "long"}:
        return _varint_bytes(column.to_numpy())
    if kind in {"string", "bytes"}:
        lengths = pc.binary_length(column).to_numpy()
        return _varint_bytes(lengths) + int(lengths.sum())
    if kind == "array":
        return _blocks_bytes(column) + encoded_bytes(column.flatten(), schema.items)
    if kind == "map":
        start, stop = column.offsets[0].as_py(), column.offsets[-1].as_py()
        keys, items = column.keys.slice(start, stop - start), column.items.slice(start, stop - start)
        keys_bytes = _varint_bytes(lengths := pc.binary_length(keys).to_numpy()) + int(lengths.sum())
        counts = np.diff(column.offsets.to_numpy())
        return _counts_bytes(counts) + keys_bytes + encoded_bytes(items, schema.values)
    return sum(encoded_bytes(child, field.type) for child, field in zip(column.flatten(), schema.fields, strict=True))


def _blocks_bytes(lists: pa.Array) -> int:
    return _counts_bytes(pc.list_value_length(lists).to_numpy())


def _counts_bytes(counts: npt.NDArray[Any]) -> int:
    """Of blocks: each list has a closing 0, and a count before it unless it is empty."""
    return len(counts) + _varint_bytes(counts[counts > 0])


def _varint_bytes(values: npt.NDArray[Any]) -> int:
    """Bytes of zig-zag varints of int32 or int64 values. Raises _TenBytesError if one has ten."""
    if len(values) == 0:
        return 0
    # Two's complement without the sign: a value needs one more byte from 2^6, 2^13, ... on.
    magnitudes = values ^ (values >> (values.itemsize * 8 - 1))
    largest, size, limit = int(magnitudes.max()), len(values), 1 << 6
    if largest >= 1 << 62:
        raise _TenBytesError
    while largest >= limit:
        size += int(np.count_nonzero(magnitudes >= limit))
        limit <<= 7
    return size


# --------------------------------------------------------------------------- decoding


def fits_as_columns(  # noqa: C901, PLR0911 (one rule a kind of type)
    writer: Schema, reader: Schema, *, nested: bool = False
) -> bool:
    """Whether a column written with one type becomes, converted as a whole, one of another compatible type."""
    if reader.type == "union":
        if len(others := non_null_branches(reader)) != 1 or not is_nullable(reader):
            return False
        if writer.type != "union":
            return not nested and writer.type != "null" and fits_as_columns(writer, others[0], nested=nested)
        return is_nullable(writer) and fits_as_columns(non_null_branches(writer)[0], others[0], nested=nested)
    if reader.type in {"float", "double"} and writer.type in {"int", "long", "float"} and not nested:
        return True
    if (writer.type, reader.type) == ("int", "long"):
        return not nested
    if writer.type != reader.type:
        return False
    if reader.type == "enum":
        return set(writer.symbols) <= set(reader.symbols)
    if reader.type == "array":
        return fits_as_columns(writer.items, reader.items, nested=True)
    if reader.type == "map":
        return fits_as_columns(writer.values, reader.values, nested=True)
    if reader.type in RECORDS:
        return [f.name for f in writer.fields] == [f.name for f in reader.fields] and all(
            fits_as_columns(w.type, r.type, nested=True) for w, r in zip(writer.fields, reader.fields, strict=True)
        )
    return True


class ColumnReader:
    """Decodes framed records of one schema id into the columns of `reader`.

    Raises Beyond when it cannot be done column by column, exactly.
    """

    def __init__(self, schema_id: int, writer: Schema, reader: Schema) -> None:
        self._frame = frame_schema(writer)
        self._bits = header_bits(schema_id)
        self._schema = columns_of(reader)
        #: Bytes of a record without its columns of varying size; those columns, by index in the frame.
        self._fixed_bytes = HEADER_BYTES + sum(_FIXED_BYTES.get(f.type.type, 0) for f in writer.fields)
        self._sized = [(i, f.type) for i, f in enumerate(writer.fields, 2) if f.type.type not in _FIXED_BYTES]
        #: Per column of the reader: where it is in the frame, or 0 for one that takes its default.
        self._order: list[int] = []
        #: Columns of the reader -> physical type to be narrowed to, or the default.
        self._narrowed: dict[int, pa.DataType] = {}
        self._defaults: dict[int, pa.Scalar] = {}
        self._has_text = False
        #: Whether the frame's columns have another name, or cannot be null where the reader's can.
        self._relabelled = False
        places = {f.name: i for i, f in enumerate(writer.fields, 2)}
        for column, field in enumerate(reader.fields):
            target = self._schema.field(column).type
            self._has_text |= _has_text(target)
            source = lookup_writer_field(writer, field)
            if source is None:
                default = default_for_column(field.type, field.default, reader.fullname)
                self._defaults[column] = pa.array([default], target)[0]
                self._order.append(0)
                continue
            if not fits_as_columns(source.type, field.type):
                raise Beyond(f"{source.name} as {field.name}")
            self._order.append(places[source.name])
            # pyruhvro's nulls are "not null".
            nullable = source.type.type == "union" and is_nullable(source.type)
            self._relabelled |= source.name != field.name or nullable != is_nullable(field.type)
            physical = physical_type(source.type)
            if not (physical == target == decoded_type(source.type)):
                self._narrowed[column] = physical

    def read(self, values: Sequence[bytes]) -> pa.RecordBatch | None:
        """The columns of all values; None if any of them is not, or may not be, exactly one good record."""
        try:
            size = sum(map(len, values))
            if size > BATCH_BYTES_MAX:
                return None
            frame: pa.RecordBatch = pyruhvro.deserialize_array(values, self._frame)
        except (ValueError, TypeError):  # no record; None
            return None
        if not (frame.column(1).view(pa.int32()).to_numpy() == self._bits).all() or frame.column(0).true_count:
            return None
        if not self._is_exact(frame, values, size):
            return None
        try:
            columns = self._arrange(frame)
            if self._has_text:
                columns.validate(full=True)
        except pa.ArrowInvalid:
            return None
        return columns

    def _is_exact(self, frame: pa.RecordBatch, values: Sequence[bytes], size: int) -> bool:
        """Whether `values`, `size` bytes in all, hold what was decoded in the shortest encoding, and no more."""
        try:
            varying = sum(encoded_bytes(frame.column(i), schema) for i, schema in self._sized)
        except _TenBytesError:
            again = pyruhvro.serialize_record_batch(frame, self._frame, 1)
            return bool(again[0].to_pylist() == list(values))
        return bool(size == self._fixed_bytes * frame.num_rows + varying)

    def _arrange(self, frame: pa.RecordBatch) -> pa.RecordBatch:
        """The reader's columns. Raises ArrowInvalid for an int that is none."""
        columns = frame.select(self._order)
        replaced: Mapping[int, pa.Array] = {
            **{i: self._convert(columns.column(i), i, physical) for i, physical in self._narrowed.items()},
            **{i: pa.repeat(default, frame.num_rows) for i, default in self._defaults.items()},
        }
        if self._relabelled or len(replaced) > REPLACED_MAX:
            arrays = [replaced.get(i, column) for i, column in enumerate(columns.columns)]
            return pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        for i, array in replaced.items():
            columns = columns.set_column(i, self._schema.field(i), array)
        return columns

    def _convert(self, column: pa.Array, index: int, physical: pa.DataType) -> pa.Array:
        target = self._schema.field(index).type
        if column.type != physical:
            column = column.cast(physical)
        if column.type == target:
            return column
        if pa.types.is_floating(target):
            # By way of double, as reader.py does: int64 to float32 rounds twice.
            return column.cast(pa.float64(), safe=False).cast(target, safe=False)
        return column.view(target) if pa.types.is_temporal(target) else column.cast(target)


def _has_text(found: pa.DataType) -> bool:
    if pa.types.is_string(found):
        return True
    return any(_has_text(found.field(i).type) for i in range(found.num_fields))


def physical_type(schema: Schema) -> pa.DataType:
    """The Arrow type of a value without regard to logical types."""
    kind = schema.type
    if kind == "union":
        return physical_type(non_null_branches(schema)[0])
    if kind == "array":
        return pa.list_(physical_type(schema.items))
    if kind == "map":
        return pa.map_(pa.string(), physical_type(schema.values))
    if kind in RECORDS:
        return pa.struct([(f.name, physical_type(f.type)) for f in schema.fields])
    if kind in {"int", "long"}:
        return pa.int32() if kind == "int" else pa.int64()
    return arrow_type(schema)


def decoded_type(schema: Schema) -> pa.DataType | None:
    """The Arrow type of what pyruhvro makes of `wire_type`, where it is a plain one."""
    kind = non_null_branches(schema)[0].type if schema.type == "union" else schema.type
    plain = {
        "null": pa.null(),
        "boolean": pa.bool_(),
        "long": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "string": pa.string(),
        "enum": pa.string(),
    }
    return plain.get(kind)
