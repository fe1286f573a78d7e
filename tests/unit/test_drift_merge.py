"""Partitions merged by rounds of arrival, each event once."""

import dataclasses
import json

import numpy as np

from pipeline.drift.merge import ROUNDS_MAX, RoundMerger
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


def take(merger: RoundMerger, given: BatchSummary) -> list[tuple[int, int]]:
    """Partition and last offset of the blocks that come out."""
    return [(b.partition, b.last_offset) for b in merger.take(given, merger.fresh_from(given))]


def begun(*partitions: int) -> RoundMerger:
    """A merger at the end of its first round: it knows which partitions there are."""
    merger = RoundMerger()
    for first in (0, 8):
        for partition in partitions:
            take(merger, summary(partition, range(first, first + 8), [1]))
    return merger


def test_blocks_of_a_round_are_interleaved_by_position() -> None:
    """A block is let go when every partition is in; equal positions in the order of partitions."""
    merger = begun(0, 1)
    assert take(merger, summary(1, range(16, 48), [1, 2, 3, 4])) == []
    assert take(merger, summary(0, range(16, 32), [1, 2])) == [(1, 23), (0, 23), (1, 31), (1, 39), (0, 31), (1, 47)]


def test_event_times_do_not_order_anything() -> None:
    """Times that go back, stand still or lie far ahead give the order that good ones give."""
    good = [summary(p, range(16 * i, 16 * i + 16), [2 * i, 2 * i + 1]) for i in range(6) for p in range(3)]
    for bad in ([9, 3], [0, 0], [32_503_680_000_000, 5], [-1, -1]):
        merger, other = RoundMerger(), RoundMerger()
        for item in good:
            wrong = dataclasses.replace(item, block_last_event_times_ms=bad)
            assert take(merger, item) == take(other, wrong)


def test_a_partition_committed_less_often_is_spread_over_the_rounds_since() -> None:
    """Two summaries of one partition cover the time of one of the other: their blocks alternate."""
    merger = begun(0, 1)
    assert take(merger, summary(0, range(16, 32), [1, 2])) == []
    assert take(merger, summary(0, range(32, 48), [3, 4])) == []
    late = take(merger, summary(1, range(16, 48), [1, 2, 3, 4]))
    assert late == [(p, offset) for offset in (23, 31, 39, 47) for p in (0, 1)]


def test_a_silent_partition_delays_for_some_rounds_only() -> None:
    """After ROUNDS_MAX rounds without a word it is not waited for, and nothing is lost."""
    merger = begun(0, 1)
    came = [take(merger, summary(0, range(8 * i, 8 * i + 8), [1])) for i in range(2, 22)]
    assert [len(blocks) for blocks in came] == [0] * (ROUNDS_MAX - 1) + [ROUNDS_MAX] + [1] * (20 - ROUNDS_MAX)
    assert [offset for blocks in came for _, offset in blocks] == [8 * i + 7 for i in range(2, 22)]


def test_a_partition_that_begins_later_is_waited_for_from_then_on() -> None:
    """Its first blocks belong to the round in which they came."""
    merger = begun(0)
    assert take(merger, summary(1, range(8), [1])) == [(1, 7)]
    assert take(merger, summary(0, range(16, 24), [1])) == []
    assert take(merger, summary(1, range(8, 16), [1])) == [(0, 23), (1, 15)]


def test_a_repeated_summary_does_not_end_a_round() -> None:
    """What comes twice leaves no trace in the order either."""
    merger = begun(0, 1)
    item = summary(0, range(16, 24), [1])
    assert take(merger, item) == []
    assert take(merger, item) == []
    assert take(merger, summary(1, range(16, 24), [1])) == [(0, 23), (1, 23)]


def test_a_range_that_comes_again_counts_nothing() -> None:
    """The same summary, or a part of it, has no fresh block."""
    merger = RoundMerger()
    take(merger, summary(0, range(24), [1, 2, 3]))
    for again in (summary(0, range(24), [1, 2, 3]), summary(0, range(8, 16), [2])):
        assert merger.fresh_from(again) == len(again.block_counts)


def test_of_an_overlapping_range_only_wholly_new_blocks_count() -> None:
    """A block that was counted in part is left out; where a block ended exactly, all after it is new."""
    merger = RoundMerger()
    take(merger, summary(0, range(20), [1, 2, 3], [8, 8, 4]))
    straddling = summary(0, range(8, 40), [2, 3, 4, 5])  # 8-15, 16-23, 24-31, 32-39
    assert merger.fresh_from(straddling) == 2
    assert merger.fresh_from(summary(0, range(12, 36), [2, 3, 4])) == 1  # 12-19, 20-27, 28-35


def test_other_partitions_are_counted_apart() -> None:
    """Offsets of one partition say nothing of another."""
    merger = RoundMerger()
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
    one, other = RoundMerger(), RoundMerger()
    for item in given[:41]:
        take(one, item)
    other.load(json.loads(json.dumps(one.state_dict())))
    assert [take(one, item) for item in given[41:]] == [take(other, item) for item in given[41:]]
