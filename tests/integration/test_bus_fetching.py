"""Both ways from librdkafka's queues to record batches: they must not be told apart, but by their speed."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.bus import fetching
from pipeline.bus.fetching import ColumnFetch, Fetch, Fetched, MessageFetch
from pipeline.bus.sizes import size_bytes
from pipeline.records import RecordBatch, TopicPartition
from tests.integration.bus_kit import create, produce

Unique = Callable[[str], str]
WAYS = [MessageFetch, ColumnFetch]
PATIENCE_S = 30.0


def test_the_fast_way_is_there_where_it_can_be_compiled() -> None:
    """A build that fails is not an error of the installation: nobody would notice."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine")
    assert fetching._fetch is not None
    assert fetching._library() is not None


@contextmanager
def consumer(servers: str, way: type[Any], group: str = "fetching") -> Iterator[tuple[Consumer, Fetch]]:
    made = Consumer({"bootstrap.servers": servers, "group.id": group, "enable.partition.eof": True})
    fetch: Fetch = MessageFetch(made) if way is MessageFetch else ColumnFetch(made, library())
    try:
        yield made, fetch
    finally:
        fetch.close()
        made.close()


def library() -> Any:
    found = fetching._library()
    if found is None:
        pytest.skip("_fetch.c is not built here")
    return found


def assign(made: Consumer, fetch: Fetch, topic: str, partitions: int, offset: int = 0) -> None:
    fetch.follow([TopicPartition(topic, p) for p in range(partitions)])
    made.incremental_assign([_TopicPartition(topic, p, offset) for p in range(partitions)])


def unassign(made: Consumer, fetch: Fetch, topic: str, partitions: int) -> None:
    made.incremental_unassign([_TopicPartition(topic, p) for p in range(partitions)])
    fetch.leave([TopicPartition(topic, p) for p in range(partitions)])


def until(fetch: Fetch, enough: Callable[[list[RecordBatch], list[Any]], bool], most: int = 1000) -> Fetched:
    """All that is fetched until it is enough."""
    batches: list[RecordBatch] = []
    notices: list[Any] = []
    give_up = time.monotonic() + PATIENCE_S
    while not enough(batches, notices):
        assert time.monotonic() < give_up, f"{sum(map(len, batches))} records, notices {notices}"
        found = fetch.fetch(most, 0.05)
        batches += found.batches
        notices += found.notices
    return Fetched(batches, notices)


def rows(batches: list[RecordBatch]) -> dict[TopicPartition, list[tuple[Any, ...]]]:
    """Every record by partition, in the order it came, with all that is known of it."""
    found: dict[TopicPartition, list[tuple[Any, ...]]] = {}
    for b in batches:
        assert b.size_bytes == size_bytes(b.keys, b.values, b.headers)
        headers = b.headers or [None] * len(b)
        columns = zip(b.offsets, b.keys, b.values, b.timestamps_ms, headers, strict=True)
        found.setdefault(TopicPartition(b.topic, b.partition), []).extend(columns)
    return found


def test_both_ways_give_the_same(kafka: str, unique: Unique) -> None:
    """Nulls, empty ones, keys and values of any bytes, headers good and bad, times, partitions, their ends."""
    topic = create(kafka, unique("any"))
    producer = Producer({"bootstrap.servers": kafka})
    headers: list[Any] = [
        None,
        [("a", b"1"), ("a", b"2"), ("none", None), ("empty", b"")],
        [("ä", b"\xff" * 300)],
        [(f"h{i}", b"x") for i in range(40)],
    ]
    for n in range(400):
        key = [None, b"", b"k", b"\0\xff" * n][n % 4]
        value = [None, b"", b"v" * n, b"\0" * 7, b"\xff" * (20_000 if n % 50 == 9 else 5)][n % 5]
        producer.produce(
            topic, value, key, partition=n % 3, headers=headers[n % 7 % 4], timestamp=1_600_000_000_000 + n
        )
    assert producer.flush(30) == 0
    seen = []
    for way in WAYS:
        with consumer(kafka, way) as (made, fetch):
            assign(made, fetch, topic, 3)
            found = until(fetch, lambda _, notices: len(notices) == 3, most=97)
            assert all(notice.error.code() == KafkaError._PARTITION_EOF for notice in found.notices)
            ends = {(n.topic, n.partition): n.offset for n in found.notices}
            seen.append((rows(found.batches), ends))
    assert seen[0] == seen[1]
    assert sum(map(len, seen[0][0].values())) == 400


@pytest.mark.parametrize("way", WAYS)
def test_a_call_brings_no_more_than_asked_for(kafka: str, unique: Unique, way: type[Any]) -> None:
    """In batches of one partition each, with what is known of errors beside them."""
    topic = create(kafka, unique("many"))
    produce(kafka, topic, 500)
    with consumer(kafka, way) as (made, fetch):
        assign(made, fetch, topic, 3)
        batches: list[RecordBatch] = []
        while sum(map(len, batches)) < 500:
            some = fetch.fetch(50, 1.0).batches
            assert sum(map(len, some)) <= 50
            assert len({b.partition for b in some}) == len(some)
            batches += some
        assert fetch.fetch(1, 0.0).batches == []


@pytest.mark.parametrize("way", WAYS)
def test_partitions_that_go_and_come_at_once_are_read_on(kafka: str, unique: Unique, way: type[Any]) -> None:
    """librdkafka stops fetching some time after it is told to, and turns the queue away then: that heals by itself."""
    topic = create(kafka, unique("back"))
    produce(kafka, topic, 3_000)
    with consumer(kafka, way) as (made, fetch):
        assign(made, fetch, topic, 3)
        for _ in range(10):
            until(fetch, lambda batches, _: len(batches) > 0, most=10)
            unassign(made, fetch, topic, 3)
            assign(made, fetch, topic, 3)
        # From here on once, in order, each: what was fetched before an assignment is never returned after it.
        unassign(made, fetch, topic, 3)
        assign(made, fetch, topic, 3)
        found = rows(until(fetch, lambda batches, _: sum(map(len, batches)) >= 3_000).batches)
        for records in found.values():
            assert [offset for offset, *_ in records] == list(range(len(records)))
        assert sum(map(len, found.values())) == 3_000


def test_without_the_compiled_part_or_with_an_unknown_client(
    kafka: str, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records come as messages: slower, and all the same."""
    made = Consumer({"bootstrap.servers": kafka, "group.id": unique("group")})
    with monkeypatch.context() as patched:
        patched.setattr(fetching.confluent_kafka, "version", lambda: ("3.0.0", 0x03000000))
        assert isinstance(fetching.open_fetch(made), MessageFetch)
    with monkeypatch.context() as patched:
        patched.setattr(fetching.confluent_kafka, "libversion", lambda: ("2.0.0", 0x020000FF))
        assert isinstance(fetching.open_fetch(made), MessageFetch)
    monkeypatch.setattr(fetching, "_fetch", None)
    fetch = fetching.open_fetch(made)
    assert isinstance(fetch, MessageFetch)
    fetch.close()
    made.close()
