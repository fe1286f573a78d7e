"""The batch producer against a full queue and an absent broker: no broker is needed to show what it does then."""

import threading
import time

import pytest

from pipeline.bus.clients import ClientOptions
from pipeline.bus.producer import BatchProducer
from pipeline.errors import DeliveryError, DrainTimeoutError

NOWHERE = "127.0.0.1:1"


def make(**options: str) -> BatchProducer:
    return BatchProducer(
        ClientOptions(NOWHERE, producer={k.replace("_", "."): v for k, v in options.items()}).for_producer()
    )


def wait_until_blocked(thread: threading.Thread) -> None:
    """`thread` is still at it after a moment in which an unblocked call would long be over."""
    thread.join(0.3)
    assert thread.is_alive()


@pytest.mark.parametrize("door", ["batch", "single"])
def test_a_full_queue_makes_the_sender_wait_until_the_producer_closes(door: str) -> None:
    """More than the local queue holds: the call waits, and ends with DrainTimeoutError once the producer is closed."""
    producer = make(queue_buffering_max_messages="100")
    errors: list[Exception] = []

    def send() -> None:
        try:
            if door == "batch":
                producer.send_batch("t", [None] * 150, [b"v"] * 150)
            else:
                for _ in range(150):
                    producer.send("t", None, b"v", [("h", b"1")])
        except DrainTimeoutError as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    wait_until_blocked(thread)
    producer.close()
    thread.join(10)
    assert "queue full" in str(errors[0])


def test_a_flush_ends_at_its_timeout_or_when_the_producer_closes() -> None:
    """What is not acknowledged makes the flush raise, with the number of records."""
    producer = make()
    producer.send_batch("t", [b"k", None], [b"v", None])
    with pytest.raises(DrainTimeoutError, match="2 records not acknowledged"):
        producer.flush(0.3)
    threading.Timer(0.3, producer.close).start()
    started = time.monotonic()
    with pytest.raises(DrainTimeoutError):
        producer.flush()
    assert time.monotonic() - started < 10


def test_a_flush_of_nothing_returns() -> None:
    """Without records there is nothing to wait for, broker or not."""
    make().flush()


@pytest.mark.parametrize("door", ["batch", "single"])
def test_a_record_that_can_never_be_sent_is_refused_at_once(door: str) -> None:
    """Larger than message.max.bytes: DeliveryError names the topic."""
    producer = make(message_max_bytes="1000")
    sends = {
        "batch": lambda: producer.send_batch("t", [None, None], [b"fits", b"x" * 2000]),
        "single": lambda: producer.send("t", None, b"x" * 2000),
    }
    with pytest.raises(DeliveryError, match=r"topic t: .*[Tt]oo large"):
        sends[door]()


def test_an_undelivered_record_poisons_every_later_call() -> None:
    """A record given up on (here: its time is up) makes flush, send_batch and send raise from then on."""
    producer = make(message_timeout_ms="300", linger_ms="0")
    producer.send("t", b"k", b"value")
    with pytest.raises(DeliveryError, match="topic t: the broker refused a record of 6 bytes"):
        producer.flush()
    for call in (
        lambda: producer.send("t", None, b""),
        lambda: producer.send_batch("t", [None], [b""]),
        producer.flush,
    ):
        with pytest.raises(DeliveryError):
            call()


def test_keys_and_values_must_pair() -> None:
    """A missing key is a bug of the caller, not a shorter batch."""
    with pytest.raises(ValueError, match="as many keys"):
        make().send_batch("t", [None], [b"1", b"2"])
