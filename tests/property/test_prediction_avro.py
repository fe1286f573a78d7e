"""Predictions with slices against `avro`: the same bytes, whatever the event had in its fields."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import codec
from pipeline.records import FeatureContract, ModelIdentity, OutputContract
from pipeline.scoring.publish import PredictionColumns, without_slices
from pipeline.scoring.slices import TEXT_MAX, short_text, slice_maps
from pipeline.testing import ManualClock
from tests.property import avro_cases as cases

NOW_S = 1_700_000_000
#: Type of a column -> its values, and the text of one.
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any], Any]] = [
    (pa.string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=200), lambda text: text[:TEXT_MAX]),
    (pa.bool_(), st.booleans(), lambda value: str(value).lower()),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1), str),
    (pa.int64(), cases.LONG, str),
]


@st.composite
def events(draw: st.DrawFn) -> tuple[list[str], list[pa.Array], list[dict[str, str]]]:
    """Names of slice fields, their columns (now and then part of longer ones), and the map of each row."""
    names = draw(st.lists(st.sampled_from(["a", "region", "meta.kind", "größe"]), min_size=1, unique=True))
    n, skipped = draw(st.integers(1, 20)), draw(st.integers(0, 2))
    columns, rows = [], [dict[str, str]() for _ in range(n)]
    for name in names:
        kind, values, text_of = draw(st.sampled_from(KINDS))
        some = draw(st.lists(st.none() | values, min_size=n + skipped, max_size=n + skipped))
        columns.append(pa.array(some, kind).slice(skipped))
        for row, value in zip(rows, some[skipped:], strict=True):
            if value is not None:
                row[name] = text_of(value)
    return names, columns, rows


@settings(max_examples=200, deadline=None)
@given(events(), st.booleans())
def test_predictions_are_encoded_as_avro_does(
    event: tuple[list[str], list[pa.Array], list[dict[str, str]]], calibrated: bool
) -> None:
    """Byte for byte, calibrated or not, with slices and after these were taken away."""
    names, columns, slices = event
    n = len(slices)
    contract = FeatureContract((), OutputContract("classification", 2, ("no", "yes")))
    predictions = PredictionColumns(contract, ModelIdentity("m", "1"), ManualClock(NOW_S), "c0ffee").build(
        [f"e{i}" for i in range(n)],
        np.arange(n, dtype=np.int64),
        np.full((n, 2), 0.5, dtype=np.float32),
        np.arange(n) % 2,
        np.zeros(n, dtype=np.int64),
        np.arange(n, dtype=np.int64),
        slice_maps(names, [short_text(column) for column in columns]),
        np.tile(np.array([0.25, 0.75], np.float32), (n, 1)) if calibrated else None,
    )
    schema = codec.load_schema("prediction")
    encoder = codec.ColumnarEncoder(schema, 7)

    def expected(row: int, told: dict[str, str]) -> bytes:
        record = {
            "event_id": f"e{row}",
            "event_time": dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(milliseconds=row),
            "model_id": "m",
            "model_version": "1",
            "role": "champion",
            "outputs": [0.5, 0.5],
            "label": ("no", "yes")[row % 2],
            "partition": 0,
            "offset": row,
            "produced_at": dt.datetime.fromtimestamp(NOW_S, dt.UTC),
            "slices": told,
            "calibration_id": "c0ffee" if calibrated else None,
            "uncalibrated_outputs": [0.25, 0.75] if calibrated else None,
        }
        return cases.HEADER + cases.write(schema, record)

    assert encoder.encode(predictions) == [expected(row, told) for row, told in enumerate(slices)]
    assert encoder.encode(without_slices(predictions)) == [expected(row, {}) for row in range(n)]
