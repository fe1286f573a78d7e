"""Topics, offsets and lag on a real Kafka."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks import clients
from pipeline import records
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.producer import BatchProducer
from pipeline.errors import ContractError, UnreachableError
from pipeline.settings import Settings
from tests.integration.bus_kit import create, produce, read

Unique = Callable[[str], str]


@pytest.fixture
def admin(kafka: str) -> AdminClient:
    return make_admin(ClientOptions(kafka))


def test_a_pipelines_topics_are_created_once(admin: AdminClient, unique: Unique) -> None:
    """All roles' topics, one partition where one order is needed; a second time there is nothing to do."""
    settings = Settings.model_validate({"name": unique("p"), "topics": {"partitions": 3}, "labels": {"enabled": True}})
    names = settings.topic_names()
    assert sorted(topics.create(admin, topics.specs(settings))) == sorted(names.values())
    assert topics.create(admin, topics.specs(settings)) == []
    found = topics.partition_counts(admin)
    assert {role: found[name] for role, name in names.items()} == {
        "events": 3,
        "predictions": 3,
        "dead_letters": 3,
        "batch_summaries": 1,
        "retraining_triggers": 1,
        "labels": 3,
        "outcomes": 3,
        "model_releases": 1,
        "retraining_reports": 1,
    }
    assert topics.problems(settings, found) == []


def test_what_does_not_fit_is_named(unique: Unique) -> None:
    """A topic that must have one partition and has more; a missing one, where it would not be created."""
    settings = Settings.model_validate({"name": "p", "topics": {"create": False}})
    existing = dict.fromkeys(settings.topic_names().values(), 4)
    del existing["p.events"]
    assert topics.problems(settings, existing) == [
        "topics.events: p.events does not exist; `pipeline topics create` makes it",
        "topics.batch_summaries: p.batch-summaries has 4 partitions, needs exactly 1 to keep one order",
        "topics.retraining_triggers: p.retraining-triggers has 4 partitions, needs exactly 1 to keep one order",
        "topics.model_releases: p.model-releases has 4 partitions, needs exactly 1 to keep one order",
        "topics.retraining_reports: p.retraining-reports has 4 partitions, needs exactly 1 to keep one order",
    ]


def test_labels_need_as_many_partitions_as_predictions() -> None:
    """Else a label would wait at one worker for a prediction that came to another."""
    settings = Settings.model_validate({"name": "p", "labels": {"enabled": True}})
    existing = {"p.predictions": 4, "p.labels": 3}
    (problem,) = topics.problems(settings, existing)
    assert problem.startswith("topics.labels: p.predictions 4 and p.labels 3 partitions: they need equally many")
    assert topics.problems(settings, {**existing, "p.labels": 4}) == []
    assert topics.problems(Settings.model_validate({"name": "p"}), existing) == []


def test_a_topic_the_broker_refuses_is_a_contract_error(admin: AdminClient, unique: Unique) -> None:
    """More copies than brokers: the message names the topic and the broker's reason."""
    name = unique("refused")
    with pytest.raises(ContractError, match=rf"topic {name}: cannot be created: .*[Rr]eplication"):
        topics.create(admin, [topics.TopicSpec(name, 1, 3)])


def test_two_workers_may_create_the_same_topic(
    admin: AdminClient, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another was faster, the topic is there: no error, and not counted as ours."""
    name = unique("raced")
    topics.create(admin, [topics.TopicSpec(name, 1)])
    monkeypatch.setattr(topics, "partition_counts", lambda _admin: {})
    assert topics.create(admin, [topics.TopicSpec(name, 1)]) == []


def test_lag_is_what_is_not_committed(kafka: str, admin: AdminClient, unique: Unique) -> None:
    """End minus committed per partition; all of it for an unknown group; never below zero."""
    topic, group = create(kafka, unique("lag"), 2), unique("group")
    produce(kafka, topic, 100)
    ends = {tp: end for tp, (first, end) in topics.watermarks(admin, topic).items() if first == 0}
    assert sum(ends.values()) == 100
    assert topics.lag(admin, group, topic) == ends
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, 0, 7)], asynchronous=False)
    first = records.TopicPartition(topic, 0)
    assert topics.committed(admin, group, topic) == topics.committed(admin, group) == {first: 7}
    assert topics.lag(admin, group, topic)[first] == ends[first] - 7
    consumer.commit(offsets=[TopicPartition(topic, 0, 10_000)], asynchronous=False)
    consumer.close()
    assert topics.lag(admin, group, topic)[first] == 0
    with pytest.raises(ContractError, match="no-such-topic does not exist"):
        topics.lag(admin, group, "no-such-topic")


def test_a_dead_letter_of_the_largest_event_fits(kafka: str, admin: AdminClient, unique: Unique) -> None:
    """What the events topic takes by default, the dead-letters topic takes with headers on top."""
    settings = Settings.model_validate({"name": unique("p")})
    topics.create(admin, topics.specs(settings))
    options = ClientOptions(kafka)
    producer = BatchProducer(options.for_producer())
    largest = b"x" * 1_048_400  # the broker's limit of 1,048,588 bytes counts a batch's 68 and a record's few bytes
    producer.send(settings.topic("events"), b"k", largest)
    producer.flush(20)
    headers = [("pipeline.reason", b"r" * 512), ("foreign", b"f" * 1000)]
    producer.send(settings.topic("dead_letters"), b"k", largest, headers)
    producer.flush(20)
    (letter,) = read(kafka, settings.topic("dead_letters"))
    assert letter.value() == largest
    assert letter.headers() == headers


def test_an_absent_broker_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question says so, and names what could not be learned."""
    monkeypatch.setattr(topics, "REQUEST_TIMEOUT_S", 0.3)
    nobody = make_admin(ClientOptions("127.0.0.1:1"))
    with pytest.raises(UnreachableError, match="topics cannot be listed"):
        topics.partition_counts(nobody)
    monkeypatch.setattr(topics, "partition_counts", lambda _admin: {"t": 1})
    with pytest.raises(UnreachableError, match="group g: offsets cannot be read"):
        topics.committed(nobody, "g", "t")
    with pytest.raises(UnreachableError, match="offsets cannot be listed"):
        topics.offsets(nobody, [records.TopicPartition("t", 0)])


def test_a_client_that_thinks_a_topic_has_no_leaders_looks_again(admin: AdminClient, unique: Unique) -> None:
    """As librdkafka may for ever, after metadata of a topic just created came too early: only list_topics mends it."""
    topic = unique("new")
    clients.create_topic(admin, topic, 1)
    looked: list[str] = []

    class Blind:
        def list_topics(self, *args: Any, **kwargs: Any) -> Any:
            looked.append("again")
            return admin.list_topics(*args, **kwargs)

        def list_offsets(self, *args: Any, **kwargs: Any) -> Any:
            if not looked:
                raise KafkaException(KafkaError(KafkaError._NOENT, "No leaders found"))
            return admin.list_offsets(*args, **kwargs)

    tp = records.TopicPartition(topic, 0)
    assert topics.offsets(Blind(), [tp]) == {tp: 0}  # type: ignore[arg-type]
    looked.clear()
    assert clients.end_offsets(Blind(), topic, 1) == [0]  # type: ignore[arg-type]
    assert topics.offsets(admin, []) == {}
