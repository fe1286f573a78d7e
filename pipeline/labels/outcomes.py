"""Pairs of a prediction and a label -> the columns of schemas/outcome.avsc."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contracts import Decoder
from pipeline.labels.join import Pair
from pipeline.records import Longs

#: Bytes of the wire format before a record.
_HEADER_BYTES = 5
_TIMESTAMP = pa.timestamp("ms", tz="UTC")


def leading_text(value: bytes) -> bytes | None:
    """The first field of a record, if it may be text, undecoded: 0.2 µs, where decoding a prediction takes 1 µs.

    A prediction's and a label's first field is the event's id, in every version of their schemas. What is no such
    record may look like one; it is found out where it is decoded.
    """
    length = shift = 0
    for at in range(_HEADER_BYTES, min(len(value), _HEADER_BYTES + 5)):
        byte = value[at]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            size = length >> 1  # zigzag: a length is never negative
            text = value[at + 1 : at + 1 + size]
            return text if len(text) == size and not length & 1 and value[0] == 0 else None
        shift += 7
    return None


def outcome_columns(
    pairs: Sequence[Pair], predictions: Decoder, labels: Decoder
) -> tuple[pa.RecordBatch, Longs, Longs]:
    """Outcomes of the pairs that can be decoded: columns, index of each row's pair, label delays in ms.

    predictions, labels: decoders into the columns of their schemas. A delay is from the event, or from the prediction
    where the event has no time, to its label.
    """
    left = predictions.decode([pair.prediction for pair in pairs])
    right = labels.decode([pair.label for pair in pairs])
    rows: Longs = np.intersect1d(left.rows, right.rows, assume_unique=True)
    predicted = left.columns.take(pa.array(np.searchsorted(left.rows, rows)))
    labelled = right.columns.take(pa.array(np.searchsorted(right.rows, rows)))
    label_times_ms = np.array([pairs[row].label_time_ms for row in rows], dtype=np.int64)
    columns: dict[str, Any] = {
        name: predicted.column(name)
        for name in ("event_id", "event_time", "model_id", "model_version", "role", "outputs")
    }
    columns |= {
        "predicted": predicted.column("label"),
        "label": labelled.column("label"),
        "value": labelled.column("value"),
        "label_time": pa.array(label_times_ms).cast(_TIMESTAMP),
        "predicted_at": predicted.column("produced_at"),
        "partition": predicted.column("partition"),
        "offset": predicted.column("offset"),
    }
    columns |= {name: predicted.column(name) for name in ("slices", "calibration_id", "uncalibrated_outputs")}
    happened = pc.coalesce(columns["event_time"], columns["predicted_at"])
    delays_ms: Longs = label_times_ms - happened.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), rows, delays_ms
