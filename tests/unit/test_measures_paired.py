"""Paired tests: their size where nothing differs, their power where something does, and cases on paper."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.measures.paired import BLOCKS_MAX, block_rows_of, mcnemar, paired_bootstrap


def table(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two classifiers with these counts."""
    counts = [both, only_first, only_second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize("counts", [(1, 7), (7, 1), (0, 6), (5, 5), (1, 1), (0, 1), (40, 60), (480, 520), (3000, 3300)])
def test_mcnemar_is_the_binomial_test_of_the_discordant(counts: tuple[int, int]) -> None:
    """Exact p is scipy's; mid-p is what is left without half of the observed point on each side."""
    first, second = counts
    found = mcnemar(*table(10, first, second, 5))
    assert (found.only_first, found.only_second) == counts
    assert found.p_exact == pytest.approx(stats.binomtest(first, first + second).pvalue)
    point = stats.binom.pmf(min(counts), first + second, 0.5)
    expected = 1 - point / 2 if first == second else 2 * stats.binom.cdf(min(counts), first + second, 0.5) - point
    assert found.p_mid == pytest.approx(expected)
    assert 0 < found.p_mid <= found.p_exact <= 1


def test_mcnemar_of_models_that_never_differ() -> None:
    """No discordant row says nothing against "the same"."""
    assert mcnemar(*table(10, 0, 0, 5)).p_mid == 1.0
    assert mcnemar(*table(0, 0, 0, 0)).p_exact == 1.0


def test_size_and_power_of_mcnemar() -> None:
    """At 5 %: of equal models 2 to 5 % are rejected by mid-p and fewer by exact; of 5 points in 1,000 rows most."""
    random = np.random.default_rng(0)

    def rejected(second_accuracy: float) -> tuple[float, float]:
        found = [mcnemar(random.random(1000) < 0.8, random.random(1000) < second_accuracy) for _ in range(1000)]
        return float(np.mean([f.p_exact < 0.05 for f in found])), float(np.mean([f.p_mid < 0.05 for f in found]))

    exact, mid = rejected(0.8)
    assert exact <= mid
    assert 0.03 <= mid <= 0.065
    assert rejected(0.85)[1] > 0.8


def series(random: np.random.Generator, rows: int, r: float) -> np.ndarray:
    """A first-order autoregression of variance 1."""
    noise = random.normal(size=rows) * math.sqrt(1 - r * r)
    values = np.empty(rows)
    values[0] = random.normal()
    for row in range(1, rows):
        values[row] = r * values[row - 1] + noise[row]
    return values


def rejected(r: float, block_rows: int | None, shift: float = 0.0, rows: int = 1000, runs: int = 400) -> float:
    """Share of runs in which the 95 % interval leaves 0 out."""
    random = np.random.default_rng(1)
    zeros, found = np.zeros(rows), 0
    for seed in range(runs):
        difference = paired_bootstrap(
            zeros, series(random, rows, r) + shift, block_rows=block_rows, resamples=400, seed=seed
        )
        found += not difference.low <= 0 <= difference.high
    return found / runs


def test_the_size_of_the_bootstrap_on_independent_rows() -> None:
    """5 % of equal models are called different, within what 400 runs can tell (three standard errors, 0.033)."""
    assert rejected(0.0, 1) == pytest.approx(0.05, abs=0.033)
    assert rejected(0.0, None) == pytest.approx(0.05, abs=0.033)


def test_blocks_keep_the_size_where_rows_resemble_their_neighbours() -> None:
    """At an autocorrelation of 0.7 single rows call 40 % of equal models different, blocks chosen by the data 10 %."""
    assert rejected(0.7, 1) > 0.3
    assert rejected(0.7, None) < 0.12


def test_the_power_of_the_bootstrap() -> None:
    """A tenth of a standard deviation is found in 1,000 independent rows in most cases (3.2 standard errors)."""
    assert rejected(0.0, 1, shift=0.1) > 0.8


def test_the_interval_of_many_rows_is_the_normal_one() -> None:
    """Bounds 1.96 standard errors to each side, also where blocks have to grow to bound the cost."""
    random = np.random.default_rng(2)
    for rows in (500, 10 * BLOCKS_MAX + 7):
        first, second = random.exponential(size=rows), random.exponential(size=rows)
        found = paired_bootstrap(first, second, resamples=4000)
        error = float((second - first).std()) / math.sqrt(rows)
        assert found.mean == pytest.approx(float((second - first).mean()))
        assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.1)
        assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.1)
        assert found.block_rows == (1 if rows == 500 else 11)
        assert found.rows == rows


def test_the_same_seed_gives_the_same_answer() -> None:
    """A verdict can be repeated; another seed differs a little."""
    losses = np.random.default_rng(0).random((2, 300))
    assert paired_bootstrap(*losses, seed=1) == paired_bootstrap(*losses, seed=1)
    assert paired_bootstrap(*losses, seed=1) != paired_bootstrap(*losses, seed=2)


def test_rows_that_say_nothing() -> None:
    """None, one, or one block: everything is open. Equal losses: no difference, and no doubt."""
    none = paired_bootstrap(np.empty(0), np.empty(0))
    assert (none.low, none.high, none.p) == (-math.inf, math.inf, 1.0)
    block = paired_bootstrap(np.zeros(10), np.arange(10.0), block_rows=10)
    assert (block.low, block.high, block.p) == (-math.inf, math.inf, 1.0)
    one = paired_bootstrap(np.zeros(1), np.ones(1))
    assert (one.low, one.high) == (-math.inf, math.inf)
    same = paired_bootstrap(np.ones(100), np.ones(100))
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_length_of_blocks_follows_from_the_autocorrelation() -> None:
    """1 for noise and for alternating values; for an autoregression the formula; never over a tenth of the rows."""
    random = np.random.default_rng(3)
    assert block_rows_of(random.normal(size=5000)) == 1
    assert block_rows_of(np.arange(5000.0) % 2) == 1
    assert block_rows_of(np.ones(5000)) == block_rows_of(np.empty(0)) == 1
    expected = (6 * 0.49 / 0.51**2 * 5000) ** (1 / 3)
    assert block_rows_of(series(random, 5000, 0.7)) == pytest.approx(expected, rel=0.1)
    assert block_rows_of(np.arange(100.0)) == 10
