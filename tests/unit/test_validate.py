"""The validator: what it gives the model, what it refuses and how it says so."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ContractError
from pipeline.records import Decoded, Feature, FeatureContract, OutputContract, Reason, Stage
from pipeline.scoring.fields import FIRST_TIME_MS, LAST_TIME_MS, NO_TIME_MS
from pipeline.scoring.validate import Validated, Validator, imputation_keys

OUTPUT = OutputContract("classification", 2, ("no", "yes"), "softmax")


def contract(*features: Feature) -> FeatureContract:
    return FeatureContract(features, OUTPUT)


def number(name: str = "x", **policies: Any) -> Feature:
    return Feature(name, "number", **policies)


def validate(features: tuple[Feature, ...], columns: dict[str, Any], time_field: str | None = None) -> Validated:
    """Validate columns (pa arrays or lists) with ids "0", "1", ... unless given."""
    arrays = {name: c if isinstance(c, pa.Array) else pa.array(c) for name, c in columns.items()}
    n = len(next(iter(arrays.values())))
    arrays.setdefault("id", pa.array([str(i) for i in range(n)]))
    decoded = Decoded(pa.RecordBatch.from_pydict(arrays), np.arange(n, dtype=np.int64) * 10, [])
    return Validator(contract(*features), id_field="id", time_field=time_field).validate(decoded)


@pytest.mark.parametrize(
    "types",
    [
        (pa.float32(), pa.float32()),
        (pa.float64(), pa.float32()),
        (pa.int32(), pa.int64()),
        (pa.int64(), pa.float32()),
        (pa.bool_(), pa.int32()),
        (pa.decimal128(25, 2), pa.float64()),
    ],
)
def test_numbers_of_any_type_become_a_row_major_float32_matrix(types: tuple[pa.DataType, pa.DataType]) -> None:
    """Mixed number columns come out in contract order, float32, C-contiguous, all rows in one entry."""
    columns = {"b": pa.array([0, 1, 1]).cast(types[1]), "a": pa.array([1, 0, 1]).cast(types[0])}
    checked = validate((number("a"), number("b")), columns)
    (inputs,) = checked.inputs
    assert list(inputs.arrays) == ["numbers"]
    matrix = inputs.arrays["numbers"]
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert inputs.rows.tolist() == [0, 1, 2]
    assert checked.rejects == []
    assert checked.imputed == {}
    assert not checked.nulls.any()


@pytest.mark.parametrize("width", [1, 3])
def test_what_the_model_does_to_its_inputs_reaches_nothing_else(width: int) -> None:
    """A module that works in place changes neither the drift signals nor the decoded columns."""
    features = tuple(number(f"f{i}") for i in range(width))
    columns = pa.RecordBatch.from_pydict(
        {"id": pa.array(["a"])} | {f.name: pa.array([1.0], pa.float32()) for f in features}
    )
    checked = Validator(contract(*features), id_field="id", time_field=None).validate(
        Decoded(columns, np.array([0]), [])
    )
    checked.inputs[0].arrays["numbers"][:] = 7
    checked.numbers[:] += 1
    assert checked.numbers.tolist() == [[2.0] * width]
    assert columns.column(1).to_pylist() == [1.0]


def test_first_fault_in_contract_order_is_the_reason() -> None:
    """Of several faults the one of the first feature counts; rows are those of the source batch."""
    checked = validate(
        (number("a", range=(0, 1)), Feature("c", "category", vocabulary=("x",), on_unknown="reject"), number("b")),
        {"a": [0.5, 5.0, 0.5, 0.5], "c": ["x", "y", "y", "x"], "b": [None, None, 1.0, 2.0]},
    )
    assert [(r.row, r.stage, r.reason, r.message) for r in checked.rejects] == [
        (0, Stage.VALIDATE, Reason.NULL_FEATURE, "feature b: is null, or holds a null"),
        (10, Stage.VALIDATE, Reason.OUT_OF_RANGE, "feature a: has a value outside (0, 1)"),
        (20, Stage.VALIDATE, Reason.UNKNOWN_CATEGORY, "feature c: is none of the 1 known categories"),
    ]
    assert checked.inputs[0].rows.tolist() == [3]
    assert checked.inputs[0].arrays["categories"].tolist() == [[1]]


@pytest.mark.parametrize("value", [1e39, -1e300, float("nan"), float("inf")])
def test_what_float32_cannot_hold_never_reaches_the_model(value: float) -> None:
    """A double beyond float32 is refused as not finite, or imputed, and is NaN to the drift signals."""
    columns = {"x": pa.array([value, 1.0], pa.float64())}
    checked = validate((number(),), columns)
    assert [r.reason for r in checked.rejects] == [Reason.NOT_FINITE]
    assert checked.rejects[0].message == "feature x: has a value that is no finite float32"
    assert np.isnan(checked.numbers[0, 0])
    assert checked.nulls.tolist() == [[True], [False]]
    mended = validate((number(on_null="impute", impute=-1.0),), columns)
    assert mended.inputs[0].arrays["numbers"].tolist() == [[-1.0], [1.0]]
    assert mended.imputed == {"x:null": 1}


def test_bounds_belong_to_the_range() -> None:
    """Values equal to a bound pass, also when the bound is no float32 and another value of the column fails."""
    checked = validate((number(range=(-1, 0.1)),), {"x": [-1.0, 0.1, 0.2, -1.1]})
    assert checked.inputs[0].rows.tolist() == [0, 1]
    assert [r.row for r in checked.rejects] == [20, 30]


def test_clipping_and_imputing_by_range_keep_the_raw_value_for_drift() -> None:
    """The model sees the mended value, the drift monitor the one that came."""
    features = (number("a", range=(0, 1), on_range="clip"), number("b", range=(0, 1), on_range="impute", impute=0.5))
    checked = validate(features, {"a": [2.0, -2.0, 0.5], "b": [2.0, 0.25, -3.0]})
    assert checked.inputs[0].arrays["numbers"].tolist() == [[1.0, 0.5], [0.0, 0.25], [0.5, 0.5]]
    assert checked.numbers.tolist() == [[2.0, 2.0], [-2.0, 0.25], [0.5, -3.0]]
    assert checked.imputed == {"a:clip": 2, "b:range": 2}
    assert not checked.nulls.any()
    assert checked.imputed.keys() <= set(imputation_keys(contract(*features)))


def test_an_imputation_in_a_refused_row_is_not_counted() -> None:
    """Imputations are counted where they reached the model."""
    features = (number("a", on_null="impute", impute=0.0), number("b"))
    checked = validate(features, {"a": [None, None, 1.0], "b": [None, 1.0, 1.0]})
    assert checked.imputed == {"a:null": 1}


def test_categories_are_places_in_the_vocabulary() -> None:
    """Known words count from 1, unknown ones are 0 and counted, null follows its own policy."""
    feature = Feature("c", "category", vocabulary=("b", "a"), on_null="impute", impute="a")
    checked = validate((feature,), {"c": ["a", "b", "z", None]})
    assert checked.inputs[0].arrays["categories"].tolist() == [[2], [1], [0], [2]]
    assert checked.inputs[0].arrays["categories"].dtype == np.int64
    assert checked.imputed == {"c:unknown": 1, "c:null": 1}
    assert checked.nulls.tolist() == [[False], [False], [False], [True]]
    assert checked.numbers.shape == (4, 0)


def test_bytes_become_an_array_of_the_given_shape() -> None:
    """Little endian, C order; any other length is refused with both lengths named."""
    feature = Feature("p", "bytes", (2, 2), "int16")
    good = np.array([[1, -2], [3, 256]], dtype="<i2")
    checked = validate((feature,), {"p": pa.array([good.tobytes(), good.tobytes()[:-1], b""], pa.binary())})
    (inputs,) = checked.inputs
    np.testing.assert_array_equal(inputs.arrays["p"], good[None].astype("int16"), strict=True)
    assert [(r.reason, r.message) for r in checked.rejects] == [
        (Reason.WRONG_SHAPE, "feature p: 7 bytes, but the model takes 8 bytes (2x2 of int16)"),
        (Reason.WRONG_SHAPE, "feature p: 0 bytes, but the model takes 8 bytes (2x2 of int16)"),
    ]


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary(), pa.binary(4)])
def test_whole_bytes_columns_are_writable_copies(type_: pa.DataType) -> None:
    """The common case copies the column once, so that torch may share the memory."""
    column = pa.array([b"\x00\x01\x02\x03", b"\xff\xfe\xfd\xfc", b"abcd"], type_).slice(1)
    (inputs,) = validate((Feature("p", "bytes", (4,), "uint8"),), {"p": column}).inputs
    assert inputs.arrays["p"].tolist() == [[255, 254, 253, 252], [97, 98, 99, 100]]
    inputs.arrays["p"][:] = 0
    assert column.to_pylist() == [b"\xff\xfe\xfd\xfc", b"abcd"]


def test_sequences_are_bucketed_by_padded_length() -> None:
    """One entry per power of two, the last no longer than the contract allows."""
    lists = [[float(i)] * i for i in (3, 1, 4, 5, 6, 0, 7)]
    checked = validate((Feature("s", "sequence", (6,)), number("x")), {"s": lists, "x": [0.0] * 7})
    shapes = {part.arrays["s"].shape[1]: part.rows.tolist() for part in checked.inputs}
    assert shapes == {1: [1], 4: [0, 2], 6: [3, 4]}
    assert checked.inputs[1].arrays["s"].tolist() == [[3, 3, 3, 0], [4, 4, 4, 4]]
    assert checked.inputs[1].arrays["s_lengths"].tolist() == [3, 4]
    assert checked.inputs[1].arrays["s_lengths"].dtype == np.int64
    assert checked.inputs[2].arrays["numbers"].shape == (2, 1)
    assert [(r.row, r.reason, r.message) for r in checked.rejects] == [
        (50, Reason.WRONG_SHAPE, "feature s: 0 values, but the model takes 1 to 6"),
        (60, Reason.WRONG_SHAPE, "feature s: 7 values, but the model takes 1 to 6"),
    ]


def test_a_missing_sequence_is_imputed_as_one_value() -> None:
    """Null elements are replaced one by one, a null list by a list of one."""
    feature = Feature("s", "sequence", (4,), on_null="impute", impute=9.0)
    checked = validate((feature,), {"s": pa.array([None, [1.0, None], [2.0, 3.0]], pa.list_(pa.float64()))})
    assert [p.arrays["s"].tolist() for p in checked.inputs] == [[[9.0]], [[1.0, 9.0], [2.0, 3.0]]]
    assert checked.imputed == {"s:null": 2}
    assert checked.nulls.tolist() == [[True], [True], [False]]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([1, -2], pa.int64()), ["1", "-2"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([b"ab", b"\xff"], pa.binary()), ["ab", "\\xff"]),
        (pa.array([b"\x00\xff"] * 2, pa.binary(2)), ["00ff", "00ff"]),
        (pa.array([0.5, 2.0], pa.float64()), ["0.5", "2"]),
        (pa.array(["é", ""]), ["é", ""]),
        (pa.array(["u", "v"]).dictionary_encode(), ["u", "v"]),
    ],
)
def test_ids_of_any_primitive_type_become_text(column: pa.Array, texts: list[str]) -> None:
    """An id keeps its value whatever Avro type it has."""
    assert validate((number(),), {"x": [1.0, 2.0], "id": column}).ids == texts


def test_an_event_without_id_is_refused() -> None:
    """A null id is a reject of its own, before any feature."""
    checked = validate((number(),), {"x": [None, 1.0], "id": pa.array([None, "a"])})
    assert [(r.row, r.reason, r.message) for r in checked.rejects] == [
        (0, Reason.MISSING_ID, "id is null: the event has no id")
    ]
    assert checked.ids == ["", "a"]


MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "type_", [pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.int64()]
)
def test_event_times_are_milliseconds(type_: pa.DataType) -> None:
    """Timestamps of any unit and longs of milliseconds give the same time, before 1970 too; null gives none."""
    milliseconds = 1_714_979_289_123
    column = pa.array([milliseconds, None, 0, -1], pa.int64())
    if pa.types.is_timestamp(type_):
        column = column.cast(pa.timestamp("ms", type_.tz)).cast(type_)
    assert int(MOMENT.timestamp() * 1000) == milliseconds
    checked = validate((number(),), {"x": [1.0, 2.0, 3.0, 4.0], "t": column}, time_field="t")
    assert checked.event_times_ms.tolist() == [milliseconds, NO_TIME_MS, 0, -1]
    assert checked.event_times_ms.dtype == np.int64


def test_a_time_that_is_no_date_is_none() -> None:
    """The years 1 to 9999 are kept to their ends; beyond, there is no time that a reader could show."""
    ends = [FIRST_TIME_MS, LAST_TIME_MS]
    column = pa.array([*ends, ends[0] - 1, ends[1] + 1, -(2**63), 2**63 - 1], pa.int64())
    checked = validate((number(),), {"x": [1.0] * 6, "t": column}, time_field="t")
    assert checked.event_times_ms.tolist() == [*ends, *[NO_TIME_MS] * 4]


def test_features_in_nested_records_are_paths() -> None:
    """A name "a.b" is field b of record a; a null record makes its fields null."""
    record = pa.array([{"b": 1.0, "c": {"d": 2}}, None, {"b": 3.0, "c": None}])
    checked = validate((number("a.b"), number("a.c.d", on_null="impute", impute=0.0)), {"a": record})
    assert checked.inputs[0].arrays["numbers"].tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert [(r.row, r.reason) for r in checked.rejects] == [(10, Reason.NULL_FEATURE)]


def test_messages_stay_one_bounded_line() -> None:
    """Hostile text in a record cannot forge lines, send terminal commands or fill a header."""
    feature = Feature("c", "category", vocabulary=("x",), on_unknown="reject")
    hostile = ["\n\x1b[31mERROR\r\u202e\x00\x85", "A" * 1_000_000, "\u2028" * 500]
    for reject in validate((feature,), {"c": hostile}).rejects:
        assert reject.message.isprintable()
        assert len(reject.message) <= 200
        assert reject.message.startswith("feature c: ")


def test_what_is_not_printable_is_escaped_in_messages() -> None:
    """Also where the text comes from the contract, not from the record."""
    (reject,) = validate((number("a\n\x1b[1mé"),), {"a\n\x1b[1mé": pa.array([None], pa.float64())}).rejects
    assert reject.message == "feature a\\n\\x1b[1mé: is null, or holds a null"


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_without_good_rows_has_no_inputs(rows: int) -> None:
    """Nothing decodable or nothing valid is no error."""
    features = (
        number(),
        Feature("c", "category", vocabulary=("x",)),
        Feature("p", "bytes", (2,), "uint8"),
        Feature("s", "sequence", (2,)),
    )
    columns = {
        "id": pa.array([None] * rows, pa.string()),
        "x": pa.array([1.0] * rows, pa.float64()),
        "c": pa.array(["x"] * rows, pa.string()),
        "p": pa.array([b"ab"] * rows, pa.binary()),
        "s": pa.array([[1.0]] * rows, pa.list_(pa.float32())),
    }
    checked = validate(features, columns)
    assert checked.inputs == []
    assert checked.numbers.shape == (rows, 1)
    assert checked.nulls.shape == (rows, 4)
    assert len(checked.rejects) == rows


def test_check_names_every_misfit_of_a_schema() -> None:
    """All missing fields and useless types are reported at once; validate refuses such columns."""
    schema = pa.schema({"id": pa.list_(pa.string()), "x": pa.string(), "a": pa.struct({"b": pa.float32()})})
    features = (number("x"), number("y"), number("a.z"), Feature("s", "sequence", (2,)), number("a.b"))
    validator = Validator(contract(*features), id_field="id", time_field="when")
    faults = validator.check(schema)
    assert [f.partition(":")[0] for f in faults] == [
        "events.id_field id",
        "events.time_field when",
        "feature x",
        "feature y",
        "feature a.z",
        "feature s",
    ]
    assert "string cannot be used as number" in faults[2]
    empty = pa.RecordBatch.from_pylist([], schema=schema)
    with pytest.raises(ContractError, match="feature y: the event schema has no field 'y'"):
        validator.validate(Decoded(empty, np.empty(0, np.int64), []))


@pytest.mark.parametrize(
    ("features", "fault"),
    [
        ((), "no features"),
        ((number("x"), number("x")), "x: named twice"),
        ((number(on_null="impute"),), "impute = None"),
        ((number(on_null="impute", impute=1e39),), "not a finite float32"),
        ((number(range=(2, 1)),), "empty"),
        ((number(range=(0, 1), on_range="impute"),), "impute = None"),
        ((Feature("c", "category"),), "needs a vocabulary"),
        ((Feature("c", "category", vocabulary=("a", "a")),), "twice"),
        ((Feature("c", "category", vocabulary=("a",), impute="b"),), "not in the vocabulary"),
        ((Feature("c", "category", vocabulary=("a",), range=(0, 1)),), "range is for numbers"),
        ((Feature("p", "bytes"),), "holds nothing"),
        ((Feature("p", "bytes", (2,), "uint8", on_null="impute", impute=256),), "not a finite uint8"),
        ((Feature("s", "sequence", (2, 2)),), "shape of a sequence"),
        ((Feature("s", "sequence", (2,)), Feature("s_lengths", "bytes", (2,))), "taken"),
        ((Feature("numbers", "bytes", (2,)),), "taken"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(features: tuple[Feature, ...], fault: str) -> None:
    """Faults of the contract come out when the validator is made, not with the first bad record."""
    with pytest.raises(ContractError, match=fault):
        Validator(contract(*features), id_field="id", time_field=None)
