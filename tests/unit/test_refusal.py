"""The limit for bad input: when it trips, when it does not, what it says."""

import pytest

from pipeline.errors import InputRefusedError
from pipeline.records import Reason, Reject, Stage
from pipeline.scoring.refusal import InputLimit


def bad(n: int, reason: Reason = Reason.WRONG_MAGIC) -> list[Reject]:
    return [Reject(row, Stage.DECODE, reason, f"why {row}") for row in range(n)]


def place(row: int) -> str:
    return f"events[0]@{row}"


def taken(limit: InputLimit, steps: list[tuple[int, int]]) -> int:
    """How many steps of (events, bad ones) are taken before the limit trips."""
    for n, (events, rejects) in enumerate(steps):
        try:
            limit.take(events, bad(rejects), place)
        except InputRefusedError:
            return n
    return len(steps)


def test_garbage_from_the_start_trips_at_the_minimum() -> None:
    """Fewer than `events_min` dead letters are sent, however large the window."""
    assert taken(InputLimit(0.5, 10_000, 1_000), [(100, 100)] * 50) == 9


def test_one_large_step_of_garbage_is_not_sent_at_all() -> None:
    """The count comes before the sending."""
    assert taken(InputLimit(0.5, 10_000, 1_000), [(8192, 8192)]) == 0


def test_a_few_bad_records_at_the_start_do_not_trip() -> None:
    """Below the minimum nothing is judged, and later they are few."""
    assert taken(InputLimit(0.01, 10_000, 1_000), [(9, 9), (991, 1), (1_000, 0)]) == 3


def test_the_share_must_be_above_the_limit() -> None:
    """Exactly the limit is allowed, one more is not."""
    assert taken(InputLimit(0.5, 100, 10), [(100, 50)] * 5) == 5
    assert taken(InputLimit(0.5, 100, 10), [(100, 51)]) == 0


def test_one_means_never() -> None:
    """Nothing but garbage goes through."""
    assert taken(InputLimit(1.0, 100, 1), [(100, 100)] * 20) == 20


def test_a_good_past_does_not_excuse_a_bad_present_for_long() -> None:
    """At most `bad_share_max` of a window is sent after ten million good events."""
    steps = [(1_000, 0)] * 10_000 + [(1_000, 1_000)] * 10
    assert taken(InputLimit(0.5, 10_000, 1_000), steps) - 10_000 == 5


def test_a_bad_past_is_forgotten() -> None:
    """What left the window counts no more."""
    steps = [(1_000, 400)] * 10 + [(1_000, 0)] * 10 + [(1_000, 600)] * 4
    assert taken(InputLimit(0.5, 10_000, 1_000), steps) == len(steps)


def test_the_window_holds_whole_steps_and_no_more_than_it_must() -> None:
    """However many steps, what is kept stays bounded."""
    limit = InputLimit(0.9, 100, 10)
    for _ in range(1_000):
        limit.take(7, bad(3), place)
    assert limit._events == 7 * 15
    assert sum(events for events, _ in limit._steps) == limit._events
    assert limit._reasons.total() == 3 * 15


def test_a_good_step_may_show_how_bad_the_others_were() -> None:
    """A small good step that pushes a large good one out of the window raises the share; the example is the last."""
    limit = InputLimit(0.5, 100, 10)
    limit.take(60, [], place)
    limit.take(51, bad(51), place)
    with pytest.raises(InputRefusedError, match=r"51 of the latest 100 .*events\[0\]@0"):
        limit.take(49, [], place)


def test_the_message_says_all_a_person_needs() -> None:
    """Share, window, the commonest reasons with counts, one record, the limit and the way out; in one line."""
    limit = InputLimit(0.25, 100, 10)
    limit.take(60, bad(10, Reason.NULL_FEATURE), place)
    with pytest.raises(InputRefusedError) as refused:
        limit.take(40, bad(20), place)
    said = str(refused.value)
    assert "30 of the latest 100 events are bad (wrong_magic 20, null_feature 10; events[0]@0: why 0)" in said
    assert "input.bad_share_max = 0.25" in said
    assert "events.schema_file" in said
    assert "\n" not in said
