"""Files of strangers: what is read as what, and what is said of those that cannot be read."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.errors import DataError
from pipeline.retraining import tables


def test_a_csv_gets_the_types_of_its_values(tmp_path: Path) -> None:
    """Numbers, Booleans, times and text by their values in all rows; words for nothing are null."""
    path = tmp_path / "a.csv"
    path.write_text(
        "n,x,b,t,s\n1,1.5,true,2024-01-01T00:00:00,red\n2,NaN,false,2024-01-02T00:00:00,\n,2,,,NA\n", "utf-8"
    )
    table = tables.read(path)
    assert [str(field.type) for field in table.schema] == ["int64", "double", "bool", "timestamp[s]", "string"]
    assert [column.null_count for column in table.columns] == [1, 1, 1, 1, 2]


def test_a_late_fraction_makes_the_whole_column_one(tmp_path: Path) -> None:
    """Types come from all rows, not from the first block of the file."""
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "1,1\n" * 1_000_000 + "1.5,a\n", "utf-8")
    assert [str(field.type) for field in tables.read(path).schema] == ["double", "string"]


def test_compressed_and_tab_separated_files_are_read(tmp_path: Path) -> None:
    """By their suffix; a byte order mark is no part of a name."""
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write("\ufeffx,y\n1,2\n".encode())
    (tmp_path / "a.tsv").write_text("x\ty\n1\t2\n", "utf-8")
    for name in ("a.csv.gz", "a.tsv"):
        assert tables.read(tmp_path / name).to_pydict() == {"x": [1], "y": [2]}


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    """Types are those of the file, whatever it is called."""
    table = pa.table({"x": pa.array([1, None], pa.int16()), "s": pa.array([[1.0], []], pa.list_(pa.float32()))})
    for name in ("a.parquet", "a.data"):
        parquet.write_table(table, tmp_path / name)
        assert tables.read(tmp_path / name).equals(table)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.csv", None, "cannot be read: No such file"),
        ("empty.csv", b"", "is empty"),
        ("latin.csv", b"a,b\n1,sh\xf6p\n", "column 'b': not UTF-8 text"),
        ("names.csv", b"a,\xf6\n1,2\n", "names of the columns are not UTF-8"),
        ("ragged.csv", b"a,b\n1\n", "cannot be read as CSV: CSV parse error: Expected 2 columns, got 1"),
        ("broken.parquet", b"x", "cannot be read as Parquet"),
        ("broken", b"PAR1 and nothing", "cannot be read as Parquet"),
        ("broken.csv.gz", b"no gzip", "cannot be read as CSV"),
        ("control.csv", b"a,b\n1\n\x1b[31m,2,3\n", "cannot be read as CSV"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    """It begins with the path, says what is wrong, and brings no control characters to a terminal."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        tables.read(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert expected in message
    assert message.isprintable()


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    """A folder is refused in the same way."""
    with pytest.raises(DataError, match="Is a directory"):
        tables.read(tmp_path)
