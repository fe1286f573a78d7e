"""The vectorised validator against a reference that goes through records one by one."""

import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import Decoded, Feature, FeatureContract, ModelInputs, OutputContract, Reason
from pipeline.scoring.validate import Validated, Validator

OUTPUT = OutputContract("regression", 1)
WORDS = ("red", "green", "true", "1", "é\n")


class RefusedError(Exception):
    """A record breaks the contract."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


# --------------------------------------------------------------------------- the reference


def float32(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(np.float64(value))


def scalar(feature: Feature, value: float | None, notes: set[str]) -> np.float32:
    """One number after all policies of its feature."""
    if value is None or not math.isfinite(float32(value)):
        if feature.on_null == "reject":
            raise RefusedError(Reason.NULL_FEATURE if value is None else Reason.NOT_FINITE)
        notes.add("null")
        return np.float32(feature.impute)
    number = float32(value)
    if feature.range is None:
        return number
    low, high = map(float32, feature.range)
    if low <= number <= high:
        return number
    if feature.on_range == "reject":
        raise RefusedError(Reason.OUT_OF_RANGE)
    notes.add("clip" if feature.on_range == "clip" else "range")
    return min(max(number, low), high) if feature.on_range == "clip" else np.float32(feature.impute)


def several(feature: Feature, values: list[float | None], notes: set[str]) -> np.ndarray:
    """Elements after all policies; of several faults the one first in the order null, not finite, range counts."""
    good, faults = [], []
    for value in values:
        try:
            good.append(scalar(feature, value, notes))
        except RefusedError as refused:
            faults.append(refused.reason)
    for reason in (Reason.NULL_FEATURE, Reason.NOT_FINITE, Reason.OUT_OF_RANGE):
        if reason in faults:
            raise RefusedError(reason)
    return np.array(good, dtype=np.float32)


def filled(feature: Feature) -> Any:
    """What stands in for a null value."""
    if feature.kind == "category":
        return 0 if feature.impute is None else feature.vocabulary.index(str(feature.impute)) + 1
    if feature.kind == "bytes":
        return np.full(feature.shape, feature.impute, dtype=feature.dtype)
    return np.array([feature.impute], dtype=np.float32) if feature.kind == "sequence" else np.float32(feature.impute)


def category(feature: Feature, value: str | bool | int, notes: set[str]) -> int:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text in feature.vocabulary:
        return feature.vocabulary.index(text) + 1
    if feature.on_unknown == "reject":
        raise RefusedError(Reason.UNKNOWN_CATEGORY)
    notes.add("unknown")
    return 0


def sequence(feature: Feature, value: list[float | None], notes: set[str]) -> np.ndarray:
    if not 1 <= len(value) <= feature.shape[0]:
        raise RefusedError(Reason.WRONG_SHAPE)
    return several(feature, value, notes)


def array(feature: Feature, value: bytes, notes: set[str]) -> np.ndarray:
    form = f"<{math.prod(feature.shape)}" + {"float32": "f", "uint8": "B", "int16": "h"}[feature.dtype]
    if len(value) != struct.calcsize(form):
        raise RefusedError(Reason.WRONG_SHAPE)
    numbers: Any = list(struct.unpack(form, value))
    if feature.dtype == "float32":
        numbers = several(feature, numbers, notes)
    return np.array(numbers, dtype=feature.dtype).reshape(feature.shape)


def read(feature: Feature, value: Any, notes: set[str]) -> Any:
    """One feature of one record, as the model sees it. Raises RefusedError."""
    if value is not None:
        by_kind: dict[str, Any] = {"number": scalar, "category": category, "sequence": sequence, "bytes": array}
        return by_kind[feature.kind](feature, value, notes)
    if feature.on_null == "reject":
        raise RefusedError(Reason.NULL_FEATURE)
    notes.add("null")
    return filled(feature)


@dataclass
class Expected:
    """What a validator should make of records."""

    inputs: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: Source row, reason, how the message begins.
    rejects: list[tuple[int, Reason, str]] = field(default_factory=list)
    imputed: Counter[str] = field(default_factory=Counter)


def reference(contract: FeatureContract, records: list[dict[str, Any]], rows: np.ndarray) -> Expected:
    expected = Expected()
    for row, record in enumerate(records):
        if record["id"] is None:
            expected.rejects.append((int(rows[row]), Reason.MISSING_ID, "id is null"))
            continue
        values, mended = {}, []
        for feature in contract.features:
            notes: set[str] = set()
            try:
                values[feature.name] = read(feature, record[feature.name], notes)
            except RefusedError as fault:
                expected.rejects.append((int(rows[row]), fault.reason, f"feature {feature.name}: "))
                break
            mended += [f"{feature.name}:{how}" for how in notes]
        else:
            expected.inputs[row] = values
            expected.imputed.update(mended)
    return expected


def is_missing(feature: Feature, value: Any) -> bool:
    if value is None:
        return True
    if feature.kind == "number":
        return not math.isfinite(float32(value))
    if feature.kind == "sequence":
        return any(v is None or not math.isfinite(float32(v)) for v in value)
    if feature.kind == "bytes" and feature.dtype == "float32" and len(value) == 4 * math.prod(feature.shape):
        return not np.isfinite(np.frombuffer(value, "<f4")).all()
    return False


# --------------------------------------------------------------------------- generated contracts and data

doubles = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e39, 3.4e38, 0.1, -1.0, 1.0, 2.0, -0.0, 1e-320]),
)
longs = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1))
NUMBER_TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.float64(), doubles),
    (pa.float32(), st.floats(width=32)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), longs),
    (pa.bool_(), st.booleans()),
]
CATEGORY_TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), st.one_of(st.sampled_from(WORDS), st.text(max_size=3))),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from([*WORDS, "other"])),
    (pa.bool_(), st.booleans()),
    (pa.int64(), st.integers(0, 2)),
]


@st.composite
def features(draw: st.DrawFn, name: str) -> tuple[Feature, pa.DataType, st.SearchStrategy[Any]]:
    """A feature, the Arrow type of its column, and its values."""
    kind = draw(st.sampled_from(["number", "number", "category", "sequence", "bytes"]))
    on_null = draw(st.sampled_from(["reject", "impute"]))
    if kind == "category":
        type_, values = draw(st.sampled_from(CATEGORY_TYPES))
        impute = draw(st.sampled_from([None, *WORDS])) if on_null == "impute" else None
        on_unknown = draw(st.sampled_from(["reject", "unknown"]))
        return (
            Feature(name, "category", vocabulary=WORDS, on_null=on_null, impute=impute, on_unknown=on_unknown),
            type_,
            values,
        )
    if kind == "bytes":
        dtype = draw(st.sampled_from(["float32", "uint8", "int16"]))
        shape = draw(st.sampled_from([(2,), (1, 2), (2, 1, 2)]))
        size = math.prod(shape) * np.dtype(dtype).itemsize
        values = st.one_of(st.binary(min_size=size, max_size=size), st.binary(max_size=5))
        type_ = draw(st.sampled_from([pa.binary(), pa.large_binary()]))
        return Feature(name, "bytes", shape, dtype, on_null=on_null, impute=3), type_, values
    bounds = draw(st.sampled_from([None, (-1.0, 1.0), (0.1, 0.1), (-math.inf, 2.0)]))
    policies = {"on_null": on_null, "impute": draw(st.sampled_from([0, -7.5])), "range": bounds}
    policies["on_range"] = draw(st.sampled_from(["reject", "clip", "impute"]))
    type_, values = draw(st.sampled_from(NUMBER_TYPES))
    if kind == "number":
        return Feature(name, "number", **policies), type_, values
    lists = draw(st.sampled_from([pa.list_, pa.large_list]))
    longest = draw(st.integers(1, 6))
    elements = st.lists(st.one_of(values, values, values, st.none()), max_size=longest + 1)
    return Feature(name, "sequence", (longest,), **policies), lists(type_), elements


@st.composite
def batches(draw: st.DrawFn) -> tuple[FeatureContract, list[dict[str, Any]], Decoded]:
    """A contract, records, and the same records as columns: sliced, with gaps, and some features nested."""
    drawn = [draw(features(f"f{i}")) for i in range(draw(st.integers(1, 5)))]
    nested = draw(st.integers(0, len(drawn)))
    n, before = draw(st.integers(0, 12)), draw(st.integers(0, 2))
    null_share = draw(st.sampled_from([0, 5]))
    columns = {
        f.name: [draw(values) if draw(st.integers(0, 9)) >= null_share else None for _ in range(n + before)]
        for f, _, values in drawn
    }
    columns["id"] = draw(st.lists(st.one_of(st.text(max_size=3), st.none()), min_size=n + before, max_size=n + before))
    arrays = {f.name: pa.array(columns[f.name], type_) for f, type_, _ in drawn}
    contract = FeatureContract(
        tuple(
            Feature(**{**{k: getattr(f, k) for k in f.__slots__}, "name": f"rec.{f.name}"}) if i < nested else f
            for i, (f, _, _) in enumerate(drawn)
        ),
        OUTPUT,
    )
    table = {"id": pa.array(columns["id"], pa.string())}
    table |= {f.name: arrays[f.name] for f, _, _ in drawn[nested:]}
    inner = [f.name for f, _, _ in drawn[:nested]]
    absent = draw(st.lists(st.booleans(), min_size=n + before, max_size=n + before))
    if inner:
        mask = pa.array(absent, pa.bool_())
        table["rec"] = pa.StructArray.from_arrays([arrays[name] for name in inner], names=inner, mask=mask)
    for name in inner:
        columns[f"rec.{name}"] = [
            None if gone else value for gone, value in zip(absent, columns.pop(name), strict=True)
        ]
    records = [{name: values[before + i] for name, values in columns.items()} for i in range(n)]
    gaps = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    batch = pa.RecordBatch.from_pydict(table).slice(before)
    return contract, records, Decoded(batch, np.cumsum(np.array(gaps, dtype=np.int64)), [])


# --------------------------------------------------------------------------- the properties


def check_form(contract: FeatureContract, part: ModelInputs) -> tuple[int, ...]:
    """Assert what every entry promises; the padded lengths of its sequences."""
    assert len(part) > 0
    assert (np.diff(part.rows) > 0).all()
    for values in part.arrays.values():
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert len(values) == len(part)
    dtypes = {"numbers": np.float32, "categories": np.int64}
    dtypes |= {f.name: np.dtype(f.dtype) for f in contract.of_kind("bytes")}
    for f in contract.of_kind("sequence"):
        dtypes |= {f.name: np.float32, f"{f.name}_lengths": np.int64}
        padded, lengths = part.arrays[f.name], part.arrays[f"{f.name}_lengths"]
        width = padded.shape[1]
        assert width == f.shape[0] or width.bit_count() == 1
        assert (lengths * 2 > width).all() or width == 1
        assert not padded[np.arange(width) >= lengths[:, None]].any()
    assert {name: values.dtype for name, values in part.arrays.items()}.items() <= {
        name: np.dtype(dtype) for name, dtype in dtypes.items()
    }.items()
    return tuple(part.arrays[f.name].shape[1] for f in contract.of_kind("sequence"))


def by_feature(contract: FeatureContract, part: ModelInputs, place: int) -> dict[str, Any]:
    """One row of an entry: its features by name, padding removed."""
    record: dict[str, Any] = {}
    for key, kind in (("numbers", "number"), ("categories", "category")):
        own = contract.of_kind(kind)
        assert (key in part.arrays) == bool(own)
        if own:
            record |= zip((f.name for f in own), part.arrays[key][place], strict=True)
    record |= {f.name: part.arrays[f.name][place] for f in contract.of_kind("bytes")}
    for f in contract.of_kind("sequence"):
        record[f.name] = part.arrays[f.name][place][: part.arrays[f"{f.name}_lengths"][place]]
    return record


def check_signals(contract: FeatureContract, records: list[dict[str, Any]], checked: Validated) -> None:
    """Assert that the drift signals are those of the raw values."""
    for row, record in enumerate(records):
        missing = [is_missing(f, record[f.name]) for f in contract.features]
        assert checked.nulls[row].tolist() == missing
        raw = [
            np.float32(np.nan) if is_missing(f, record[f.name]) else float32(record[f.name])
            for f in contract.of_kind("number")
        ]
        np.testing.assert_array_equal(checked.numbers[row], np.array(raw, dtype=np.float32))


@settings(max_examples=500, deadline=None)
@given(batches())
def test_agrees_with_the_reference(case: tuple[FeatureContract, list[dict[str, Any]], Decoded]) -> None:
    """Inputs, rejections, imputations and signals are those of a loop over single records."""
    contract, records, decoded = case
    checked = Validator(contract, id_field="id", time_field=None).validate(decoded)
    expected = reference(contract, records, decoded.rows)

    assert [(r.row, r.reason) for r in checked.rejects] == [(row, reason) for row, reason, _ in expected.rejects]
    for reject, (_, _, beginning) in zip(checked.rejects, expected.rejects, strict=True):
        assert reject.message.startswith(beginning)
        assert reject.message.isprintable()
        assert len(reject.message) <= 200
    shapes = [check_form(contract, part) for part in checked.inputs]
    assert len(set(shapes)) == len(shapes)
    found = {
        row: by_feature(contract, part, place)
        for part in checked.inputs
        for place, row in enumerate(part.rows.tolist())
    }
    assert sum(len(part) for part in checked.inputs) == len(found)
    assert found.keys() == expected.inputs.keys()
    for row, values in expected.inputs.items():
        for name, value in values.items():
            np.testing.assert_array_equal(found[row][name], value, strict=isinstance(value, np.ndarray))
    assert checked.imputed == dict(expected.imputed)
    assert checked.ids == [r["id"] or "" for r in records]
    check_signals(contract, records, checked)


@settings(max_examples=100, deadline=None)
@given(batches())
def test_model_inputs_are_always_finite(case: tuple[FeatureContract, list[dict[str, Any]], Decoded]) -> None:
    """No NaN and no infinity reaches a model, whatever the contract says."""
    contract, _, decoded = case
    for part in Validator(contract, id_field="id", time_field=None).validate(decoded).inputs:
        for array in part.arrays.values():
            assert np.isfinite(array).all()
