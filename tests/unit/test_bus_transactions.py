"""A call into librdkafka that never returns must not hold up a worker for ever."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError

from pipeline.bus import transactions
from pipeline.errors import TransactionAbortedError
from pipeline.records import TopicPartition


class Hanging:
    """librdkafka's producer as far as it is called here; the method named `where` never returns."""

    def __init__(self, where: str | None, released: threading.Event) -> None:
        self._where, self._released = where, released

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_args: Any, **_options: Any) -> int:
            if name == self._where:
                self._released.wait()
            return 0

        return call


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Lets the calls go at the test's end."""
    event = threading.Event()
    yield event
    event.set()


def producer_that_hangs(where: str, released: threading.Event) -> tuple[transactions.TransactionalProducer, list[Any]]:
    """A producer whose first librdkafka client hangs in `where`, and the list of its clients."""
    clients: list[Any] = []

    class Producer(transactions.TransactionalProducer):
        def _make(self) -> Any:
            clients.append(Hanging(where if not clients else None, released))
            return clients[-1]

    return Producer({}, "id", timeout_ms=200), clients


@pytest.mark.parametrize("where", ["begin_transaction", "send_offsets_to_transaction", "commit_transaction"])
def test_a_call_that_hangs_ends_its_producer(
    where: str, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left behind on its thread; the transaction counts as aborted, and a new producer is at hand."""
    monkeypatch.setattr(transactions, "HANGING_S", 0.1)
    producer, clients = producer_that_hangs(where, released)
    with pytest.raises(TransactionAbortedError, match="no answer from librdkafka"):
        producer.commit({TopicPartition("t", 0): 1}, None)
    assert producer.aborted
    assert len(clients) == 2
    producer.abort()
    producer.commit({TopicPartition("t", 0): 1}, None)


@pytest.mark.parametrize("where", ["init_transactions", "abort_transaction"])
def test_taking_over_and_aborting_do_not_hang_either(
    where: str, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new producer takes the place of the one that hangs, and the worker goes on."""
    monkeypatch.setattr(transactions, "HANGING_S", 0.1)
    monkeypatch.setattr(transactions, "INIT_TRY_S", 0.1)
    producer, clients = producer_that_hangs(where, released)
    producer._begin()
    producer.abort()
    assert len(clients) == 2
    producer.commit({TopicPartition("t", 0): 1}, None)


def test_a_record_that_was_refused_aborts_its_transaction(released: threading.Event) -> None:
    """Even where nothing but its delivery report says so: the event about something fatal may come later."""

    class Refused:
        def topic(self) -> str:
            return "predictions"

        def key(self) -> bytes:
            return b"k"

        def value(self) -> bytes:
            return b"v"

    producer, _ = producer_that_hangs("nowhere", released)
    producer.send("predictions", b"k", b"v")
    producer._on_delivery(KafkaError(KafkaError.INVALID_PRODUCER_EPOCH), Refused())  # type: ignore[arg-type]
    with pytest.raises(TransactionAbortedError):
        producer.send("predictions", b"k", b"v")
    assert producer.aborted
    producer.abort()
    producer.send("predictions", b"k", b"v")
