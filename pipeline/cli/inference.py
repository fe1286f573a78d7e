"""What the columns of a stranger's table are to be: id, time, label, features; the event schema that follows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cli.events import COLUMN_ATTRIBUTE, avro_names, to_timestamps
from pipeline.errors import DataError

ID_FIELD, TIME_FIELD = "id", "time"
#: Text that differs in more than half of the rows, and in more values than a vocabulary is good for, is a
#: name, an identifier or prose: a model of categories would learn it by heart.
IDENTIFIER_SHARE, IDENTIFIER_COUNT = 0.5, 100


@dataclass(frozen=True)
class Columns:
    """The columns a person named."""

    label: str
    time: str | None = None
    id: str | None = None
    key: str | None = None
    drop: Sequence[str] = ()

    def named(self) -> dict[str, str]:
        """Flag -> column."""
        given = {"--label": self.label, "--time": self.time, "--id": self.id, "--key": self.key}
        return {flag: column for flag, column in given.items() if column is not None}


@dataclass
class Layout:
    """What was inferred."""

    #: Column -> (Avro field, Avro type, whether null occurs), features only.
    features: dict[str, tuple[str, str, bool]] = field(default_factory=dict)
    #: Column -> why it is no feature.
    left_out: dict[str, str] = field(default_factory=dict)
    key_field: str | None = None
    schema: dict[str, Any] = field(default_factory=dict)


def infer(table: pa.Table, columns: Columns, name: str) -> Layout:
    """Roles and types of all columns. Raises DataError, a line for each thing that cannot be."""
    _check_columns(table, columns)
    roles = {column: f"given as {flag}" for flag, column in columns.named().items()}
    roles |= dict.fromkeys(columns.drop, "given as --drop")
    names = avro_names([c for c in table.column_names if c != columns.label], (ID_FIELD, TIME_FIELD))
    layout = Layout()
    for column in table.column_names:
        avro_type, why = (None, roles[column]) if column in roles else _type(table.column(column))
        if avro_type is None:
            layout.left_out[column] = why
        else:
            layout.features[column] = (names[column], avro_type, table.column(column).null_count > 0)
    if not layout.features:
        raise DataError("no column is left for a feature: " + _listed(layout.left_out))
    fields = [_id(columns), _time(columns, table)]
    if columns.key is not None and columns.key != columns.id:
        if columns.key == columns.time:
            layout.key_field = TIME_FIELD
        else:
            layout.key_field = names[columns.key]
            optional = table.column(columns.key).null_count > 0
            fields.append(_field(names[columns.key], columns.key, "string", optional))
    fields += [_field(avro, column, kind, null) for column, (avro, kind, null) in layout.features.items()]
    record = re.sub(r"\W", "_", name.title().replace("-", ""), flags=re.ASCII)
    record = record if not record[0].isdigit() else f"_{record}"
    layout.schema = {"type": "record", "name": f"{record}Event", "namespace": "events.v1", "fields": fields}
    return layout


def _check_columns(table: pa.Table, columns: Columns) -> None:
    there = table.column_names
    problems = []
    for flag, column in [*columns.named().items(), *(("--drop", c) for c in columns.drop)]:
        if column not in there:
            close = get_close_matches(column, there, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(there)}"
            problems.append(f"{flag} {column}: no such column; {hint}")
    for flag, column in columns.named().items():
        if flag != "--label" and column == columns.label:
            problems.append(f"{flag} {column}: is the label, which is no part of an event")
    twice = sorted({c for c in there if there.count(c) > 1})
    problems += [f"column {c!r} is there twice; rename one" for c in twice]
    if table.num_rows == 0:
        problems.append("no rows")
    if problems:
        raise DataError("\n".join(problems))
    nulls = table.column(columns.label).null_count
    if nulls == table.num_rows:
        raise DataError(f"--label {columns.label}: the column is empty")
    if columns.id is not None and table.column(columns.id).null_count:
        raise DataError(f"--id {columns.id}: {table.column(columns.id).null_count:,} rows have none; leave out --id")
    if columns.time is not None:
        to_timestamps(table.column(columns.time).combine_chunks(), columns.time)


def _type(column: pa.ChunkedArray) -> tuple[str | None, str]:
    """Avro type of a feature, or None and why the column cannot be one."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_a = pa.types
    if column.null_count == len(column):
        return None, "empty"
    if is_a.is_string(kind) or is_a.is_large_string(kind):
        distinct = pc.count_distinct(column).as_py()
        if distinct > IDENTIFIER_COUNT and distinct > IDENTIFIER_SHARE * len(column):
            return None, f"text with {distinct:,} different values in {len(column):,} rows: an identifier or prose"
        return "string", ""
    for avro_type, fits in (
        ("boolean", is_a.is_boolean(kind)),
        ("double", is_a.is_uint64(kind) or is_a.is_floating(kind) or is_a.is_decimal(kind)),
        ("long", is_a.is_integer(kind)),
    ):
        if fits:
            return avro_type, ""
    if is_a.is_temporal(kind):
        return None, f"a time ({kind}); give it as --time, or make numbers of it"
    return None, f"{kind} columns need a bundle of your own"


def _field(name: str, column: str | None, kind: Any, optional: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "type": kind}
    if optional:
        made = {"name": name, "type": ["null", kind], "default": None}
    if column is not None and column != name:
        made[COLUMN_ATTRIBUTE] = column
    return made


def _id(columns: Columns) -> dict[str, Any]:
    doc = "Identifies the event." if columns.id else "row-<n>, counted from 0: the file has no id column."
    return {**_field(ID_FIELD, columns.id, "string", optional=False), "doc": doc}


def _time(columns: Columns, table: pa.Table) -> dict[str, Any]:
    optional = columns.time is not None and table.column(columns.time).null_count > 0
    doc = "When it happened." if columns.time else "When it was replayed: the file has no time column."
    kind = {"type": "long", "logicalType": "timestamp-millis"}
    return {**_field(TIME_FIELD, columns.time, kind, optional), "doc": doc}


def _listed(left_out: dict[str, str]) -> str:
    return "; ".join(f"{column}: {why}" for column, why in left_out.items())
