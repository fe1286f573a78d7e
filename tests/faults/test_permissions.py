"""Rights that are taken away, topics that go, under a running worker: nothing is committed, and the end is clear."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from benchmarks import clients, job
from pipeline.bus.embedded import EmbeddedKafka
from tests.faults.conftest import Judge, Make
from tests.pipelines import PATIENCE_S, Pipeline, Process, Spoiled, eventually

pytestmark = pytest.mark.timeout(300)

MODES = ("at_least_once", "exactly_once")
EVENTS = 20_000


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A Kafka with access control: everything is allowed that is not denied."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    broker = EmbeddedKafka(port=0, ephemeral=True, server_properties=rules)
    yield broker.start(PATIENCE_S)
    broker.stop()


@contextmanager
def denied(pipeline: Pipeline, kind: ResourceType, name: str, operation: AclOperation) -> Iterator[None]:
    """Nobody may do `operation` on the resource meanwhile."""
    everybody = (kind, name, ResourcePatternType.LITERAL, "User:*", "*", operation, AclPermissionType.DENY)
    for made in pipeline.admin.create_acls([AclBinding(*everybody)], request_timeout=PATIENCE_S).values():
        made.result(PATIENCE_S)
    try:
        yield
    finally:
        for gone in pipeline.admin.delete_acls([AclBindingFilter(*everybody)], request_timeout=PATIENCE_S).values():
            gone.result(PATIENCE_S)


def settings(mode: str) -> dict[str, Any]:
    # A topic that has gone is believed to be gone after 30 s otherwise.
    options = {"topic.metadata.propagation.max.ms": "2000", "topic.metadata.refresh.interval.ms": "1000"}
    delivery = {"delivery.mode": mode, "delivery.commit_interval_ms": 100, "delivery.shutdown_deadline_s": 5.0}
    session = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}
    return {**delivery, "kafka.options": options, "kafka.consumer_options": session}


def half_way(make: Make, guarded: str, mode: str) -> tuple[Pipeline, Process, list[bytes]]:
    """A worker that has committed half of the events."""
    pipeline = make(guarded, settings=settings(mode))
    values = job.encode_events(EVENTS)
    worker = pipeline.start("run", "worker")
    pipeline.send(values[: EVENTS // 2])
    pipeline.await_committed(EVENTS // 2)
    return pipeline, worker, values


def told(worker: Process) -> str:
    """Why it ended; librdkafka may have the last word on its standard error."""
    return [line for line in worker.log().splitlines() if line.startswith("error: ")][-1]


def recovers(pipeline: Pipeline) -> None:
    """The next worker does what is left."""
    worker = pipeline.start("run", "worker")
    eventually(lambda: pipeline.committed() == EVENTS, "everything committed", PATIENCE_S)
    assert worker.terminate() == 0, worker.log()[-2000:]


@pytest.mark.case("F27")
@pytest.mark.parametrize("mode", MODES)
def test_a_topic_that_may_not_be_written_ends_the_worker(make: Make, judge: Judge, guarded: str, mode: str) -> None:
    """Bounded tries, exit code 7 with the right that is missing; nothing more is committed; the next goes on."""
    pipeline, worker, values = half_way(make, guarded, mode)
    with denied(pipeline, ResourceType.TOPIC, pipeline.job.output_topic, AclOperation.WRITE):
        pipeline.send(values[EVENTS // 2 :], EVENTS // 2)
        assert worker.wait() == 7, worker.log()[-3000:]
        assert "authorization failed" in worker.log()
        assert pipeline.job.output_topic in told(worker)
        assert pipeline.committed() == EVENTS // 2
    recovers(pipeline)
    judge(pipeline, EVENTS, mode, exit_code=7)


@pytest.mark.case("F27")
def test_a_transactional_id_that_may_not_be_used_ends_the_worker(make: Make, judge: Judge, guarded: str) -> None:
    """Exit code 7 with the right that is missing; nothing more is committed; the next goes on."""
    pipeline = make(guarded, settings={**settings("exactly_once"), "delivery.transactional_id_prefix": "guarded"})
    values = job.encode_events(EVENTS)
    worker = pipeline.start("run", "worker")
    pipeline.send(values[: EVENTS // 2])
    pipeline.await_committed(EVENTS // 2)
    with denied(pipeline, ResourceType.TRANSACTIONAL_ID, "guarded-1", AclOperation.WRITE):
        pipeline.send(values[EVENTS // 2 :], EVENTS // 2)
        assert worker.wait() == 7, worker.log()[-3000:]
        assert "transactional id guarded-1" in told(worker)
        assert pipeline.committed() == EVENTS // 2
    recovers(pipeline)
    judge(pipeline, EVENTS, "exactly_once", exit_code=7)


@pytest.mark.case("F27")
@pytest.mark.parametrize("mode", MODES)
def test_a_group_that_may_not_be_used_ends_the_worker(make: Make, judge: Judge, guarded: str, mode: str) -> None:
    """Exit code 2 or 7, whichever client learns it first; nothing more is committed; the next goes on."""
    pipeline, worker, values = half_way(make, guarded, mode)
    with denied(pipeline, ResourceType.GROUP, f"{pipeline.name}-worker", AclOperation.READ):
        pipeline.send(values[EVENTS // 2 :], EVENTS // 2)
        code = worker.wait()
        assert code in (2, 7), worker.log()[-3000:]
        assert "authorization failed" in told(worker).lower()
    recovers(pipeline)
    found = judge(pipeline, EVENTS, mode, exit_code=code)
    assert found["duplicated"] <= EVENTS // 2


@pytest.mark.case("F26")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["denied", "missing"])
def test_without_a_place_for_dead_letters_nothing_bad_is_committed(
    make: Make, counted: Callable[..., None], guarded: str, how: str, mode: str
) -> None:
    """The dead letters topic may not be written, or has gone: exit code 7, and the bad record's offset stays."""
    pipeline, worker, _ = half_way(make, guarded, mode)
    spoiled = Spoiled.every(1_000, EVENTS // 2, pipeline.foreign_schema_id())
    dead_letters = f"{pipeline.name}.dead-letters"
    if how == "denied":
        with denied(pipeline, ResourceType.TOPIC, dead_letters, AclOperation.WRITE):
            pipeline.send(spoiled.values)
            assert worker.wait() == 7, worker.log()[-3000:]
    else:
        clients.delete_topic(pipeline.admin, dead_letters)
        pipeline.send(spoiled.values)
        assert worker.wait() == 7, worker.log()[-3000:]
    assert dead_letters in told(worker)
    assert pipeline.committed() < EVENTS
    recovers(pipeline)
    letters = pipeline.dead_letters()
    found = {(d.key, d.value, d.reason) for d in letters}
    lost = len(set(spoiled.expected_dead_letters()) - found)
    counted(mode=mode, bad=len(spoiled.rows), lost=lost, duplicated=len(letters) - len(found))
    assert found == set(spoiled.expected_dead_letters())
    if mode == "exactly_once":
        assert len(letters) == len(found)
