"""Dead letters: a record that could not be used, as it was, and why."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline import __version__
from pipeline.contracts import Clock, OutputSink
from pipeline.records import Headers, Reject

#: Dead-letter headers: Kafka Connect's names where it has one, so that its tools read them; ours beside them.
CONNECT = "__connect.errors."
OWN = "pipeline."
ATTEMPT_HEADER = "pipeline.attempt"
#: Longest text in a header: a message must never make a dead letter larger than what it reports.
HEADER_TEXT_MAX = 512
#: What of a record was too much for the dead letters topic, e.g. "headers, value".
LEFT_OUT_HEADER = "pipeline.left.out"
ALL_LEFT_OUT = "headers, value, key"
#: Around key, value and headers, at most: a batch's header (61 bytes), a record's own six numbers (at most 10 bytes
#: each, 5 mostly), and two lengths for each header.
RECORD_OVERHEAD_BYTES, HEADER_OVERHEAD_BYTES = 110, 10
#: A topic takes any record, so far as anyone has said.
NO_LIMIT = sys.maxsize


def dead_letter_headers(
    reject: Reject, topic: str, partition: int, offset: int, attempt: int, now_s: float
) -> list[tuple[str, bytes]]:
    """Headers that say where a record came from and why it is dead; all values are UTF-8 strings."""
    values: dict[str, Any] = {
        CONNECT + "topic": topic,
        CONNECT + "partition": partition,
        CONNECT + "offset": offset,
        CONNECT + "stage": reject.stage.value,
        CONNECT + "class.name": "pipeline.records.Reject",
        CONNECT + "exception.message": reject.message[:HEADER_TEXT_MAX],
        OWN + "reason": reject.reason.value,
        OWN + "schema.id": "" if reject.schema_id is None else reject.schema_id,
        OWN + "version": __version__,
        OWN + "time": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds"),
        ATTEMPT_HEADER: attempt,
    }
    return [(name, str(value).encode("utf-8", "replace")) for name, value in values.items()]


def attempt_of(headers: Sequence[tuple[str, bytes | None]] | None) -> int:
    """How often this record was redriven before; 0 for a first delivery or an unreadable header."""
    for name, value in headers or ():
        if name == ATTEMPT_HEADER and value is not None and value.isdigit() and len(value) < 4:
            return int(value)
    return 0


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers = None) -> int:
    """Upper bound of what a record takes in a batch of its own, uncompressed."""
    size = RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
    return size + sum(HEADER_OVERHEAD_BYTES + len(name.encode()) + len(text or b"") for name, text in headers or ())


class DeadLetters:
    """Sends dead letters to their topic, of whose records none may have more than `bytes_max`."""

    def __init__(self, sink: OutputSink, topic: str, clock: Clock, bytes_max: int = NO_LIMIT) -> None:
        self._sink, self._topic, self._clock, self._bytes_max = sink, topic, clock, bytes_max

    def send(
        self,
        reject: Reject,
        source: tuple[str, int, int],
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]] | None,
    ) -> None:
        """Send one record's original key and bytes with the reason; foreign headers are kept, ours replaced.

        Where all that is more than the topic takes (a compressed record, say, may be larger than any limit once it is
        unpacked), headers, value and key are left out in this order until it fits: the record itself is where the
        headers say.
        """
        topic, partition, offset = source
        ours = dead_letter_headers(reject, topic, partition, offset, attempt_of(headers), self._clock())
        kept = [h for h in headers or () if not h[0].startswith((CONNECT, OWN))]
        letter = (key, value, [*kept, *ours])
        for left_out, rest in (
            ("headers", (key, value)),
            ("headers, value", (key, None)),
            (ALL_LEFT_OUT, (None, None)),
        ):
            if record_bytes(*letter) <= self._bytes_max:
                break
            letter = (*rest, [*ours, (LEFT_OUT_HEADER, left_out.encode())])
        self._sink.send(self._topic, *letter)
