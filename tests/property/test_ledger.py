"""The ledger against a model so simple that it can be seen to be right: a list of every range ever handed out."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.bus.ledger import BatchOffset, Ledger
from pipeline.records import TopicPartition

TPS = [TopicPartition("t", 0), TopicPartition("t", 1)]


@dataclass
class Handed:
    """One hand-out of the model."""

    tp: TopicPartition
    first: int
    next_offset: int
    records: int
    token: BatchOffset
    done: bool = False
    #: Which assignment of its partition it belongs to.
    assignment: int = 0
    #: Whether a `complete` still counts: not revoked, not rewound, not reset.
    valid: bool = True


class LedgerMachine(RuleBasedStateMachine):
    """Hand-outs, completions in any order, commits, rewinds, revocations and stale tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.handed: list[Handed] = []
        self.assigned: dict[TopicPartition, int] = {}  # where the next hand-out may begin
        self.base: dict[TopicPartition, int | None] = {}  # what is known done before the listed ranges
        self.committed: dict[TopicPartition, int] = {}
        self.assignments: dict[TopicPartition, int] = dict.fromkeys(TPS, 0)

    def valid(self, tp: TopicPartition) -> list[Handed]:
        return [h for h in self.handed if h.tp == tp and h.valid]

    def expected(self, tp: TopicPartition) -> int | None:
        """The offset up to which everything handed out in this assignment is done."""
        position = self.base[tp]
        for h in self.valid(tp):
            if not h.done:
                break
            position = h.next_offset
        return position

    @rule(tp=st.sampled_from(TPS), start=st.integers(0, 50))
    def assign(self, tp: TopicPartition, start: int) -> None:
        self.ledger.assign([tp])
        if tp not in self.assigned:
            self.assigned[tp], self.base[tp] = start, None
            self.committed.pop(tp, None)
            self.assignments[tp] += 1

    @rule(tp=st.sampled_from(TPS))
    def revoke(self, tp: TopicPartition) -> None:
        self.ledger.revoke([tp])
        self.assigned.pop(tp, None)
        for h in self.valid(tp):
            h.valid = False

    @precondition(lambda self: self.assigned)
    @rule(data=st.data(), gap=st.integers(0, 3), records=st.integers(1, 5), holes=st.integers(0, 3))
    def hand_out(self, data: st.DataObject, gap: int, records: int, holes: int) -> None:
        tp = data.draw(st.sampled_from(sorted(self.assigned)))
        first = self.assigned[tp] + gap
        end = first + records + holes
        token = self.ledger.hand_out(tp, first, end, records)
        assert (int(token), token.next_offset, token.records) == (first, end, records)
        self.handed.append(Handed(tp, first, end, records, token, assignment=self.assignments[tp]))
        self.assigned[tp] = end

    @precondition(lambda self: self.assigned)
    @rule(data=st.data(), markers=st.integers(0, 2))
    def skip(self, data: st.DataObject, markers: int) -> None:
        """The partition's end was reached, with markers behind the last record."""
        tp = data.draw(st.sampled_from(sorted(self.assigned)))
        self.assigned[tp] += markers
        self.ledger.skip(tp, self.assigned[tp])
        if ranges := self.valid(tp):
            ranges[-1].next_offset = self.assigned[tp]
        else:
            self.base[tp] = self.assigned[tp]

    @precondition(lambda self: self.handed)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        h = data.draw(st.sampled_from(self.handed))  # stale ones and repeated ones, too
        assert self.ledger.complete(h.tp, h.token) == (h.valid and not h.done)
        h.done = h.done or h.valid

    @precondition(lambda self: self.assigned)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        tp = data.draw(st.sampled_from(sorted(self.assigned)))
        position, ranges = self.expected(tp), self.valid(tp)
        offset = self.ledger.rewind(tp)
        open_ranges = [h for h in ranges if not h.done]
        if not open_ranges:
            assert offset is None
            return
        # Reading on from here meets every range that was not done, and passes none.
        assert offset is not None
        assert offset <= open_ranges[0].first
        assert offset == (open_ranges[0].first if position is None else position)
        self.base[tp], self.assigned[tp] = position, offset
        for h in ranges:
            h.valid = False

    @precondition(lambda self: self.assigned)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        """An aborted transaction: back to the last commit, or to where the assignment began."""
        tp = data.draw(st.sampled_from(sorted(self.assigned)))
        committed = self.committed.get(tp)
        offset = self.ledger.reset(tp, committed)
        ranges = [h for h in self.handed if h.tp == tp and h.assignment == self.assignments[tp]]
        assert offset == (committed if committed is not None else ranges[0].first if ranges else None)
        for h in self.valid(tp):
            h.valid = False
        self.base[tp] = committed
        self.assigned[tp] = offset if offset is not None else self.assigned[tp]
        assert not self.ledger.uncommitted([tp])

    @rule()
    def commit(self) -> None:
        offsets = self.ledger.committable()
        for tp, offset in offsets.items():
            assert offset > self.committed.get(tp, -1), "a commit never goes back"
            self.committed[tp] = offset
        self.ledger.committed(offsets)
        assert self.ledger.committable() == {}

    @invariant()
    def committable_is_what_is_done_without_a_hole(self) -> None:
        offsets = self.ledger.committable()
        for tp in TPS:
            position = self.expected(tp) if tp in self.assigned else None
            if position is None or position <= self.committed.get(tp, -1):
                assert tp not in offsets
            else:
                assert offsets[tp] == position
                assert all(h.first >= position for h in self.valid(tp) if not h.done)

    @invariant()
    def in_flight_is_exact(self) -> None:
        open_records = sum(h.records for h in self.handed if h.valid and not h.done)
        assert self.ledger.in_flight_records == open_records
        assert self.ledger.idle() == (open_records == 0)

    @invariant()
    def open_is_what_a_completion_would_count_for(self) -> None:
        for h in self.handed:
            assert self.ledger.is_open(h.tp, h.token) == (h.valid and not h.done)

    @invariant()
    def uncommitted_is_what_is_done_beyond_the_last_commit(self) -> None:
        for tp in self.assigned:
            beyond = any(h.done for h in self.valid(tp) if h.next_offset > self.committed.get(tp, -1))
            position = self.expected(tp)
            beyond = beyond or (position is not None and position != self.committed.get(tp))
            assert self.ledger.uncommitted([tp]) == beyond

    @invariant()
    def membership(self) -> None:
        assert set(self.ledger) == set(self.assigned)
        assert all((tp in self.ledger) == (tp in self.assigned) for tp in TPS)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("first", "end", "records"), [(9, 20, 5), (10, 10, 1), (12, 11, 1), (12, 20, 0)])
def test_a_range_that_overlaps_or_is_empty_is_refused(first: int, end: int, records: int) -> None:
    """Reading a partition twice must never be hidden: the ledger raises, and holds what it held."""
    ledger = Ledger()
    tp = TPS[0]
    ledger.assign([tp])
    token = ledger.hand_out(tp, 0, 10, 10)
    with pytest.raises(ValueError, match=r"t\[0\].*after 10"):
        ledger.hand_out(tp, first, end, records)
    ledger.complete(tp, token)
    assert ledger.committable() == {tp: 10}
    with pytest.raises(ValueError, match="This is a bug"):
        ledger.hand_out(tp, 5, 12, 7)


def test_a_late_acknowledgement_cannot_complete_a_new_hand_out() -> None:
    """The same offset, handed out again after the partition went and came back, is another range."""
    ledger = Ledger()
    tp = TPS[0]
    ledger.assign([tp])
    old = ledger.hand_out(tp, 0, 10, 10)
    ledger.revoke([tp])
    assert not ledger.complete(tp, old)
    ledger.assign([tp])
    new = ledger.hand_out(tp, 0, 10, 10)
    assert not ledger.complete(tp, old)
    assert ledger.committable() == {}
    assert ledger.complete(tp, new)
    assert ledger.committable() == {tp: 10}


def test_a_refused_commit_stays_committable() -> None:
    """Offsets that the broker did not take are offered again."""
    ledger = Ledger()
    tp = TPS[0]
    ledger.assign([tp])
    ledger.complete(tp, ledger.hand_out(tp, 0, 10, 10))
    assert ledger.committable() == {tp: 10}
    ledger.committed({})
    assert ledger.committable() == {tp: 10}
    ledger.committed({tp: 10, TPS[1]: 5})
    assert ledger.committable() == {}
