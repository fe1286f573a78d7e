"""Means of blocks, in any portions; bounds that hold at all looks together, on sums of normal values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.retraining.sequential import BLOCKS_MAX, BlockMeans, anytime_z

EXAMPLES = settings(max_examples=100, deadline=None)


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 400), max_size=12))
def test_blocks_do_not_depend_on_portions(seed: int, portions: list[int]) -> None:
    """They are the means of consecutive values, all of one length, a power of two; few are left over."""
    values = np.random.default_rng(seed).normal(size=sum(portions))
    found = BlockMeans()
    for part in np.split(values, np.cumsum(portions)[:-1]) if portions else []:
        found.add(part)
    length = found.length
    assert length == next(2**n for n in range(13) if len(values) // 2**n <= BLOCKS_MAX)
    whole = values[: len(found)].reshape(-1, length).mean(axis=1)
    assert found.means == pytest.approx(whole)
    assert len(values) - len(found) < length
    assert len(found.means) <= BLOCKS_MAX


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.integers(10, 19), st.floats(0.5, 4))
def test_of_few_blocks_the_width_is_students(seed: int, rows: int, z: float) -> None:
    """Under 20 blocks there are no pairs to look at: scipy has the same interval."""
    values = np.random.default_rng(seed).normal(size=rows)
    found = BlockMeans()
    found.add(values)
    wanted = stats.t.ppf(stats.norm.cdf(z), rows - 1) * stats.sem(values)
    assert found.half_width(z) == pytest.approx(wanted, rel=0.01)


def test_fewer_than_ten_blocks_say_nothing() -> None:
    """Infinite, and for values that are all the same as well."""
    found = BlockMeans()
    found.add(np.ones(9))
    assert found.half_width(2.0) == math.inf
    found.add(np.ones(1))
    assert found.half_width(2.0) == 0.0


def test_values_that_hang_together_have_wider_bounds() -> None:
    """Each value sixteen times in a row is as much as a sixteenth of the values; four times likewise."""
    values = np.random.default_rng(1).normal(size=1024)
    found, repeated = BlockMeans(), BlockMeans()
    found.add(values)
    repeated.add(np.repeat(values, 16))
    assert repeated.half_width(2.0) == pytest.approx(found.half_width(2.0), rel=1e-9)
    few, four_times = BlockMeans(), BlockMeans()
    few.add(values[:32])
    four_times.add(np.repeat(values[:32], 4))
    assert four_times.length == 1
    assert four_times.half_width(2.0) == pytest.approx(few.half_width(2.0), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_a_walk_seldom_ever_leaves_its_bound(alpha: float) -> None:
    """2,000 normal walks of 8,000 steps, looked at after each one from n0 / 10 on: fewer than alpha ever leave.

    That it is no more than needed shows as well: a third of alpha does, by a walk that is cut off at 80 n0.
    """
    random, n0, ever = np.random.default_rng(0), 100, np.zeros(2_000, np.bool_)
    total = np.zeros(2_000)
    for n in range(1, 8_001):
        total += random.normal(size=2_000)
        if n >= n0 / 10:
            ever |= total > anytime_z(n / n0, alpha) * math.sqrt(n)
    assert alpha / 3 < ever.mean() < alpha
