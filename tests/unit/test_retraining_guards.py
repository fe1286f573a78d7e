"""Each guard passes what is sound, and names what is not, with its number."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.retraining import guards

BINARY = OutputContract("classification", 1, ("no", "yes"), "sigmoid")


def contract(*features: Feature, output: OutputContract = BINARY) -> FeatureContract:
    return FeatureContract(features, output)


def text(values: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def test_one_sender_flooding() -> None:
    """Its share and its name; unknown senders are one; without a setting nothing is checked."""
    found = guards.producers(text(["a"] * 70 + ["b"] * 20 + [None] * 10), 0.5)
    assert not found.passed
    assert found.value == pytest.approx(0.7)
    assert "'a' sent 70.0%" in found.says
    assert guards.producers(text(["a", "b"]), 0.5).passed
    assert guards.producers(text([None] * 3), 0.5).says.startswith("'(unknown)' sent 100.0%")
    assert guards.producers(None, 0.5).value is None


def test_repeated_events() -> None:
    """Each id's first event is none."""
    found = guards.duplicates(text(["a", "b", "a", "a"]), 0.1)
    assert (found.passed, found.value) == (False, 0.5)
    assert guards.duplicates(text(["a", "b"]), 0.0).passed


def test_a_field_that_is_later_than_the_label() -> None:
    """The worst field is named; a null is not late; a time equal to the label's is not."""
    stamp = pa.timestamp("us", tz="UTC")
    rows = pa.table({"at": pa.array([1000, 2000, 3000, 4000], stamp), "seen": pa.array([9000, None, 1, 1], stamp)})
    found = guards.late_fields(rows, ["at", "seen"], np.array([1, 2, 3, 4]), 0.2)
    assert (found.passed, found.value) == (False, 0.25)
    assert found.says.startswith("field seen: 25.00%")
    assert guards.late_fields(rows, ["at"], np.array([1, 2, 3, 4]), 0.0).passed
    assert guards.late_fields(rows, [], np.array([1, 2, 3, 4]), 0.0).value is None


# --------------------------------------------------------------------------- leakage


def test_separation_is_the_auc_of_one_feature() -> None:
    """Of numbers as scikit-learn has it, whichever way round, with ties and missing values."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 2000)
    up, down = np.round(truth + random.normal(0, 1, 2000), 1), -truth + random.normal(0, 2, 2000)
    up[::50] = np.nan
    rows = pa.table({"up": up, "down": down})
    found = guards.separation(rows, truth, contract(Feature("up", "number"), Feature("down", "number")))
    good = np.isfinite(up)
    assert found["up"] == pytest.approx(roc_auc_score(truth[good], up[good]))
    assert found["down"] == pytest.approx(1 - roc_auc_score(truth, down))


def test_of_several_classes_the_one_that_is_told_best_counts() -> None:
    """Also where it is the one with the lowest values, and the others are not told apart."""
    truth = np.arange(300) % 3
    values = np.where(truth == 2, -1.0, np.random.default_rng(0).normal(5, 1, 300))
    three = contract(Feature("x", "number"), output=OutputContract("classification", 3, ("a", "b", "c"), "softmax"))
    assert guards.separation(pa.table({"x": values}), truth, three) == {"x": 1.0}


def test_categories_and_regressions_have_one_too() -> None:
    """A word that means a class; words without meaning, be they a thousand, mean nothing; a number's rank."""
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, 4000)
    rows = pa.table({"told": np.where(truth == 1, "x", "y"), "noise": random.integers(0, 1000, 4000).astype(str)})
    found = guards.separation(rows, truth, contract(Feature("told", "category"), Feature("noise", "category")))
    assert found["told"] == 1.0
    assert found["noise"] < 0.55
    target = random.normal(size=1000)
    rows = pa.table({"cube": target**3, "noise": random.normal(size=1000)})
    regression = contract(Feature("cube", "number"), Feature("noise", "number"), output=OutputContract("regression", 1))
    found = guards.separation(rows, target, regression)
    assert found["cube"] == pytest.approx(1.0)
    assert found["noise"] < 0.55


def test_a_leak_is_what_is_sudden() -> None:
    """A feature that always told the labels apart is a good feature."""
    sudden = guards.leakage({"a": 0.99, "b": 0.7}, {"a": 0.6, "b": 0.7}, 0.95)
    assert (sudden.passed, sudden.value) == (False, 0.99)
    assert sudden.says == "feature a alone tells the labels apart with AUC 0.990, before with 0.600"
    assert guards.leakage({"a": 0.99}, {"a": 0.97}, 0.95).passed
    assert not guards.leakage({"a": 0.99}, {}, 0.95).passed
    assert guards.leakage({"a": 0.9}, {"a": 0.5}, 0.95).passed
    assert guards.leakage({}, {}, 0.95).value is None


# --------------------------------------------------------------------------- labels, outliers, rate


def answers(n: int, flipped: float, seed: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """A calibrated model's probabilities and labels, of which some were flipped."""
    random = np.random.default_rng(seed)
    second = random.beta(0.3, 0.3, n)
    truth = (random.random(n) < second).astype(np.int64)
    truth[: round(n * flipped)] ^= 1
    return np.stack([1 - second, second], axis=1), truth


def test_flipped_labels_are_denied() -> None:
    """A calibrated model finds none too many; of 10 % flipped it is confident of about half."""
    sound = guards.flips(*answers(20_000, 0.0), 0.05)
    assert sound.passed
    assert abs(sound.value or 0) < 0.005
    poisoned = guards.flips(*answers(20_000, 0.1), 0.05)
    assert not poisoned.passed
    outputs, truth = answers(100, 0.0)
    assert guards.flips(outputs, np.full_like(truth, -1), 0.05).value is None


def test_outliers_have_influence() -> None:
    """The figures of the docstring; a constant or sparse feature and missing values do not count."""
    random = np.random.default_rng(0)
    n = 20_000
    for features, expected in ((1, 0.085), (16, 0.022)):
        numbers = random.normal(size=(n, features)).astype(np.float32)
        assert guards.outliers(numbers, 0.3).value == pytest.approx(expected, abs=0.003)
        numbers[: n // 100] += 8
        found = guards.outliers(numbers, 0.3)
        assert not found.passed
        assert found.value == pytest.approx(0.37, abs=0.01)
    for heavy in (random.lognormal(size=n), random.exponential(size=n), random.standard_t(2, n)):
        assert guards.outliers(heavy.astype(np.float32)[:, None], 0.3).value == pytest.approx(0.22, abs=0.01)
    plain = random.normal(size=(n, 1)).astype(np.float32)
    sparse = np.where(random.random((n, 1)) < 0.01, 50, 0).astype(np.float32)
    gone = np.full((n, 1), np.nan, np.float32)
    both = np.hstack([plain, sparse, gone])
    both[5, 0] = np.nan
    assert guards.outliers(both, 0.3).value == pytest.approx(0.085, abs=0.003)
    assert guards.outliers(np.empty((5, 0), np.float32), 0.3).value is None


def test_the_rate_of_retraining() -> None:
    """Of the last 24 hours, this one included."""
    now = 1_700_000_000_000
    made = [now - hours * 3_600_000 for hours in (1, 5, 23, 25, 90)]
    assert guards.rate(made, now, 4).value == 4
    assert guards.rate(made, now, 4).passed
    assert not guards.rate(made, now, 3).passed
