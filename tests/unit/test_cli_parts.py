"""The parts of the command line that need neither a terminal nor a broker."""

import datetime as dt
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cli import context, render
from pipeline.cli.events import EventEncoder, avro_names, to_timestamps
from pipeline.cli.inference import Columns, infer
from pipeline.cli.redriving import Progress
from pipeline.cli.replay import Clockwork, Rate
from pipeline.errors import DataError

MOMENT_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z


# --------------------------------------------------------------------------- events


def test_column_names_become_avro_names_and_stay_apart() -> None:
    """Foreign characters become _, a leading digit gets one in front, equal results get numbers."""
    names = avro_names(["order no", "order-no", "1st", "größe", "", "id"], taken=["id"])
    assert list(names.values()) == ["order_no", "order_no_2", "_1st", "gr__e", "column", "id_2"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["2024-01-01T00:00:00"]),
        pa.array(["2024-01-01 00:00:00"]),
        pa.array(["2024-01-01T00:00:00Z"]),
        pa.array(["2024-01-01T01:00:00+01:00"]),
        pa.array(["2024-01-01"]),
        pa.array([dt.date(2024, 1, 1)]),
        pa.array([dt.datetime(2024, 1, 1)], pa.timestamp("ns")),  # noqa: DTZ001 (a column without a zone)
        pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], pa.timestamp("us", tz="Europe/Berlin")),
        pa.array([MOMENT_MS // 1000]),
        pa.array([MOMENT_MS]),
        pa.array([MOMENT_MS / 1000]),
        pa.array([MOMENT_MS * 1000]),
        pa.array([MOMENT_MS * 1_000_000]),
    ],
)
def test_a_moment_is_the_same_however_it_is_written(column: pa.Array) -> None:
    """Text, dates, timestamps of any unit and zone, epoch numbers of any unit: one instant in milliseconds."""
    assert to_timestamps(column, "t").cast(pa.int64()).to_pylist() == [MOMENT_MS]


@pytest.mark.parametrize("column", [pa.array(["soon"]), pa.array([0.5]), pa.array([True]), pa.array([17])])
def test_what_is_no_time_is_refused(column: pa.Array) -> None:
    """Prose, small numbers and booleans are no times; the message names the column."""
    with pytest.raises(DataError, match="column 't'"):
        to_timestamps(column, "t")


def _schema(*fields: dict[str, object]) -> str:
    return json.dumps({"type": "record", "name": "E", "fields": [{"name": "id", "type": "string"}, *fields]})


def test_a_row_without_an_id_is_named_by_its_number() -> None:
    """`row-<n>` goes on from first_row, and is the key too."""
    encoder = EventEncoder(_schema({"name": "x", "type": "double"}), 1)
    keys, values = encoder.encode(pa.table({"x": [1.0, 2.0]}), first_row=5)
    assert keys == [b"row-5", b"row-6"]
    assert all(v[:5] == b"\x00\x00\x00\x00\x01" for v in values)


def test_time_is_now_where_no_column_gives_it() -> None:
    """Without a time column, the clock of the replay is the event time."""
    schema = _schema({"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}})
    encoder = EventEncoder(schema, 1, time_field="at", clock=lambda: MOMENT_MS / 1000)
    batch = encoder.columns(pa.table({"x": [1, 2]}))
    assert batch.column("at").cast(pa.int64()).to_pylist() == [MOMENT_MS] * 2


def test_an_empty_cell_where_null_is_not_allowed_names_its_row() -> None:
    """The row number is the file's, not the chunk's."""
    encoder = EventEncoder(_schema({"name": "x", "type": "double"}), 1)
    with pytest.raises(DataError, match=r"column 'x', row 102: empty"):
        encoder.columns(pa.table({"x": [1.0, 2.0, None]}), first_row=100)


def test_a_column_that_does_not_fit_is_named() -> None:
    """Text in a number's place: column and field, and what was found."""
    encoder = EventEncoder(_schema({"name": "x", "type": "double"}), 1)
    with pytest.raises(DataError, match=r"column 'x'.*abc"):
        encoder.columns(pa.table({"x": ["1.5", "abc"]}))


def test_missing_columns_are_told_together() -> None:
    """Both missing columns are in one message, by the names a person knows."""
    fields = ({"name": "a_b", "type": "double", "column": "a b"}, {"name": "c", "type": "long"})
    with pytest.raises(DataError, match=r"no column 'a b', 'c'; there are z"):
        EventEncoder(_schema(*fields), 1).columns(pa.table({"z": [1]}))


def test_a_field_with_a_default_may_lack_its_column() -> None:
    """An optional field that the file does not have is its default."""
    encoder = EventEncoder(_schema({"name": "x", "type": ["null", "double"], "default": None}), 1)
    assert encoder.columns(pa.table({"z": [1]})).column("x").to_pylist() == [None]


# --------------------------------------------------------------------------- inference


def _table(rows: int = 300) -> pa.Table:
    return pa.table(
        {
            "when": [MOMENT_MS + n for n in range(rows)],
            "order no": [f"o{n}" for n in range(rows)],
            "amount": [None if n == 3 else n / 2 for n in range(rows)],
            "items": list(range(rows)),
            "shop": ["ab"[n % 2] for n in range(rows)],
            "gift": [n % 2 == 0 for n in range(rows)],
            "note": [f"text {n}" for n in range(rows)],
            "void": pa.nulls(rows, pa.float64()),
            "fraud": [n % 2 for n in range(rows)],
        }
    )


def test_types_and_roles_follow_from_the_columns() -> None:
    """Numbers, text and booleans become features, null only where there is one; the label is in no event."""
    layout = infer(_table(), Columns("fraud", time="when", id="order no"), "my shop")
    types = {f["name"]: f["type"] for f in layout.schema["fields"]}
    assert types == {
        "id": "string",
        "time": {"type": "long", "logicalType": "timestamp-millis"},
        "amount": ["null", "double"],
        "items": "long",
        "shop": "string",
        "gift": "boolean",
    }
    assert layout.schema["fields"][0]["column"] == "order no"
    assert set(layout.left_out) == {"when", "order no", "note", "void", "fraud"}
    assert "300 different values" in layout.left_out["note"]


def test_a_key_column_is_in_the_event_but_no_feature() -> None:
    """--key names the field that keys events; it is carried as text."""
    layout = infer(_table(), Columns("fraud", key="items", drop=("order no",)), "s")
    assert layout.key_field == "items"
    assert "items" not in layout.features
    assert {"name": "items", "type": "string"} in layout.schema["fields"]


def test_a_file_without_features_is_refused() -> None:
    """If nothing is left to learn from, the message says what happened to each column."""
    with pytest.raises(DataError, match=r"no column is left for a feature: .*note: text with"):
        infer(_table().select(["note", "fraud"]), Columns("fraud"), "s")


# --------------------------------------------------------------------------- pace


def test_a_rate_is_even() -> None:
    """At 10 a second the first is due at once, and ten more after a second."""
    pace = Rate(10)
    assert [pace.due(t) for t in (0.0, 0.05, 0.1, 1.0)] == [1, 1, 2, 11]
    assert Rate(0).due(0.0) > 1_000_000_000


def test_clockwork_replays_as_it_happened() -> None:
    """Twice as fast is half the gaps; a row is never due before an earlier one; a loop goes on after the last."""
    times = np.array([1000, 2000, 1500, 5000], dtype=np.int64)
    pace = Clockwork(times, 2.0, loop=False)
    assert [pace.due(t) for t in (0.0, 0.49, 0.5, 1.9, 2.0, 100.0)] == [1, 1, 3, 3, 4, 4]
    looped = Clockwork(times, 2.0, loop=True)
    assert looped.due(2.0) == 4
    assert looped.due(2.0 * 4 / 3 + 0.01) == 5


# --------------------------------------------------------------------------- redriving


def test_progress_of_one_reason_is_its_own() -> None:
    """Advancing one reason says nothing of another; advancing all covers both and forgets what it covers."""
    progress = Progress()
    progress.advance("null_feature", 10)
    assert progress.done("null_feature", 9)
    assert not progress.done("null_feature", 10)
    assert not progress.done("undecodable", 0)
    progress.advance(None, 7)
    assert progress.done("undecodable", 6)
    assert progress.done("null_feature", 9)
    progress.advance(None, 12)
    assert progress.by_reason == {}


# --------------------------------------------------------------------------- rendering


def test_json_is_strict_whatever_a_record_holds() -> None:
    """Bytes are base64, NaN and infinities text: any JSON parser reads every line."""
    line = render.to_json(
        {"b": b"\xff\x00", "x": [math.nan, math.inf, -math.inf, 1.5], "s": "ü\n", "n": None, "t": True}
    )
    assert "\n" not in line
    assert json.loads(line, parse_constant=pytest.fail) == {
        "b": "/wA=",
        "x": ["NaN", "Infinity", "-Infinity", 1.5],
        "s": "ü\n",
        "n": None,
        "t": True,
    }


HOSTILE = "a\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\u202eb\u2028c\nd\ud800"


@pytest.mark.case("B32")
def test_nothing_in_a_record_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, which stays the same record; as a remark, an error, a cell of a table: printable, and escaped."""
    shown = render.to_json({HOSTILE: [HOSTILE, "\u00e9"]})
    assert shown.isprintable()
    assert "\u00e9" in shown
    assert json.loads(shown) == {HOSTILE: [HOSTILE, "\u00e9"]}
    context.say(HOSTILE)
    context.print_error(HOSTILE)
    context.stdout().print(context.table(None, ("x",), [(HOSTILE,)]))
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).split("\n"))
    assert "a\\x1b[2J" in captured.out
    assert context.printable("\u00e9\u4e2d") == "\u00e9\u4e2d"
