"""What of each partition was handed out, is done, and may be committed.

A range is a record batch: [first, next). Ranges of a partition are handed out in ascending order,
may be done in any order, and are committable up to the first one that is not done:

    handed out   [0,40) [40,90) [95,130) [130,170)      90..94: a gap in the log (compaction, aborted)
    done          x      x       .        x
    committable          90 ─┘

Guarantees: the committable offset never passes a range that is not done, and never goes back within
one assignment. Does not guarantee: that the outputs of a done range are on the broker; the commit
flushes them before it uses the offset. Not thread-safe: one thread (the event loop's) owns it.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from pipeline.records import TopicPartition


class BatchOffset(int):
    """The first offset of a batch, which also knows where the batch ends and from which hand-out it is.

    Faust identifies a message by its offset alone and its compiled stream loop acknowledges with
    nothing else in hand; as an `int` that remembers the rest, an acknowledgement that arrives after the
    partition was taken away and given back cannot complete the wrong range.
    """

    epoch: int
    next_offset: int
    records: int
    size_bytes: int

    def __new__(cls, first: int, next_offset: int, epoch: int, records: int, size_bytes: int = 0) -> Self:
        self = super().__new__(cls, first)
        self.next_offset = next_offset
        self.epoch = epoch
        self.records = records
        self.size_bytes = size_bytes
        return self


@dataclass(slots=True)
class _Range:
    batch: BatchOffset
    done: bool = False


@dataclass(slots=True)
class _Partition:
    """Ledger of one assigned partition."""

    epoch: int
    #: Next offset to commit; None until the first range is done.
    position: int | None = None
    committed: int | None = None
    #: Where the first hand-out of this assignment began.
    first: int | None = None
    ranges: deque[_Range] = field(default_factory=deque)
    open: dict[int, _Range] = field(default_factory=dict)


class Ledger:
    """Contiguous completed ranges per partition."""

    def __init__(self) -> None:
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._epoch = 0
        #: Records handed out and not done, and their bytes.
        self.in_flight_records = 0
        self.in_flight_bytes = 0

    def __contains__(self, tp: TopicPartition) -> bool:
        return tp in self._partitions

    def assign(self, tps: Iterable[TopicPartition]) -> None:
        """Begin a ledger for each newly assigned partition."""
        for tp in tps:
            if tp not in self._partitions:
                self._epoch += 1
                self._partitions[tp] = _Partition(self._epoch)

    def revoke(self, tps: Iterable[TopicPartition]) -> None:
        """Forget partitions; a later `complete` for them changes nothing."""
        for tp in tps:
            partition = self._partitions.pop(tp, None)
            if partition is not None:
                self._release(partition)

    def hand_out(
        self, tp: TopicPartition, first: int, next_offset: int, records: int, size_bytes: int = 0
    ) -> BatchOffset:
        """Note that [first, next_offset) was given to a consumer; the token completes it.

        Raises ValueError when the range is empty or does not lie after the ones before it:
        the caller has read a partition twice, which must never be hidden.
        """
        partition = self._partitions[tp]
        end = partition.ranges[-1].batch.next_offset if partition.ranges else partition.position
        if next_offset <= first or records < 1 or (end is not None and first < end):
            raise ValueError(f"{tp.topic}[{tp.partition}]: range [{first}, {next_offset}) after {end}. This is a bug.")
        batch = BatchOffset(first, next_offset, partition.epoch, records, size_bytes)
        entry = _Range(batch)
        partition.ranges.append(entry)
        partition.open[first] = entry
        self.in_flight_records += records
        self.in_flight_bytes += size_bytes
        if partition.first is None:
            partition.first = first
        return batch

    def complete(self, tp: TopicPartition, batch: BatchOffset) -> bool:
        """Mark a range as done. False if it is unknown, done before, or from an earlier hand-out."""
        partition = self._partitions.get(tp)
        if partition is None or partition.epoch != batch.epoch:
            return False
        entry = partition.open.pop(int(batch), None)
        if entry is None:
            return False
        entry.done = True
        self.in_flight_records -= batch.records
        self.in_flight_bytes -= batch.size_bytes
        while partition.ranges and partition.ranges[0].done:
            partition.position = partition.ranges.popleft().batch.next_offset
        return True

    def skip(self, tp: TopicPartition, end: int) -> None:
        """Note that nothing lies between the last record read and `end`: transaction markers, which are never read.

        With the record before them they are done. Without this, a group would lag behind such an end for ever.
        """
        partition = self._partitions[tp]
        if partition.ranges:
            last = partition.ranges[-1].batch
            last.next_offset = max(last.next_offset, end)
        elif partition.position is None or end > partition.position:
            partition.position = end

    def is_open(self, tp: TopicPartition, batch: BatchOffset) -> bool:
        """Whether `complete` would mark this range as done."""
        partition = self._partitions.get(tp)
        return partition is not None and partition.epoch == batch.epoch and int(batch) in partition.open

    def committable(self) -> dict[TopicPartition, int]:
        """Offsets that may be committed and are not yet."""
        return {
            tp: p.position
            for tp, p in self._partitions.items()
            if p.position is not None and (p.committed is None or p.position > p.committed)
        }

    def last_committed(self, tp: TopicPartition) -> int | None:
        """What was committed last in this assignment of `tp`; None before that. May be asked from any thread."""
        partition = self._partitions.get(tp)
        return None if partition is None else partition.committed

    def committed(self, offsets: dict[TopicPartition, int]) -> None:
        """Note that the broker has these offsets."""
        for tp, offset in offsets.items():
            partition = self._partitions.get(tp)
            if partition is not None and (partition.committed is None or offset > partition.committed):
                partition.committed = offset

    def rewind(self, tp: TopicPartition) -> int | None:
        """Forget what was handed out and not done; the offset to read again from, None if nothing was open.

        The ranges behind the first hole are read again even where they were done: at least once.
        """
        partition = self._partitions[tp]
        if not partition.ranges:
            return None
        first = int(partition.ranges[0].batch)
        self._release(partition)
        partition.ranges.clear()
        partition.open.clear()
        self._epoch += 1
        partition.epoch = self._epoch
        return first if partition.position is None else partition.position

    def reset(self, tp: TopicPartition, offset: int | None) -> int | None:
        """Forget all since the last commit, `offset` (None: none yet); the offset to read from, None to stay.

        For transactions: what was done since then was aborted with its outputs.
        """
        partition = self._partitions[tp]
        self._release(partition)
        partition.ranges.clear()
        partition.open.clear()
        self._epoch += 1
        partition.epoch = self._epoch
        partition.position = partition.committed = offset
        return partition.first if offset is None else offset

    def uncommitted(self, tps: Iterable[TopicPartition]) -> bool:
        """Whether anything of these partitions is done and not committed."""
        return any(
            p.position not in (None, p.committed) or any(r.done for r in p.ranges)
            for tp in tps
            if (p := self._partitions.get(tp)) is not None
        )

    def idle(self) -> bool:
        """Whether nothing is handed out and not done."""
        return self.in_flight_records == 0

    def __iter__(self) -> Iterator[TopicPartition]:
        return iter(self._partitions)

    def _release(self, partition: _Partition) -> None:
        self.in_flight_records -= sum(entry.batch.records for entry in partition.open.values())
        self.in_flight_bytes -= sum(entry.batch.size_bytes for entry in partition.open.values())
