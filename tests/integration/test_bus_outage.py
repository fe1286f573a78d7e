"""The broker goes away and comes back, under a worker that was at work."""

from collections.abc import Iterator

import pytest

from pipeline.bus.embedded import EmbeddedKafka
from tests.integration.bus_kit import app, create, lag, numbers, produce, read, wait_until

COUNT = 30_000


@pytest.fixture
def broker() -> Iterator[EmbeddedKafka]:
    """A broker of this test's own, to be killed."""
    with EmbeddedKafka(port=0, ephemeral=True) as own:
        yield own


def test_a_worker_waits_for_a_killed_broker_and_resumes(broker: EmbeddedKafka) -> None:
    """SIGKILL on the broker under load, seconds of absence, the same data again: resumed, nothing lost, exit 0."""
    servers = broker.bootstrap_servers
    source, target = create(servers, "source"), create(servers, "target")
    produce(servers, source, COUNT)
    with app(servers=servers, group="g", source=source, target=target, how="slow", hold_s=0.02) as worker:
        worker.wait_for(lambda: worker.done() > COUNT // 10)
        broker.kill()
        worker.wait_for(lambda: "broker away" in worker.errors)
        broker.start()
        wait_until(lambda: lag(servers, "g", source) == 0)
        assert worker.end() == 0
        assert not worker.of("fault")
    assert set(numbers(read(servers, target))) == set(range(COUNT))


def test_shutdown_without_a_broker_keeps_the_deadline(broker: EmbeddedKafka) -> None:
    """SIGTERM while the broker is away and outputs wait: over soon after the deadline, exit code 8."""
    servers = broker.bootstrap_servers
    source, target = create(servers, "source"), create(servers, "target")
    produce(servers, source, COUNT)
    with app(
        servers=servers, group="g", source=source, target=target, how="slow", hold_s=0.02, drain_deadline_s=3
    ) as worker:
        worker.wait_for(lambda: worker.done() > COUNT // 10)
        broker.kill()
        seen = worker.done()
        worker.wait_for(lambda: worker.done() > seen)  # an output that cannot be acknowledged now
        assert worker.end() == 8
        assert "not acknowledged" in worker.of("fault")[0]["message"]
        assert worker.of("stopped")[0]["took_s"] < 3 + 4


def test_offsets_can_be_asked_while_the_coordinator_loads(broker: EmbeddedKafka) -> None:
    """A new broker has no coordinator yet: the answer is waited for. (librdkafka's own call ends the process.)"""
    servers = broker.bootstrap_servers
    create(servers, "source", 1)
    produce(servers, "source", 10)
    assert [lag(servers, "nobody", "source") for _ in range(3)] == [10, 10, 10]
