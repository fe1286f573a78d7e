"""Columns to Kafka values in the Confluent wire format, with pyruhvro (see columns.py)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyruhvro
from avro.schema import Schema

from pipeline.codec.columns import Beyond, frame_schema, header_bits
from pipeline.codec.framing import header
from pipeline.codec.rows import encode_body
from pipeline.codec.schemas import RECORDS, arrow_type, columns_of, is_nullable, non_null_branches, parse_record
from pipeline.errors import SchemaError

_Convert = Callable[[pa.Array], pa.Array]


class ColumnarEncoder:
    """Encodes columns named as the fields of `schema`, in any order, under `schema_id`.

    A column has the type that `schemas.arrow_schema` gives, or one of which each value is also one of that type:
    int32 for a long, a dictionary for a string. Equal columns give equal bytes.
    Raises SchemaError for a schema that is not a valid Avro record.
    """

    def __init__(self, schema: str, schema_id: int) -> None:
        record = parse_record(schema)
        self._text = schema
        self._header = header(schema_id)
        self._fields = list(record.fields)
        self._schema = columns_of(record)
        self._bits = header_bits(schema_id)
        self._frame: str | None = None
        try:
            frame = frame_schema(record)  # first: it refuses a record inside itself
            self._converts = [_to_wire(field.type) for field in self._fields]
            self._frame = frame
        except Beyond:
            self._converts = []

    def encode(self, columns: pa.RecordBatch) -> list[bytes]:
        """One value per row. Raises SchemaError naming the column that does not fit the schema."""
        arrays = self._columns(columns)
        if self._frame is None:
            return self._encode_rows(arrays)
        rows = columns.num_rows
        wire = [pa.array(np.zeros(rows, np.bool_)), pa.array(np.full(rows, self._bits).view(np.float32))]
        wire += [convert(array) for convert, array in zip(self._converts, arrays, strict=True)]
        frame = pa.RecordBatch.from_arrays(wire, names=_frame_names(self._schema.names))
        try:
            encoded = pyruhvro.serialize_record_batch(frame, self._frame, 1)
        except ValueError as error:
            raise SchemaError(f"columns do not fit their schema: {error}") from None
        return (
            [value for chunk in encoded for value in chunk.to_pylist()] if len(encoded) != 1 else encoded[0].to_pylist()
        )

    def _columns(self, columns: pa.RecordBatch) -> list[pa.Array]:
        """The columns in the order of the fields, with exactly the types of `arrow_schema`."""
        if columns.schema.names != self._schema.names:
            self._check_names(columns.schema.names)
            columns = columns.select(self._schema.names)
        arrays = []
        for i, field in enumerate(self._fields):
            array, target = columns.column(i), self._schema.field(i).type
            if array.type != target:
                array = _widen(array, target, field.name)
            _check_nulls(array, field.type, field.name)
            arrays.append(array)
        return arrays

    def _check_names(self, names: list[str]) -> None:
        wanted = self._schema.names
        if missing := [name for name in wanted if name not in names]:
            raise SchemaError(f"no column for {', '.join(missing)}; there are {', '.join(names)}")
        if extra := [name for name in names if name not in wanted]:
            raise SchemaError(f"the schema has no field for column {', '.join(extra)}")
        if len(names) != len(wanted):
            raise SchemaError(f"a column is there twice: {', '.join(names)}")

    def _encode_rows(self, arrays: list[pa.Array]) -> list[bytes]:
        batch = pa.RecordBatch.from_arrays(arrays, names=self._schema.names)
        records = batch.to_pylist(maps_as_pydicts="strict")
        return [self._header + encode_body(self._text, record) for record in records]


def _frame_names(names: list[str]) -> list[str]:
    """As `columns.frame_schema` names them."""
    own = []
    for stem in ("magic", "schema_id"):
        name = stem + "_"
        while name in names:
            name += "_"
        own.append(name)
    return own + names


# --------------------------------------------------------------------------- columns that fit


def _widen(array: pa.Array, target: pa.DataType, name: str) -> pa.Array:
    """`array` as `target`, without losing anything. Raises SchemaError."""
    if not _widens(array.type, target):
        raise SchemaError(f"column {name}: {array.type} is not what its field takes, {target}")
    try:
        return array.cast(target)
    except pa.ArrowException as error:
        raise SchemaError(f"column {name}: {str(error).splitlines()[0]}") from None


def _widens(found: pa.DataType, target: pa.DataType) -> bool:  # noqa: C901, PLR0911 (one rule a kind of type)
    """Whether each value of one type can be one of the other; the cast has the last word on integers."""
    types = pa.types
    if found == target or types.is_null(found):
        return True
    if types.is_dictionary(found):
        return _widens(found.value_type, target)
    if types.is_integer(found):
        return bool(types.is_integer(target) or types.is_floating(target))
    if types.is_floating(found):
        return bool(types.is_floating(target) and found.bit_width <= target.bit_width)
    if types.is_timestamp(found):
        return bool(types.is_timestamp(target) and (found.tz is None) == (target.tz is None))
    if types.is_large_string(found) or types.is_string_view(found):
        return bool(types.is_string(target))
    if types.is_large_binary(found) or types.is_binary(found) or types.is_fixed_size_binary(found):
        return bool(types.is_binary(target) or types.is_fixed_size_binary(target))
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        return bool(types.is_list(target)) and _widens(found.value_type, target.value_type)
    if types.is_map(found):
        return bool(types.is_map(target)) and _widens(found.item_type, target.item_type)
    if types.is_struct(found) and types.is_struct(target):
        return [f.name for f in found] == [f.name for f in target] and all(
            _widens(f.type, t.type) for f, t in zip(found, target, strict=True)
        )
    return False


def _check_nulls(array: pa.Array, schema: Schema, name: str) -> None:
    """pyruhvro would write a null where none may be as 0, or as an empty string."""
    if schema.type == "null":
        return
    if array.null_count and not is_nullable(schema):
        row = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise SchemaError(f"column {name}, row {row}: null, but the field does not allow it")
    if schema.type == "union":
        branches = non_null_branches(schema)
        if len(branches) == 1:
            _check_nulls(array.drop_null() if array.null_count else array, branches[0], name)
    elif schema.type == "array":
        _check_nulls(array.flatten(), schema.items, name)
    elif schema.type == "map":
        start, stop = array.offsets[0].as_py(), array.offsets[-1].as_py()
        _check_nulls(array.items.slice(start, stop - start), schema.values, name)
    elif schema.type in RECORDS and pa.types.is_struct(array.type):
        for child, field in zip(array.flatten(), schema.fields, strict=True):
            _check_nulls(child, field.type, f"{name}.{field.name}")


# --------------------------------------------------------------------------- what pyruhvro takes


def _to_wire(schema: Schema) -> _Convert:
    """What makes a column of `arrow_type(schema)` one for `columns.wire_type(schema)`. Raises Beyond."""
    found, target = arrow_type(schema), _wire_arrow_type(schema, top=True)
    if found == target:
        return lambda array: array
    if pa.types.is_binary(found):
        return lambda array: array.view(target)  # no check of UTF-8: pyruhvro copies bytes
    if pa.types.is_temporal(found) and found.bit_width == target.bit_width:
        return lambda array: array.view(target)
    if pa.types.is_date32(found) or pa.types.is_time32(found):
        return lambda array: array.view(pa.int32()).cast(target)
    return lambda array: array.cast(target)


def _wire_arrow_type(schema: Schema, *, top: bool = False) -> Any:  # noqa: PLR0911 (one return a kind of type)
    """The Arrow type of what pyruhvro encodes for `columns.wire_type(schema)`."""
    kind = schema.type
    if kind == "union":
        branches = non_null_branches(schema)
        if len(branches) != 1:
            raise Beyond(kind)
        return _wire_arrow_type(branches[0], top=top)
    if kind in {"int", "long"}:
        if not top and pa.types.is_temporal(arrow_type(schema)) and kind == "int":
            raise Beyond("a day or time inside another type")  # Arrow does not cast these to int64
        return pa.int64()
    if kind == "bytes":
        if not top:
            raise Beyond("bytes inside another type")  # a cast to text would refuse what is no UTF-8
        return pa.string()
    if kind == "array":
        return pa.list_(_wire_arrow_type(schema.items))
    if kind == "map":
        return pa.map_(pa.string(), _wire_arrow_type(schema.values))
    if kind in RECORDS:
        return pa.struct([(f.name, _wire_arrow_type(f.type)) for f in schema.fields])
    return arrow_type(schema)
