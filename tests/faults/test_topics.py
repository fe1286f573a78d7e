"""Topics that change under the workers: records deleted ahead of them, partitions added, topics made anew."""

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import NewPartitions

from benchmarks import clients, job
from tests.faults.conftest import Judge, Make
from tests.pipelines import PATIENCE_S, Pipeline, eventually

pytestmark = pytest.mark.timeout(300)

MODES = ("at_least_once", "exactly_once")
#: How soon a client sees what happened to a topic; 5 minutes by default.
SOON = {"kafka.options": {"topic.metadata.refresh.interval.ms": "1000"}}


def settings(mode: str, **more: Any) -> dict[str, Any]:
    return {"delivery.mode": mode, "delivery.commit_interval_ms": 100, **SOON, **more}


def delete_records(pipeline: Pipeline, before: int) -> None:
    """Delete what lies below offset `before` of each partition of the events."""
    topic = pipeline.job.input_topic
    asked = [TopicPartition(topic, partition, before) for partition in range(pipeline.partitions)]
    for future in pipeline.admin.delete_records(asked, request_timeout=PATIENCE_S).values():
        future.result(PATIENCE_S)


def lost(pipeline: Pipeline, events: int) -> int:
    """Events without a prediction; none has two."""
    numbers = pipeline.outputs().numbers
    assert len(numbers) == len(np.unique(numbers))
    return events - len(numbers)


@pytest.mark.case("F30")
@pytest.mark.parametrize("mode", MODES)
def test_records_deleted_ahead_are_told_and_counted(make: Make, counted: Callable[..., None], mode: str) -> None:
    """While no worker runs, what is not read yet is deleted: the next goes on at the first record left, and says so."""
    pipeline = make(settings=settings(mode))
    values = job.encode_events(30_000)
    pipeline.send(values[:10_000])
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(10_000)
    assert worker.terminate() == 0
    pipeline.send(values[10_000:20_000], 10_000)
    committed = pipeline.uncommitted_partitions()
    before = 3_500  # each partition has about 5,000
    delete_records(pipeline, before)
    worker = pipeline.start("run", "worker")
    eventually(lambda: pipeline.uncommitted_partitions() == {}, "what is left is committed")
    pipeline.send(values[20_000:], 20_000)
    eventually(lambda: pipeline.uncommitted_partitions() == {}, "and what comes later")
    assert worker.terminate() == 0
    gone = sum(before - done for done, _ in committed.values())
    told = sum(map(int, re.findall(r'"records deleted before they were read.*"offsets": (\d+)', worker.log())))
    missing = lost(pipeline, 30_000)
    counted(mode=mode, events=30_000, deleted_unread=missing, told=told)
    assert missing == told == gone > 0


@pytest.mark.case("F30")
@pytest.mark.parametrize(("reset", "expected"), [("latest", 5_000), ("earliest", 10_000)])
def test_a_new_group_begins_where_it_is_told(make: Make, reset: str, expected: int) -> None:
    """auto.offset.reset is the user's for a group that has committed nothing."""
    pipeline = make(settings=settings("at_least_once", **{"kafka.consumer_options": {"auto.offset.reset": reset}}))
    values = job.encode_events(10_000)
    pipeline.send(values[:5_000])
    worker = pipeline.start("run", "worker")
    worker.await_log('"rebalanced"')
    time.sleep(2.0)  # the end of each partition is asked for by now; were it later, fewer would be predicted
    pipeline.send(values[5_000:], 5_000)
    eventually(lambda: pipeline.predicted() == expected, f"{expected} predictions")
    assert worker.terminate() == 0
    assert lost(pipeline, expected) == 0


@pytest.mark.case("F29")
@pytest.mark.parametrize("mode", MODES)
def test_added_partitions_are_read_from_their_beginning(make: Make, judge: Judge, mode: str) -> None:
    """Events that were written to a new partition before any worker knew of it are scored."""
    pipeline = make(settings=settings(mode))
    values = job.encode_events(40_000)
    pipeline.send(values[:20_000])
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(20_000)
    topic, pipeline.partitions = pipeline.job.input_topic, 6
    (future,) = pipeline.admin.create_partitions([NewPartitions(topic, 6)], request_timeout=PATIENCE_S).values()
    future.result(PATIENCE_S)
    eventually(lambda: clients.partition_count(pipeline.admin, topic) == 6, "the new partitions")
    pipeline.send(values[20_000:], 20_000)
    eventually(lambda: pipeline.uncommitted_partitions() == {}, "everything committed")
    assert worker.terminate() == 0
    assert judge(pipeline, 40_000, mode)["duplicated"] == 0


@pytest.mark.case("F29")
@pytest.mark.parametrize("mode", MODES)
def test_a_topic_made_anew_ends_the_worker(make: Make, counted: Callable[..., None], mode: str) -> None:
    """Deleted and made anew at once, with more records than were read of the old: no jump over them without a word."""
    pipeline = make(settings=settings(mode))
    values = job.encode_events(10_000)
    pipeline.send(values[:4_000])
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(4_000)
    topic = pipeline.job.input_topic
    clients.delete_topic(pipeline.admin, topic)

    def made() -> bool:
        try:
            clients.create_topic(pipeline.admin, topic, pipeline.partitions)
        except KafkaException:
            return False
        return True

    eventually(made, "the topic made anew")
    pipeline.send(values)
    assert worker.wait() == 1
    assert "deleted and made anew" in worker.log()
    counted(mode=mode, exit_code=1)


@pytest.mark.case("F29")
def test_a_topic_that_is_gone_ends_the_worker(make: Make, counted: Callable[..., None]) -> None:
    """Deleted and not made anew: a clear end, and not a worker that waits for ever."""
    pipeline = make(settings=settings("exactly_once"))
    pipeline.send(job.encode_events(4_000))
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(4_000)
    clients.delete_topic(pipeline.admin, pipeline.job.input_topic)
    assert worker.wait() == 1
    assert "was deleted while it was read" in worker.log()
    counted(mode="exactly_once", exit_code=1)
