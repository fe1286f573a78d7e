"""One Avro record, byte by byte: exact, bounded, and able to say what is wrong and where.

The columnar decoder (decoder.py) is for speed; this is for everything it cannot do: schemas beyond it, records
written with another schema, and finding out which record of a batch is bad and why. A reader is a tree of
closures, compiled once for a pair of schemas (Schema Resolution, Avro specification 1.12).

What it refuses, however large the numbers in the bytes are, it refuses after reading no more than is there.
It accepts what `avro` accepts, except, by the letter of the specification, a boolean that is neither 0 nor 1, an int
beyond 32 bits, a symbol beyond an enum that has a default, and a decimal of more digits than its precision; and, to be
bounded, records nested more than DEPTH_MAX times in themselves (`avro` ends at the interpreter's limit), and more than
NOTHINGS_MAX items of a type that takes no bytes (`avro`: 10 million).
"""

import json
from typing import Any

from avro.compatibility import lookup_writer_field, schema_name_equals
from avro.schema import Schema

from pipeline.codec.defaults import default_branch, default_value
from pipeline.codec.primitives import PRIMITIVES, Cursor, Read, blocks, read_fixed, read_long, read_string, then
from pipeline.codec.schemas import (
    RECORDS,
    member,
    non_null_branches,
    schema_incompatibilities,
    takes_nothing,
)
from pipeline.codec.values import As, Malformed, converter
from pipeline.errors import SchemaError
from pipeline.records import Reason

#: Each level costs two Python frames of the thousand that the interpreter allows by default.
DEPTH_MAX = 100


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
        cursor = Cursor(data, start)
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


# --------------------------------------------------------------------------- schema resolution


class _Compiler:
    """Makes the closures of one pair of schemas."""

    def __init__(self, yields: As) -> None:
        self._yields = yields
        #: Readers of pairs of records, by identity; None while one is being made.
        self._records: dict[tuple[int, int], Read | None] = {}
        #: Names of the reader's records around the place being compiled: those a column cannot hold again.
        self._inside: list[str] = []

    def compile(self, writer: Schema, reader: Schema) -> Read:  # noqa: PLR0911 (one return a kind of type)
        """A reader of compatible schemas. Raises SchemaError where they do not fit after all."""
        if writer.type == "union":
            return self._writer_union(writer, reader)
        if reader.type == "union":
            return self._reader_union(writer, reader)
        kind = reader.type
        if kind in RECORDS and writer.type in RECORDS:
            return self._record(writer, reader)
        if kind == "array" and writer.type == "array":
            return blocks(self.compile(writer.items, reader.items), takes_nothing=takes_nothing(writer.items))
        if kind == "map" and writer.type == "map":
            return self._map(writer, reader)
        if kind == "enum" and writer.type == "enum":
            return _enum(writer, reader)
        if kind == "fixed" and writer.type == "fixed" and writer.size == reader.size:
            return self._with_logical(read_fixed(writer.size), reader)
        return self._with_logical(_primitive(writer, reader), reader)

    def _writer_union(self, writer: Schema, reader: Schema) -> Read:
        branches = [self.compile(branch, reader) for branch in writer.schemas]

        def read(cursor: Cursor) -> Any:
            start = cursor.pos
            index = read_long(cursor)
            if not 0 <= index < len(branches):
                raise Malformed(f"branch {index} at byte {start} of a union that has {len(branches)}")
            return branches[index](cursor)

        return read

    def _reader_union(self, writer: Schema, reader: Schema) -> Read:
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

    def _map(self, writer: Schema, reader: Schema) -> Read:
        value = self.compile(writer.values, reader.values)

        def pair(cursor: Cursor) -> tuple[str, Any]:
            return read_string(cursor), value(cursor)

        pairs = blocks(pair, takes_nothing=False)
        return pairs if self._yields is As.ARROW else then(pairs, dict)

    def _record(self, writer: Schema, reader: Schema) -> Read:
        if self._yields is As.ARROW and reader.fullname in self._inside:
            # Arrow has no recursive types.
            return then(_Compiler(As.JSON).compile(writer, reader), json.dumps)
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

    def _again(self, key: tuple[int, int]) -> Read:
        """A record inside itself: found when it is needed, and not endlessly."""

        def read(cursor: Cursor) -> Any:
            inner = self._records[key]
            assert inner is not None, "compiled before anything is read"
            if cursor.depth == DEPTH_MAX:
                raise Malformed(f"nested more than {DEPTH_MAX} deep at byte {cursor.pos}")
            cursor.depth += 1
            value = inner(cursor)
            cursor.depth -= 1
            return value

        return read

    def _record_fields(self, writer: Schema, reader: Schema) -> Read:
        if not schema_name_equals(reader, writer):
            raise SchemaError(f"a {writer.fullname} is no {reader.fullname}")
        wanted: dict[str, Schema] = {}
        template: dict[str, Any] = {}
        for field in reader.fields:
            source = lookup_writer_field(writer, field)
            template[field.name] = None
            if source is not None and source.name in wanted:
                raise SchemaError(f"fields {wanted[source.name].name!r} and {field.name!r} are both {source.name!r}")
            if source is not None:
                wanted[source.name] = field
            elif field.has_default:
                template[field.name] = self._default(field.type, field.default)
            else:
                raise SchemaError(f"field {field.name!r} is not in the writer's schema and has no default")
        steps: list[tuple[str, Read, bool]] = []
        for source in writer.fields:
            target = wanted.get(source.name)
            if target is None:
                steps.append((source.name, _Compiler(As.JSON).compile(source.type, source.type), False))
            else:
                steps.append((target.name, self.compile(source.type, target.type), True))
        return _fields(template, steps)

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
        convert = converter(schema, self._yields)
        value = default_value(schema, default)
        return convert(value) if convert else value

    def _with_logical(self, read: Read, schema: Schema) -> Read:
        convert = converter(schema, self._yields)
        return then(read, convert) if convert else read


def default_for_column(schema: Schema, default: Any, record: str) -> Any:
    """The default of a field of the record named `record` (in full), as `pyarrow.array` takes it."""
    compiler = _Compiler(As.ARROW)
    compiler._inside.append(record)  # noqa: SLF001 (a function of this module)
    return compiler._default(schema, default)  # noqa: SLF001


def _fields(template: dict[str, Any], steps: list[tuple[str, Read, bool]]) -> Read:
    """`template` with the values of the steps that are wanted: name, reader, whether it is."""

    def read(cursor: Cursor) -> dict[str, Any]:
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


def _enum(writer: Schema, reader: Schema) -> Read:
    fallback = reader.get_prop("default")
    symbols = [s if s in reader.symbols else fallback for s in writer.symbols]

    def read(cursor: Cursor) -> Any:
        start = cursor.pos
        index = read_long(cursor)
        if not 0 <= index < len(symbols):
            raise Malformed(f"symbol {index} at byte {start} of an enum that has {len(symbols)}")
        return symbols[index]

    return read


def _primitive(writer: Schema, reader: Schema) -> Read:
    promotion = (writer.type, reader.type)
    read = PRIMITIVES.get(writer.type)
    if read is None or reader.type not in PRIMITIVES:
        raise SchemaError(f"{writer.type} cannot be read as {reader.type}")
    if reader.type in {"float", "double"} and writer.type in {"int", "long"}:
        return then(read, float)
    if promotion == ("string", "bytes"):
        return then(read, str.encode)
    if promotion == ("bytes", "string"):
        return read_string
    return read
