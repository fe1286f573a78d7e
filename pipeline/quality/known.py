"""The no-change baseline of a stream whose labels come late: the latest truth that was known when a model answered.

"Latest" goes by event time: of all events whose label was known by then, the one that happened last (Zliobaite et al.
2015, with the delay that labels really had). A truth known later than one of a later event is never the latest, so what
there is to remember is a front: later labels, later events.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.records import Longs

#: Truths remembered of the stream, or of one key: 90 bytes each. Beyond it every second one of the older half goes, so
#: that long delays get a somewhat older answer, never one that was not known yet.
FRONT_MAX = 16_384
#: Keys remembered, those seen last: about 500 bytes each with a truth or two.
KEYS_MAX = 100_000


class _Front:
    """Truths by ascending time at which they were known, and of their events."""

    __slots__ = ("known_at", "moments")

    def __init__(self) -> None:
        self.known_at: list[int] = []
        #: (time of the event, truth): of two events at one time the greater truth, whatever order they came in.
        self.moments: list[tuple[int, float]] = []

    def add(self, known_at: int, moment: tuple[int, float]) -> None:
        times, moments = self.known_at, self.moments
        end = bisect_right(times, known_at)
        if end and moments[end - 1] >= moment:
            return
        start, stop = bisect_left(times, known_at), bisect_right(moments, moment)
        times[start:stop], moments[start:stop] = [known_at], [moment]
        if len(times) > FRONT_MAX:
            del times[: FRONT_MAX // 2 : 2], moments[: FRONT_MAX // 2 : 2]

    def at(self, time: int) -> float | None:
        """The truth of the latest event that was known at `time`."""
        place = bisect_right(self.known_at, time)
        return self.moments[place - 1][1] if place else None


class KnownTruths:
    """What was known when: of the whole stream, or of each key by itself, where keys are things that have a history."""

    def __init__(self) -> None:
        self._fronts: dict[Hashable, _Front] = {}

    def add(
        self, times_ms: Longs, label_times_ms: Longs, truth: npt.NDArray[Any], keys: Sequence[Hashable] | None = None
    ) -> None:
        """Remember n truths, in any order."""
        fronts = self._fronts
        # A label may be there before its event: then it tells of it, and answers only for those after it.
        known_at = np.maximum(label_times_ms, times_ms + 1).tolist()
        moments = zip(times_ms.tolist(), truth.tolist(), strict=True)
        for row, moment in enumerate(moments):
            key = None if keys is None else keys[row]
            front = fronts.pop(key, None) or _Front()
            fronts[key] = front  # now the last: the first one is that seen longest ago
            front.add(known_at[row], moment)
            if len(fronts) > KEYS_MAX:
                del fronts[next(iter(fronts))]

    def before(self, times_ms: Longs, nothing: float, keys: Sequence[Hashable] | None = None) -> npt.NDArray[Any]:
        """(n,) what no change would have answered at the time of each event; `nothing` where no truth was known."""
        found = np.full(len(times_ms), nothing)
        for row, time in enumerate(times_ms.tolist()):
            front = self._fronts.get(None if keys is None else keys[row])
            truth = None if front is None else front.at(time)
            if truth is not None:
                found[row] = truth
        return found
