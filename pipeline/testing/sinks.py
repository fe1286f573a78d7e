"""A sink that remembers what it got, and can refuse, fill up or lose its broker on command."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import DeliveryError, DrainTimeoutError
from pipeline.records import Headers


class Sent(NamedTuple):
    """One record as it was handed over."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = None
    partition: int | None = None


class RecordingSink:
    """Keeps records in the order of the calls (contracts.OutputSink). Thread-safe.

    A batch is taken as a whole or not at all.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self._failures: list[Exception] = []
        self._room = threading.Event()
        self._room.set()
        self._closed = False
        #: Set while a call waits for room.
        self.waiting = threading.Event()

    def fail(self, *errors: Exception) -> None:
        """Let the next calls raise these, one each; default: a DeliveryError."""
        self._failures += errors or (DeliveryError("the sink was told to fail"),)

    def fill(self) -> None:
        """From now on every call waits, as with a full local queue."""
        self._room.clear()

    def make_room(self) -> None:
        """Let waiting calls, and later ones, go on."""
        self._room.set()

    def close(self) -> None:
        """Waiting calls, and later ones that would wait, end with DrainTimeoutError."""
        self._closed = True
        self._room.set()

    def to(self, topic: str) -> list[Sent]:
        """What was sent to `topic`, in order."""
        return [record for record in self.sent if record.topic == topic]

    def send_batch(
        self,
        topic: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        partitions: Sequence[int] | None = None,
    ) -> None:
        """See contracts.OutputSink."""
        places = partitions if partitions is not None else [None] * len(values)
        records = [Sent(topic, k, v, None, p) for k, v, p in zip(keys, values, places, strict=True)]
        self._enter()
        self.sent += records

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = None) -> None:
        """See contracts.OutputSink."""
        self._enter()
        self.sent.append(Sent(topic, key, value, headers))

    def _enter(self) -> None:
        if not self._room.is_set():
            self.waiting.set()
            self._room.wait()
            self.waiting.clear()
        if self._closed:
            raise DrainTimeoutError("the sink was closed with its queue full")
        if self._failures:
            raise self._failures.pop(0)
