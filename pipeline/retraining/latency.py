"""How long a batch takes the challenger, as a multiple of what it takes the champion."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.contracts import Model
from pipeline.measures.intervals import Z
from pipeline.measures.scored import Numbers

Arrays = Mapping[str, npt.NDArray[Any]]

#: Pairs measured: the interval of a median then reaches from the 37th to the 63rd percentile (0.98 / sqrt(60)).
PAIRS = 60


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that m batches took, (m,) each; pair by pair of the same events."""

    champion_s: Numbers
    challenger_s: Numbers


def measure_latency(
    champion: Model,
    challenger: Model,
    batches: Sequence[tuple[Sequence[Arrays], Sequence[Arrays]]],
    *,
    pairs: int = PAIRS,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time both models on the same batches, in turns, so that what slows the machine down slows both.

    batches: what each of the two is called with for the same events, one call for each shape; one batch or more, gone
    through until there are `pairs`. Who goes first changes from pair to pair: the second finds caches warm. A first
    round does not count.
    """
    models = (champion, challenger)
    for which in (0, 1):
        for inputs in batches[0][which]:
            models[which].score(inputs)
    seconds = np.empty((pairs, 2))
    for pair in range(pairs):
        batch = batches[pair % len(batches)]
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            started = clock()
            for inputs in batch[which]:
                models[which].score(inputs)
            seconds[pair, which] = clock() - started
    return Latency(seconds[:, 0], seconds[:, 1])


def ratio(latency: Latency) -> tuple[float, float, float]:
    """Median of the pairs' ratios with its 95 % interval, from order statistics: no spike of the machine moves it.

    The interval is the whole line with fewer than 8 pairs.
    """
    ratios = np.sort(latency.challenger_s / latency.champion_s)
    m = len(ratios)
    # The rank-th least and greatest: Binomial(m, 1/2) by the normal approximation, on the safe side of a whole number.
    rank = math.floor((m - Z * math.sqrt(m)) / 2)
    middle = float(np.median(ratios))
    return (middle, float(ratios[rank - 1]), float(ratios[m - rank])) if rank >= 1 else (middle, 0.0, math.inf)
