"""One Avro record, byte by byte: exact, bounded, and able to say what is wrong and where.

The columnar decoder (decoder.py) is for speed; this is for everything it cannot do: schemas beyond it, records
written with another schema, and finding out which record of a batch is bad and why. A reader is a tree of
closures, compiled once for a pair of schemas (Schema Resolution, Avro specification 1.12).

What it refuses, however large the numbers in the bytes are, it refuses after reading no more than is there.
Beyond the specification it refuses records nested more than DEPTH_MAX times in themselves, and more than
NOTHINGS_MAX items of a type that takes no bytes.
"""

import datetime as dt
import json
import struct
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any

from avro.compatibility import lookup_writer_field, schema_name_equals
from avro.schema import Schema

from pipeline.codec.defaults import INT_MAX, INT_MIN, default_branch, default_value
from pipeline.codec.schemas import (
    RECORDS,
    decimal_digits,
    logical_type,
    member,
    non_null_branches,
    schema_incompatibilities,
)
from pipeline.errors import SchemaError
from pipeline.records import Reason

#: Each level costs two Python frames of the thousand that the interpreter allows by default.
DEPTH_MAX = 100
#: A list of them costs 8 bytes each: 80 kB a record at most, from any number of bytes.
NOTHINGS_MAX = 10_000
#: Names of a longer path to a field are left out of messages.
PATH_SHOWN = 6

_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")
_MAX_64 = (1 << 64) - 1
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_LOCAL = dt.datetime(1970, 1, 1)  # noqa: DTZ001 (a local timestamp has no zone)
_EPOCH_DATE = dt.date(1970, 1, 1)


class Malformed(Exception):  # noqa: N818 (a finding about a record, never raised out of this room)
    """The bytes are no record of the schema; the message says in which field, why, and at which byte."""

    def __init__(self, what: str, reason: Reason = Reason.UNDECODABLE) -> None:
        super().__init__(what)
        self.what = what
        self.reason = reason
        self.path: list[str] = []

    def __str__(self) -> str:
        if not self.path:
            return self.what
        path = self.path if len(self.path) <= PATH_SHOWN else [*self.path[:3], "...", self.path[-1]]
        return f"field {'.'.join(path)}: {self.what}"


class As(Enum):
    """What values a reader yields."""

    #: As a stock consumer gives them: datetime, Decimal, UUID; maps as dicts.
    OBJECTS = "objects"
    #: As `pyarrow.array` takes them for the types of `schemas.arrow_type`.
    ARROW = "arrow"
    #: For JSON: bytes as text of the code points 0 to 255, logical types as the numbers beneath them.
    JSON = "json"


class _Cursor:
    """Where a read is in its record."""

    __slots__ = ("data", "depth", "end", "nothings", "pos")

    def __init__(self, data: bytes, pos: int) -> None:
        self.data = data
        self.pos = pos
        self.end = len(data)
        self.depth = 0
        self.nothings = NOTHINGS_MAX

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes; the position before."""
        pos = self.pos
        if size < 0:
            raise Malformed(f"the length of a {what} is negative ({size})")
        if size > self.end - pos:
            raise Malformed(f"ends at byte {self.end}, inside a {what} of {size} bytes from byte {pos}")
        self.pos = pos + size
        return pos


_Read = Callable[[_Cursor], Any]


class RowReader:
    """Reads records of schema `writer` as records of schema `reader`.

    Raises SchemaError when the two are incompatible.
    """

    def __init__(self, writer: Schema, reader: Schema, yields: As) -> None:
        if found := schema_incompatibilities(reader, writer):
            raise SchemaError("; ".join(found))
        try:
            self._read = _Compiler(yields).compile(writer, reader)
        except RecursionError:
            raise SchemaError("the schema is nested too deeply") from None

    def read(self, data: bytes, start: int = 0) -> Any:
        """The record that `data` holds from byte `start` to its end. Raises Malformed."""
        cursor = _Cursor(data, start)
        try:
            value = self._read(cursor)
        except RecursionError:
            raise Malformed("nested too deeply") from None
        if cursor.pos != cursor.end:
            left = cursor.end - cursor.pos
            raise Malformed(
                f"{left} byte{'s' * (left > 1)} too many: the record ends at byte {cursor.pos} of {cursor.end}",
                Reason.TRAILING_BYTES,
            )
        return value


# --------------------------------------------------------------------------- primitives


def _long(cursor: _Cursor) -> int:
    data, pos = cursor.data, cursor.pos
    value = shift = 0
    try:
        while True:
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise Malformed(f"an integer of more than 10 bytes at byte {cursor.pos}")
    except IndexError:
        raise Malformed(f"ends at byte {cursor.end}, where an integer should be or go on") from None
    if value > _MAX_64:
        raise Malformed(f"an integer of more than 64 bits at byte {cursor.pos}")
    cursor.pos = pos
    return (value >> 1) ^ -(value & 1)


def _int(cursor: _Cursor) -> int:
    start = cursor.pos
    value = _long(cursor)
    if not INT_MIN <= value <= INT_MAX:
        raise Malformed(f"{value} at byte {start} is beyond an int of 32 bits")
    return value


def _null(_: _Cursor) -> None:
    return None


def _boolean(cursor: _Cursor) -> bool:
    byte = cursor.data[cursor.take(1, "boolean")]
    if byte > 1:
        raise Malformed(f"{byte} at byte {cursor.pos - 1} is no boolean")
    return byte == 1


def _float(cursor: _Cursor) -> float:
    value: float = _FLOAT.unpack_from(cursor.data, cursor.take(4, "float"))[0]
    return value


def _double(cursor: _Cursor) -> float:
    value: float = _DOUBLE.unpack_from(cursor.data, cursor.take(8, "double"))[0]
    return value


def _bytes(cursor: _Cursor) -> bytes:
    start = cursor.take(_long(cursor), "value")
    return cursor.data[start : cursor.pos]


def _string(cursor: _Cursor) -> str:
    start = cursor.take(_long(cursor), "string")
    try:
        return cursor.data[start : cursor.pos].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"a string is no UTF-8 at byte {start + error.start}") from None


def _fixed(size: int) -> _Read:
    def read(cursor: _Cursor) -> bytes:
        start = cursor.take(size, "fixed")
        return cursor.data[start : cursor.pos]

    return read


_PRIMITIVES: dict[str, _Read] = {
    "null": _null,
    "boolean": _boolean,
    "int": _int,
    "long": _long,
    "float": _float,
    "double": _double,
    "bytes": _bytes,
    "string": _string,
}


def _then(read: _Read, convert: Callable[[Any], Any]) -> _Read:
    return lambda cursor: convert(read(cursor))


# --------------------------------------------------------------------------- schema resolution


class _Compiler:
    """Makes the closures of one pair of schemas."""

    def __init__(self, yields: As) -> None:
        self._yields = yields
        #: Readers of pairs of records, by identity; None while one is being made.
        self._records: dict[tuple[int, int], _Read | None] = {}
        #: Names of the reader's records around the place being compiled: those a column cannot hold again.
        self._inside: list[str] = []

    def compile(self, writer: Schema, reader: Schema) -> _Read:  # noqa: PLR0911 (one return a kind of type)
        """A reader of compatible schemas. Raises SchemaError where they do not fit after all."""
        if writer.type == "union":
            return self._writer_union(writer, reader)
        if reader.type == "union":
            return self._reader_union(writer, reader)
        kind = reader.type
        if kind in RECORDS and writer.type in RECORDS:
            return self._record(writer, reader)
        if kind == "array" and writer.type == "array":
            return _array(self.compile(writer.items, reader.items), takes_nothing=takes_nothing(writer.items))
        if kind == "map" and writer.type == "map":
            return self._map(writer, reader)
        if kind == "enum" and writer.type == "enum":
            return _enum(writer, reader)
        if kind == "fixed" and writer.type == "fixed" and writer.size == reader.size:
            return self._with_logical(_fixed(writer.size), reader)
        return self._with_logical(_primitive(writer, reader), reader)

    def _writer_union(self, writer: Schema, reader: Schema) -> _Read:
        branches = [self.compile(branch, reader) for branch in writer.schemas]

        def read(cursor: _Cursor) -> Any:
            start = cursor.pos
            index = _long(cursor)
            if not 0 <= index < len(branches):
                raise Malformed(f"branch {index} at byte {start} of a union that has {len(branches)}")
            return branches[index](cursor)

        return read

    def _reader_union(self, writer: Schema, reader: Schema) -> _Read:
        """Take the branch of the same type and name, as Java does, else the first that the value can be made."""
        fits = [branch for branch in reader.schemas if not schema_incompatibilities(branch, writer)]
        if not fits:
            raise SchemaError(f"no branch of the union takes {writer.type}")
        branch = next((b for b in fits if b.type == writer.type), fits[0])
        read = self.compile(writer, branch)
        others = non_null_branches(reader)
        if self._yields is not As.ARROW or branch.type == "null" or len(others) < 2:
            return read
        name = member(next(i for i, other in enumerate(others) if other is branch))
        return lambda cursor: {name: read(cursor)}

    def _map(self, writer: Schema, reader: Schema) -> _Read:
        value = self.compile(writer.values, reader.values)

        def pair(cursor: _Cursor) -> tuple[str, Any]:
            return _string(cursor), value(cursor)

        pairs = _array(pair, takes_nothing=False)
        return pairs if self._yields is As.ARROW else _then(pairs, dict)

    def _record(self, writer: Schema, reader: Schema) -> _Read:
        if self._yields is As.ARROW and reader.fullname in self._inside:
            # Arrow has no recursive types.
            return _then(_Compiler(As.JSON).compile(writer, reader), json.dumps)
        key = (id(writer), id(reader))
        if key in self._records:
            return self._again(key)
        if self._yields is not As.ARROW:  # there, what a record becomes depends on what is around it
            self._records[key] = None
        self._inside.append(reader.fullname)
        read = self._record_fields(writer, reader)
        self._inside.pop()
        if key in self._records:
            self._records[key] = read
        return read

    def _again(self, key: tuple[int, int]) -> _Read:
        """A record inside itself: found when it is needed, and not endlessly."""

        def read(cursor: _Cursor) -> Any:
            inner = self._records[key]
            assert inner is not None, "compiled before anything is read"
            if cursor.depth == DEPTH_MAX:
                raise Malformed(f"nested more than {DEPTH_MAX} deep at byte {cursor.pos}")
            cursor.depth += 1
            value = inner(cursor)
            cursor.depth -= 1
            return value

        return read

    def _record_fields(self, writer: Schema, reader: Schema) -> _Read:
        if not schema_name_equals(reader, writer):
            raise SchemaError(f"a {writer.fullname} is no {reader.fullname}")
        wanted: dict[str, Schema] = {}
        template: dict[str, Any] = {}
        for field in reader.fields:
            source = lookup_writer_field(writer, field)
            template[field.name] = None
            if source is not None:
                wanted[source.name] = field
            elif field.has_default:
                template[field.name] = self._default(field.type, field.default)
            else:
                raise SchemaError(f"field {field.name!r} is not in the writer's schema and has no default")
        steps: list[tuple[str, _Read, bool]] = []
        for source in writer.fields:
            target = wanted.get(source.name)
            if target is None:
                steps.append((source.name, _Compiler(As.JSON).compile(source.type, source.type), False))
            else:
                steps.append((target.name, self.compile(source.type, target.type), True))
        return _record(template, steps)

    def _default(self, schema: Schema, default: Any) -> Any:  # noqa: PLR0911 (one return a kind of type)
        """A default as this compiler's readers yield values."""
        if schema.type == "union":
            branch, others = default_branch(schema, default), non_null_branches(schema)
            value = self._default(branch, default)
            if self._yields is not As.ARROW or branch.type == "null" or len(others) < 2:
                return value
            return {member(next(i for i, other in enumerate(others) if other is branch)): value}
        if schema.type in RECORDS:
            if self._yields is As.ARROW and schema.fullname in self._inside:
                return json.dumps(_Compiler(As.JSON)._default(schema, default))  # noqa: SLF001
            self._inside.append(schema.fullname)
            values = {f.name: self._default(f.type, default.get(f.name, f.default)) for f in schema.fields}
            self._inside.pop()
            return values
        if schema.type == "array":
            return [self._default(schema.items, item) for item in default]
        if schema.type == "map":
            pairs = [(key, self._default(schema.values, value)) for key, value in default.items()]
            return pairs if self._yields is As.ARROW else dict(pairs)
        convert = _logical(schema, self._yields)
        value = default_value(schema, default)
        return convert(value) if convert else value

    def _with_logical(self, read: _Read, schema: Schema) -> _Read:
        convert = _logical(schema, self._yields)
        return _then(read, convert) if convert else read


def default_for_column(schema: Schema, default: Any, record: str) -> Any:
    """The default of a field of the record named `record` (in full), as `pyarrow.array` takes it."""
    compiler = _Compiler(As.ARROW)
    compiler._inside.append(record)  # noqa: SLF001 (a function of this module)
    return compiler._default(schema, default)  # noqa: SLF001


def _record(template: dict[str, Any], steps: list[tuple[str, _Read, bool]]) -> _Read:
    """`template` with the values of the steps that are wanted: name, reader, whether it is."""

    def read(cursor: _Cursor) -> dict[str, Any]:
        record = template.copy()
        name = ""
        try:
            for name, read_field, is_wanted in steps:
                value = read_field(cursor)
                if is_wanted:
                    record[name] = value
        except Malformed as malformed:
            malformed.path.insert(0, name)
            raise
        return record

    return read


def takes_nothing(schema: Schema, inside: tuple[str, ...] = ()) -> bool:
    """Whether every value of `schema` is written as no bytes at all."""
    if schema.type == "fixed":
        return bool(schema.size == 0)
    if schema.type in RECORDS:
        # A record that must contain itself never ends: not a case of nothing.
        return schema.fullname not in inside and all(
            takes_nothing(field.type, (*inside, schema.fullname)) for field in schema.fields
        )
    return bool(schema.type == "null")


def _array(item: _Read, *, takes_nothing: bool) -> _Read:
    def read(cursor: _Cursor) -> list[Any]:
        items: list[Any] = []
        while True:
            start = cursor.pos
            count = _long(cursor)
            if count == 0:
                return items
            if count < 0:
                count = -count
                _long(cursor)  # the size in bytes, for those who skip
            if takes_nothing:
                cursor.nothings -= count
                if cursor.nothings < 0:
                    raise Malformed(f"{count} items without content at byte {start}; {NOTHINGS_MAX} are allowed")
            elif count > cursor.end - cursor.pos:
                raise Malformed(f"{count} items at byte {start}, but only {cursor.end - cursor.pos} bytes follow")
            items.extend([item(cursor) for _ in range(count)])

    return read


def _enum(writer: Schema, reader: Schema) -> _Read:
    fallback = reader.get_prop("default")
    symbols = [s if s in reader.symbols else fallback for s in writer.symbols]

    def read(cursor: _Cursor) -> Any:
        start = cursor.pos
        index = _long(cursor)
        if not 0 <= index < len(symbols):
            raise Malformed(f"symbol {index} at byte {start} of an enum that has {len(symbols)}")
        return symbols[index]

    return read


def _primitive(writer: Schema, reader: Schema) -> _Read:
    promotion = (writer.type, reader.type)
    read = _PRIMITIVES.get(writer.type)
    if read is None or reader.type not in _PRIMITIVES:
        raise SchemaError(f"{writer.type} cannot be read as {reader.type}")
    if reader.type in {"float", "double"} and writer.type in {"int", "long"}:
        return _then(read, float)
    if promotion == ("string", "bytes"):
        return _then(read, str.encode)
    if promotion == ("bytes", "string"):
        return _string
    return read


# --------------------------------------------------------------------------- logical types


def _logical(schema: Schema, yields: As) -> Callable[[Any], Any] | None:
    """What turns a value into the one that its logical type means; None where it stays as it is."""
    if yields is As.JSON:
        return _as_text if schema.type in {"bytes", "fixed"} else None
    if digits := decimal_digits(schema):
        return _decimals(*digits)
    if yields is As.ARROW:
        return None
    return _OBJECTS.get((schema.type, logical_type(schema)))


def _as_text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _decimals(precision: int, scale: int) -> Callable[[bytes], Decimal]:
    limit = 10**precision

    def convert(raw: bytes) -> Decimal:
        unscaled = int.from_bytes(raw, "big", signed=True)
        if abs(unscaled) >= limit:
            raise Malformed(f"a decimal of more than {precision} digits")
        digits = tuple(map(int, str(abs(unscaled))))
        return Decimal((int(unscaled < 0), digits, -scale))

    return convert


def _moment(epoch: dt.datetime, unit: str) -> Callable[[int], dt.datetime]:
    def convert(value: int) -> dt.datetime:
        try:
            return epoch + dt.timedelta(**{unit: value})
        except OverflowError:
            raise Malformed(f"{value} {unit} since 1970 are beyond the years 1 to 9999") from None

    return convert


def _date(days: int) -> dt.date:
    try:
        return _EPOCH_DATE + dt.timedelta(days=days)
    except OverflowError:
        raise Malformed(f"{days} days since 1970 are beyond the years 1 to 9999") from None


def _time_of_day(unit: str) -> Callable[[int], dt.time]:
    def convert(value: int) -> dt.time:
        if not dt.timedelta(0) <= (since := dt.timedelta(**{unit: value})) < dt.timedelta(days=1):
            raise Malformed(f"{value} {unit} are no time of the day")
        return (_EPOCH_LOCAL + since).time()

    return convert


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise Malformed(f"{text[:50]!r} is no UUID") from None


_OBJECTS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("int", "date"): _date,
    ("int", "time-millis"): _time_of_day("milliseconds"),
    ("long", "time-micros"): _time_of_day("microseconds"),
    ("long", "timestamp-millis"): _moment(_EPOCH, "milliseconds"),
    ("long", "timestamp-micros"): _moment(_EPOCH, "microseconds"),
    ("long", "local-timestamp-millis"): _moment(_EPOCH_LOCAL, "milliseconds"),
    ("long", "local-timestamp-micros"): _moment(_EPOCH_LOCAL, "microseconds"),
    ("string", "uuid"): _uuid,
}
