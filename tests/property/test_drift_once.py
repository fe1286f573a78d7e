"""Whatever is repeated, and however it is cut, each event counts once."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.drift import IDENTITY, monitor_for
from pipeline.drift import SignalSummariser, measure_baseline
from pipeline.records import BatchSummary

SIGNALS = ("feature:x", "rejected")
BASELINE = measure_baseline(SIGNALS, np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32))


def summarise(partition: int, first: int, sizes: list[int]) -> BatchSummary:
    """Batches of a partition from offset `first` on, in one summary; the value of a row is its offset."""
    summariser = SignalSummariser(BASELINE, IDENTITY)
    for size in sizes:
        offsets = np.arange(first, first + size, dtype=np.int64)
        rows = np.repeat(offsets[:, None], 2, axis=1).astype(np.float32)
        summariser.add("events", partition, offsets, offsets, rows)
        first += size
    (summary,) = summariser.drain()
    return summary


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # partition
            st.lists(st.integers(1, 60), min_size=1, max_size=4),  # batches in the summary
            st.integers(0, 100),  # events read again before it, after a crash
        ),
        min_size=1,
        max_size=25,
    )
)
@settings(max_examples=150, deadline=None)
def test_replayed_ranges_with_other_boundaries_never_count_twice(steps: list[tuple[int, list[int], int]]) -> None:
    """At most all distinct events are counted, and a replay misses fewer than one block of them."""
    monitor = monitor_for(BASELINE)
    ends = [0, 0, 0]
    replays = 0
    for partition, sizes, again in steps:
        first = max(0, ends[partition] - again)
        replays += first < ends[partition]
        monitor.take(summarise(partition, first, sizes))
        ends[partition] = max(ends[partition], first + sum(sizes))
    assert monitor.events_seen <= sum(ends)
    assert monitor.events_seen >= sum(ends) - replays * (BASELINE.block_events - 1)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90)), min_size=2, max_size=30),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_monitor_loaded_anywhere_is_the_same_monitor(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """State through JSON at any point: what follows is equal to the last bit."""
    ends = [0, 0, 0]
    given_summaries = []
    for partition, size in steps:
        given_summaries.append(summarise(partition, ends[partition], [size]))
        ends[partition] += size
    cut = data.draw(st.integers(0, len(steps)))
    whole, first, second = monitor_for(BASELINE), monitor_for(BASELINE), monitor_for(BASELINE)
    for index, summary in enumerate(given_summaries):
        whole.take(summary)
        if index < cut:
            first.take(summary)
    second.load(json.loads(json.dumps(first.state_dict())))
    for summary in given_summaries[cut:]:
        second.take(summary)
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_batch_sizes_do_not_show_in_a_summary(sizes: list[int]) -> None:
    """One batch or many: the same blocks, counts and histograms, the same means to rounding."""
    many, one = summarise(0, 0, sizes), summarise(0, 0, [sum(sizes)])
    assert many.block_counts == one.block_counts
    assert many.block_last_offsets == one.block_last_offsets
    assert many.block_last_event_times_ms == one.block_last_event_times_ms
    assert many.histograms == one.histograms
    np.testing.assert_allclose(many.means, one.means, rtol=1e-12)
    np.testing.assert_allclose(many.sums, one.sums)
