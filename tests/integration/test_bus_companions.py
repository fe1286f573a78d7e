"""Topics that come along: whoever is assigned a partition of one topic reads the same partition of the other."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from confluent_kafka import Producer
from faust.types import TP

from pipeline.bus import Configuration, batch_topic, configure
from tests.integration.bus_kit import create, lag
from tests.integration.test_bus_faust import make_app, running

PARTITIONS, RECORDS = 4, 100


class Reader:
    """An app that reads both topics, and what it got of each partition."""

    def __init__(self, kafka: str, group: str, leading: str, along: str) -> None:
        self.app = make_app(kafka, group, broker_commit_interval=0.1)
        configure(self.app, Configuration(companions={leading: along}))
        self.offsets: dict[TP, list[int]] = {}

        @self.app.agent(batch_topic(self.app, leading, along))
        async def collect(stream: Any) -> None:
            async for event in stream.noack().events():
                self.offsets.setdefault(event.message.tp, []).extend(event.value.offsets)
                event.ack()

    def partitions(self, topic: str) -> set[int]:
        return {tp.partition for tp in self.app.consumer.assignment() if tp.topic == topic}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (the broker knows nothing of us)
            await asyncio.sleep(0.05)


def write(kafka: str, topics: list[str]) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for topic in topics:
        for n in range(RECORDS * PARTITIONS):
            producer.produce(topic, value=str(n), partition=n % PARTITIONS)
    assert producer.flush(30) == 0


async def test_partitions_of_two_topics_stay_together(kafka: str, unique: Callable[[str], str]) -> None:
    """Through a second member and its end: both halves at one reader, read once, offsets of both committed."""
    leading, along = (create(kafka, unique(name), PARTITIONS) for name in ("leading", "along"))
    topics, group = [leading, along], unique("group")

    def caught_up() -> bool:
        return all(lag(kafka, group, topic) == 0 for topic in topics)

    write(kafka, topics)
    async with AsyncExitStack() as stack:
        one, other = (Reader(kafka, group, leading, along) for _ in range(2))
        await stack.enter_async_context(running(one.app))
        await until(lambda: sum(map(len, one.offsets.values())) == 2 * RECORDS * PARTITIONS)
        await until(caught_up)
        async with running(other.app):
            await until(lambda: len(one.partitions(leading)) == len(other.partitions(leading)) == PARTITIONS / 2)
            for reader in (one, other):
                assert reader.partitions(along) == reader.partitions(leading)
            assert not one.partitions(along) & other.partitions(along)
            write(kafka, topics)
            await until(caught_up)
            assert {tp.topic for tp in other.offsets} == set(topics)
        await until(lambda: one.partitions(along) == one.partitions(leading) == set(range(PARTITIONS)))
        write(kafka, topics)
        await until(caught_up)
    for topic in topics:
        for partition in range(PARTITIONS):
            tp = TP(topic, partition)
            assert sorted(one.offsets.get(tp, []) + other.offsets.get(tp, [])) == list(range(3 * RECORDS))
