"""From scores to Kafka records: predictions, dead letters, batch summaries."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.contracts import Clock, Encoder, OutputSink
from pipeline.records import (
    BatchSummary,
    FeatureContract,
    Floats,
    Longs,
    ModelIdentity,
)
from pipeline.scoring.dead_letters import NO_LIMIT, RECORD_OVERHEAD_BYTES, DeadLetters, record_bytes
from pipeline.scoring.fields import NO_TIME_MS
from pipeline.scoring.slices import no_slices

_FLOATS = pa.list_(pa.float32())


def prediction_labels(outputs: Floats, contract: FeatureContract) -> Longs | None:
    """Class index of each row of `outputs`; None for regression."""
    output = contract.output
    if output.kind == "regression":
        return None
    labels: Longs = (outputs[:, 0] >= 0.5 if output.width == 1 else outputs.argmax(axis=1)).astype(np.int64)
    return labels


class PredictionColumns:
    """Builds the columns of schemas/prediction.avsc."""

    def __init__(
        self, contract: FeatureContract, identity: ModelIdentity, clock: Clock, calibration_id: str | None = None
    ) -> None:
        """calibration_id: of what the outputs go through."""
        self._calibration_id = calibration_id
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
        uncalibrated: Floats | None = None,
    ) -> pa.RecordBatch:
        """N predictions; `event_times_ms` NO_TIME_MS means null; `slices` None: none.

        uncalibrated: `outputs` before their calibration, if there is one.
        """
        n = len(outputs)
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
            "outputs": _lists(outputs),
            "label": label_column,
            "partition": pa.array(partitions.astype(np.int32)),
            "offset": pa.array(offsets),
            "produced_at": pa.array(now_ms).cast(timestamp),
            "slices": no_slices(n) if slices is None else slices,
            "calibration_id": pa.nulls(n, pa.string()) if uncalibrated is None else _constant(self._calibration_id, n),
            "uncalibrated_outputs": pa.nulls(n, _FLOATS) if uncalibrated is None else _lists(uncalibrated),
        }
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def without_slices(predictions: pa.RecordBatch) -> pa.RecordBatch:
    """The same predictions, their slices empty."""
    at = predictions.schema.get_field_index("slices")
    return predictions.set_column(at, predictions.schema.field(at), no_slices(predictions.num_rows))


def _lists(outputs: Floats) -> pa.ListArray:
    n, width = outputs.shape
    starts = np.arange(0, (n + 1) * width, width, dtype=np.int32)
    return pa.ListArray.from_arrays(starts, np.ascontiguousarray(outputs).reshape(-1))


def _constant(text: str | None, n: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), n)


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
        shadow_topic: str = "",
    ) -> None:
        """shadow_topic: where `shadow_predictions` go."""
        limits = record_bytes_max or {}
        self._prediction_bytes_max = limits.get(predictions_topic, NO_LIMIT)
        self._sink = sink
        self._predictions_topic, self._shadow_topic = predictions_topic, shadow_topic
        self.dead_letters = DeadLetters(sink, dead_letters_topic, clock, limits.get(dead_letters_topic, NO_LIMIT))
        self._summaries_topic = summaries_topic
        self._prediction_encoder = prediction_encoder
        self._encode_summary = encode_summary

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

    def shadow_predictions(self, keys: Sequence[bytes | None], values: list[bytes]) -> None:
        """Send predictions that nobody acts on, under their events' keys."""
        if values:
            self._sink.send_batch(self._shadow_topic, keys, values)

    def summaries(self, summaries: list[BatchSummary]) -> None:
        """Send what the drift monitor reads."""
        if summaries:
            values = [self._encode_summary(s) for s in summaries]
            self._sink.send_batch(self._summaries_topic, [None] * len(values), values)
