"""Partitions merged in event-time order, each event once."""

import json
from itertools import pairwise

import numpy as np

from pipeline.drift.merge import ROUNDS_MAX, TimeMerger
from pipeline.records import BatchSummary


def summary(partition: int, offsets: range, times: list[int], counts: list[int] | None = None) -> BatchSummary:
    """A summary with one signal whose block means are the blocks' times."""
    counts = counts or [len(offsets) // len(times)] * len(times)
    lasts = (offsets.start + np.cumsum(counts) - 1).tolist()
    return BatchSummary(
        topic="events",
        partition=partition,
        first_offset=offsets.start,
        last_offset=offsets.stop - 1,
        first_event_time_ms=times[0],
        last_event_time_ms=max(times),
        model_id="m",
        model_version="1",
        events=len(offsets),
        rejected=0,
        block_counts=counts,
        block_last_offsets=lasts,
        block_last_event_times_ms=times,
        signals=["feature:x"],
        means=[[float(t) for t in times]],
        counts=[len(offsets)],
        sums=[0.0],
        sums_of_squares=[0.0],
        histograms=[[len(offsets)]],
    )


def take(merger: TimeMerger, given: BatchSummary) -> list[int]:
    """Times of the blocks that come out."""
    return [b.time_ms for b in merger.take(given, merger.fresh_from(given))]


def test_blocks_wait_for_partitions_that_are_behind() -> None:
    """A block is let go when every partition has come as far."""
    merger = TimeMerger()
    assert take(merger, summary(0, range(8), [10])) == [10]
    assert take(merger, summary(1, range(24), [12, 30, 50])) == []
    assert take(merger, summary(0, range(8, 24), [20, 40])) == [12, 20, 30, 40]
    assert take(merger, summary(0, range(24, 32), [60])) == [50]


def test_a_silent_partition_is_not_waited_for_long() -> None:
    """After ROUNDS_MAX rounds without a word its neighbours go on alone, and nothing is lost."""
    merger = TimeMerger()
    take(merger, summary(1, range(8), [5]))
    came = [take(merger, summary(0, range(8 * i, 8 * i + 8), [100 + i])) for i in range(20)]
    assert came[0] == []
    assert [t for times in came for t in times] == [100 + i for i in range(20)]
    assert next(i for i, times in enumerate(came) if times) <= 2 * ROUNDS_MAX


def test_a_partition_with_a_clock_of_long_ago_delays_by_rounds_only() -> None:
    """Event times near 0 in one partition cannot stop the others: a block waits ROUNDS_MAX rounds at most."""
    merger = TimeMerger()
    came: list[int] = []
    for i in range(20):
        came += take(merger, summary(1, range(8 * i, 8 * i + 8), [1]))
        came += take(merger, summary(0, range(8 * i, 8 * i + 8), [1_000 + i]))
    assert sum(t >= 1_000 for t in came) >= 20 - ROUNDS_MAX


def test_a_range_that_comes_again_counts_nothing() -> None:
    """The same summary, or a part of it, has no fresh block."""
    merger = TimeMerger()
    take(merger, summary(0, range(24), [1, 2, 3]))
    for again in (summary(0, range(24), [1, 2, 3]), summary(0, range(8, 16), [2])):
        assert merger.fresh_from(again) == len(again.block_counts)


def test_of_an_overlapping_range_only_wholly_new_blocks_count() -> None:
    """A block that was counted in part is left out; where a block ended exactly, all after it is new."""
    merger = TimeMerger()
    take(merger, summary(0, range(20), [1, 2, 3], [8, 8, 4]))
    straddling = summary(0, range(8, 40), [2, 3, 4, 5])  # 8-15, 16-23, 24-31, 32-39
    assert merger.fresh_from(straddling) == 2
    assert merger.fresh_from(summary(0, range(12, 36), [2, 3, 4])) == 1  # 12-19, 20-27, 28-35


def test_other_partitions_are_counted_apart() -> None:
    """Offsets of one partition say nothing of another."""
    merger = TimeMerger()
    take(merger, summary(0, range(80), [1]))
    assert merger.fresh_from(summary(1, range(8), [1])) == 0


def test_state_continues_exactly() -> None:
    """A merger loaded from another's JSON gives the same blocks from then on."""
    generator = np.random.default_rng(0)
    given = [
        summary(p, range(8 * i, 8 * i + 8), [int(100 * i + generator.integers(150))])
        for i in range(30)
        for p in generator.permutation(3).tolist()
    ]
    one, other = TimeMerger(), TimeMerger()
    for item in given[:41]:
        take(one, item)
    other.load(json.loads(json.dumps(one.state_dict())))
    assert [take(one, item) for item in given[41:]] == [take(other, item) for item in given[41:]]


def test_merged_times_ascend_when_partitions_are_in_order() -> None:
    """With all partitions alive, what comes out is one stream in time order."""
    merger = TimeMerger()
    came: list[int] = []
    for i in range(50):
        for partition in range(4):
            base = 100 * i + partition
            came += take(merger, summary(partition, range(16 * i, 16 * i + 16), [base, base + 50]))
    late = came[came.index(100) :]  # once all four are known
    assert all(a <= b for a, b in pairwise(late))
