"""Topics: what the pipeline needs, what is there, creating what is missing; offsets and lag of a group."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as _TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from pipeline.bus.clients import Admin, ErrorLog, make_consumer
from pipeline.errors import ContractError, UnreachableError
from pipeline.records import TopicPartition
from pipeline.settings import Settings

T = TypeVar("T")

#: Topics whose order matters as a whole have one partition: one monitor reads them in one order.
SINGLE_PARTITION_ROLES = frozenset({"batch_summaries", "retraining_triggers", "model_releases", "retraining_reports"})
#: A label and a prediction meet by the number of their partition.
COPARTITIONED_ROLES = ("predictions", "labels")
REQUEST_TIMEOUT_S = 15.0
#: Between two questions while a leader or coordinator moves: a new one is ready within a second.
MOVE_PAUSE_S = 0.1
#: A broker that has not heard of a topic just created, on a loaded cluster of three after 1 s still, does so in this.
NEW_TOPIC_S = 5.0
#: For a moment, when a topic or group is new or its broker has gone: ask again.
_MOVES = frozenset(
    {
        KafkaError._NOENT,  # noqa: SLF001 (no leader found; has no public name)
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)
#: A dead letter is its record (Kafka's default limit: 1 MiB) and our headers (under 4 KiB): twice that is room.
DEAD_LETTER_BYTES_MAX = 2_097_152


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it is to be created."""

    name: str
    partitions: int
    replication_factor: int = 1
    config: Mapping[str, str] = field(default_factory=dict)


def specs(settings: Settings) -> list[TopicSpec]:
    """All topics of a pipeline."""
    retention_ms = str(int(settings.topics.retention_hours * 3_600_000))
    found = []
    for role, name in settings.topic_names().items():
        if role == "model_releases":  # a table: the latest record of each key is kept for good
            config = {"cleanup.policy": "compact"}
        else:
            config = {"retention.ms": retention_ms, "cleanup.policy": "delete"}
        if role == "dead_letters":
            config["max.message.bytes"] = str(DEAD_LETTER_BYTES_MAX)
        partitions = 1 if role in SINGLE_PARTITION_ROLES else settings.topics.partitions
        found.append(TopicSpec(name, partitions, settings.topics.replication_factor, config))
    return found


def like(settings: Settings, role: str, name: str) -> TopicSpec:
    """A topic `name` as that of `role` would be created."""
    (spec,) = (spec for spec in specs(settings) if spec.name == settings.topic(role))
    return replace(spec, name=name)


def partition_counts(admin: AdminClient) -> dict[str, int]:
    """Topic -> number of partitions, of every topic this client may see."""
    try:
        found = admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    except KafkaException as error:
        raise UnreachableError(f"kafka: topics cannot be listed: {error.args[0].str()}") from error
    return {name: len(topic.partitions) for name, topic in found.items() if topic.error is None}


def identity(admin: AdminClient, topic: str) -> str:
    """Identifies this very topic: offsets of another cluster, or of an earlier topic of this name, mean nothing here.

    Raises ContractError when there is no such topic, UnreachableError when nobody answers.
    """
    _await_topic(admin, topic)
    try:
        cluster = admin.list_topics(topic, timeout=REQUEST_TIMEOUT_S).cluster_id
        (future,) = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_TIMEOUT_S).values()
        found = future.result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise ContractError(f"topic {topic} does not exist; `pipeline topics create` makes it") from error
        raise UnreachableError(f"topic {topic}: its id cannot be asked: {error.args[0].str()}") from error
    return f"{cluster}/{topic}/{found.topic_id}"


def create(admin: AdminClient, wanted: Iterable[TopicSpec]) -> list[str]:
    """Create what is missing; names of the topics created. An existing topic is left as it is.

    Raises ContractError when the broker refuses one, UnreachableError when it does not answer.
    """
    existing = partition_counts(admin)
    missing = [spec for spec in wanted if spec.name not in existing]
    if not missing:
        return []
    futures = admin.create_topics(
        [
            NewTopic(
                s.name, num_partitions=s.partitions, replication_factor=s.replication_factor, config=dict(s.config)
            )
            for s in missing
        ],
        operation_timeout=REQUEST_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
    )
    created = []
    for name, future in futures.items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            _raise_unless_exists(name, error)
    return created


def _raise_unless_exists(name: str, error: KafkaException) -> None:
    cause: KafkaError = error.args[0]
    if cause.code() == KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
        return
    if cause.retriable() or cause.code() == KafkaError._TIMED_OUT:  # noqa: SLF001
        raise UnreachableError(f"topic {name}: cannot be created now: {cause.str()}") from error
    raise ContractError(f"topic {name}: cannot be created: {cause.str()}") from error


def problems(settings: Settings, existing: Mapping[str, int]) -> list[str]:
    """What is wrong with the topics that exist, one line each; missing ones only where they are not created."""
    found, names = [], settings.topic_names()
    for role, name in names.items():
        partitions = existing.get(name)
        if partitions is None:
            if not settings.topics.create:
                found.append(f"topics.{role}: {name} does not exist; `pipeline topics create` makes it")
        elif role in SINGLE_PARTITION_ROLES and partitions != 1:
            found.append(f"topics.{role}: {name} has {partitions} partitions, needs exactly 1 to keep one order")
    together = {role: existing.get(names[role]) for role in COPARTITIONED_ROLES if role in names}
    if len(together) == len(COPARTITIONED_ROLES) and None not in together.values() and len({*together.values()}) > 1:
        told = " and ".join(f"{names[role]} {count}" for role, count in together.items())
        found.append(f"topics.labels: {told} partitions: they need equally many, so that a label meets its prediction")
    return found


def watermarks(admin: AdminClient, topic: str) -> dict[TopicPartition, tuple[int, int]]:
    """(first offset, end offset) of every partition of `topic`. Raises ContractError when there is no such topic."""
    tps = [TopicPartition(topic, p) for p in range(_await_topic(admin, topic))]
    first = offsets(admin, tps, OffsetSpec.earliest())
    end = offsets(admin, tps)
    return {tp: (first[tp], end[tp]) for tp in tps}


def _await_topic(admin: AdminClient, topic: str) -> int:
    """Number of partitions of a topic, of which the broker that is asked may not have heard yet."""
    deadline = time.monotonic() + NEW_TOPIC_S
    while (count := partition_counts(admin).get(topic)) is None:
        if time.monotonic() >= deadline:
            raise ContractError(f"topic {topic} does not exist; `pipeline topics create` makes it")
        time.sleep(MOVE_PAUSE_S)
    return count


def offset_since(admin: AdminClient, tp: TopicPartition, time_ms: int) -> int:
    """First offset of a partition with a timestamp of `time_ms` or later; its end if there is none yet."""
    found = offsets(admin, [tp], OffsetSpec.for_timestamp(time_ms))[tp]
    return found if found >= 0 else offsets(admin, [tp])[tp]


def offsets(
    admin: AdminClient, tps: Iterable[TopicPartition], spec: Any = None, *, committed_only: bool = False
) -> dict[TopicPartition, int]:
    """The offset that `spec` (an OffsetSpec) names of each partition, its end by default; -1: no record is that late.

    With `committed_only` the end is where readers of committed records get to. Raises UnreachableError.
    """
    asked = {_TopicPartition(*tp): spec or OffsetSpec.latest() for tp in tps}
    level = IsolationLevel.READ_COMMITTED if committed_only else IsolationLevel.READ_UNCOMMITTED

    def ask() -> dict[TopicPartition, int]:
        futures = admin.list_offsets(asked, isolation_level=level, request_timeout=REQUEST_TIMEOUT_S)
        return {TopicPartition(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}

    def look_again() -> None:
        """Or the client may answer for ever that a topic just created has no leaders.

        ListOffsets goes by the metadata that it has, and an entry without leaders is never asked for again
        (librdkafka 2.16: 4 in 1,800 new topics, on a loaded broker).
        """
        with suppress(KafkaException):  # the broker has gone: the next question says so
            admin.list_topics(timeout=REQUEST_TIMEOUT_S)

    return _asked(ask, "kafka: offsets cannot be listed", look_again) if asked else {}


def _asked(ask: Callable[[], T], told: str, before_again: Callable[[], object] = lambda: None) -> T:
    """What `ask` returns, asked again while leaders or coordinators move. Raises UnreachableError, as `told`."""
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _MOVES or time.monotonic() >= deadline:
                raise UnreachableError(f"{told}: {error.args[0].str()}") from error
            time.sleep(MOVE_PAUSE_S)
            before_again()


def committed(admin: Admin, group: str, topic: str | None = None) -> dict[TopicPartition, int]:
    """Committed offsets of a consumer group, of one topic or of all; empty for an unknown group.

    Asked by a consumer that joins nothing: AdminClient.list_consumer_group_offsets ends the *process* with a
    segmentation fault when the group's coordinator is loading or has moved (librdkafka issue 5040).
    Raises UnreachableError.
    """
    counts = partition_counts(admin)
    names = counts if topic is None else [topic]
    asked = [_TopicPartition(name, p) for name in names for p in range(counts.get(name, 0))]
    if not asked:
        return {}
    consumer = make_consumer(admin.client_options.for_consumer(group), ErrorLog("offsets", quiet=True))
    try:
        answer = ask_committed(consumer, group, asked)
    finally:
        consumer.close()
    return {TopicPartition(tp.topic, tp.partition): tp.offset for tp in answer if tp.error is None and tp.offset >= 0}


def ask_committed(consumer: Consumer, group: str, asked: list[_TopicPartition]) -> list[_TopicPartition]:
    """What the coordinator of `group` has committed for `asked`; waits for a coordinator that is on the move.

    Raises UnreachableError once REQUEST_TIMEOUT_S are over.
    """
    return _asked(
        lambda: list(consumer.committed(asked, timeout=REQUEST_TIMEOUT_S)), f"group {group}: offsets cannot be read"
    )


def lag(admin: Admin, group: str, topic: str) -> dict[TopicPartition, int]:
    """Records of each partition that `group` has not committed yet."""
    return behind(committed(admin, group, topic), watermarks(admin, topic))


def behind(
    done: Mapping[TopicPartition, int], marks: Mapping[TopicPartition, tuple[int, int]]
) -> dict[TopicPartition, int]:
    """Records of each partition, of those that `marks` says are there, from offset `done` on."""
    return {tp: end - min(max(done.get(tp, first), first), end) for tp, (first, end) in marks.items()}
