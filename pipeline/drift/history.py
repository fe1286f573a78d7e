"""The recent past in the signals' own units: sums, histograms and offset ranges, newest kept finest.

Ordered by arrival, as the monitor counts events. By event time, a stream that is replayed would lie in its own past.
"""

import base64
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.drift.merge import DATING_BLOCKS, Place
from pipeline.records import BatchSummary, OffsetRange

Doubles = npt.NDArray[np.float64]

#: Stretches remembered; the newest quarter is never joined, so evidence ends near the change point.
STRETCHES_MAX = 64


@dataclass(slots=True)
class Stretch:
    """What the summaries of a round, or of consecutive ones, said. Arrays: (signals,), histograms (signals, bins)."""

    round: int
    first_event: int
    events: int
    time_ms: int
    counts: Doubles
    sums: Doubles
    squares: Doubles
    histograms: Doubles
    #: First and last offset of each partition, and events in it.
    places: dict[Place, tuple[int, int, int]]

    def join(self, later: "Stretch") -> None:
        """Take in the stretch that follows."""
        self.round = later.round
        self.events += later.events
        self.counts += later.counts
        self.sums += later.sums
        self.squares += later.squares
        self.histograms += later.histograms
        for place, (first, last, events) in later.places.items():
            before = self.places.get(place, (first, last, 0))
            self.places[place] = (min(before[0], first), max(before[1], last), before[2] + events)


class History:
    """Stretches in the order of arrival; events are numbered from 0 in that order.

    A round is one stretch: its partitions cover the same time and arrive one after the other, so a
    boundary between them would part partitions, not before from after.
    """

    def __init__(self, bins: list[int]) -> None:
        self._bins = bins
        self._width = max(bins, default=1)
        self.stretches: list[Stretch] = []

    def add(self, summary: BatchSummary, fresh: int, round_number: int, first_event: int) -> None:
        """Take in a summary of which the blocks from `fresh` on, at least one, are new.

        Sums and histograms cover the whole range, so they count only if all of it is new.
        """
        events = sum(summary.block_counts[fresh:])
        first_offset = summary.block_last_offsets[fresh - 1] + 1 if fresh else summary.first_offset
        signals = len(self._bins)
        histograms = np.zeros((signals, self._width))
        counts, sums, squares = np.zeros(signals), np.zeros(signals), np.zeros(signals)
        if not fresh:
            counts[:], sums[:], squares[:] = summary.counts, summary.sums, summary.sums_of_squares
            for row, histogram in enumerate(summary.histograms):
                histograms[row, : len(histogram)] = histogram
        place = {(summary.topic, summary.partition): (first_offset, summary.last_offset, events)}
        time_ms = median_low(summary.block_last_event_times_ms[fresh:][:DATING_BLOCKS])
        stretch = Stretch(round_number, first_event, events, time_ms, counts, sums, squares, histograms, place)
        if self.stretches and self.stretches[-1].round == round_number:
            self.stretches[-1].join(stretch)
        else:
            self.stretches.append(stretch)
        if len(self.stretches) > STRETCHES_MAX:
            # The two neighbours with the fewest events become one: lengths stay near geometric.
            old = self.stretches[: STRETCHES_MAX * 3 // 4]
            pairs = [a.events + b.events for a, b in pairwise(old)]
            smallest = pairs.index(min(pairs))
            self.stretches[smallest].join(self.stretches.pop(smallest + 1))

    def split(self, event: int) -> tuple[list[Stretch], list[Stretch]]:
        """Stretches before and since an event; the one that holds it goes where its middle lies."""
        before: list[Stretch] = []
        since: list[Stretch] = []
        for stretch in self.stretches:
            (since if 2 * stretch.first_event + stretch.events >= 2 * event else before).append(stretch)
        return before, since

    def forget_before(self, event: int) -> None:
        """Keep what came since an event."""
        self.stretches = self.split(event)[1]

    def state_dict(self) -> list[dict[str, Any]]:
        """JSON-able and exact."""
        return [
            {
                "scalars": [s.round, s.first_event, s.events, s.time_ms],
                "arrays": base64.b64encode(
                    np.concatenate([s.counts, s.sums, s.squares, s.histograms.ravel()]).astype("<f8").tobytes()
                ).decode("ascii"),
                "places": [[*place, *seen] for place, seen in s.places.items()],
            }
            for s in self.stretches
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Continue from `state_dict`."""
        signals = len(self._bins)
        self.stretches = []
        for row in state:
            flat = np.frombuffer(base64.b64decode(row["arrays"]), dtype="<f8").copy()
            counts, sums, squares = flat[: 3 * signals].reshape(3, signals)
            histograms = flat[3 * signals :].reshape(signals, self._width)
            places = {(topic, partition): (first, last, n) for topic, partition, first, last, n in row["places"]}
            number, first_event, events, time_ms = row["scalars"]
            arrays = (counts, sums, squares, histograms)
            self.stretches.append(Stretch(number, first_event, events, time_ms, *arrays, places))


def offset_ranges(stretches: list[Stretch]) -> dict[Place, tuple[int, int, int]]:
    """First and last offset and events of each partition over consecutive stretches."""
    places: dict[Place, tuple[int, int, int]] = {}
    for stretch in stretches:
        for place, (first, last, events) in stretch.places.items():
            before = places.get(place, (first, last, 0))
            places[place] = (min(before[0], first), max(before[1], last), before[2] + events)
    return places


def evidence_ranges(stretches: list[Stretch]) -> list[OffsetRange]:
    """What was seen, as ranges, by topic and partition."""
    return [OffsetRange(*place, first, last) for place, (first, last, _) in sorted(offset_ranges(stretches).items())]


def training_ranges(before: list[Stretch], since: list[Stretch], window_events: int) -> list[OffsetRange]:
    """`window_events` events since a change, shared out as the partitions' rates were.

    A partition of which nothing came since begins after what was seen of it. The end may lie beyond
    what was seen: the retrainer waits for it.
    """
    begins = offset_ranges(since)
    places = sorted(offset_ranges(before + since).items())
    seen = max(1, sum(events for _, (_, _, events) in places))
    ranges = []
    for place, (first, last, _) in places:
        begin = begins[place][0] if place in begins else last + 1
        # Offsets the partition used for an event of the stream, gaps included.
        offsets = round((last - first + 1) * window_events / seen)
        if offsets:
            ranges.append(OffsetRange(*place, begin, begin + offsets - 1))
    return ranges
