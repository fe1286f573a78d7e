"""One stream out of many partitions: each event counted once, blocks in event-time order.

Workers send a partition's blocks at every commit, so blocks of different partitions that cover the same
time come one after the other, and after a crash or a rebalance some come twice, with other boundaries.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.records import BatchSummary

#: A block waits at most this many rounds (a round: one summary of each partition) for partitions that
#: are behind, and a partition silent for as long is not waited for.
ROUNDS_MAX = 4


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """A block of one partition; ordered by time, then by place, so the order is the same on every run."""

    time_ms: int
    topic: str
    partition: int
    last_offset: int
    arrived: int
    events: int
    #: Share of the events that have a value, and block mean, per signal (NaN: no value).
    shares: tuple[float, ...]
    means: tuple[float, ...]


class TimeMerger:
    """Takes summaries, gives blocks."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, int], int] = {}  # highest offset counted
        self._latest: dict[tuple[str, int], tuple[int, int]] = {}  # latest event time, arrival of the last summary
        self._waiting: list[Block] = []
        self._arrivals = 0

    def fresh_from(self, summary: BatchSummary) -> int:
        """Index of the first block of which no event was counted before; the number of blocks if there is none.

        A block that overlaps what was counted is left out as a whole: no event counts twice, and fewer
        events than one block holds are missed for each crash.
        """
        counted = self._counted.get((summary.topic, summary.partition), -1)
        if summary.first_offset > counted:
            return 0
        for index, last in enumerate(summary.block_last_offsets):
            if last >= counted:
                return index + 1
        return len(summary.block_last_offsets)

    def take(self, summary: BatchSummary, fresh: int) -> list[Block]:
        """Accept the blocks from `fresh` on; all blocks that are now due, oldest first."""
        key = (summary.topic, summary.partition)
        self._arrivals += 1
        self._counted[key] = max(self._counted.get(key, -1), summary.last_offset)
        shares = tuple(count / summary.events for count in summary.counts)
        for index in range(fresh, len(summary.block_counts)):
            self._waiting.append(
                Block(
                    summary.block_last_event_times_ms[index],
                    summary.topic,
                    summary.partition,
                    summary.block_last_offsets[index],
                    self._arrivals,
                    summary.block_counts[index],
                    shares,
                    tuple(column[index] for column in summary.means),
                )
            )
        before = self._latest.get(key, (summary.last_event_time_ms, 0))[0]
        self._latest[key] = (max(before, summary.last_event_time_ms), self._arrivals)
        return self._due()

    def _due(self) -> list[Block]:
        overdue = self._arrivals - ROUNDS_MAX * len(self._latest)
        self._latest = {key: seen for key, seen in self._latest.items() if seen[1] > overdue}
        watermark = min(time for time, _ in self._latest.values())
        due = sorted(b for b in self._waiting if b.time_ms <= watermark or b.arrived <= overdue)
        self._waiting = [b for b in self._waiting if b.time_ms > watermark and b.arrived > overdue]
        return due

    def state_dict(self) -> dict[str, Any]:
        """JSON-able and exact."""
        return {
            "arrivals": self._arrivals,
            "counted": [[*key, offset] for key, offset in self._counted.items()],
            "latest": [[*key, *seen] for key, seen in self._latest.items()],
            "waiting": [asdict(block) for block in self._waiting],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._arrivals = state["arrivals"]
        self._counted = {(topic, partition): offset for topic, partition, offset in state["counted"]}
        self._latest = {(topic, partition): (time, seen) for topic, partition, time, seen in state["latest"]}
        self._waiting = [
            Block(**{**row, "shares": tuple(row["shares"]), "means": tuple(row["means"])}) for row in state["waiting"]
        ]
