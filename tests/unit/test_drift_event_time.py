"""Event times are what producers say: wrong ones change neither what is found nor what is shown for it."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.drift import IDENTITY, monitor_for, stationary, summaries
from pipeline.drift import SignalSummariser, measure_baseline
from pipeline.records import Baseline, Floats, Longs, RetrainingTrigger

CHANGE = 20_000
YEAR_3000_MS = 32_503_680_000_000
#: A true event time: 2026, one event each millisecond.
BEGIN_MS = 1_767_225_600_000

Clock = Callable[[Longs, int], Longs]


def _scattered(value_ms: int, every: int) -> Clock:
    """True times but for one record in `every`."""

    def clock(rows: Longs, _partition: int) -> Longs:
        return np.where(rows * 2_654_435_761 % every == 0, value_ms, BEGIN_MS + rows)

    return clock


CLOCKS: dict[str, Clock] = {
    "true": lambda rows, _: BEGIN_MS + rows,
    "the same dates again": lambda rows, _: BEGIN_MS + rows % CHANGE,
    "the same dates every 500 rows": lambda rows, _: BEGIN_MS + rows % 500,
    "backwards": lambda rows, _: BEGIN_MS - 1_000 * rows,
    "constant": lambda rows, _: np.full_like(rows, BEGIN_MS),
    "zero": lambda rows, _: np.zeros_like(rows),
    "minus one": lambda rows, _: np.full_like(rows, -1),
    "one record of the year 3000": lambda rows, _: np.where(rows == 5_000, YEAR_3000_MS, BEGIN_MS + rows),
    "one record in 100 of the year 3000": _scattered(YEAR_3000_MS, 100),
    "one record in 100 at zero": _scattered(0, 100),
    "the year 3000 in one partition": lambda rows, p: np.where(p == 2, YEAR_3000_MS, BEGIN_MS) + rows,
    "a day late in one partition": lambda rows, p: BEGIN_MS - (86_400_000 if p == 2 else 0) + rows,
    "the broker's time for one record in 3": lambda rows, _: np.where(rows % 3, rows % 1_000, BEGIN_MS + rows),
    "random": lambda rows, _: rows * 2_654_435_761 % YEAR_3000_MS,
    "the largest and the smallest": lambda rows, _: np.where(rows % 2, 2**63 - 1, -(2**63)),
}
every_clock = pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS.keys())


class _Clocked(SignalSummariser):
    """A summariser that sees the event times of another clock; those given are row numbers."""

    def __init__(self, baseline: Baseline, clock: Clock) -> None:
        super().__init__(baseline, IDENTITY)
        self._clock = clock

    def add(self, topic: str, partition: int, offsets: Longs, event_times_ms: Longs, matrix: Floats) -> None:
        super().add(topic, partition, offsets, self._clock(event_times_ms, partition), matrix)


def _watch(
    rows: Floats, baseline: Baseline, generator: np.random.Generator, clock: Clock, drain: tuple[int, int]
) -> list[tuple[int, RetrainingTrigger]]:
    """Triggers over all rows, with the rows read when each came; 4 partitions, drains of random size."""
    monitor = monitor_for(baseline)
    given = summaries(rows, _Clocked(baseline, clock), generator, drain=drain)
    return [(read, trigger) for read, summary in given if (trigger := monitor.take(summary)) is not None]


@every_clock
def test_the_evidence_of_a_step_lies_on_its_two_sides(clock: Clock) -> None:
    """Found as soon; before and after, counts, offsets, window and severity are those of the order of arrival."""
    rows, baseline, generator = stationary("normal", 0.0, 51, 30_000)
    rows[CHANGE:, 3] += 3.0
    ((read, trigger),) = _watch(rows, baseline, generator, clock, drain=(100, 400))
    assert CHANGE < read < CHANGE + 800
    (signal,) = trigger.signals
    assert (signal.signal, signal.detector) == ("feature:3", "adwin")
    assert signal.before_mean == pytest.approx(0.0, abs=0.1)
    assert signal.after_mean == pytest.approx(3.0, abs=0.3)
    assert signal.before_count == pytest.approx(CHANGE, abs=400)
    assert signal.after_count == pytest.approx(read - CHANGE, abs=200)
    assert signal.psi > 2
    assert trigger.severity == "major"
    assert trigger.change_events_ago == pytest.approx(read - CHANGE, abs=200)
    assert [r.partition for r in trigger.evidence] == [0, 1, 2, 3]
    assert [r.partition for r in trigger.window] == [0, 1, 2, 3]
    assert all(4_700 < r.first_offset < 5_300 for r in (*trigger.evidence, *trigger.window))
    assert sum(r.last_offset - r.first_offset + 1 for r in trigger.evidence) == signal.after_count
    assert all(-(2**63) <= t < 2**63 for t in (trigger.change_event_time_ms, trigger.detected_event_time_ms))


@every_clock
def test_no_alarm_on_stationary_rows(clock: Clock) -> None:
    """Autocorrelated signals over 4 partitions stay quiet whatever their events say of time."""
    rows, baseline, generator = stationary("normal", 0.7, 52, 60_000)
    assert _watch(rows, baseline, generator, clock, drain=(20, 1_500)) == []


@every_clock
def test_a_stream_that_returns_to_the_baseline_is_compared_by_its_newest_part(clock: Clock) -> None:
    """Shifted before it was watched: told once, and what came before the shift ended does not linger."""
    rows, baseline, generator = stationary("normal", 0.0, 53, 40_000)
    rows[:CHANGE, 0] += 1.0
    first, second = _watch(rows, baseline, generator, clock, drain=(100, 400))
    assert first[0] < 4_000
    assert [(s.signal, s.detector) for s in first[1].signals] == [("feature:0", "baseline")]
    assert CHANGE < second[0] < CHANGE + 800
    (signal,) = second[1].signals
    assert (signal.signal, signal.detector) == ("feature:0", "adwin")
    assert (signal.before_mean, signal.after_mean) == pytest.approx((1.0, 0.0), abs=0.2)


@every_clock
def test_partitions_that_differ_are_no_drift(clock: Clock) -> None:
    """Keys of another kind in each partition: blocks of a drain are interleaved, none looks like a change."""
    means = np.array([-2.0, -0.7, 0.7, 2.0])
    places = np.random.default_rng(54).integers(4, size=60_000)  # as `summaries` draws them from the same seed
    rows = (np.random.default_rng(55).normal(size=(60_000, 2)) + means[places, None]).astype(np.float32)
    before = np.random.default_rng(56)
    others = means[before.integers(4, size=10_000), None] + before.normal(size=(10_000, 2))
    baseline = measure_baseline(["feature:a", "feature:b"], others.astype(np.float32))
    assert _watch(rows, baseline, np.random.default_rng(54), clock, drain=(400, 4_000)) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_partitions_that_differ_are_no_drift_when_workers_commit_apart(seed: int) -> None:
    """Two workers of two partitions, out of step and not quite regular, with a stream that stays as it is."""
    generator = np.random.default_rng(seed)
    places = generator.integers(4, size=70_000)
    means = np.array([-1.0, -0.4, 0.4, 1.0])[places, None]
    rows = (generator.normal(size=(70_000, 4)) + means).astype(np.float32)
    signals = [f"feature:{i}" for i in range(4)]
    baseline = measure_baseline(signals, rows[:10_000])
    monitor = monitor_for(baseline)
    ends = 10_000 + np.array([[0], [137]]) + generator.integers(475, 526, size=(2, 110)).cumsum(axis=1)
    commits = [(end, pair) for pair in (0, 1) for end in ends[pair].tolist()]
    done = [10_000, 10_000]
    for end, pair in sorted(commits):
        summariser = SignalSummariser(baseline, IDENTITY)
        for partition in (2 * pair, 2 * pair + 1):
            numbers = done[pair] + np.flatnonzero(places[done[pair] : end] == partition)
            summariser.add("events", partition, numbers, np.zeros_like(numbers), rows[numbers])
        done[pair] = end
        assert [trigger for s in summariser.drain() if (trigger := monitor.take(s)) is not None] == []
    assert monitor.events_seen > 50_000


@pytest.mark.parametrize(
    "name",
    [
        "one record of the year 3000",
        "one record in 100 of the year 3000",
        "one record in 100 at zero",
    ],
)
def test_one_wrong_clock_does_not_date_the_change(name: str) -> None:
    """The times in the trigger are those that most records around them say."""
    rows, baseline, generator = stationary("normal", 0.0, 55, 30_000)
    rows[CHANGE:, 3] += 3.0
    ((read, trigger),) = _watch(rows, baseline, generator, CLOCKS[name], drain=(100, 400))
    assert trigger.change_event_time_ms - BEGIN_MS == pytest.approx(CHANGE, abs=200)
    assert trigger.detected_event_time_ms - BEGIN_MS == pytest.approx(read, abs=200)


def test_the_second_pass_over_the_same_dates_is_dated_by_its_own() -> None:
    """A file replayed with other values: the change is at the first date, and detected shortly after it."""
    rows, baseline, generator = stationary("normal", 0.0, 56, 2 * CHANGE)
    rows[CHANGE:, 3] += 3.0
    ((read, trigger),) = _watch(rows, baseline, generator, CLOCKS["the same dates again"], drain=(100, 400))
    assert trigger.change_event_time_ms - BEGIN_MS == pytest.approx(0, abs=200)
    assert trigger.detected_event_time_ms - BEGIN_MS == pytest.approx(read - CHANGE, abs=200)
