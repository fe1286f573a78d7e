"""Prediction columns, dead-letter headers, and where the publisher sends what."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import codec
from pipeline.records import FeatureContract, ModelIdentity, OutputContract, Reason, Reject, Stage
from pipeline.scoring.dead_letters import (
    HEADER_TEXT_MAX,
    LEFT_OUT_HEADER,
    attempt_of,
    dead_letter_headers,
    record_bytes,
)
from pipeline.scoring.fields import NO_TIME_MS
from pipeline.scoring.publish import PredictionColumns, Publisher, prediction_labels
from pipeline.testing import ManualClock, RecordingSink, Sent

IDENTITY = ModelIdentity("m", "7", "canary")


def contract(kind: Any = "classification", width: int = 2, classes: tuple[str, ...] = ("no", "yes")) -> FeatureContract:
    return FeatureContract((), OutputContract(kind, width, classes))


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_the_label_is_the_likeliest_class() -> None:
    """Of several columns the largest; of one the second class from one half on; none for regression."""
    several = prediction_labels(floats([0.2, 0.8], [0.9, 0.1], [0.5, 0.5]), contract())
    assert several is not None
    assert several.tolist() == [1, 0, 0]
    one = prediction_labels(floats([0.49], [0.5]), contract(width=1))
    assert one is not None
    assert one.tolist() == [0, 1]
    assert prediction_labels(floats([3.0]), contract("regression", 1, ())) is None


@pytest.mark.parametrize("width", [1, 3])
def test_columns_fit_the_prediction_schema(width: int) -> None:
    """What is built encodes as it is, and comes back as what was given; NO_TIME_MS is null, no classes a null label."""
    model = contract("regression", width, ())
    outputs = floats(*[[float(i)] * width for i in range(3)])
    columns = PredictionColumns(model, IDENTITY, ManualClock(12.5)).build(
        ["a", "b", "ü"], np.array([5, NO_TIME_MS, 7]), outputs, None, np.array([0, 1, 2]), np.array([9, 8, 2**40])
    )
    assert isinstance(columns, pa.RecordBatch)
    assert columns["produced_at"].cast(pa.int64()).to_pylist() == [12_500] * 3
    assert columns["event_time"].cast(pa.int64()).to_pylist() == [5, None, 7]
    assert columns["label"].null_count == 3
    values = codec.ColumnarEncoder(codec.load_schema("prediction"), 1).encode(columns)
    assert len(values) == 3
    assert columns["outputs"].to_pylist() == outputs.tolist()
    assert columns["role"].to_pylist() == ["canary"] * 3
    assert columns["offset"].to_pylist() == [9, 8, 2**40]


def test_columns_of_rows_that_are_a_slice_of_a_larger_array() -> None:
    """Outputs that are not contiguous (a filtered or sliced array) come out row by row all the same."""
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    columns = PredictionColumns(contract(), IDENTITY, ManualClock()).build(
        ["a", "b", "c"], np.zeros(3, np.int64), wide, np.array([0, 1, 0]), np.zeros(3, np.int64), np.arange(3)
    )
    assert columns["outputs"].to_pylist() == [[0, 2], [4, 6], [8, 10]]
    assert columns["label"].to_pylist() == ["no", "yes", "no"]


def test_headers_never_make_a_dead_letter_large() -> None:
    """A long message is cut; what cannot be encoded is replaced; all values are bytes."""
    reject = Reject(0, Stage.DECODE, Reason.UNDECODABLE, "x" * 10_000 + "\ud800", None)
    headers = dict(dead_letter_headers(reject, "t", 1, 2, 0, 0.0))
    assert len(headers["__connect.errors.exception.message"]) <= HEADER_TEXT_MAX
    assert headers["pipeline.schema.id"] == b""
    assert headers["pipeline.time"] == b"1970-01-01T00:00:00.000+00:00"
    surrogate = Reject(0, Stage.DECODE, Reason.UNDECODABLE, "\ud800", None)
    assert all(isinstance(v, bytes) for _, v in dead_letter_headers(surrogate, "t", 1, 2, 0, 0.0))


@pytest.mark.parametrize(
    ("headers", "attempt"),
    [
        (None, 0),
        ([("other", b"5")], 0),
        ([("pipeline.attempt", b"5")], 5),
        ([("pipeline.attempt", b"many")], 0),
        ([("pipeline.attempt", b"12345")], 0),
        ([("pipeline.attempt", None)], 0),
        ([("pipeline.attempt", b"-1")], 0),
    ],
)
def test_an_attempt_is_read_only_where_it_is_one(headers: Any, attempt: int) -> None:
    """Anything but a small number, also from a stranger, counts as a first delivery."""
    assert attempt_of(headers) == attempt


@given(st.lists(st.tuples(st.text(max_size=30), st.none() | st.binary(max_size=30)), max_size=5))
def test_strangers_headers_never_stop_a_dead_letter(headers: list[tuple[str, bytes | None]]) -> None:
    """Whatever a producer has put in headers, attempt_of has an answer."""
    assert 0 <= attempt_of(headers) <= 999


class Encoder:
    """Stands for any encoder: one value a row."""

    def encode(self, columns: pa.RecordBatch) -> list[bytes]:
        return [b"p%d" % i for i in range(columns.num_rows)]


def publisher_to(sink: RecordingSink, encode: Callable[[Any], bytes] = lambda _: b"", **limits: int) -> Publisher:
    """On the topics p, d and s; limits: topic -> most bytes of a record there."""
    return Publisher(
        sink,
        predictions_topic="p",
        dead_letters_topic="d",
        summaries_topic="s",
        prediction_encoder=Encoder(),
        encode_summary=encode,
        clock=ManualClock(),
        record_bytes_max=limits,
    )


@pytest.fixture
def made() -> tuple[RecordingSink, Publisher]:
    sink = RecordingSink()
    return sink, publisher_to(sink, lambda summary: b"s" + summary)


def test_each_kind_goes_to_its_topic(made: tuple[RecordingSink, Publisher]) -> None:
    """Predictions under their keys, summaries without one, nothing at all for nothing."""
    sink, publisher = made
    publisher.predictions([b"k", None], publisher.encode_predictions(pa.record_batch({"x": [1, 2]})))
    publisher.predictions([], [])
    publisher.summaries([])
    publisher.summaries([b"1", b"2"])  # type: ignore[list-item]
    assert sink.sent == [Sent("p", b"k", b"p0"), Sent("p", None, b"p1"), Sent("s", None, b"s1"), Sent("s", None, b"s2")]


def test_a_dead_letter_again_has_our_headers_once(made: tuple[RecordingSink, Publisher]) -> None:
    """A redriven record that is refused again: the old reasons are replaced, the attempt and foreign headers kept."""
    sink, publisher = made
    reject = Reject(0, Stage.VALIDATE, Reason.NULL_FEATURE, "x is null", 3)
    old = [("pipeline.attempt", b"1"), ("__connect.errors.topic", b"old"), ("mine", None)]
    publisher.dead_letters.send(reject, ("t", 1, 2), b"k", b"v", old)
    (letter,) = sink.sent
    names = [name for name, _ in letter.headers or ()]
    assert len(names) == len(set(names))
    found = dict(letter.headers or ())
    assert (found["mine"], found["pipeline.attempt"], found["__connect.errors.topic"]) == (None, b"1", b"t")


LARGE = 2_000


@pytest.fixture
def limited() -> tuple[RecordingSink, Publisher]:
    """Topics that take records of LARGE bytes."""
    sink = RecordingSink()
    return sink, publisher_to(sink, p=LARGE, d=LARGE)


@pytest.mark.case("B21")
def test_a_prediction_that_its_topic_does_not_take_is_named(limited: tuple[RecordingSink, Publisher]) -> None:
    """By key, by value, by both together; many small ones that are more than the limit all go."""
    _, publisher = limited
    assert publisher.oversized([], []) == {}
    assert publisher.oversized([b"k" * 100] * 100, [b"v"] * 100) == {}
    keys = [b"k", None, b"k" * LARGE, b"k" * 950]
    found = publisher.oversized(keys, [b"v" * 1_880, b"v" * LARGE, b"v", b"v" * 950])
    assert sorted(found) == [1, 2, 3]
    assert "p takes 2,000 (max.message.bytes)" in found[1]


@pytest.mark.case("B21")
@pytest.mark.parametrize(
    ("key", "value", "header", "left_out"),
    [
        (b"k", b"v", b"h", None),
        (b"k", b"v", b"h" * LARGE, b"headers"),
        (b"k", b"v" * LARGE, b"h", b"headers, value"),
        (b"k", b"v" * LARGE, b"h" * LARGE, b"headers, value"),
        (b"k" * LARGE, b"v", b"h", b"headers, value, key"),
        (b"k" * LARGE, None, b"h", b"headers, value, key"),
    ],
)
def test_a_dead_letter_is_cut_until_its_topic_takes_it(
    limited: tuple[RecordingSink, Publisher], key: bytes, value: bytes | None, header: bytes, left_out: bytes | None
) -> None:
    """It says what it lacks, and it never is too large."""
    sink, publisher = limited
    reject = Reject(0, Stage.DECODE, Reason.WRONG_MAGIC, "x" * 5_000)
    publisher.dead_letters.send(reject, ("t", 1, 2), key, value, [("mine", header)])
    (letter,) = sink.sent
    headers = dict(letter.headers or ())
    assert headers.get(LEFT_OUT_HEADER) == left_out
    gone = (left_out or b"").decode().split(", ")
    assert headers.get("mine") == (None if "headers" in gone else header)
    assert letter.value == (None if "value" in gone else value)
    assert letter.key == (None if "key" in gone else key)
    assert record_bytes(letter.key, letter.value, letter.headers) <= LARGE
    assert headers["__connect.errors.offset"] == b"2"
