"""Which labelled events are trained on, how they meet their events, how the window is cut."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.records import OffsetRange
from pipeline.retraining import split, window
from pipeline.retraining.window import Events, Newest, Wanted


def labelled(times: list[int], partitions: list[int] | None = None, offsets: list[int] | None = None) -> pa.Table:
    """Rows of FACTS; by default all of partition 0, at the offset of their number."""
    n = len(times)
    return pa.table(
        {
            window.EVENT_ID: [f"e{i}" for i in range(n)],
            window.TIME_MS: times,
            window.LABEL: ["a" if i % 2 else "b" for i in range(n)],
            window.VALUE: pa.nulls(n, pa.float64()),
            window.LABEL_TIME_MS: [t + 5 for t in times],
            window.SLICES: pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
            window.PARTITION: partitions or [0] * n,
            window.OFFSET: offsets if offsets is not None else list(range(n)),
        }
    ).cast(window.FACTS)


def times_of(rows: pa.Table) -> list[int]:
    found: list[int] = rows.column(window.TIME_MS).to_pylist()
    return found


# --------------------------------------------------------------------------- newest


@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=80),
    rows_max=st.integers(1, 20),
    cut=st.integers(1, 9),
    since=st.none() | st.integers(0, 60),
)
def test_the_newest_events_are_kept_once_each(
    places: list[tuple[int, int]], rows_max: int, cut: int, since: int | None
) -> None:
    """Whatever the order and batches in which they come, as sorting all of them at the end would say."""
    # An event's time follows from its place, so that its outcomes agree; offset 7 of one partition is as late as
    # offset 5 of the next.
    times = {place: 2 * place[1] + place[0] % 2 for place in places}
    kept = Newest(rows_max, since)
    for at in range(0, len(places), cut):
        part = places[at : at + cut]
        kept.add(labelled([times[p] for p in part], [p for p, _ in part], [o for _, o in part]))
    found = kept.rows()
    expected = sorted((t, *place) for place, t in times.items() if since is None or t >= since)[-rows_max:]
    assert (
        list(
            zip(times_of(found), *(found.column(c).to_pylist() for c in (window.PARTITION, window.OFFSET)), strict=True)
        )
        == expected
    )
    assert kept.read == len(places)


def test_memory_is_for_twice_the_rows() -> None:
    """However many come."""
    kept = Newest(100)
    for at in range(0, 10_000, 50):
        kept.add(labelled(list(range(at, at + 50)), offsets=list(range(at, at + 50))))
        assert sum(part.num_rows for part in kept._parts) < 200
    assert times_of(kept.rows()) == list(range(9_900, 10_000))


# --------------------------------------------------------------------------- chosen


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(last=3), [70, 80, 90]),
        (Wanted(last=50), list(range(0, 100, 10))),
        (Wanted(before_ms=20), [70, 80, 90]),
        (Wanted(from_ms=65), [70, 80, 90]),
        (
            Wanted(ranges=(OffsetRange("e", 0, 2, 3), OffsetRange("e", 0, 6, 6), OffsetRange("e", 1, 0, 9))),
            [20, 30, 60],
        ),
        (Wanted(), list(range(0, 100, 10))),
    ],
)
def test_a_window_and_what_is_older(wanted: Wanted, expected: list[int]) -> None:
    """Older is what comes before its first event; what lies between its ranges or after it is neither."""
    rows, older = window.chosen(labelled(list(range(0, 100, 10))), wanted)
    assert times_of(rows) == expected
    assert times_of(older) == [t for t in range(0, 100, 10) if t < expected[0]]


@pytest.mark.parametrize("wanted", [Wanted(from_ms=1000), Wanted(ranges=(OffsetRange("e", 3, 0, 9),))])
def test_an_empty_window_is_refused(wanted: Wanted) -> None:
    """And said to be."""
    with pytest.raises(DataError, match="none of the 3 labelled events lies in the window"):
        window.chosen(labelled([1, 2, 3]), wanted)


def test_truth_of_the_kind_that_is_learnt() -> None:
    """Classes for a classification, finite numbers for a regression; it is said when there are none at all."""
    rows = labelled([1, 2, 3])
    assert window.with_truth(rows, "classification").num_rows == 3
    with pytest.raises(DataError, match="none of the 3 outcomes has a number"):
        window.with_truth(rows, "regression")
    at = rows.column_names.index(window.VALUE)
    numbers = rows.set_column(at, window.VALUE, pa.array([1.0, float("nan"), None]))
    assert window.with_truth(numbers, "regression").num_rows == 1


def test_replayed_events_are_drawn_by_the_seed() -> None:
    """In order of time, none twice, all if there are no more than wanted."""
    older = labelled(list(range(100)))
    one, two, other = (times_of(window.drawn(older, 30, seed)) for seed in (1, 1, 2))
    assert one == two != other
    assert len(set(one)) == 30
    assert one == sorted(one)
    assert window.drawn(older, 100, 0).num_rows == 100


# --------------------------------------------------------------------------- spans, join


@given(
    places=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 200)), min_size=1, max_size=40), gap=st.integers(1, 30)
)
def test_spans_hold_every_row_and_no_long_gap(places: set[tuple[int, int]], gap: int) -> None:
    """Each stretch begins and ends at a wanted offset; between two of them is more than the gap."""
    ordered = sorted(places)
    found = window.spans(labelled([0] * len(places), [p for p, _ in ordered], [o for _, o in ordered]), gap)
    covered = {(p, o) for p, stretches in found.items() for start, end in stretches for o in range(start, end)}
    assert places <= covered
    for partition, stretches in found.items():
        assert all((partition, start) in places and (partition, end - 1) in places for start, end in stretches)
        assert all(second - end + 1 > gap for (_, end), (second, _) in pairwise(stretches))
        inside = sorted(o for p, o in places if p == partition)
        starts = {start for start, _ in stretches}
        assert all(b - a <= gap for a, b in pairwise(inside) if b not in starts)


@given(asked=st.lists(st.integers(0, 20), unique=True, max_size=15), there=st.lists(st.integers(0, 20), unique=True))
def test_events_meet_their_labels(asked: list[int], there: list[int]) -> None:
    """In the order of the labelled rows, whatever that of the events; an event without a label is left out."""
    rows = labelled([10 * o for o in asked], offsets=asked)
    events = Events(pa.table({"x": pa.array([float(o) for o in there])}), window.place([0] * len(there), there))
    found = window.joined(rows, events)
    assert found.column("x").to_pylist() == [o for o in asked if o in there]
    assert found.column(window.OFFSET).to_pylist() == [o for o in asked if o in there]


def test_a_place_is_one_number() -> None:
    """Of the largest partition and offset that there are, too."""
    rows = labelled([0, 0], [0, 100_000], [10**13, 0])
    assert len(set(window.places(rows).tolist())) == 2
    assert window.places(rows).tolist() == window.place([0, 100_000], [10**13, 0]).tolist()


# --------------------------------------------------------------------------- split


def cut(n: int, delay: int, **given: Any) -> split.Split:
    times = np.arange(n, dtype=np.int64) * 10
    return split.split(times, times + delay, newest_share=0.2, stopping_share=0.125, **given)


def test_a_window_is_cut_in_time() -> None:
    """1,000 events, labels 45 ms late, an event every 10: the four before the newest part have none yet."""
    found = cut(1000, 45)
    assert found.newest.tolist() == list(range(800, 1000))
    assert found.purged.tolist() == list(range(796, 800))
    assert found.stopping.tolist() == list(range(796 - 100, 796))
    assert found.fit.tolist() == list(range(696))
    assert cut(1000, 40).purged.tolist() == [797, 798, 799]  # a label that comes at that very moment was known


@given(
    delays=st.lists(st.integers(0, 900), min_size=80, max_size=200),
    newest=st.floats(0.1, 0.5),
    stop=st.floats(0.05, 0.5),
)
def test_nothing_is_learnt_that_was_not_known(delays: list[int], newest: float, stop: float) -> None:
    """Every row has one use; all labels that are learnt from came by the first event of the newest part."""
    times = np.arange(len(delays), dtype=np.int64) * 10
    known = times + np.array(delays)
    begins = times[len(times) - round(len(times) * newest)]
    if round(len(times) * newest) < split.NEWEST_MIN or (known <= begins).sum() < split.ROWS_MIN:
        with pytest.raises(DataError):
            split.split(times, known, newest_share=newest, stopping_share=stop)
        return
    found = split.split(times, known, newest_share=newest, stopping_share=stop)
    parts = [found.fit, found.stopping, found.newest, found.purged]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(delays)))
    assert times[found.newest[0]] == begins
    assert (known[np.concatenate([found.fit, found.stopping])] <= begins).all()
    assert (known[found.purged] > begins).all()
    assert found.fit[-1] < found.stopping[0] <= found.stopping[-1] < found.newest[0]


def test_a_delay_that_is_said_counts_instead_of_the_times() -> None:
    """A replay of old events has labels of today."""
    with pytest.raises(DataError, match=r"only 0 of 800 events had their label .* a label takes 1,000 s .* spans 8 s"):
        cut(1000, 1_000_000)
    assert len(cut(1000, 1_000_000, delay_ms=45).purged) == 4


@pytest.mark.parametrize("n", [0, 1, 62, 80])
def test_too_few_rows(n: int) -> None:
    """It takes 20 to judge by and 50 to learn from."""
    with pytest.raises(DataError, match=f"{n} labelled events in the window; it takes at least 50 to train on and 20"):
        cut(n, 0)
    assert len(cut(100, 0).newest) == 20
