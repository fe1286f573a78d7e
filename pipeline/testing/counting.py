"""What became of events, counted by the partition and offset of each: lost, repeated, out of order, of no event.

Predictions and dead letters both name the event they are of, so no event needs an id of a certain kind. Memory: nine
bytes an event. No Kafka here: whoever reads the outputs hands them in, in the order of their partition.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.records import Longs

#: Offsets from here on are none of ours: 450 MB of account is what a wrong one could cost.
OFFSET_MAX = 50_000_000
#: First size of a partition's account, in events; it doubles.
ROOM = 1 << 14
PREDICTED, DEAD = 1, 2
#: Events named for each kind of fault.
EXAMPLES = 5


@dataclass(frozen=True)
class Balance:
    """`events` is `predicted` + `dead_lettered` + `lost`: each event is counted by its first outcome."""

    events: int
    predicted: int
    dead_lettered: int
    #: Events without any outcome.
    lost: int
    #: Outcomes of an event that had one already.
    duplicated: int
    #: First predictions that came after that of a later event with the same key.
    out_of_order: int
    #: Outcomes of no event, and records that cannot be read.
    foreign: int
    #: "PARTITION@OFFSET" of a few events for each fault, to look them up.
    examples: dict[str, list[str]] = field(default_factory=dict, compare=False)

    def problems(self, mode: str) -> list[str]:
        """What delivery mode `mode` does not allow, one line each; empty if it holds."""
        forbidden = ["lost", "foreign"] + (["duplicated", "out_of_order"] if mode == "exactly_once" else [])
        words = {"foreign": "outcomes of no event", "out_of_order": "out of order within their key"}
        lines = []
        for name in forbidden:
            if count := getattr(self, name):
                events = ", ".join(self.examples.get(name, []))
                lines.append(f"{count:,} {words.get(name, name)}" + (f" (events {events})" if events else ""))
        return lines


class _Account:
    """One partition of the events: what is known of each offset."""

    def __init__(self) -> None:
        #: The first outcome of each event: 0 for none, PREDICTED or DEAD. (n,) uint8.
        self.outcomes = np.zeros(ROOM, dtype=np.uint8)
        #: Hash of the key of each event with a prediction; 0: none, or no key. (n,) int64.
        self.keys = np.zeros(ROOM, dtype=np.int64)

    def make_room(self, offset: int) -> None:
        size = len(self.outcomes)
        if offset >= size:
            more = (1 << offset.bit_length()) - size
            self.outcomes = np.concatenate([self.outcomes, np.zeros(more, dtype=np.uint8)])
            self.keys = np.concatenate([self.keys, np.zeros(more, dtype=np.int64)])

    def take(self, offsets: Longs, kind: int) -> npt.NDArray[np.bool_]:
        """Note outcomes; (n,) which are their event's first."""
        self.make_room(int(offsets.max()))
        first = np.zeros(len(offsets), dtype=np.bool_)
        first[np.unique(offsets, return_index=True)[1]] = True
        first &= self.outcomes[offsets] == 0
        self.outcomes[offsets[first]] = kind
        return first


class OutcomeCounter:
    """Takes predictions and dead letters in any number of calls, from any thread; `balance` at the end."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        #: Highest event offset so far, by (output partition, event partition).
        self._highest: dict[tuple[int, int], int] = {}
        self._examples: dict[str, list[str]] = {}
        self._settled = self._duplicated = self._out_of_order = self._foreign = 0
        self._lock = threading.Lock()

    @property
    def settled(self) -> int:
        """Events with an outcome, so far."""
        return self._settled

    def predictions(self, written_to: int, partitions: Longs, offsets: Longs, keys: Sequence[bytes | None]) -> None:
        """Predictions in the order of the partition `written_to`; `partitions`, `offsets`: of their events."""
        with self._lock:
            for partition, rows in self._by_partition(partitions, offsets):
                account = self._accounts.setdefault(partition, _Account())
                fresh = account.take(offsets[rows], PREDICTED)
                first = rows[fresh]
                self._settle(partition, offsets[rows], fresh)
                hashes = np.array([_hash(keys[row]) for row in first.tolist()], dtype=np.int64)
                self._note_order(written_to, partition, account, offsets[first], hashes)

    def dead_letters(self, partitions: Longs, offsets: Longs) -> None:
        """Dead letters, by partition and offset of their events; negative: the record does not say."""
        with self._lock:
            for partition, rows in self._by_partition(partitions, offsets):
                account = self._accounts.setdefault(partition, _Account())
                self._settle(partition, offsets[rows], account.take(offsets[rows], DEAD))

    def unreadable(self, n: int) -> None:
        """Outputs that cannot be read."""
        with self._lock:
            self._foreign += n

    def balance(self, ends: Mapping[int, int]) -> Balance:
        """The count, where partition p of the events has the offsets 0 to ends[p] - 1, each an event."""
        with self._lock:
            predicted = dead_lettered = beyond = 0
            for partition in sorted({*self._accounts, *ends}):
                account, end = self._accounts.get(partition, _Account()), ends.get(partition, 0)
                account.make_room(end)
                self._name("lost", partition, np.flatnonzero(account.outcomes[:end] == 0)[:EXAMPLES])
                predicted += int((account.outcomes[:end] == PREDICTED).sum())
                dead_lettered += int((account.outcomes[:end] == DEAD).sum())
                beyond += int((account.outcomes[end:] != 0).sum())
            events = sum(ends.values())
            return Balance(
                events=events,
                predicted=predicted,
                dead_lettered=dead_lettered,
                lost=events - predicted - dead_lettered,
                duplicated=self._duplicated,
                out_of_order=self._out_of_order,
                foreign=self._foreign + beyond,
                examples={fault: named for fault, named in self._examples.items() if named},
            )

    def _by_partition(self, partitions: Longs, offsets: Longs) -> list[tuple[int, npt.NDArray[np.intp]]]:
        """(event partition, its rows in their order), without those that can be of no event."""
        known = (partitions >= 0) & (offsets >= 0) & (offsets < OFFSET_MAX)
        self._foreign += int((~known).sum())
        return [(int(p), np.flatnonzero(known & (partitions == p))) for p in np.unique(partitions[known])]

    def _settle(self, partition: int, offsets: Longs, fresh: npt.NDArray[np.bool_]) -> None:
        repeated = offsets[~fresh]
        self._settled += int(fresh.sum())
        self._duplicated += len(repeated)
        self._name("duplicated", partition, repeated)

    def _name(self, fault: str, partition: int, offsets: Longs) -> None:
        """Remember a few events."""
        named = self._examples.setdefault(fault, [])
        named += [f"{partition}@{offset}" for offset in offsets[: EXAMPLES - len(named)].tolist()]

    def _note_order(self, written_to: int, partition: int, account: _Account, offsets: Longs, hashes: Longs) -> None:
        """Offsets that ascend are in order whatever their keys; only where one goes back, keys are compared."""
        before = self._highest.get((written_to, partition), -1)
        highest = np.maximum.accumulate(np.concatenate([np.array([before]), offsets]))
        noted = 0
        for row in np.flatnonzero(offsets < highest[:-1]).tolist():
            account.keys[offsets[noted:row]] = hashes[noted:row]
            noted = row
            later = account.keys[offsets[row] + 1 : highest[row] + 1]
            if hashes[row] and (later == hashes[row]).any():
                self._out_of_order += 1
                self._name("out_of_order", partition, offsets[row : row + 1])
        account.keys[offsets[noted:]] = hashes[noted:]
        self._highest[written_to, partition] = int(highest[-1])


def _hash(key: bytes | None) -> int:
    """64 bits of a key, never 0; 0 for none, which promises no order."""
    return 0 if key is None else hash(key) or 1
