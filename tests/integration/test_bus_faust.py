"""`rdkafka://` in plain Faust apps, in this process: records as they were written, seeking, gaps, sending."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import faust
import pytest
from confluent_kafka import Producer
from faust.types import TP

from pipeline.bus import Configuration, Hooks, batch_topic, configure
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.errors import ContractError, DeliveryError, SettingsError
from pipeline.records import RecordBatch
from tests.integration.bus_kit import create, lag, produce, read

Unique = Callable[[str], str]


def make_app(kafka: str, group: str, **options: Any) -> Any:
    """A Faust app as its manual makes one, but for what keeps it out of the file system and off the network."""
    given = {"topic_disable_leader": True, "web_enabled": False, "store": "memory://", "autodiscover": False}
    return faust.App(group, broker=f"rdkafka://{kafka}", stream_recovery_delay=0.0, **{**given, **options})


class Collector:
    """An agent that keeps the batches it gets."""

    def __init__(self, app: Any, topic: str) -> None:
        self.batches: list[RecordBatch] = []
        self._news = asyncio.Condition()

        @app.agent(batch_topic(app, topic))
        async def collect(stream: Any) -> None:
            async for event in stream.noack().events():
                async with self._news:
                    self.batches.append(event.value)
                    event.ack()
                    self._news.notify_all()

    @property
    def offsets(self) -> list[int]:
        return [offset for b in self.batches for offset in b.offsets]

    async def until(self, condition: Callable[[], Any]) -> None:
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(condition), 30)


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[Any]:
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def test_records_arrive_as_they_were_written(kafka: str, unique: Unique) -> None:
    """Keys, values, nulls of both, headers, timestamps and offsets are those of the log."""
    topic = create(kafka, unique("as-written"), 1)
    written = [
        (b"k", b"v", [("a", b"1"), ("a", b"2"), ("none", None)], 1_600_000_000_001),
        (None, b"\x00\xff", None, 1_600_000_000_002),
        (b"", b"", [], 1_600_000_000_003),
        (b"gone", None, None, 1_600_000_000_004),
    ]
    producer = Producer({"bootstrap.servers": kafka})
    for key, value, headers, timestamp in written:
        producer.produce(topic, key=key, value=value, headers=headers, timestamp=timestamp)
    assert producer.flush(20) == 0
    app = make_app(kafka, unique("group"))
    collector = Collector(app, topic)
    async with running(app):
        await collector.until(lambda: len(collector.offsets) == 4)
    batches = collector.batches
    assert [k for b in batches for k in b.keys] == [b"k", None, b"", b"gone"]
    assert [v for b in batches for v in b.values] == [b"v", b"\x00\xff", b"", None]
    assert [t for b in batches for t in b.timestamps_ms] == [w[3] for w in written]
    headers = [h for b in batches for h in b.headers or [None] * len(b)]
    assert headers[0] == [("a", b"1"), ("a", b"2"), ("none", None)]
    assert not any(headers[1:])
    assert collector.offsets == [0, 1, 2, 3]
    assert {(b.topic, b.partition) for b in batches} == {(topic, 0)}


async def test_gaps_of_aborted_transactions_and_compaction_are_passed(kafka: str, unique: Unique) -> None:
    """Aborted records never arrive, and the commit gets past their offsets to the end of the log."""
    topic, group = create(kafka, unique("gaps"), 1), unique("group")
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": unique("tx")})
    producer.init_transactions(20)
    for n in range(6):
        producer.begin_transaction()
        for i in range(5):
            producer.produce(topic, value=f"{n * 5 + i}".encode())
        if n % 2:
            producer.flush(20)
            producer.abort_transaction(20)
        else:
            producer.commit_transaction(20)
    app = make_app(kafka, group)
    collector = Collector(app, topic)
    async with running(app):
        await collector.until(lambda: len(collector.offsets) >= 15)
    values = [int(v or b"") for b in collector.batches for v in b.values]
    assert values == [*range(5), *range(10, 15), *range(20, 25)]
    # What is left is the last transaction's commit marker and the aborted one behind it: no record.
    assert lag(kafka, group, topic) <= 7


async def test_seeking_reads_again_and_commits_from_there(kafka: str, unique: Unique) -> None:
    """`seek` and `seek_to_beginning` deliver each record from there on, in order, without a hole."""
    topic, group = create(kafka, unique("seek"), 2), unique("group")
    produce(kafka, topic, 3000)
    app = make_app(kafka, group, broker_commit_interval=0.1)
    configure(app, Configuration(poll_records=100))
    collector = Collector(app, topic)
    async with running(app):
        await collector.until(lambda: len(collector.offsets) == 3000)
        before = len(collector.batches)
        await app.consumer.seek(TP(topic, 0), 10)
        end = (await app.consumer.highwaters(TP(topic, 0)))[TP(topic, 0)]
        await collector.until(lambda: sum(map(len, collector.batches[before:])) == end - 10)
        assert [o for b in collector.batches[before:] for o in b.offsets] == list(range(10, end))
        before = len(collector.batches)
        await app.consumer.seek_to_beginning()
        await collector.until(lambda: sum(map(len, collector.batches[before:])) == 3000)
        with pytest.raises(ContractError, match="not assigned"):
            await app.consumer.seek(TP(topic, 7), 0)
    assert lag(kafka, group, topic) == 0


async def test_seeking_under_load_leaves_no_hole(kafka: str, unique: Unique) -> None:
    """Seeks while batches are on their way: what is read after the last one is every record, in order."""
    topic, group = create(kafka, unique("seek-load"), 3), unique("group")
    produce(kafka, topic, 30_000)
    app = make_app(kafka, group)
    configure(app, Configuration(poll_records=50, in_flight_max=500))
    collector = Collector(app, topic)

    def read_last() -> list[list[int]]:
        """Of each partition, what came from the last time on that its first record did."""
        last: dict[int, list[int]] = defaultdict(list)
        for batch in collector.batches:
            if batch.offsets[0] == 0:
                last[batch.partition] = []
            last[batch.partition] += batch.offsets
        return list(last.values())

    async with running(app):
        for seen in (500, 2000, 4000):
            await collector.until(lambda seen=seen: len(collector.offsets) > seen)
            before = len(collector.batches)
            await app.consumer.seek_to_beginning()
        await collector.until(lambda: sum(map(len, read_last())) == 30_000)
        assert any(b.offsets[0] == 0 for b in collector.batches[before:])
        for offsets in read_last():
            assert offsets == list(range(len(offsets)))
    assert lag(kafka, group, topic) == 0


async def test_committed_offsets_and_positions(kafka: str, unique: Unique) -> None:
    """What Faust asks of positions is answered by the broker, and `seek_to_committed` goes back there."""
    topic, group = create(kafka, unique("positions"), 1), unique("group")
    produce(kafka, topic, 100)
    app = make_app(kafka, group, broker_commit_interval=0.05)
    collector = Collector(app, topic)
    tp = TP(topic, 0)
    async with running(app):
        await collector.until(lambda: len(collector.offsets) == 100)
        await app.consumer.commit()
        assert await app.consumer.committed_offsets() == {tp: 100}
        assert await app.consumer.position(tp) == 100
        assert await app.consumer.earliest_offsets(tp) == {tp: 0}
        assert app.consumer.assignment() == {tp}
        assert app.consumer.topic_partitions(topic) == 1
        assert app.consumer.topic_partitions("no-such-topic") is None
        assert await app.consumer.seek_to_committed() == {tp: 100}
        produce(kafka, topic, 1)
        await collector.until(lambda: len(collector.offsets) == 101)
    assert collector.offsets[-1] == 100


async def test_a_plain_app_sends_with_headers_by_entry_point(kafka: str, unique: Unique) -> None:
    """Without configure(): `topic.send` with key, headers, timestamp; null values; the answer says where it went."""
    topic = create(kafka, unique("sent"), 4)
    app = make_app(kafka, unique("group"))
    Collector(app, topic)
    target = app.topic(topic, value_serializer="raw", key_serializer="raw")
    async with running(app):
        answer = await (await target.send(key=b"k", value=b"v", headers={"h": b"1"}, timestamp=1_600_000_000.5))
        await target.send(key=b"k", value=None)
        target.send_soon(key=b"k", value=b"soon")
        await app.producer.flush()
        expected = app.producer.key_partition(topic, b"k")
        with pytest.raises(DeliveryError, match="does not exist"):
            app.producer.key_partition("no-such-topic", b"k")
    found = read(kafka, topic)
    assert [(m.key(), m.value()) for m in found] == [(b"k", b"v"), (b"k", None), (b"k", b"soon")]
    assert found[0].headers() == [("h", b"1")]
    assert found[0].timestamp()[1] == 1_600_000_000_500
    assert (answer.topic, answer.partition, answer.offset) == (topic, expected.partition, 0)


async def test_a_refused_single_record_stops_the_commits(kafka: str, unique: Unique) -> None:
    """A record sent and not awaited that the broker refuses: the future fails, and so does every later flush."""
    topic = create(kafka, unique("small"), 1, max_message_bytes="1000")
    app = make_app(kafka, unique("group"))
    Collector(app, topic)
    async with running(app):
        future = await app.producer.send(topic, None, b"x" * 5000, None, None, None)
        with pytest.raises(DeliveryError):
            await future
        with pytest.raises(DeliveryError, match=topic):
            await app.producer.flush()
        with pytest.raises(DeliveryError, match="partition"):
            await (await app.producer.send(topic, None, b"x", 99, None, None))


async def test_an_agent_under_constant_sending_still_commits(kafka: str, unique: Unique) -> None:
    """A flush waits for what was sent before it, not for what others send meanwhile."""
    source, target, group = create(kafka, unique("s"), 1), create(kafka, unique("t"), 1), unique("group")
    produce(kafka, source, 100)
    outcomes: list[str] = []
    app = make_app(kafka, group, broker_commit_interval=0.1)
    configure(app, Configuration(hooks=Hooks(on_commit=outcomes.append)))
    collector = Collector(app, source)
    async with running(app):
        await collector.until(lambda: len(collector.offsets) == 100)
        deadline = time.monotonic() + 10
        while not outcomes and time.monotonic() < deadline:
            await app.producer.send(target, None, b"x", None, None, None)
            await asyncio.sleep(0)
    assert outcomes[0] == "ok"


async def test_statistics_reach_their_hook(kafka: str, unique: Unique) -> None:
    """librdkafka's statistics arrive as JSON, at the interval asked for, with the lag per partition."""
    topic = create(kafka, unique("stats"), 1)
    produce(kafka, topic, 10)
    got: list[dict[str, Any]] = []
    app = make_app(kafka, unique("group"))
    hooks = Hooks(on_statistics=lambda text: got.append(json.loads(text)), statistics_interval_ms=100)
    configure(app, Configuration(hooks=hooks))
    collector = Collector(app, topic)
    async with running(app):
        await collector.until(lambda: len(collector.offsets) == 10)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if got and "0" in got[-1]["topics"].get(topic, {}).get("partitions", {}):
                break
            await asyncio.sleep(0.05)
    assert "consumer_lag" in got[-1]["topics"][topic]["partitions"]["0"]


async def test_topics_are_created_as_asked(kafka: str, unique: Unique) -> None:
    """Partitions, retention, compaction and other settings reach the broker; an existing topic is left alone."""
    name = unique("made")
    app = make_app(kafka, unique("group"))
    Collector(app, create(kafka, unique("idle"), 1))
    async with running(app):
        for partitions in (3, 5):
            await app.producer.create_topic(
                name, partitions, 1, retention=60.0, compacting=True, deleting=True, config={"segment.ms": 1000}
            )
        assert app.consumer.topic_partitions(name) == 3
        with pytest.raises(ContractError, match="cannot be created"):
            await app.consumer.create_topic(unique("bad"), 1, 1, config={"no.such": "x"})
    from confluent_kafka.admin import ConfigResource

    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    admin = make_admin(ClientOptions(kafka))
    config = admin.describe_configs([resource])[resource].result(20)
    assert config["retention.ms"].value == "60000"
    assert set(config["cleanup.policy"].value.split(",")) == {"compact", "delete"}
    assert config["segment.ms"].value == "1000"


async def test_configure_comes_first(kafka: str, unique: Unique) -> None:
    """A configuration that would come too late to be read is refused, not ignored."""
    app = make_app(kafka, unique("group"))
    Collector(app, unique("topic"))
    with pytest.raises(RuntimeError, match="before"):
        configure(app, Configuration())


@pytest.mark.parametrize(
    "options",
    [
        {"processing_guarantee": "exactly_once"},
        {"broker_credentials": faust.SASLCredentials(username="u", password="p")},
        {"broker": "rdkafka://user:geheim@127.0.0.1:9"},
    ],
)
def test_what_is_not_read_is_refused(options: dict[str, Any]) -> None:
    """Faust settings that would be silently without effect on safety end the start, without showing a secret."""
    app = faust.App("refused", **{"broker": "rdkafka://127.0.0.1:9", **options})
    with pytest.raises(SettingsError) as refusal:
        _ = app.transport
    assert "geheim" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
