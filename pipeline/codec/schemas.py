"""Avro schemas: parsing, canonical form, compatibility, and the Arrow columns a schema becomes.

`avro`, the reference implementation, is the judge of what a schema is and of what fits what.
"""

import functools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import avro.errors
import avro.schema
import pyarrow as pa
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import Schema

from pipeline.codec.defaults import default_value
from pipeline.errors import SchemaError

SCHEMAS_DIR = Path(__file__).parent.parent / "schemas"
PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
RECORDS = frozenset({"record", "error"})
#: Digits that Arrow's two decimal types hold.
DECIMAL128_DIGITS, DECIMAL256_DIGITS = 38, 76

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ARROW_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_ARROW_LOGICAL = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", tz="UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", tz="UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", tz="UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Schema:
    """The parsed schema. Raises SchemaError for anything but a valid Avro schema whose defaults fit their types."""
    try:
        with warnings.catch_warnings():
            # An unknown logical type is to be ignored, says the specification.
            warnings.simplefilter("ignore")
            schema = avro.schema.parse(text)
        _check_fields(schema)
    except RecursionError:
        raise SchemaError("not a valid Avro schema: nested too deeply") from None
    except (avro.errors.AvroException, ValueError, TypeError, AttributeError, KeyError) as error:
        raise SchemaError(f"not a valid Avro schema: {_one_line(error)}") from None
    return schema


def parse_record(text: str) -> Schema:
    """As `parse`. Raises SchemaError for a schema that is no record: only those have columns."""
    schema = parse(text)
    if schema.type not in RECORDS:
        raise SchemaError(f"the schema of a topic must be a record, not {schema.type}")
    return schema


def load_schema(name: str) -> str:
    """Avro JSON of a schema of this package: "prediction", "batch-summary" or "retraining-trigger"."""
    path = SCHEMAS_DIR / f"{name}.avsc"
    try:
        return path.read_text("utf-8")
    except OSError:
        raise SchemaError(f"{path}: this package has no schema {name!r}; install it again") from None


def canonical_form(text: str) -> str:
    """Parsing Canonical Form of the Avro specification: the same for schemas that write the same bytes."""
    return str(parse(json.dumps(_without_attributes(json.loads(str(parse(text)))))).canonical_form)


def fingerprint(text: str) -> str:
    """SHA-256 of the canonical form, as hex."""
    return str(parse(canonical_form(text)).fingerprint("sha256").hex())


def incompatibilities(reader: str, writer: str) -> list[str]:
    """One line per reason why data written with `writer` cannot be read with `reader`; empty if it can."""
    return schema_incompatibilities(parse(reader), parse(writer))


def schema_incompatibilities(reader: Schema, writer: Schema) -> list[str]:
    """As `incompatibilities`, of parsed schemas."""
    result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    if result.compatibility is not SchemaCompatibilityType.incompatible:
        return []
    kinds = ", ".join(sorted({str(kind.value).replace("_", " ") for kind in result.incompatibilities}))
    where = ", ".join(sorted(result.locations))
    what = "; ".join(sorted(str(message) for message in result.messages))
    return [f"{kinds} at {where}: {what}"]


# --------------------------------------------------------------------------- Arrow


def arrow_schema(reader_schema: str) -> pa.Schema:
    """Columns that records read with `reader_schema` become: what `ColumnarDecoder.decode` yields.

    Numbers, strings, enums (as strings), bytes, fixed, arrays, maps and records become what one expects; dates,
    times and timestamps (UTC) their Arrow types. A union of null and one type is that type, nullable; any other
    union is a struct of nullable fields member0, member1, ..., one a branch that is not null, as in Spark. Where
    a record contains itself, the inner one is a string of JSON. Raises SchemaError for a schema that is no record.
    """
    return columns_of(parse_record(reader_schema))


def columns_of(record: Schema) -> pa.Schema:
    """The Arrow schema of a parsed record."""
    return pa.schema(
        [
            pa.field(field.name, arrow_type(field.type, (record.fullname,)), nullable=is_nullable(field.type))
            for field in record.fields
        ]
    )


def arrow_type(  # noqa: C901, PLR0911 (one rule a kind of type)
    schema: Schema, inside: tuple[str, ...] = ()
) -> pa.DataType:
    """The Arrow type of a value of `schema` within the records named `inside`."""
    kind = schema.type
    if kind == "union":
        branches = non_null_branches(schema)
        if not branches:
            return pa.null()
        if len(branches) == 1:
            return arrow_type(branches[0], inside)
        return pa.struct([(member(i), arrow_type(branch, inside)) for i, branch in enumerate(branches)])
    if kind in RECORDS:
        if schema.fullname in inside:
            return pa.string()
        return pa.struct([(f.name, arrow_type(f.type, (*inside, schema.fullname))) for f in schema.fields])
    if kind == "array":
        return pa.list_(arrow_type(schema.items, inside))
    if kind == "map":
        return pa.map_(pa.string(), arrow_type(schema.values, inside))
    if kind == "enum":
        return pa.string()
    if digits := decimal_digits(schema):
        precision, scale = digits
        return pa.decimal128(precision, scale) if precision <= DECIMAL128_DIGITS else pa.decimal256(precision, scale)
    if kind == "fixed":
        return pa.binary(schema.size)
    return _ARROW_LOGICAL.get((kind, logical_type(schema)), _ARROW_PRIMITIVES[kind])


def non_null_branches(union: Schema) -> list[Schema]:
    """The branches of a union that hold something."""
    return [branch for branch in union.schemas if branch.type != "null"]


def is_nullable(schema: Schema) -> bool:
    """Whether a value of `schema` can be null."""
    return schema.type == "null" or (schema.type == "union" and any(b.type == "null" for b in schema.schemas))


def member(branch: int) -> str:
    """Field of the struct that a union of several types becomes."""
    return f"member{branch}"


def logical_type(schema: Schema) -> str:
    """The "logicalType" attribute of a schema, "" if it has none."""
    return str(schema.get_prop("logicalType") or "")


def decimal_digits(schema: Schema) -> tuple[int, int] | None:
    """Precision and scale of a valid decimal that Arrow can hold, else None: it is then plain bytes, as specified."""
    if schema.type not in {"bytes", "fixed"} or logical_type(schema) != "decimal":
        return None
    precision, scale = schema.get_prop("precision"), schema.get_prop("scale") or 0
    if not isinstance(precision, int) or not isinstance(scale, int):
        return None
    return (precision, scale) if 0 <= scale <= precision <= DECIMAL256_DIGITS and precision > 0 else None


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


# --------------------------------------------------------------------------- helpers


def _check_fields(schema: Schema, seen: set[str] | None = None) -> None:
    """Raise ValueError for the first field with what `avro` lets pass: no Avro name, or a default of another type."""
    seen = set() if seen is None else seen
    if schema.type == "union":
        if not schema.schemas:
            raise ValueError("a union of no types: nothing can be of it")
        for branch in schema.schemas:
            _check_fields(branch, seen)
    elif schema.type in {"array", "map"}:
        _check_fields(schema.items if schema.type == "array" else schema.values, seen)
    elif schema.type in RECORDS and schema.fullname not in seen:
        seen.add(schema.fullname)
        for field in schema.fields:
            if not _NAME.fullmatch(field.name):
                raise ValueError(f"field {field.name!r}: not a name of letters, digits and _")
            _check_fields(field.type, seen)
            if field.has_default:
                try:
                    default_value(field.type, field.default)
                except ValueError as error:
                    raise ValueError(f"default of field {field.name!r}: {error}") from None


def _without_attributes(schema: Any) -> Any:
    """JSON in which primitive types are plain names: `avro` leaves {"type": "long"} where attributes stood."""
    if isinstance(schema, list):
        return [_without_attributes(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    if schema["type"] in PRIMITIVES:
        return schema["type"]
    # What is left of a logical type would be reported as unknown.
    kept = {key: value for key, value in schema.items() if key not in {"logicalType", "precision", "scale"}}
    for key in ("items", "values"):
        if key in kept:
            kept[key] = _without_attributes(kept[key])
    if "fields" in kept:
        kept["fields"] = [
            {"name": field["name"], "type": _without_attributes(field["type"])} for field in kept["fields"]
        ]
    return kept


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
