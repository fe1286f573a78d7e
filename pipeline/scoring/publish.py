"""From scores to Kafka records: predictions, dead letters, batch summaries."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import __version__
from pipeline.contracts import Clock, Encoder, OutputSink
from pipeline.records import (
    BatchSummary,
    FeatureContract,
    Floats,
    Headers,
    Longs,
    ModelIdentity,
    Reject,
)
from pipeline.scoring.fields import NO_TIME_MS
from pipeline.scoring.slices import no_slices

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


def prediction_labels(outputs: Floats, contract: FeatureContract) -> Longs | None:
    """Class index of each row of `outputs`; None for regression."""
    output = contract.output
    if output.kind == "regression":
        return None
    labels: Longs = (outputs[:, 0] >= 0.5 if output.width == 1 else outputs.argmax(axis=1)).astype(np.int64)
    return labels


class PredictionColumns:
    """Builds the columns of schemas/prediction.avsc."""

    def __init__(self, contract: FeatureContract, identity: ModelIdentity, clock: Clock) -> None:
        self._classes = pa.array(contract.output.classes, pa.string()) if contract.output.classes else None
        self._identity = identity
        self._clock = clock

    def build(
        self,
        ids: list[str],
        event_times_ms: Longs,
        outputs: Floats,
        labels: Longs | None,
        partitions: Longs,
        offsets: Longs,
        slices: pa.MapArray | None = None,
    ) -> pa.RecordBatch:
        """N predictions; `event_times_ms` NO_TIME_MS means null; `slices` None: none."""
        n, width = outputs.shape
        timestamp = pa.timestamp("ms", tz="UTC")
        identity = self._identity
        now_ms = np.full(n, int(self._clock() * 1000), dtype=np.int64)
        if labels is None or self._classes is None:
            label_column = pa.nulls(n, pa.string())
        else:
            label_column = self._classes.take(pa.array(labels))
        columns = {
            "event_id": pa.array(ids, pa.string()),
            "event_time": pa.array(event_times_ms, mask=event_times_ms == NO_TIME_MS).cast(timestamp),
            "model_id": _constant(identity.model_id, n),
            "model_version": _constant(identity.model_version, n),
            "role": _constant(identity.role, n),
            "outputs": pa.ListArray.from_arrays(
                np.arange(0, (n + 1) * width, width, dtype=np.int32), np.ascontiguousarray(outputs).reshape(-1)
            ),
            "label": label_column,
            "partition": pa.array(partitions.astype(np.int32)),
            "offset": pa.array(offsets),
            "produced_at": pa.array(now_ms).cast(timestamp),
            "slices": no_slices(n) if slices is None else slices,
        }
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def without_slices(predictions: pa.RecordBatch) -> pa.RecordBatch:
    """The same predictions, their slices empty."""
    at = predictions.schema.get_field_index("slices")
    return predictions.set_column(at, predictions.schema.field(at), no_slices(predictions.num_rows))


def _constant(text: str, n: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), n)


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


class Publisher:
    """Hands outputs to the sink in the order of their inputs.

    record_bytes_max: topic -> most bytes of a record there. What is larger is not sent, for the broker would refuse
    it again and again: an event whose prediction is too large becomes a dead letter, and a dead letter is sent without
    what is too much of it.
    """

    def __init__(
        self,
        sink: OutputSink,
        *,
        predictions_topic: str,
        dead_letters_topic: str,
        summaries_topic: str,
        prediction_encoder: Encoder,
        encode_summary: Callable[[BatchSummary], bytes],
        clock: Clock,
        record_bytes_max: Mapping[str, int] | None = None,
    ) -> None:
        limits = record_bytes_max or {}
        self._prediction_bytes_max = limits.get(predictions_topic, NO_LIMIT)
        self._dead_letter_bytes_max = limits.get(dead_letters_topic, NO_LIMIT)
        self._sink = sink
        self._predictions_topic = predictions_topic
        self._dead_letters_topic = dead_letters_topic
        self._summaries_topic = summaries_topic
        self._prediction_encoder = prediction_encoder
        self._encode_summary = encode_summary
        self._clock = clock

    def encode_predictions(self, columns: pa.RecordBatch) -> list[bytes]:
        """Wire-format values of predictions."""
        return self._prediction_encoder.encode(columns)

    def oversized(self, keys: Sequence[bytes | None], values: Sequence[bytes]) -> dict[int, str]:
        """Index of each prediction that its topic does not take, and what to say of it."""
        limit = self._prediction_bytes_max
        # The longest value and all keys together are less, nearly always: 0.2 ms for 8,192 predictions.
        if max(map(len, values), default=0) + len(b"".join(filter(None, keys))) + RECORD_OVERHEAD_BYTES <= limit:
            return {}
        sizes = ((i, record_bytes(key, value)) for i, (key, value) in enumerate(zip(keys, values, strict=True)))
        told = f"but {self._predictions_topic} takes {limit:,} (max.message.bytes)"
        return {i: f"the prediction and its key have {size:,} bytes, {told}" for i, size in sizes if size > limit}

    def predictions(self, keys: Sequence[bytes | None], values: list[bytes]) -> None:
        """Send predictions under their events' keys."""
        if values:
            self._sink.send_batch(self._predictions_topic, keys, values)

    def dead_letter(
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
            if record_bytes(*letter) <= self._dead_letter_bytes_max:
                break
            letter = (*rest, [*ours, (LEFT_OUT_HEADER, left_out.encode())])
        self._sink.send(self._dead_letters_topic, *letter)

    def summaries(self, summaries: list[BatchSummary]) -> None:
        """Send what the drift monitor reads."""
        if summaries:
            values = [self._encode_summary(s) for s in summaries]
            self._sink.send_batch(self._summaries_topic, [None] * len(values), values)
