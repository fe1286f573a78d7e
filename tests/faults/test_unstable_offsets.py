"""A partition whose last commit is undecided: its transaction is still open while others take over and rebalance."""

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import job, ours
from tests.faults.conftest import Make
from tests.faults.observing import SESSION, passers_by, predictions
from tests.pipelines import Pipeline, eventually

pytestmark = pytest.mark.timeout(300)

EVENTS = 40_000
#: Of every partition; and what an open transaction would make of it.
COMMITTED, UNDECIDED = 1_000, 2_000


@pytest.mark.case("F3", "F10")
def test_an_undecided_commit_is_waited_for_through_a_rebalance(make: Make) -> None:
    """Offsets sent and not committed, their sender dead: whoever has the partition reads nothing before it is known.

    librdkafka (2.16) takes the broker's UNSTABLE_OFFSET_COMMIT for "never committed", and begins at the first record
    (auto.offset.reset), if the assignment changes while its question is on the way: everything would be scored again.
    """
    pipeline = make(settings={"delivery.mode": "exactly_once", "kafka.consumer_options": SESSION})
    pipeline.send(job.encode_events(EVENTS))
    sender = _leave_undecided(pipeline)
    worker = pipeline.start("run", "worker")
    worker.await_log('"rebalanced"')
    with passers_by(pipeline) as visits:
        eventually(lambda: sum(got > 0 for got in visits) >= 1, "a rebalance")
        assert worker.popen.poll() is None, worker.log()[-3000:]
    assert pipeline.predicted() == 0, "read before it was decided where from"
    sender.abort_transaction()
    pipeline.await_committed(EVENTS)
    assert worker.terminate() == 0, worker.log()[-3000:]
    for partition, offsets in predictions(pipeline).items():
        assert offsets.tolist() == list(range(COMMITTED, COMMITTED + len(offsets))), f"partition {partition}"


def _leave_undecided(pipeline: Pipeline) -> Producer:
    """Commit offsets of the workers' group in a transaction; send others in a second one, left open."""
    client = {"bootstrap.servers": pipeline.bootstrap_servers}
    consumer = Consumer({**client, "group.id": ours.group(pipeline.name)})
    sender = Producer({**client, "transactional.id": f"{pipeline.name}-dead", "transaction.timeout.ms": 300_000})
    sender.init_transactions(30.0)
    group = consumer.consumer_group_metadata()
    sender.begin_transaction()
    sender.send_offsets_to_transaction(_everywhere(pipeline, COMMITTED), group, 30.0)
    sender.commit_transaction(30.0)
    sender.begin_transaction()
    sender.send_offsets_to_transaction(_everywhere(pipeline, UNDECIDED), group, 30.0)
    consumer.close()
    return sender


def _everywhere(pipeline: Pipeline, offset: int) -> list[TopicPartition]:
    return [TopicPartition(pipeline.job.input_topic, p, offset) for p in range(pipeline.partitions)]
