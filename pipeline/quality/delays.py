"""How late labels come, and for how many predictions they have come: counts that add up."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.records import Longs

#: Each edge is 2^(1/4) times the one before, from a second to ten years: a quantile is off by 9 % at most.
EDGES_PER_DOUBLING = 4
SECONDS_FIRST = 1.0
EDGES = SECONDS_FIRST * 2.0 ** (np.arange(4 * 28 + 2) / EDGES_PER_DOUBLING)
#: Panes of predictions told apart by when they were made, the newest: with panes of an hour, a month.
MADE_PANES_MAX = 720


@dataclass(slots=True)
class Delays:
    """Of one model: delays of its labels, and when the predictions that have one were made."""

    pane_ms: int
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(EDGES) + 1, np.int64))
    #: Pane in which predictions were made -> those of them that have a label.
    made: dict[int, int] = field(default_factory=dict)

    def add(self, event_times_ms: Longs, predicted_at_ms: Longs, label_times_ms: Longs) -> None:
        """Count n labels. A label from before its event, by clocks that disagree, came at once."""
        seconds = (label_times_ms - event_times_ms) / 1000.0
        self.counts += np.bincount(np.searchsorted(EDGES, seconds), minlength=len(self.counts))
        panes, counts = np.unique(predicted_at_ms // self.pane_ms, return_counts=True)
        self._count(dict(zip(panes.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: "Delays") -> None:
        """Add all that `other` has counted."""
        self.counts += other.counts
        self._count(other.made)

    def quantile(self, q: float) -> float | None:
        """Seconds within which a share q (0 to 1) of the labels came, rounded up to an edge; None before the first."""
        total = int(self.counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), max(q * total, 0.5)))
        return float(EDGES[min(place, len(EDGES) - 1)])

    def labelled_since(self, time_ms: int) -> int:
        """Predictions made since, to the pane, that have a label."""
        return sum(count for pane, count in self.made.items() if pane >= time_ms // self.pane_ms)

    def _count(self, made: dict[int, int]) -> None:
        for pane, count in made.items():
            self.made[pane] = self.made.get(pane, 0) + count
        if len(self.made) > MADE_PANES_MAX:
            self.made = {pane: self.made[pane] for pane in sorted(self.made)[-MADE_PANES_MAX:]}
