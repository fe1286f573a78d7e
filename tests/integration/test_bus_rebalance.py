"""The rebalances that go wrong: late, frozen, fenced, and one upon the other."""

import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.bus_kit import app, create, lag, numbers, produce, read, wait_until

#: The shortest session the broker allows.
SESSION = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "1000"}


@pytest.fixture
def job(kafka: str, unique: Callable[[str], str]) -> dict[str, Any]:
    """Source and target topic of six partitions, and a group, of this test alone."""
    source, target = create(kafka, unique("source"), 6), create(kafka, unique("target"), 6)
    return {"servers": kafka, "group": unique("group"), "source": source, "target": target}


def lag_of(job: dict[str, Any]) -> int:
    return lag(job["servers"], job["group"], job["source"])


def nothing_is_lost_and_order_holds(job: dict[str, Any], count: int) -> int:
    """All records are on the target, each key's first copies in order; the number of further copies."""
    found = read(job["servers"], job["target"])
    assert set(numbers(found)) == set(range(count))
    seen: dict[bytes, list[int]] = defaultdict(list)
    for message in found:
        number = int(message.value())
        if number not in seen[message.key()]:
            seen[message.key()].append(number)
    assert all(order == sorted(order) for order in seen.values())
    return len(found) - count


@pytest.mark.parametrize(("how", "said"), [("slow", "with work in flight"), ("block", "without the event loop")])
def test_work_longer_than_the_drain_deadline_is_not_lost(job: dict[str, Any], how: str, said: str) -> None:
    """A batch takes longer than a rebalance may wait: the rebalance goes on without it, and nothing is lost.

    `block` holds up the loop itself: batches of the new assignment come before Faust was told of it.
    """
    count = 3000
    produce(job["servers"], job["source"], count)
    late = {"how": how, "hold_s": 12.0, "hold_batches": 1, "drain_deadline_s": 0.2}
    with app(**job, **late, consumer={"heartbeat.interval.ms": "500"}) as first:
        first.wait_ready()
        with app(**job) as other:
            other.wait_for(lambda: other.done() > 0)
            assert first.done() == 0, "the rebalance went on without it"
            wait_until(lambda: lag_of(job) == 0)
            assert other.end() == 0
        assert f"rebalance goes on {said}" in first.errors
        assert first.end() == 0
        assert not first.of("fault")
    nothing_is_lost_and_order_holds(job, count)


def test_partitions_that_went_while_paused_are_read_when_they_come_back(job: dict[str, Any]) -> None:
    """librdkafka remembers a pause beyond the assignment: a partition revoked while paused must be resumed."""
    count = 3000
    produce(job["servers"], job["source"], count)
    full = {"how": "slow", "hold_s": 15.0, "hold_batches": 1, "poll_records": 100, "in_flight_max": 200}
    with app(**job, **full, drain_deadline_s=30, consumer={"heartbeat.interval.ms": "500"}) as first:
        first.wait_for(lambda: "partitions paused" in first.errors)
        with app(**job) as other:
            other.wait_ready()
            said = first.errors
            assert said.index("paused") < said.index("kind=revoke") < (said + "partitions resumed").index("resumed")
            assert other.end() == 0
        produce(job["servers"], job["source"], count, first=count)
        first.wait_for(lambda: lag_of(job) == 0)
        assert first.end() == 0
    nothing_is_lost_and_order_holds(job, 2 * count)


def test_a_frozen_worker_comes_back_to_a_group_that_has_gone_on(job: dict[str, Any]) -> None:
    """Stopped past its session and woken again: its late commits do no harm, it takes partitions anew."""
    count = 20_000
    produce(job["servers"], job["source"], count // 2)
    with app(**job, consumer=SESSION, how="slow", hold_s=0.05) as frozen:
        frozen.wait_for(lambda: frozen.done() > 1000)
        frozen.process.send_signal(signal.SIGSTOP)
        with app(**job, consumer=SESSION) as other:
            wait_until(lambda: lag_of(job) == 0)
            frozen.process.send_signal(signal.SIGCONT)
            frozen.wait_for(
                lambda: frozen.of("rebalance", what="lost") and len(frozen.of("rebalance", what="assign")) > 1
            )
            produce(job["servers"], job["source"], count // 2, first=count // 2)
            wait_until(lambda: lag_of(job) == 0)
            assert other.end() == 0
        assert frozen.end() == 0
        assert not frozen.of("fault")
    nothing_is_lost_and_order_holds(job, count)


def test_a_second_worker_of_the_same_identity_fences_the_first(job: dict[str, Any]) -> None:
    """With static membership the newer one stays; the older one ends with exit code 4 and commits nothing more."""
    static = {"consumer": {**SESSION, "group.instance.id": "one"}}
    with app(**job, **static) as first:
        first.wait_ready()
        with app(**job, **static) as second:
            assert first.join() == 4
            assert first.of("fault")[0]["error"] == "FencedError"
            produce(job["servers"], job["source"], 100)
            second.wait_for(lambda: second.done() == 100)
            assert second.end() == 0
    assert nothing_is_lost_and_order_holds(job, 100) == 0


def test_workers_that_come_and_go_as_they_like_lose_nothing(job: dict[str, Any]) -> None:
    """SIGTERM, SIGKILL and newcomers at random, rebalance upon rebalance, under load."""
    count, chance = 120_000, random.Random(7)
    spec = {**job, "consumer": SESSION, "how": "slow", "hold_s": 0.02, "commit_interval_s": 0.2}
    feed = threading.Thread(target=produce, args=(job["servers"], job["source"], count))
    with ExitStack() as stack:
        workers = [stack.enter_context(app(**spec)) for _ in range(2)]
        feed.start()
        ended = 0
        for _ in range(7):
            time.sleep(chance.uniform(0.2, 1.5))  # what is random here is the moment
            victim = workers.pop(chance.randrange(len(workers)))
            if chance.random() < 0.5:
                victim.kill()
            else:
                victim.process.terminate()
                ended += 1
            workers.append(stack.enter_context(app(**spec)))
        feed.join()
        wait_until(lambda: lag_of(job) == 0, 90)
        for worker in workers:
            assert worker.end() == 0
    assert ended > 0
    nothing_is_lost_and_order_holds(job, count)
