"""The transport's promise on a real Kafka: nothing lost, nothing acknowledged before its output, order kept."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.integration.bus_kit import WAIT_S, app, create, lag, numbers, produce, read, wait_until

COUNT = 20_000


@pytest.fixture
def job(kafka: str, unique: Callable[[str], str]) -> dict[str, Any]:
    """Source and target topic of three partitions, and a group, of this test alone."""
    source, target = create(kafka, unique("source")), create(kafka, unique("target"))
    return {"servers": kafka, "group": unique("group"), "source": source, "target": target}


def lag_of(job: dict[str, Any]) -> int:
    return lag(job["servers"], job["group"], job["source"])


def test_a_clean_run_copies_every_record_once_and_in_order(job: dict[str, Any]) -> None:
    """Each record arrives once, on the partition of its key, in the order it was written; all is committed."""
    produce(job["servers"], job["source"], COUNT)
    with app(**job) as worker:
        worker.wait_for(lambda: worker.done() == COUNT)
        assert worker.end() == 0
    copied, source = read(job["servers"], job["target"]), read(job["servers"], job["source"])
    assert sorted(numbers(copied)) == list(range(COUNT))
    by_partition: dict[tuple[str, int], list[tuple[bytes, bytes]]] = defaultdict(list)
    for m in [*copied, *source]:
        by_partition[m.topic(), m.partition()].append((m.key(), m.value()))
    for partition in range(3):
        assert by_partition[job["target"], partition] == by_partition[job["source"], partition]
    assert lag_of(job) == 0


def test_kill_9_loses_nothing(job: dict[str, Any]) -> None:
    """Killed at random points between output and commit, workers replay; nothing is missing in the end."""
    produce(job["servers"], job["source"], COUNT)
    consumer = {"session.timeout.ms": "6000"}
    for limit in (1, COUNT // 3, COUNT // 2):
        with app(**job, consumer=consumer, commit_interval_s=0.3) as worker:
            worker.wait_for(lambda limit=limit, worker=worker: worker.done() >= limit)
    with app(**job, consumer=consumer) as worker:
        wait_until(lambda: lag_of(job) == 0)
        assert worker.end() == 0
    assert set(numbers(read(job["servers"], job["target"]))) == set(range(COUNT))


def test_nothing_is_committed_before_its_output_is_acknowledged(job: dict[str, Any]) -> None:
    """Whatever a killed worker had committed is on the target topic already."""
    produce(job["servers"], job["source"], COUNT)
    with app(**job, commit_interval_s=0.02) as worker:
        worker.wait_for(lambda: worker.of("commit", outcome="ok"))
    committed = COUNT - lag_of(job)
    assert committed > 0
    assert len(set(numbers(read(job["servers"], job["target"])))) >= committed


def test_an_agent_that_raises_acknowledges_nothing(job: dict[str, Any]) -> None:
    """The fault ends the app with its exit code, the offsets stay uncommitted."""
    produce(job["servers"], job["source"], 1000)
    with app(**job, how="raise") as worker:
        assert worker.join() == 1
        assert worker.of("fault")[0]["message"] == "the agent raised"
    assert lag_of(job) == 1000


def test_a_refused_output_is_a_fault_and_its_input_stays_uncommitted(job: dict[str, Any], unique: Any) -> None:
    """A record larger than the target topic takes ends the app with exit code 7 and is not acknowledged."""
    target = create(job["servers"], unique("small"), 1, max_message_bytes="2000")
    producer = Producer({"bootstrap.servers": job["servers"]})
    producer.produce(job["source"], value=b"x" * 5000)
    assert producer.flush(20) == 0
    with app(**{**job, "target": target}) as worker:
        assert worker.join() == 7
        assert worker.of("fault")[0]["error"] == "DeliveryError"
        assert "5000 bytes" in worker.of("fault")[0]["message"]
    assert lag_of(job) == 1


@pytest.mark.parametrize("how", ["slow", "block", "plain"])
def test_a_slow_agent_stays_in_the_group_with_bounded_work(job: dict[str, Any], how: str) -> None:
    """Longer than max.poll.interval.ms at work, with little room: no rebalance, in-flight bounded, all is done.

    `block` holds up the whole event loop; `plain` acknowledges through Faust's compiled loop.
    """
    count = 4000
    produce(job["servers"], job["source"], count)
    consumer = {"max.poll.interval.ms": "6000", "session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}
    batches = {"poll_records": 100, "in_flight_max": 300}
    with app(**job, **batches, how=how, hold_s=0.25, consumer=consumer) as worker:
        worker.wait_for(lambda: worker.done() == count)
        assert worker.end() == 0
        assert len(worker.of("rebalance")) == 1
        # What may be in flight with the door open, and one poll.
        assert max(m["in_flight"] for m in worker.of("batch")) < 300 + 100
    assert sorted(numbers(read(job["servers"], job["target"]))) == list(range(count))
    assert lag_of(job) == 0


def test_workers_join_and_leave_under_load(job: dict[str, Any]) -> None:
    """A second and a third worker come and go by SIGTERM: nothing lost, and a clean drain duplicates nothing."""
    enough, count = threading.Event(), 0

    def feed() -> None:
        """4,000 a second, of which one worker manages more, until both have come and gone, however slow they are."""
        nonlocal count
        while not enough.wait(0.25):
            produce(job["servers"], job["source"], 1_000, first=count)
            count += 1_000

    with app(**job, how="slow", hold_s=0.03) as first, ThreadPoolExecutor(1) as feeding:
        first.wait_ready()
        fed = feeding.submit(feed)
        try:
            for _ in range(2):
                with app(**job, how="slow", hold_s=0.03) as other:
                    other.wait_for(lambda other=other: other.done() > 1000)
                    assert other.end() == 0
                    assert other.of("rebalance")
        finally:
            enough.set()
        fed.result()
        first.wait_for(lambda: lag_of(job) == 0)
        assert first.end() == 0
        assert {m["what"] for m in first.of("rebalance")} == {"assign", "revoke"}
    counts = Counter(numbers(read(job["servers"], job["target"])))
    assert set(counts) == set(range(count))
    assert sum(n - 1 for n in counts.values()) == 0


def test_sigterm_finishes_what_is_in_work_and_no_more(job: dict[str, Any]) -> None:
    """SIGTERM under load: exit 0 within the deadline, and what was written is exactly what was committed."""
    produce(job["servers"], job["source"], COUNT)
    with app(**job, how="slow", hold_s=0.1, drain_deadline_s=8) as worker:
        worker.wait_for(lambda: worker.done() > 0)
        assert worker.end() == 0
        assert worker.of("stopped")[0]["took_s"] < 8
    copied = numbers(read(job["servers"], job["target"]))
    assert 0 < len(copied) == len(set(copied)) == COUNT - lag_of(job)


def test_work_that_outlives_the_deadline_ends_with_exit_code_8(job: dict[str, Any]) -> None:
    """A hung agent: DrainTimeoutError names the records, exit 8 soon after the deadline, offsets uncommitted."""
    produce(job["servers"], job["source"], 500)
    with app(**job, how="hang", drain_deadline_s=2) as worker:
        worker.wait_for(lambda: worker.done() > 0)
        assert worker.end() == 8
        assert worker.of("fault")[0]["error"] == "DrainTimeoutError"
        assert worker.of("stopped")[0]["took_s"] < 2 + 3
    assert lag_of(job) == 500


def test_a_worker_that_hangs_gives_its_partitions_up_at_the_deadline(job: dict[str, Any]) -> None:
    """A rebalance waits for a hung agent only until the drain deadline; the others then do its records."""
    produce(job["servers"], job["source"], 2000)
    with app(**{**job, "target": ""}, how="hang", drain_deadline_s=1) as hung:
        hung.wait_for(lambda: hung.done() > 0)
        with app(**job) as worker:
            worker.wait_ready()
            taken = worker.of("rebalance", what="assign")
            assert sum(m["partitions"] for m in taken) >= 1
            hung.kill()
            wait_until(lambda: lag_of(job) == 0, WAIT_S)
            assert worker.end() == 0
    assert set(numbers(read(job["servers"], job["target"]))) == set(range(2000))


def test_what_no_waiting_mends_ends_the_app(job: dict[str, Any]) -> None:
    """A session timeout the broker does not allow: SettingsError and exit code 2, not a retry for ever."""
    with app(**job, consumer={"session.timeout.ms": "10", "heartbeat.interval.ms": "5"}) as worker:
        assert worker.join() == 2
        assert worker.of("fault")[0]["error"] == "SettingsError"


def test_an_unknown_option_ends_the_start_in_one_line(job: dict[str, Any]) -> None:
    """librdkafka's refusal is a SettingsError that names the option."""
    with app(**job, consumer={"no.such.option": "1"}) as worker:
        assert worker.join() == 1
        last = worker.errors.strip().splitlines()[-1]
    assert "SettingsError" in last
    assert "no.such.option" in last
