"""The account of outcomes: what is lost, repeated, out of order or of no event is found, and nothing else is."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.testing.counting import OFFSET_MAX, Balance, OutcomeCounter

EVENTS = 40_000  # beyond the first room


def predict(counter: OutcomeCounter, offsets: Sequence[int], partition: int = 0, written_to: int = 0) -> None:
    """Predictions of events whose keys are their offsets modulo 100."""
    taken = np.asarray(offsets, dtype=np.int64)
    keys = [f"k{offset % 100}".encode() for offset in taken.tolist()]
    counter.predictions(written_to, np.full(len(taken), partition), taken, keys)


def bury(counter: OutcomeCounter, *offsets: int, partition: int = 0) -> None:
    counter.dead_letters(np.full(len(offsets), partition), np.array(offsets, dtype=np.int64))


def test_every_event_once_is_a_balance_without_problems() -> None:
    """Two partitions, some dead letters, many calls: all is accounted for."""
    counter = OutcomeCounter()
    good = [offset for offset in range(EVENTS) if offset % 1_000 != 500]
    for start in range(0, len(good), 999):
        predict(counter, good[start : start + 999])
    bury(counter, *range(500, EVENTS, 1_000))
    predict(counter, range(10), partition=3, written_to=3)
    balance = counter.balance({0: EVENTS, 3: 10})
    assert balance == Balance(EVENTS + 10, EVENTS - 40 + 10, 40, 0, 0, 0, 0)
    assert counter.settled == EVENTS + 10
    assert balance.problems("exactly_once") == balance.problems("at_least_once") == []


def test_a_missing_event_is_lost_whatever_the_mode() -> None:
    """Also one at the very end, and a partition of which nothing came out."""
    counter = OutcomeCounter()
    predict(counter, [*range(50), *range(51, 99)])
    balance = counter.balance({0: 100, 1: 7})
    assert (balance.events, balance.predicted, balance.lost) == (107, 98, 9)
    assert (
        balance.problems("at_least_once")
        == balance.problems("exactly_once")
        == ["9 lost (events 0@50, 0@99, 1@0, 1@1, 1@2)"]
    )


def test_repetitions_are_counted_within_a_call_and_across_calls_and_kinds() -> None:
    """A second prediction or dead letter of an event is a duplicate; at_least_once allows it."""
    counter = OutcomeCounter()
    predict(counter, range(100))
    predict(counter, [98, 99, 100, 100])
    bury(counter, 5, 101, 101)
    balance = counter.balance({0: 102})
    assert (balance.duplicated, balance.lost, balance.out_of_order) == (5, 0, 0)
    assert (balance.predicted, balance.dead_lettered) == (101, 1)
    assert balance.problems("exactly_once") == ["5 duplicated (events 0@98, 0@99, 0@100, 0@5, 0@101)"]
    assert balance.problems("at_least_once") == []


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_order_is_that_of_equal_keys(split: int) -> None:
    """150 after 250 (one key) is out of order, 151 after 250 (another) is not; however the calls are cut."""
    counter = OutcomeCounter()
    sent = [*range(150), 250, 151, 150, *range(152, 250)]
    for start in range(0, len(sent), split):
        predict(counter, sent[start : start + split])
    balance = counter.balance({0: 251})
    # Behind 250 of its key came 150 alone: 50 was before it.
    assert (balance.out_of_order, balance.lost, balance.duplicated) == (1, 0, 0)
    assert balance.problems("exactly_once") == ["1 out of order within their key (events 0@150)"]


def test_what_is_read_again_in_order_is_no_disorder() -> None:
    """The first outcome of each event decides: a replay from further back keeps the order of each key."""
    counter = OutcomeCounter()
    predict(counter, [*range(300), *range(100, 400)])
    assert counter.balance({0: 400}).out_of_order == 0


def test_partitions_and_their_outputs_have_orders_of_their_own() -> None:
    """An offset that goes back is none when it belongs to another partition, in or out."""
    counter = OutcomeCounter()
    predict(counter, [200], partition=0)
    predict(counter, [100], partition=1)
    predict(counter, [100], partition=0, written_to=1)
    assert counter.balance({0: 201, 1: 101}).out_of_order == 0


def test_events_without_a_key_have_no_order() -> None:
    """Null keys go to any partition in any order."""
    counter = OutcomeCounter()
    counter.predictions(0, np.zeros(2, np.int64), np.array([1, 0]), [None, None])
    assert counter.balance({0: 2}).problems("exactly_once") == []


def test_outcomes_of_no_event_are_foreign() -> None:
    """Beyond the end, negative, absurd or of a partition that is not there; nothing is allocated for them."""
    counter = OutcomeCounter()
    predict(counter, [0, 1, -1, 5, OFFSET_MAX, 2**62])
    predict(counter, [0], partition=9)
    bury(counter, 7)
    counter.unreadable(2)
    balance = counter.balance({0: 2})
    assert (balance.foreign, balance.predicted, balance.dead_lettered, balance.lost) == (8, 2, 0, 0)
    assert balance.problems("at_least_once") == ["8 outcomes of no event"]
