"""A feature contract beside the Avro schema of the events: what does not fit, one line each.

Works on the Avro JSON, so that a misfit is found before anything is decoded. The rules are those of
`scoring/fields.py`, which applies them to the decoded columns.
"""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from pipeline.records import Feature, FeatureContract

_NUMBERS = frozenset({"int", "long", "float", "double", "boolean"})
_CATEGORIES = frozenset({"string", "enum", "boolean", "int", "long"})
_ITEM_BYTES = {"float32": 4, "uint8": 1, "int16": 2}
#: Logical types that decode to moments, spans and identifiers of bytes: no numbers.
_TEMPORAL = ("timestamp-", "local-timestamp-", "time-", "date", "duration")


def misfits(contract: FeatureContract, schema_json: str) -> list[str]:
    """One line per feature that an event of this Avro schema cannot give; empty if all fit."""
    try:
        schema = json.loads(schema_json)
    except ValueError as error:
        return [f"the event schema is not JSON: {error}"]
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return ["the event schema is not an Avro record"]
    names: dict[str, Any] = {}
    _collect(schema, str(schema.get("namespace", "")), names)
    faults = []
    for feature in contract.features:
        found, fault = _find(schema, feature.name, names)
        fault = fault or _misfit(feature, found, names)
        if fault:
            faults.append(f"feature {feature.name}: {fault}")
    return faults


def _find(schema: Mapping[str, Any], name: str, names: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Type of the field at a path ("a.b" is field b of record a), or why there is none."""
    here: Any = schema
    for part in name.split("."):
        record = _one_type(here, names)
        if not isinstance(record, Mapping) or record.get("type") != "record":
            return None, f"the event schema has no record around {part!r}"
        fields = {f["name"]: f["type"] for f in record.get("fields", ())}
        if part not in fields:
            return None, f"the event schema has no field {part!r}; it has {', '.join(fields)}"
        here = fields[part]
    return here, None


def _misfit(feature: Feature, avro_type: Any, names: Mapping[str, Any]) -> str | None:
    kind = _one_type(avro_type, names)
    if isinstance(kind, list):
        branches = ", ".join(_shown(_one_type(branch, names)) for branch in kind)
        return f"a union of {branches} cannot be used; only of null and one type"
    if feature.kind == "number":
        fits = _is_number(kind)
    elif feature.kind == "category":
        fits = _name(kind) in _CATEGORIES and not _is_temporal(kind)
    elif feature.kind == "sequence":
        fits = _name(kind) == "array" and _is_number(_one_type(kind["items"], names))
    else:
        fits = _name(kind) in {"bytes", "fixed"} and _logical(kind) != "decimal"
        size = prod(feature.shape) * _ITEM_BYTES[feature.dtype]
        if fits and _name(kind) == "fixed" and kind["size"] != size:
            shape = "x".join(map(str, feature.shape))
            return f"a fixed of {kind['size']} bytes, but the model takes {size} ({shape} of {feature.dtype})"
    return None if fits else f"a field of type {_shown(kind)} cannot be used as {feature.kind}"


def _one_type(avro_type: Any, names: Mapping[str, Any]) -> Any:
    """A type with its name resolved and its null branch taken off; a list if several branches are left."""
    if isinstance(avro_type, list):
        others = [branch for branch in avro_type if _name(branch) != "null"]
        return _one_type(others[0], names) if len(others) == 1 else others or "null"
    if isinstance(avro_type, str):
        return names.get(avro_type, avro_type)
    if isinstance(avro_type, dict) and isinstance(avro_type.get("type"), dict | list):
        return _one_type(avro_type["type"], names)
    return avro_type


def _is_number(kind: Any) -> bool:
    if _logical(kind) == "decimal":
        return True
    return _name(kind) in _NUMBERS and not _is_temporal(kind)


def _is_temporal(kind: Any) -> bool:
    return str(_logical(kind)).startswith(_TEMPORAL)


def _logical(kind: Any) -> str | None:
    return kind.get("logicalType") if isinstance(kind, Mapping) else None


def _name(kind: Any) -> str:
    return str(kind.get("type")) if isinstance(kind, Mapping) else str(kind)


def _shown(kind: Any) -> str:
    logical = _logical(kind)
    return f"{logical} ({_name(kind)})" if logical else _name(kind)


def _collect(avro_type: Any, namespace: str, names: dict[str, Any]) -> None:
    """All named types by full name, and by short name where no other has it."""
    if isinstance(avro_type, list):
        for branch in avro_type:
            _collect(branch, namespace, names)
    if not isinstance(avro_type, dict):
        return
    if avro_type.get("type") in ("record", "enum", "fixed") and "name" in avro_type:
        name = str(avro_type["name"])
        namespace = name.rpartition(".")[0] if "." in name else str(avro_type.get("namespace", namespace))
        short = name.rpartition(".")[2]
        names.setdefault(f"{namespace}.{short}" if namespace else short, avro_type)
        names.setdefault(short, avro_type)
    for field in avro_type.get("fields", ()):
        _collect(field.get("type"), namespace, names)
    for inner in ("items", "values", "type"):
        _collect(avro_type.get(inner), namespace, names)
