"""Generated Avro schemas with values of them, and `avro` as the judge of bytes."""

import datetime as dt
import io
import itertools
import json
import os
import struct
import warnings
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple
from unittest import mock

import avro.errors
import avro.io
import avro.schema
from hypothesis import strategies as st

from pipeline.codec.primitives import NOTHINGS_MAX

HEADER = b"\x00" + struct.pack(">I", 7)
UTC = dt.UTC
#: Fields a generated record may have; few, so that two records share some.
FIELD_NAMES = [f"f{i}" for i in range(6)]
LONG = st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 100)
#: What avro 1.12 raises, besides its own errors, for bytes that are no record.
AVRO_ERRORS = (avro.errors.AvroException, UnicodeDecodeError, struct.error, TypeError, EOFError, OverflowError)

MOMENTS = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))  # noqa: DTZ001 (the zone comes later)
PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1) | st.integers(-100, 100),
    "long": LONG,
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=80),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
}
LOGICAL: list[tuple[dict[str, Any], st.SearchStrategy[Any]]] = [
    ({"type": "int", "logicalType": "date"}, st.dates()),
    (
        {"type": "int", "logicalType": "time-millis"},
        st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)),
    ),
    ({"type": "long", "logicalType": "time-micros"}, st.times()),
    (
        {"type": "long", "logicalType": "timestamp-millis"},
        MOMENTS.map(lambda m: m.replace(microsecond=m.microsecond // 1000 * 1000, tzinfo=UTC)),
    ),
    ({"type": "long", "logicalType": "timestamp-micros"}, MOMENTS.map(lambda m: m.replace(tzinfo=UTC))),
    (
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        st.integers(-(10**9) + 1, 10**9 - 1).map(lambda n: Decimal(n).scaleb(-2)),
    ),
]


class Case(NamedTuple):
    """A type as JSON, and a strategy of its values as `avro` writes them."""

    schema: Any
    values: st.SearchStrategy[Any]


@st.composite
def types(  # noqa: PLR0911 (one return a kind of type)
    draw: st.DrawFn, names: Iterator[int], depth: int, *, logical: bool, unions: bool = True
) -> Case:
    """Any type at most `depth` deep."""
    kinds = ["primitive"] * 4 + ["enum", "fixed"] + ["logical"] * 2 * logical
    if depth:
        kinds += ["array", "map", "record", "record"] + ["nullable", "nullable", "union"] * unions
    kind = draw(st.sampled_from(kinds))
    if kind == "primitive":
        name = draw(st.sampled_from(sorted(PRIMITIVES)))
        return Case(name, PRIMITIVES[name])
    if kind == "logical":
        return Case(*draw(st.sampled_from(LOGICAL)))
    if kind == "enum":
        symbols = [f"S{i}" for i in range(draw(st.integers(1, 5)))]
        return Case({"type": "enum", "name": f"E{next(names)}", "symbols": symbols}, st.sampled_from(symbols))
    if kind == "fixed":
        size = draw(st.integers(1, 12))
        return Case({"type": "fixed", "name": f"F{next(names)}", "size": size}, st.binary(min_size=size, max_size=size))
    if kind == "record":
        return draw(records(names, depth - 1, logical=logical))
    if kind == "nullable":
        inner = draw(types(names, depth - 1, logical=logical, unions=False).filter(lambda case: case.schema != "null"))
        branches = draw(st.permutations(["null", inner.schema]))
        return Case(branches, st.none() | inner.values)
    if kind == "union":
        return draw(wide_unions(names))
    inner = draw(types(names, depth - 1, logical=logical))
    if kind == "array":
        return Case({"type": "array", "items": inner.schema}, st.lists(inner.values, max_size=4))
    return Case(
        {"type": "map", "values": inner.schema}, st.dictionaries(PRIMITIVES["string"], inner.values, max_size=3)
    )


@st.composite
def wide_unions(draw: st.DrawFn, names: Iterator[int]) -> Case:
    """Unions of types that no value can be two of (`avro` takes the first that fits)."""
    enum = {"type": "enum", "name": f"E{next(names)}", "symbols": ["A", "B"]}
    choices = [("null", "null"), ("boolean", "boolean"), ("long", "long"), ("bytes", "bytes"), ("string", "string")]
    picked = draw(st.lists(st.sampled_from(choices), min_size=1, max_size=4, unique=True))
    schemas: list[Any] = [schema for schema, _ in picked]
    values = [PRIMITIVES[name] for _, name in picked]
    if "string" not in schemas and draw(st.booleans()):
        schemas.append(enum)
        values.append(st.sampled_from(["A", "B"]))
    return Case(schemas, st.one_of(values))


@st.composite
def records(draw: st.DrawFn, names: Iterator[int], depth: int, *, logical: bool, least: int = 0) -> Case:
    """Records of up to six fields."""
    fields = draw(st.lists(st.sampled_from(FIELD_NAMES), min_size=least, max_size=6, unique=True))
    cases = {name: draw(types(names, depth, logical=logical)) for name in fields}
    schema = {
        "type": "record",
        "name": f"R{next(names)}",
        "fields": [{"name": name, "type": case.schema} for name, case in cases.items()],
    }
    return Case(schema, st.fixed_dictionaries({name: case.values for name, case in cases.items()}))


@st.composite
def events(draw: st.DrawFn, *, logical: bool = True, records_max: int = 12) -> tuple[str, list[dict[str, Any]]]:
    """A record schema and values of it."""
    case = draw(records(itertools.count(), 2, logical=logical, least=1))
    return json.dumps(case.schema), draw(st.lists(case.values, min_size=1, max_size=records_max))


# --------------------------------------------------------------------------- the judge


def parse(schema: str) -> avro.schema.Schema:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return avro.schema.parse(schema)


def write(schema: str, value: Any) -> bytes:
    """The body that `avro` makes."""
    out = io.BytesIO()
    avro.io.DatumWriter(parse(schema)).write(value, avro.io.BinaryEncoder(out))
    return out.getvalue()


class StrictDecoder(avro.io.BinaryDecoder):
    """`avro`, but to the letter of the specification in two places where it is generous."""

    def read_boolean(self) -> bool:
        byte = self.read(1)
        if byte not in {b"\x00", b"\x01"}:
            raise avro.errors.InvalidAvroBinaryEncoding("a boolean is 0 or 1")
        return byte == b"\x01"

    def read_int(self) -> int:
        value = self.read_long()
        if not -(2**31) <= value < 2**31:
            raise avro.errors.InvalidAvroBinaryEncoding("an int has 32 bits")
        return value


def read(schema: str, body: bytes, reader: str | None = None) -> Any:
    """What `avro` reads of all of `body`; raises one of AVRO_ERRORS, also for bytes left over."""
    source = io.BytesIO(body)
    # Of items without content `avro` allows 10 million a record, and makes them: ours is the smaller limit.
    with mock.patch.dict(os.environ, {avro.io.MAX_COLLECTION_ITEMS_ENV: str(NOTHINGS_MAX)}):
        value = avro.io.DatumReader(parse(schema), parse(reader or schema)).read(StrictDecoder(source))
    if source.read(1):
        raise avro.errors.InvalidAvroBinaryEncoding("bytes are left over")
    return value


def plain(value: Any, schema: Any) -> Any:  # noqa: PLR0911 (one return a kind of type)
    """A value of an Arrow column as `avro` gives it: unions without their struct, maps as dicts."""
    if isinstance(schema, list):
        others = [branch for branch in schema if branch != "null"]
        if value is None or not others:
            return None
        if len(others) == 1:
            return plain(value, others[0])
        (at, inner) = next((i, value[f"member{i}"]) for i in range(len(others)) if value[f"member{i}"] is not None)
        return plain(inner, others[at])
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return {field["name"]: plain(value[field["name"]], field["type"]) for field in schema["fields"]}
    if kind == "array":
        return [plain(item, schema["items"]) for item in value]
    if kind == "map":
        return {key: plain(item, schema["values"]) for key, item in value}
    return value
