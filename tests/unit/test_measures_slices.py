"""Slices, gaps and the intervals they stand in."""

import math

import numpy as np
import pytest

from pipeline.measures import Scored, measure
from pipeline.measures.intervals import newcombe, welch, wilson
from pipeline.measures.slices import GAP_ROWS_MIN, VALUES_MAX
from pipeline.records import OutputContract

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
THREE = OutputContract("classification", 3, ("a", "b", "c"), "softmax")


def test_intervals_of_newcombe_1998() -> None:
    """His table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)
    assert newcombe(10, 10, 0, 20) == pytest.approx((1.0, 0.6791, 1.0), abs=5e-5)


def test_wilson_by_hand() -> None:
    """81/263 is Newcombe's example (1998); no rows leave everything open, and the ends are exact."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 30)[0] == 0.0
    assert wilson(0, 30)[1] == pytest.approx(0.1135, abs=5e-5)
    assert wilson(30, 30)[1] == 1.0


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.05, 0.02), (0.9, 0.6)])
def test_an_interval_of_a_gap_holds_in_95_of_100_cases(first: float, second: float) -> None:
    """Of 4,000 simulated gaps of 40 and 200 rows, 94 to 98 % of the intervals hold the true difference."""
    random = np.random.default_rng(0)
    found = [
        newcombe(int(a), 40, int(b), 200)
        for a, b in zip(random.binomial(40, first, 4000), random.binomial(200, second, 4000), strict=True)
    ]
    share = np.mean([low <= first - second <= high for _, low, high in found])
    assert 0.94 <= share <= 0.98


def test_welch_by_hand() -> None:
    """Difference of means, 1.96 standard errors to each side."""
    difference, low, high = welch(np.array([1.0, 3.0]), np.array([0.0, 0.0, 3.0]))
    assert difference == 1.0
    assert high - difference == pytest.approx(1.96 * math.sqrt(2 / 2 + 3 / 3), rel=1e-4)
    assert difference - low == pytest.approx(high - difference)


def rows(n: int = 4000) -> Scored:
    """Two shops: in "b" the model selects 20 points more; "rare" has too few rows; "" is null."""
    random = np.random.default_rng(2)
    shop = random.choice(["a", "b", ""], n).astype("<U4")
    shop[:50] = "rare"
    truth = random.integers(0, 2, n)
    chance = np.where(truth == 1, 0.6, 0.3) + np.where(shop == "b", 0.2, 0.0)
    outputs = np.where(random.random(n) < chance, 0.8, 0.2)
    return Scored(outputs[:, None], truth, np.arange(n), {"shop": shop})


def test_gaps_between_a_slice_and_the_rest() -> None:
    """Selection rate, true and false positive rate: 20 points more in "b", with intervals around them."""
    report = measure(rows(), TWO)
    gaps = {(gap["value"], gap["measure"]): gap for gap in report["gaps"]}
    for name in ("selection_rate", "true_positive_rate", "false_positive_rate"):
        gap = gaps["b", name]
        assert gap["field"] == "shop"
        assert gap["low"] < 0.2 < gap["high"]
        assert gap["low"] > 0.1
        assert gap["value_of_slice"] - gap["of_rest"] == pytest.approx(gap["difference"])
        assert gaps["a", name]["high"] < 0
    assert (
        gaps["b", "true_positive_rate"]["rows"] + gaps["b", "false_positive_rate"]["rows"]
        == gaps["b", "selection_rate"]["rows"]
    )


def test_a_slice_of_too_few_rows_is_only_counted() -> None:
    """Its metrics would be noise; those of the others are the metrics of their rows alone."""
    scored = rows()
    report = measure(scored, TWO)
    slices = report["slices"]["shop"]
    assert sum(entry["rows"] for entry in slices.values()) == len(scored)
    assert slices["rare"] == {"rows": 50, "metrics": {}}
    assert not [gap for gap in report["gaps"] if gap["value"] == "rare"]
    alone = measure(scored.take(scored.slices["shop"] == "b"), TWO)["metrics"]
    for name in ("accuracy", "roc_auc", "log_loss", "ece"):
        assert slices["b"]["metrics"][name] == alone[name]


def test_a_rate_of_too_few_rows_has_no_gap() -> None:
    """A slice with hardly a positive has a selection rate, and no true positive rate to compare."""
    n = 1000
    inside = np.arange(n) < 300
    truth = np.where(inside, 0, np.arange(n) % 2)
    truth[: GAP_ROWS_MIN - 1] = 1
    scored = Scored(np.full((n, 1), 0.7), truth, np.arange(n), {"f": np.where(inside, "x", "y")})
    found = {(gap["value"], gap["measure"]) for gap in measure(scored, TWO)["gaps"]}
    assert ("x", "true_positive_rate") not in found
    assert ("x", "selection_rate") in found


def test_one_slice_has_no_rest() -> None:
    """A field with one value has metrics and no gap."""
    scored = Scored(np.full((500, 1), 0.7), np.arange(500) % 2, np.arange(500), {"f": np.full(500, "x")})
    report = measure(scored, TWO)
    assert report["slices"]["f"]["x"]["rows"] == 500
    assert report["gaps"] == []


def test_more_classes_compare_accuracy_and_numbers_their_error() -> None:
    """Each kind of model has the gap that makes sense for it."""
    random = np.random.default_rng(3)
    n, shop = 2000, np.where(np.arange(2000) % 4 == 0, "x", "y")
    truth = random.integers(0, 3, n)
    right = random.random(n) < np.where(shop == "x", 0.5, 0.9)
    outputs = np.eye(3)[np.where(right, truth, (truth + 1) % 3)]
    (gap, _) = measure(Scored(outputs, truth, np.arange(n), {"shop": shop}), THREE)["gaps"]
    assert (gap["value"], gap["measure"]) == ("x", "accuracy")
    assert gap["low"] < -0.4 < gap["high"] < -0.3
    values = np.where(shop == "x", 3.0, 1.0) * random.normal(size=n)
    number = Scored(np.zeros((n, 1)), values, np.arange(n), {"shop": shop})
    (gap, _) = measure(number, OutputContract("regression", 1))["gaps"]
    assert (gap["value"], gap["measure"]) == ("x", "mae")
    assert gap["low"] < 2 * math.sqrt(2 / math.pi) < gap["high"]


def test_a_field_of_identifiers_stays_bearable() -> None:
    """Only the values with the most rows are told apart."""
    values = np.array([f"id{i}" for i in range(2 * VALUES_MAX)] + ["often"] * 10)
    n = len(values)
    slices = measure(Scored(np.full((n, 1), 0.7), np.ones(n, np.int64), np.arange(n), {"f": values}), TWO)["slices"][
        "f"
    ]
    assert len(slices) == VALUES_MAX
    assert slices["often"]["rows"] == 10
