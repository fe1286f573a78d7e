"""95 % confidence intervals of a share and of differences, for independent rows."""

import math

import numpy as np

from pipeline.measures.scored import Numbers

#: The normal quantile of 97.5 %.
Z = 1.959963984540054


def wilson(successes: float, rows: float) -> tuple[float, float]:
    """Wilson's score interval of a share (1927); (0, 1) without rows."""
    if rows <= 0:
        return 0.0, 1.0
    share, z2 = successes / rows, Z * Z / rows
    middle, half = share + z2 / 2, Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes <= 0 else max(0.0, (middle - half) / (1 + z2))
    high = 1.0 if successes >= rows else min(1.0, (middle + half) / (1 + z2))
    return low, high


def newcombe(successes: int, rows: int, other_successes: int, other_rows: int) -> tuple[float, float, float]:
    """(difference of two shares, low, high): hybrid score interval, method 10 of Newcombe 1998; rows are at least 1.

    Holds its 95 % with few rows and near 0 and 1, where the normal interval (Wald's) has too little.
    """
    first, second = successes / rows, other_successes / other_rows
    low, high = wilson(successes, rows)
    other_low, other_high = wilson(other_successes, other_rows)
    difference = first - second
    below = math.hypot(first - low, other_high - second)
    above = math.hypot(high - first, second - other_low)
    return difference, difference - below, difference + above


def welch(values: Numbers, others: Numbers) -> tuple[float, float, float]:
    """(difference of two means, low, high) by the normal approximation, variances apart; each has 2 rows at least."""
    difference = float(values.mean() - others.mean())
    half = Z * math.sqrt(float(np.var(values, ddof=1)) / len(values) + float(np.var(others, ddof=1)) / len(others))
    return difference, difference - half, difference + half
