"""Default values of Avro fields, from their JSON."""

import math
from typing import Any

from avro.schema import Schema

INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
LONG_MIN, LONG_MAX = -(1 << 63), (1 << 63) - 1


def default_value(schema: Schema, json: Any) -> Any:
    """The value that the JSON of a default stands for: bytes and fixed are text of the code points 0 to 255.

    A union takes the first of its branches that fits (any may, since Avro 1.12). Raises ValueError if none does.
    """
    kind = schema.type
    if kind == "union":
        return _of_union(schema, json)[1]
    if kind in {"record", "error"}:
        return _of_record(schema, json)
    if kind == "array" and isinstance(json, list):
        return [default_value(schema.items, item) for item in json]
    if kind == "map" and isinstance(json, dict):
        return {key: default_value(schema.values, value) for key, value in json.items()}
    return _of_scalar(schema, json)


def default_branch(union: Schema, json: Any) -> Schema:
    """The branch of `union` that `default_value` takes."""
    branch: Schema = _of_union(union, json)[0]
    return branch


def _of_union(union: Schema, json: Any) -> tuple[Schema, Any]:
    for branch in union.schemas:
        try:
            return branch, default_value(branch, json)
        except ValueError:
            continue
    raise ValueError(f"{json!r} fits no branch of the union")


def _of_record(schema: Schema, json: Any) -> dict[str, Any]:
    if not isinstance(json, dict):
        raise ValueError(f"{json!r} is no {schema.name}")  # noqa: TRY004 (a value, not an argument)
    value = {}
    for field in schema.fields:
        if field.name not in json and not field.has_default:
            raise ValueError(f"{schema.name} lacks {field.name!r}")
        value[field.name] = default_value(field.type, json.get(field.name, field.default))
    return value


def _of_scalar(schema: Schema, json: Any) -> Any:
    kind = schema.type
    number = isinstance(json, int | float) and not isinstance(json, bool)
    if kind == "null" and json is None:
        return None
    if kind == "boolean" and isinstance(json, bool):
        return json
    if kind in {"int", "long"} and number and math.isfinite(json) and int(json) == json:
        low, high = (INT_MIN, INT_MAX) if kind == "int" else (LONG_MIN, LONG_MAX)
        if low <= json <= high:
            return int(json)
    # The words are no JSON numbers, but Java reads and writes them.
    if kind in {"float", "double"} and (number or json in ("NaN", "Infinity", "-Infinity")):
        return float(json)
    if isinstance(json, str) and (kind == "string" or (kind == "enum" and json in schema.symbols)):
        return json
    if isinstance(json, str) and kind in {"bytes", "fixed"}:
        raw = json.encode("latin-1", "strict")
        if kind == "bytes" or len(raw) == schema.size:
            return raw
    raise ValueError(f"{json!r} is no {kind}")
