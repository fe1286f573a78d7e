"""Signals of parts of the stream: which are chosen for a baseline, and what a worker fills them with."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.drift import signal_names
from pipeline.records import Decoded, Feature, FeatureContract, Floats, OutputContract
from pipeline.scoring import parts
from pipeline.scoring.parts import part_names
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.slices import TEXT_MAX
from pipeline.scoring.validate import Validated, Validator

NAN = np.nan
BINARY = OutputContract("classification", 1, ("no", "yes"), "sigmoid")


def category(name: str, *vocabulary: str, **policies: str) -> Feature:
    return Feature(name, "category", vocabulary=vocabulary, **policies)  # type: ignore[arg-type]


def checked(contract: FeatureContract, slice_fields: tuple[str, ...] = (), **columns: list[str | None]) -> Validated:
    """What the validator makes of these columns."""
    n = len(next(iter(columns.values())))
    arrays = {"id": pa.array(map(str, range(n))), **{name: pa.array(v, pa.string()) for name, v in columns.items()}}
    batch = pa.RecordBatch.from_pydict(arrays)
    validator = Validator(contract, id_field="id", time_field=None, slice_fields=slice_fields)
    return validator.validate(Decoded(batch, np.arange(n), []))


def chosen(
    contract: FeatureContract, slice_fields: tuple[str, ...] = (), outputs: Floats | None = None, **columns: list[str]
) -> list[str]:
    """The names for a baseline of these columns."""
    found = checked(contract, slice_fields, **columns)  # type: ignore[arg-type]
    texts = dict(zip(slice_fields, found.slice_texts, strict=True))
    if outputs is None:
        outputs = np.zeros((1, contract.output.width), np.float32)
    return list(part_names(contract, signal_names(contract), found.categories, texts, outputs))


def of(*features: Feature, output: OutputContract = BINARY) -> FeatureContract:
    return FeatureContract(features, output)


# --------------------------------------------------------------------------- which


def test_the_most_frequent_values_are_watched_and_all_others_together() -> None:
    """Eight of ten, equally frequent ones in the order of the vocabulary; (other) for the rest."""
    values = [*"abcdefghij"]
    rows = [value for i, value in enumerate(values) for _ in range(20 if value in "eh" else 10 + i % 2)]
    names = chosen(of(category("c", *values)), c=rows)
    assert names == [f"category:c={value}" for value in ("e", "(other)", "h", "b", "d", "f", "j", "a", "c")]


def test_a_rare_value_and_an_unknown_one_are_others() -> None:
    """Below one per cent of those that are not null; a value of no vocabulary has no signal, however frequent."""
    rows = ["a"] * 600 + ["b"] * 390 + ["rare"] * 9 + ["new"] * 300
    names = chosen(of(category("c", "a", "b", "rare")), c=rows)
    assert names == ["category:c=a", "category:c=(other)", "category:c=b"]


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [("ab", ["category:c=b", "category:c=(other)"]), ("b", ["category:c=(other)"]), ("xy", [])],
)
def test_of_two_values_one_is_what_the_other_leaves(vocabulary: str, expected: list[str]) -> None:
    """With (other) as those that are unknown: a new value is seen. Nothing but null has no signals."""
    rows = [None] * 5 if vocabulary == "xy" else ["b"] * 3 + ["a"] * 2
    assert chosen(of(category("c", *vocabulary, on_null="impute")), c=rows) == expected  # type: ignore[arg-type]


def test_a_value_that_reads_as_others_is_one_of_them() -> None:
    """Names are given once, whatever values are called; long ones that begin alike are one."""
    long = "x" * TEXT_MAX
    names = chosen(of(category("c", "(other)", f"{long}1", f"{long}2", "a=b@c")), c=["(other)", f"{long}1", "a=b@c"])
    assert names == [f"category:c={long}", "category:c=(other)", "category:c=a=b@c"]


def test_many_categories_share_what_there_is() -> None:
    """Each its most frequent value and (other) before any has a second; those at the end go without."""
    values = [*"abcd"]
    names = chosen(of(*(category(f"f{i}", *values) for i in range(20))), **{f"f{i}": values for i in range(20)})
    assert len(names) == parts.CATEGORY_SIGNALS_MAX
    assert [sum(name.startswith(f"category:f{i}=") for name in names) for i in range(20)] == [4] * 4 + [3] * 16
    names = chosen(of(*(category(f"f{i}", *values) for i in range(40))), **{f"f{i}": values for i in range(40)})
    assert [sum(name.startswith(f"category:f{i}=") for name in names) for i in range(40)] == [2] * 32 + [0] * 8


def test_slices_have_a_share_and_the_score_within() -> None:
    """Up to four values of five per cent or more, ties by name; nulls make no slice."""
    rows = [*"cccbbbaaaddee", *[None] * 7, "rare"]
    names = chosen(of(category("c", "a")), ("region",), c=["a"] * 21, region=rows)  # type: ignore[list-item, arg-type]
    told = [f"{kind}region={value}" for value in "abcd" for kind in ("slice:", "score:yes@")]
    assert names == ["category:c=(other)", *told]


def test_a_slice_that_is_a_category_has_its_share_already() -> None:
    """And a slice that is all but everything has the score of everything."""
    names = chosen(of(category("c", "a", "b", "z")), ("c", "d"), c=["a", "b"] * 50, d=["x"] * 97 + ["y"] * 3)
    assert names[:3] == ["category:c=a", "category:c=(other)", "category:c=b"]
    assert names[3:] == ["score:yes@c=a", "score:yes@c=b", "slice:d=x"]


def test_many_outputs_are_watched_where_they_score_most() -> None:
    """Of six classes the four that score highest, in their order; of outputs that are no classes the first four."""
    classes = OutputContract("classification", 6, tuple("uvwxyz"))
    outputs = np.array([[0.1, 0.2, 0.05, 0.3, 0.05, 0.3]], np.float32)
    names = chosen(of(category("c", "a"), output=classes), ("s",), outputs, c=["a"] * 4, s=["p", "p", "q", "q"])
    assert [name for name in names if name.endswith("@s=p")] == [f"score:{c}@s=p" for c in "uvxz"]
    names = chosen(of(category("c", "a"), output=OutputContract("regression", 6)), ("s",), c=["a"] * 2, s=["p", "q"])
    assert [name for name in names if name.endswith("@s=q")] == [f"score:output{i}@s=q" for i in range(4)]


def test_slices_are_bounded_in_all() -> None:
    """Each field has its most frequent value before any has a second; a slice is watched as a whole or not."""
    columns = {f"s{i}": [*"abcd"] for i in range(16)}
    names = chosen(of(category("c", "a")), tuple(columns), c=["a"] * 4, **columns)
    assert len(names) == 1 + parts.SLICE_SIGNALS_MAX
    assert sum(name.endswith("=a") for name in names) == 32


# --------------------------------------------------------------------------- what they are


def filled(
    signals: list[str], contract: FeatureContract, slice_fields: tuple[str, ...], **columns: list[str | None]
) -> list[list[float]]:
    """Signals of rows of which the n-th has the output n / 10; one signal a row."""
    found = checked(contract, slice_fields, **columns)
    rows = np.arange(len(found.ids))
    outputs = (rows[:, None] / 10).astype(np.float32)
    matrix = SignalMatrix(signals, contract, slice_fields).fill(
        len(rows), rows, found.numbers, found.nulls, rows, outputs, None, found.categories, found.slice_texts
    )
    assert matrix.T.flags.c_contiguous
    return np.round(matrix.T, 3).tolist()


def test_every_row_says_what_it_is() -> None:
    """Imputed or refused, a null has no category; what is unknown is among the others."""
    contract = of(category("c", "a", "b", "rare", on_null="impute", impute="a"))
    signals = ["category:c=b", "category:c=(other)", "category:c=a"]
    got = filled(signals, contract, (), c=["a", "b", None, "rare", "new"])
    np.testing.assert_equal(got, [[0, 1, NAN, 0, 0], [0, 0, NAN, 1, 1], [1, 0, NAN, 0, 0]])


def test_others_of_two_values_are_those_that_no_one_knows() -> None:
    got = filled(["category:c=b", "category:c=(other)"], of(category("c", "a", "b")), (), c=["a", "b", "new"])
    np.testing.assert_equal(got, [[0, 1, 0], [0, 0, 1]])


def test_slices_have_their_rows() -> None:
    """A null is in no slice, a score outside of its slice is none; a field that is no slice field has nothing."""
    contract = of(category("c", "a"))
    signals = ["slice:s=p", "score:yes@s=q=1@x", "slice:gone=p", "score:yes@gone=p", "score:no@s=p", "score:yes"]
    got = filled(signals, contract, ("s",), c=["a"] * 4, s=["p", "q=1@x", None, "r"])
    expected = [[1, 0, 0, 0], [NAN, 0.1, NAN, NAN], *[[NAN] * 4] * 3, [0, 0.1, 0.2, 0.3]]
    np.testing.assert_allclose(got, expected)


def test_a_class_that_reads_as_a_slice_is_a_class() -> None:
    """Names of an older baseline mean what they meant."""
    contract = of(category("c", "a"), output=OutputContract("classification", 2, ("yes", "yes@s=p")))
    found = checked(contract, ("s",), c=["a", "a"], s=["q", "q"])
    matrix = SignalMatrix(["score:yes@s=p"], contract, ("s",)).fill(
        2, np.arange(2), found.numbers, found.nulls, np.arange(2), np.array([[0.25, 0.75]] * 2, np.float32), None,
        found.categories, found.slice_texts,
    )  # fmt: skip
    assert matrix.tolist() == [[0.75], [0.75]]


def test_a_contract_without_parts_gives_none() -> None:
    """And validation leaves nothing for them."""
    contract = of(Feature("x", "number"))
    batch = pa.RecordBatch.from_pydict({"id": ["1"], "x": [1.0]})
    found = Validator(contract, id_field="id", time_field=None).validate(Decoded(batch, np.arange(1), []))
    assert (found.categories, found.slice_texts) == ([], [])
    assert part_names(contract, signal_names(contract), [], {}, np.zeros((1, 1), np.float32)) == ()
