"""What the summariser adds up, compared with NumPy on the same rows."""

import dataclasses
import json
from itertools import pairwise

import numpy as np

from pipeline.drift import SignalSummariser, measure_baseline, summary_from_dict, summary_to_dict
from pipeline.drift.bins import levels_of
from pipeline.drift.summaries import BLOCKS_MAX
from pipeline.records import BatchSummary, ModelIdentity

SIGNALS = ("feature:x", "feature:constant", "null:x", "rejected")
IDENTITY = ModelIdentity("model", "3")


def _rows(n: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = np.zeros((n, 4), dtype=np.float32)
    rows[:, 0] = generator.normal(size=n)
    rows[:, 1] = 7.0
    rows[:, 2] = generator.random(n) < 0.1
    rows[rows[:, 2] == 1, 0] = np.nan
    rows[:, 3] = generator.random(n) < 0.05
    return rows


BASELINE = measure_baseline(SIGNALS, _rows(5_000, seed=1))


def _add(summariser: SignalSummariser, rows: np.ndarray, first: int, partition: int = 0) -> None:
    numbers = np.arange(first, first + len(rows), dtype=np.int64)
    summariser.add("events", partition, numbers * 2, numbers * 10, rows)


def test_counts_sums_and_histograms_are_those_of_the_rows() -> None:
    """Missing values count nowhere; sums are unbounded; histograms follow the baseline's edges."""
    rows = _rows(3_000)
    summariser = SignalSummariser(BASELINE, IDENTITY)
    _add(summariser, rows, 0)
    (summary,) = summariser.drain()
    values = rows[:, 0][~np.isnan(rows[:, 0])].astype(np.float64)
    assert summary.events == 3_000
    assert summary.rejected == rows[:, 3].sum()
    assert summary.counts == [len(values), 3_000, 3_000, 3_000]
    np.testing.assert_allclose(summary.sums[0], values.sum(), rtol=1e-9)
    np.testing.assert_allclose(summary.sums_of_squares[0], (values**2).sum(), rtol=1e-9)
    edges = np.array(BASELINE.signals[0].edges)
    edges[[0, -1]] = -np.inf, np.inf
    expected = [int(((values > low) & (values <= high)).sum()) for low, high in pairwise(edges)]
    assert summary.histograms[0] == expected
    assert summary.histograms[1] == [0, 3_000, 0]
    assert summary.histograms[2] == [3_000 - int(rows[:, 2].sum()), int(rows[:, 2].sum())]


def test_blocks_have_a_fixed_number_of_events_and_one_remainder() -> None:
    """Block means are means of levels, whatever the sizes of the batches were."""
    rows = _rows(100)
    summariser = SignalSummariser(BASELINE, IDENTITY)
    start = 0
    for size in (3, 50, 1, 46):
        _add(summariser, rows[start : start + size], start)
        start += size
    (summary,) = summariser.drain()
    assert summary.block_counts == [8] * 12 + [4]
    assert summary.block_last_offsets == [2 * (8 * i + 7) for i in range(12)] + [198]
    assert summary.block_last_event_times_ms == [10 * (8 * i + 7) for i in range(12)] + [990]
    levels = levels_of(BASELINE.signals[0])
    places = np.searchsorted(np.array(BASELINE.signals[0].edges[1:-1], dtype=np.float32), rows[8:16, 0])
    present = ~np.isnan(rows[8:16, 0])
    np.testing.assert_allclose(summary.means[0][1], levels[places[present]].mean())
    np.testing.assert_allclose(summary.means[3], [rows[i : i + 8, 3].mean() for i in range(0, 100, 8)])


def test_a_block_is_dated_by_its_last_record() -> None:
    """Not by its latest: one clock of the year 3000 would date every block it is in, and all joined with it."""
    summariser = SignalSummariser(BASELINE, IDENTITY)
    times = np.arange(40, dtype=np.int64)
    times[[2, 17, 35]] = 32_503_680_000_000
    for part in (slice(0, 13), slice(13, 40)):
        summariser.add("events", 0, np.arange(40, dtype=np.int64)[part], times[part], _rows(40)[part])
    (summary,) = summariser.drain()
    assert summary.block_last_event_times_ms == [7, 15, 23, 31, 39]


def test_a_long_range_has_larger_blocks_instead_of_more() -> None:
    """Neighbours are joined past BLOCKS_MAX: sizes stay equal, no event is lost, chunks do not show."""
    rows = _rows(9_001)
    whole, parts = SignalSummariser(BASELINE, IDENTITY), SignalSummariser(BASELINE, IDENTITY)
    _add(whole, rows, 0)
    for start in range(0, 9_001, 777):
        _add(parts, rows[start : start + 777], start)
    (one,), (other,) = whole.drain(), parts.drain()
    assert len(one.block_counts) <= BLOCKS_MAX
    assert sum(one.block_counts) == 9_001
    assert len(set(one.block_counts[:-1])) == 1
    assert one.block_counts == other.block_counts
    assert one.block_last_offsets == other.block_last_offsets
    np.testing.assert_allclose(one.means, other.means)
    assert one.histograms == other.histograms


def test_a_block_without_a_value_has_no_mean() -> None:
    """NaN says that nothing was seen; 0 would be a value."""
    rows = _rows(16)
    rows[:8, 0] = np.nan
    rows[8:, 0] = 1.0
    summariser = SignalSummariser(BASELINE, IDENTITY)
    _add(summariser, rows, 0)
    (summary,) = summariser.drain()
    assert np.isnan(summary.means[0][0])
    assert summary.means[0][1] > 0.5


def test_partitions_are_summed_apart_and_a_drain_empties_all() -> None:
    """One summary a partition, each with its own range; the next drain has nothing left."""
    summariser = SignalSummariser(BASELINE, IDENTITY)
    _add(summariser, _rows(10), 0, partition=0)
    _add(summariser, _rows(20), 100, partition=1)
    _add(summariser, _rows(0), 200, partition=2)
    first, second = summariser.drain()
    assert (first.partition, first.first_offset, first.last_offset, first.events) == (0, 0, 18, 10)
    assert (second.partition, second.first_offset, second.last_offset, second.events) == (1, 200, 238, 20)
    assert (second.first_event_time_ms, second.last_event_time_ms) == (1_000, 1_190)
    assert (second.model_id, second.model_version) == ("model", "3")
    assert summariser.drain() == []


def test_a_summary_survives_its_avro_row() -> None:
    """Rows have the dataclass's field names; a field of a later version is left out."""
    summariser = SignalSummariser(BASELINE, IDENTITY)
    rows = _rows(40)
    rows[:, 0] = 1.0
    _add(summariser, rows, 0)
    (summary,) = summariser.drain()
    row = json.loads(json.dumps(summary_to_dict(summary)))
    assert set(row) == {f.name for f in dataclasses.fields(BatchSummary)}
    assert summary_from_dict({**row, "of_tomorrow": 1}) == summary
