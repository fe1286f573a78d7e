"""Which columns of a file are which fields of the event, for `pipeline model train`."""

import json
from typing import Any

import pyarrow as pa

from pipeline.cli.context import say
from pipeline.cli.events import COLUMN_ATTRIBUTE, avro_names
from pipeline.cli.inference import Columns, infer
from pipeline.codec import event_schema
from pipeline.errors import DataError
from pipeline.retraining.features import Fields
from pipeline.settings import Settings

AVRO_FEATURES = frozenset({"double", "float", "long", "int", "boolean", "string", "enum"})
#: Types of which a slice can be: as slices.schema_faults has it.
AVRO_SLICES = AVRO_FEATURES - {"double", "float"}


def features_of(settings: Settings, rows: pa.Table, columns: Columns) -> tuple[Fields, str | None]:
    """Features as column -> (Avro field, type, nullable), and the column of the time."""
    schema_file = settings.path(settings.events.schema_file)
    inferred = infer(rows, columns, settings.name)  # also says which columns do not exist
    if not schema_file.exists():
        return inferred.features, columns.time
    schema = json.loads(event_schema(settings))
    if not isinstance(schema, dict) or "fields" not in schema:
        raise DataError(f"events.schema_file: {schema_file}: an event must be an Avro record")
    fields = {field["name"]: field for field in schema["fields"]}
    events = settings.events
    time = columns.time or (_column(fields.get(events.time_field or ""), rows))
    found: dict[str, tuple[str, str, bool]] = {}
    for name, field in fields.items():
        column = _column(field, rows)
        if name in (events.id_field, events.key_field, events.time_field) or column in (columns.label, *columns.drop):
            continue
        kind, nullable = _kind(field["type"])
        if kind not in AVRO_FEATURES:
            say(f"left out: {name}, {kind}: the built-in model takes numbers and text")
        elif column is None:
            say(f"left out: {name}: the file has no such column")
        else:
            found[column] = (name, "string" if kind == "enum" else kind, nullable)
    if not found:
        raise DataError(f"no column is a feature of {schema_file}")
    return found, time


def slices_of(settings: Settings, rows: pa.Table) -> Fields:
    """Slice fields of the settings that the file has, as columns like those of `features_of`; others are left out."""
    chosen = settings.events.slice_fields
    if not settings.path(settings.events.schema_file).exists():
        return {name: (name, "string", True) for name in chosen if name in rows.column_names}
    found = {}
    for field in json.loads(event_schema(settings))["fields"]:
        kind, nullable = _kind(field["type"])
        column = _column(field, rows)
        if field["name"] in chosen and column is not None and kind in AVRO_SLICES:
            found[column] = (field["name"], "string" if kind == "enum" else kind, nullable)
    return found


def _column(field: dict[str, Any] | None, rows: pa.Table) -> str | None:
    """The column of a file that an event field is filled from, as `pipeline replay` finds it."""
    if field is None:
        return None
    wanted = str(field.get(COLUMN_ATTRIBUTE, field["name"]))
    if wanted in rows.column_names:
        return wanted
    return next((column for column, name in avro_names(rows.column_names).items() if name == wanted), None)


def _kind(avro_type: Any) -> tuple[str, bool]:
    """The name of an Avro type, and whether it may be null; logical types are no plain features."""
    nullable = isinstance(avro_type, list) and "null" in avro_type
    if isinstance(avro_type, list):
        others = [branch for branch in avro_type if branch != "null"]
        avro_type = others[0] if len(others) == 1 else "union"
    if isinstance(avro_type, dict):
        avro_type = avro_type.get("logicalType", avro_type["type"])
    return str(avro_type), nullable
