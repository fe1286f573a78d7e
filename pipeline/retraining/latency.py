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
#: For looks at a canary, beside trial.alpha: with 18 steps of which all are slower it is certain.
SLOWER_ALPHA = 0.001


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


class Slower:
    """Whether a canary takes longer than allowed: whether the median of its latency ratios is beyond a bound.

    A test by betting (Shafer 2021), which may be looked at at any time: half of what there is goes on each next ratio
    being beyond the bound, at even odds. While the median is not, what there is does not grow on average, so it reaches
    1 / alpha with a chance of alpha at most (Ville's inequality).
    """

    def __init__(self, ratio_max: float, alpha: float = SLOWER_ALPHA) -> None:
        """alpha: chance that one that is not slower is ever certain to be."""
        self._ratio_max, self.alpha = ratio_max, alpha
        self._steps = self._beyond = 0

    def add(self, ratios: Sequence[float]) -> None:
        """The next ratios."""
        self._steps += len(ratios)
        self._beyond += sum(ratio > self._ratio_max for ratio in ratios)

    @property
    def certain(self) -> bool:
        gained = self._beyond * math.log(1.5) + (self._steps - self._beyond) * math.log(0.5)
        return gained >= -math.log(self.alpha)

    @property
    def seems(self) -> bool:
        return 2 * self._beyond > self._steps

    @property
    def told(self) -> str:
        return (
            f"slower: more than {self._ratio_max:g} times the champion's time in {self._beyond:,} of {self._steps:,} "
            "steps that both scored"
        )
