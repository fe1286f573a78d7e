"""Which prediction and which label belong together.

An event's prediction and label have one Kafka key, so they are in partitions of one number, and one process has both.
Whichever comes first waits in the store for the other:

    p / partition / event_id             a prediction waits: the record's value
    l / partition / event_id             a label waits: digest, deadline, time, the record's value
    o / deadline / partition / event_id  when that label has waited long enough
    d / partition / event_id             they have met: the label's digest, by which a second one is known

The first label of an event counts. What is in the store after a stretch of both logs does not depend on the order in
which the two were read: a store that is behind is brought up by reading first one, then the other.
"""

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

from pipeline.labels.store import Store

#: Two labels of one event are told apart by their texts' digests: 8 bytes are wrong once in 10^19.
_DIGEST_BYTES = 8
_WAITING = Struct(f">{_DIGEST_BYTES}sqq")
_LONG = Struct(">q")
_PARTITION = Struct(">I")
#: Most labels that one sweep gives up: 5 µs each.
SWEEP_MAX = 10_000


class Result(StrEnum):
    """What a label turned out to be: closed, and the label of a metric."""

    MATCHED = "matched"
    #: Its prediction is not there yet; it waits.
    EARLY = "early"
    #: The event has this label already.
    DUPLICATE = "duplicate"
    #: The event has another label already, which stays.
    CONFLICTING = "conflicting"
    #: It has waited for labels.wait_hours, and no prediction came.
    ORPHAN = "orphan"
    #: Not a label: undecodable, without an id, or neither class nor value.
    MALFORMED = "malformed"


class Label(NamedTuple):
    """One label: the Kafka value as it is, what it says of which event, and since when, ms since the epoch."""

    event_id: bytes
    truth: str
    time_ms: int
    value: bytes


class Pair(NamedTuple):
    """A prediction's value, the label of its event with its time; `row` is the index of what came last of the two."""

    row: int
    prediction: bytes
    label: bytes
    label_time_ms: int


class Join:
    """Pairs up predictions and labels. All changes are open in the store until it is told to seal or drop them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def predictions(self, partition: int, event_ids: Sequence[bytes], values: Sequence[bytes]) -> list[Pair]:
        """Pairs that n predictions make with labels that wait; the others wait. The last one of an event counts."""
        store, waits, labels = self._store, _key(b"p", partition), _key(b"l", partition)
        pairs = []
        met: set[bytes] = set()
        for row, label in enumerate(store.get([labels + event_id for event_id in event_ids])):
            event_id, value = event_ids[row], values[row]
            if label is None:
                store.put(waits + event_id, value)
            elif event_id not in met:  # else the same event came twice
                met.add(event_id)
                digest, _, time_ms = _WAITING.unpack_from(label)
                store.delete(labels + event_id)
                store.put(_key(b"d", partition) + event_id, digest)
                pairs.append(Pair(row, value, label[_WAITING.size :], time_ms))
        return pairs

    def labels(self, partition: int, labels: Sequence[Label], deadline_ms: int) -> tuple[list[Pair], dict[Result, int]]:
        """Pairs that n labels make with predictions that wait, and how many labels were what.

        deadline_ms: when those without a prediction will have waited long enough, ms since the epoch.
        """
        store = self._store
        counts = dict.fromkeys((Result.MATCHED, Result.EARLY, Result.DUPLICATE, Result.CONFLICTING), 0)
        pairs = []
        waits, early, done = (_key(kind, partition) for kind in (b"p", b"l", b"d"))
        known = store.get([kind + label.event_id for kind in (waits, early, done) for label in labels])
        n, seen = len(labels), dict[bytes, bytes]()
        for row, label in enumerate(labels):
            event_id = label.event_id
            prediction, waiting, digest_done = known[row], known[n + row], known[2 * n + row]
            digest = blake2b(label.truth.encode(), digest_size=_DIGEST_BYTES).digest()
            first = digest_done or (waiting and waiting[:_DIGEST_BYTES]) or seen.get(event_id)
            if first:
                counts[Result.DUPLICATE if first == digest else Result.CONFLICTING] += 1
                continue
            seen[event_id] = digest
            if prediction is not None:
                store.delete(waits + event_id)
                store.put(done + event_id, digest)
                pairs.append(Pair(row, prediction, label.value, label.time_ms))
                counts[Result.MATCHED] += 1
            else:
                store.put(early + event_id, _WAITING.pack(digest, deadline_ms, label.time_ms) + label.value)
                store.put(b"o" + _LONG.pack(deadline_ms) + _PARTITION.pack(partition) + event_id, b"")
                counts[Result.EARLY] += 1
        return pairs, counts

    def orphans(self, now_ms: int) -> int:
        """Give up labels that have waited long enough, at most SWEEP_MAX at once; how many."""
        store, count = self._store, 0
        for seen, key in enumerate(store.ascending(b"o", b"o" + _LONG.pack(now_ms))):
            if seen >= SWEEP_MAX:
                break
            rest = key[1 + _LONG.size :]
            (waiting,) = store.get([b"l" + rest])
            if waiting is not None and _WAITING.unpack_from(waiting)[1] <= now_ms:
                store.delete(b"l" + rest)
                count += 1
            store.delete(key)
        return count


def prefixes(partition: int) -> list[bytes]:
    """Of the keys of all that waits or has met in a partition."""
    return [_key(kind, partition) for kind in (b"p", b"l", b"d")]


def _key(kind: bytes, partition: int) -> bytes:
    return kind + _PARTITION.pack(partition)
