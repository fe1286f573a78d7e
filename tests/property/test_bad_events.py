"""Good events, broken at random, as the worker reads them: decoder and validator together, with `avro` as the judge."""

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import ColumnarDecoder
from pipeline.records import Reason
from pipeline.scoring.validate import Validator
from pipeline.testing.breakage import varint
from tests.faults import bad_events as events
from tests.property import avro_cases as cases
from tests.property.test_codec_avro import OneSchema

#: The same without the record inside itself, which goes by columns.
FLAT = events.schema_of(*events.FIELDS[:9], events.FIELDS[12])
BY_ROWS, BY_COLUMNS = events.SCHEMA, FLAT
#: What makes bytes lie: varints at the ends of their ranges, NaN, infinity, a magic that is none, text that is none.
SPLICES = [
    *(varint(n) for n in (-1, 0, 1, 2**31, -(2**31) - 1, 2**62, -(2**63), 2**63 - 1)),
    *(struct.pack("<d", x) for x in (math.nan, math.inf, -math.inf, 1e300)),
    b"\xff" * 10 + b"\x01",
    b"\xff" * 9 + b"\x7f",
    b"\x80\x00",
    b"\xc3\x28",
    bytes(16),
]


@st.composite
def mutated(draw: st.DrawFn, body: bytes, other: bytes) -> bytes:
    """`body` after one to three changes: bits turned, cut, inserted, replaced, doubled, its end another's."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        some = draw(st.sampled_from(SPLICES) | st.binary(min_size=1, max_size=8))
        how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "replace", "repeat", "splice"]))
        if how == "flip" and at < len(body):
            body = body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]
        elif how == "cut":
            body = body[:at]
        elif how == "insert":
            body = body[:at] + some + body[at:]
        elif how == "replace":
            body = body[:at] + some + body[at + len(some) :]
        elif how == "repeat":
            body = body[:at] + body[at // 2 : at] + body[at:]
        else:
            body = body[:at] + other[at:]
    return body


def y_of(event: dict[str, Any]) -> np.float32:
    """The one feature that is imputed: with 0 for null, and for what is no finite float32."""
    with np.errstate(over="ignore"):
        y = np.float32(event["y"] or 0.0)
    return y if np.isfinite(y) else np.float32(0.0)


def fits(event: dict[str, Any]) -> bool:
    """Whether the contract takes an event, said again in plain Python."""
    with np.errstate(over="ignore"):
        numbers = [np.float32(event["x"]), y_of(event), *np.float32(event["curve"])]
    picture = event["picture"]
    return (
        len(picture) == 16
        and np.isfinite([*numbers, *struct.unpack("<4f", picture)]).all()
        and abs(numbers[1]) <= 10
        and 1 <= len(event["curve"]) <= 8
        and event["kind"] == "A"
    )


@pytest.mark.case(*(f"B{n}" for n in (6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)))
@pytest.mark.parametrize("schema", [BY_ROWS, BY_COLUMNS], ids=["by rows", "by columns"])
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_broken_event_is_read_as_avro_reads_it_or_refused(schema: str, data: st.DataObject) -> None:
    """Of a batch with broken events, each is either refused, or the very inputs that `avro` and the contract give;
    and so are its neighbours. Nothing is raised, nothing is lost, nothing is twice, nothing is NaN.
    """
    names = {f["name"] for f in cases.json.loads(schema)["fields"]}
    good = [{k: v for k, v in events.good(n).items() if k in names} for n in range(6)]
    bodies = [events.encode(event, 7, schema)[5:] for event in good]
    for row in data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=3)):
        bodies[row] = data.draw(mutated(bodies[row], bodies[row - 1]))
    expected: dict[int, dict[str, Any]] = {}
    # As numbers: `avro` makes dates of times, and there is none after the year 9999.
    plain = schema.replace(', "logicalType": "timestamp-millis"', "")
    for row, body in enumerate(bodies):
        try:
            expected[row] = cases.read(plain, body)
        except cases.AVRO_ERRORS:
            continue

    decoded = ColumnarDecoder(OneSchema(schema), schema).decode([cases.HEADER + body for body in bodies])
    checked = Validator(events.CONTRACT, id_field="id", time_field="time").validate(decoded)
    refused = {r.row: r.reason for r in [*decoded.rejects, *checked.rejects]}
    assert decoded.rows.tolist() == list(expected)
    scored: dict[int, dict[str, Any]] = {}
    for part in checked.inputs:
        for at, row in enumerate(decoded.rows[part.rows].tolist()):
            assert row not in scored
            scored[row] = {name: array[at] for name, array in part.arrays.items()}
    assert scored.keys() | refused.keys() == set(range(6))
    assert not scored.keys() & refused.keys()
    assert all(refused[row] in (Reason.UNDECODABLE, Reason.TRAILING_BYTES) for row in refused if row not in expected)
    for row, event in expected.items():
        assert (row in scored) == fits(event), (row, event, refused.get(row))
    for row, inputs in scored.items():
        event = expected[row]
        np.testing.assert_array_equal(inputs["numbers"], np.float32([event["x"], y_of(event)]))
        np.testing.assert_array_equal(inputs["picture"].ravel(), struct.unpack("<4f", event["picture"]))
        curve = np.float32(event["curve"])
        assert inputs["curve_lengths"] == len(curve)
        np.testing.assert_array_equal(inputs["curve"][: len(curve)], curve)
        assert inputs["categories"].tolist() == [{"a": 1, "b": 2}.get(event["shop"], 0), 1]
        assert checked.ids[list(expected).index(row)] == event["id"]
        assert all(np.isfinite(array).all() for array in inputs.values())
