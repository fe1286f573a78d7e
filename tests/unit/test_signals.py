"""The matrix of signals: which column gets what, and where there is nothing."""

import numpy as np
import pytest

from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.scoring.signals import SignalMatrix

FEATURES = (Feature("a", "number"), Feature("c", "category", vocabulary=("x",)), Feature("b", "number"))
NAN = np.nan


def make(signals: list[str], output: OutputContract) -> SignalMatrix:
    return SignalMatrix(signals, FeatureContract(FEATURES, output))


def fill(
    matrix: SignalMatrix, n: int, decoded: list[int], scored: list[int], labels: list[int] | None
) -> list[list[float]]:
    """Decoded row i: a = i, b = i + 0.5, c null where i is odd. Output column j of scored row i: i + j / 10."""
    d, m = np.array(decoded, dtype=np.int64), np.array(scored, dtype=np.int64)
    numbers = np.stack([d, d + 0.5], axis=1).astype(np.float32)
    nulls = np.stack([d < 0, d % 2 == 1, d < 0], axis=1)
    outputs = (m[:, None] + np.arange(2) / 10).astype(np.float32)
    got = matrix.fill(n, d, numbers, nulls, m, outputs, None if labels is None else np.array(labels))
    assert got.dtype == np.float32
    assert got.shape == (n, got.shape[1])
    return got.tolist()


def same(got: list[list[float]], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-6)


CLASSES = OutputContract("classification", 2, ("no", "yes"))
SIGNALS = ["feature:b", "rejected", "score:yes", "class:no", "null:c", "feature:a", "score:no"]


def test_every_signal_has_its_value() -> None:
    """All records decoded and scored: features, nulls, scores, class indicators, and nothing rejected."""
    got = fill(make(SIGNALS, CLASSES), 2, [0, 1], [0, 1], [0, 1])
    same(got, [[0.5, 0, 0.1, 1, 0, 0, 0.0], [1.5, 0, 1.1, 0, 1, 1, 1.0]])


def test_what_is_missing_is_nan_and_counts_as_rejected() -> None:
    """Row 1 was not decoded, row 2 decoded but not scored: values where there are some."""
    got = fill(make(SIGNALS, CLASSES), 4, [0, 2, 3], [0, 3], [1, 0])
    expected = [
        [0.5, 0, 0.1, 0, 0, 0, 0.0],
        [NAN, 1, NAN, NAN, NAN, NAN, NAN],
        [2.5, 1, NAN, NAN, 0, 2, NAN],
        [3.5, 0, 3.1, 1, 1, 3, 3.0],
    ]
    same(got, expected)


def test_nothing_decoded_is_all_rejected() -> None:
    """A batch of broken records alone: the rejection rate is one, everything else unknown."""
    got = fill(make(["rejected", "feature:a"], CLASSES), 2, [], [], [])
    same(got, [[1, NAN], [1, NAN]])


def test_a_signal_this_contract_does_not_know_stays_nan() -> None:
    """A baseline of another contract: unknown features, classes and kinds, and a category as a value."""
    got = fill(
        make(["feature:z", "score:maybe", "class:maybe", "what", "feature:c", "null:z"], CLASSES), 1, [0], [0], [0]
    )
    same(got, [[NAN] * 6])


@pytest.mark.parametrize(
    ("output", "signals", "expected", "labels"),
    [
        (OutputContract("regression", 2), ["score:output0", "score:output1"], [1.0, 1.1], None),
        (OutputContract("classification", 1, ("no", "yes"), "sigmoid"), ["score:yes", "score:no"], [1.0, NAN], [1]),
    ],
)
def test_outputs_are_named_as_the_baseline_names_them(
    output: OutputContract, signals: list[str], expected: list[float], labels: list[int] | None
) -> None:
    """Regression: output0, output1, ...; one column and two classes: the probability of the second."""
    got = fill(make(signals, output), 2, [0, 1], [1], labels)
    same([got[1]], [expected])


def test_without_signals_there_is_no_column() -> None:
    """Nothing watched, nothing filled."""
    assert fill(make([], CLASSES), 3, [0, 1, 2], [0, 1, 2], [0, 0, 0]) == [[], [], []]
