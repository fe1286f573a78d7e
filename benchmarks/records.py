"""Events and scores one record at a time, as guides show it: fastavro and dicts. See hand_written.score for columns."""

import io
from collections.abc import Sequence
from typing import Any

import fastavro
import numpy as np
import torch

from benchmarks import job

_EVENT = fastavro.parse_schema(job.EVENT_SCHEMA)
_SCORE = fastavro.parse_schema(job.SCORE_SCHEMA)
_HEADER = job.wire_header(job.SCORE_SCHEMA_ID)


def decode(value: bytes) -> Any:
    """An event's fields."""
    return fastavro.schemaless_reader(io.BytesIO(value[job.HEADER_BYTES :]), _EVENT, None)


def score(model: torch.nn.Module, events: Sequence[dict[str, Any]]) -> list[float]:
    """The model's score of each event, in one call."""
    features = np.array([[event[name] for name in job.FEATURES] for event in events], np.float32)
    with torch.inference_mode():
        scores: list[float] = model(torch.from_numpy(features)).squeeze(1).tolist()
    return scores


def encode(event: dict[str, Any], score: float) -> bytes:
    """The output for an event."""
    body = io.BytesIO()
    body.write(_HEADER)
    output = {
        "id": event["id"],
        "key": event["key"],
        "time": event["time"],
        "score": score,
        "model_version": job.MODEL_VERSION,
    }
    fastavro.schemaless_writer(body, _SCORE, output)
    return body.getvalue()
