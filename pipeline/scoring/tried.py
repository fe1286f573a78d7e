"""How the canary does in this process, for whoever decides on its trial: it travels with the champion's summaries.

Canary and champion score different rows, and the canary fewer of them, so their times say little of each other: a call
has a cost of its own, however many rows it is for. So of some steps the champion scores the canary's rows as well, for
its time alone.
"""

from dataclasses import replace

from pipeline.records import BatchSummary
from pipeline.scoring.lane import Lane

#: Of so many steps with rows of the canary, one is compared: at a share of 10 %, 0.1 / 16 more work for the champion.
COMPARED_EVERY = 16
#: Ratios held until there is a summary for them to travel with, the newest: with a commit a second there are a few.
RATIOS_MAX = 256


class Stopwatch:
    """As `Lane.score` tells it of stages: what the model itself took."""

    def __init__(self) -> None:
        self.score_s = 0.0

    def __call__(self, stage: str, seconds: float) -> None:
        if stage == "score":
            self.score_s += seconds


class Tried:
    """The canary of one flow. One thread uses it at a time."""

    def __init__(self, canary: Lane | None = None) -> None:
        self._begin(canary)

    def _begin(self, canary: Lane | None) -> None:
        self._lane, self._failure = canary, ""
        self._ratios: list[float] = []
        self._steps = 0

    def follow(self, canary: Lane | None) -> None:
        """Have this one in service from now on. One that failed and comes back begins anew."""
        if canary is not self._lane or self._failure:
            self._begin(canary)

    def failed(self, why: str) -> None:
        """It raised, and is out of service; that is told with each summary until another one comes."""
        self._failure = why

    def is_compared(self, rows: int) -> bool:
        """Whether both are to score the rows that a step has for the canary."""
        if not rows:
            return False
        self._steps += 1
        return self._steps % COMPARED_EVERY == 1

    @property
    def champion_first(self) -> bool:
        """Of each second step that is compared: who comes second finds caches warm."""
        return self._steps // COMPARED_EVERY % 2 == 1

    def compared(self, champion_s: float, canary_s: float) -> None:
        """Seconds that the two models took for the same rows."""
        if champion_s > 0:
            self._ratios = [*self._ratios, canary_s / champion_s][-RATIOS_MAX:]

    def tell(self, summaries: list[BatchSummary]) -> list[BatchSummary]:
        """The same summaries, the first with what there is to tell; what finds none waits for the next."""
        if self._lane is None or not summaries or not (self._failure or self._ratios):
            return summaries
        ratios, self._ratios = self._ratios, []
        told = replace(
            summaries[0],
            canary_version=self._lane.identity.model_version,
            canary_failure=self._failure,
            canary_latency_ratios=ratios,
        )
        return [told, *summaries[1:]]
