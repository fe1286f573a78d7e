"""A CSV or Parquet file as an Arrow table."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.errors import DataError

PARQUET_MAGIC = b"PAR1"


def read(path: Path) -> pa.Table:
    """All rows of a file; Parquet if it begins so or is named so, CSV (also compressed: .gz, .bz2, .zst) otherwise.

    Types are those of the Parquet file, or what pyarrow makes of the text: integers, floats, Booleans, ISO 8601
    times, else strings. Empty cells and the usual words for nothing (NA, NaN, null, ...) are null.
    Raises DataError in one line that begins with the path.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if is_parquet or path.suffix.lower() in {".parquet", ".pq"}:
        table = _told(path, "Parquet", lambda: parquet.read_table(path))
        _check_names(path, table.column_names)
        return table
    table = _told(path, "CSV", lambda: _read_csv(path))
    try:
        names = table.column_names
    except UnicodeDecodeError:
        raise DataError(f"{path}: the names of the columns are not UTF-8 text; save the file as UTF-8") from None
    _check_names(path, names)
    for name in names:
        if pa.types.is_binary(table.schema.field(name).type):
            raise DataError(f"{path}: column {name!r}: not UTF-8 text; save the file as UTF-8")
    return table


def _check_names(path: Path, names: list[str]) -> None:
    """A name must say which column is meant."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: column {twice[0]!r} is there twice; rename one")


def _read_csv(path: Path) -> pa.Table:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(delimiter=delimiter),
        convert_options=csv.ConvertOptions(strings_can_be_null=True),
    )


def _told(path: Path, kind: str, read_it: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read_it()
    except (pa.ArrowException, OSError) as error:
        what = "".join(c if c.isprintable() else " " for c in str(error))
        raise DataError(f"{path}: cannot be read as {kind}: {what:.200}") from None
