"""The standard job: the events, the model and the right answers.

Event i is known from i alone, so any output can be checked by its id. Everything is seeded.
"""

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

PARTITIONS = 4
FEATURES = tuple(f"f{i:02d}" for i in range(16))
HIDDEN = 64
KEYS = 10_000
SEED = 20_260_101
#: 2026-01-01T00:00Z, then one event a millisecond. Zigzag varints of these times have 6 bytes until 2039.
FIRST_TIME_MS = 1_767_225_600_000
MODEL_VERSION = "1"
MODEL_ID = "benchmark-mlp"
#: Schema ids in the wire format. Each system knows both schemas, so the registry is not part of the job.
EVENT_SCHEMA_ID = 1
SCORE_SCHEMA_ID = 2
HEADER_BYTES = 5

_TIME = {"type": "long", "logicalType": "timestamp-millis"}
EVENT_SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "BenchmarkEvent",
    "namespace": "pipeline.benchmarks",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "key", "type": "string"},
        {"name": "time", "type": _TIME},
        *({"name": name, "type": "float"} for name in FEATURES),
    ],
}
#: What the rivals write; `pipeline` writes its own, larger Prediction.
SCORE_SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "BenchmarkScore",
    "namespace": "pipeline.benchmarks",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "key", "type": "string"},
        {"name": "time", "type": _TIME},
        {"name": "score", "type": "float"},
        {"name": "model_version", "type": "string"},
    ],
}
EVENT_SCHEMA_JSON = json.dumps(EVENT_SCHEMA)
SCORE_SCHEMA_JSON = json.dumps(SCORE_SCHEMA)

#: Byte layout of an event: every field has a fixed width, so a million events are one NumPy array.
EVENT_LAYOUT = np.dtype(
    [
        ("magic", "u1"),
        ("schema_id", ">u4"),
        ("id_length", "u1"),
        ("id", "S16"),
        ("key_length", "u1"),
        ("key", "S5"),
        ("time", "u1", (6,)),
        ("features", "<f4", (len(FEATURES),)),
    ]
)


@dataclass(frozen=True)
class Job:
    """What each system process is told on its command line."""

    bootstrap_servers: str
    input_topic: str
    output_topic: str
    group: str
    events: int

    def arguments(self) -> list[str]:
        return [
            f"--bootstrap-servers={self.bootstrap_servers}",
            f"--input-topic={self.input_topic}",
            f"--output-topic={self.output_topic}",
            f"--group={self.group}",
            f"--events={self.events}",
        ]

    @classmethod
    def parse(cls, arguments: list[str] | None = None) -> Self:
        parser = argparse.ArgumentParser()
        for name in ("--bootstrap-servers", "--input-topic", "--output-topic", "--group"):
            parser.add_argument(name, required=True)
        parser.add_argument("--events", type=int, required=True)
        return cls(**vars(parser.parse_args(arguments)))


def wire_header(schema_id: int) -> bytes:
    """The 5 bytes before an Avro body in the Confluent wire format."""
    return b"\0" + schema_id.to_bytes(4, "big")


def features(events: int) -> npt.NDArray[np.float32]:
    """Features of events 0..events-1: (events, 16) float32; a smaller number of events is a prefix of a larger."""
    return np.random.default_rng(SEED).standard_normal((events, len(FEATURES)), dtype=np.float32)


def keys(events: int) -> npt.NDArray[np.bytes_]:
    """Kafka keys of events 0..events-1: (events,) S5, out of KEYS different ones, uniformly."""
    numbers = np.random.default_rng(SEED + 1).integers(0, KEYS, events)
    return _digits(b"k", numbers, 4)


def ids(events: int) -> npt.NDArray[np.bytes_]:
    """Ids of events 0..events-1: (events,) S16, an "e" and the number."""
    return _digits(b"e", np.arange(events), 15)


def encode_events(events: int) -> list[bytes]:
    """Events 0..events-1 as Kafka values in the wire format."""
    table = np.zeros(events, EVENT_LAYOUT)
    table["schema_id"] = EVENT_SCHEMA_ID
    table["id_length"], table["id"] = 16 * 2, ids(events)  # zigzag doubles
    table["key_length"], table["key"] = 5 * 2, keys(events)
    table["time"] = _varint6((FIRST_TIME_MS + np.arange(events)) * 2)
    table["features"] = features(events)
    block, size = table.tobytes(), EVENT_LAYOUT.itemsize
    return [block[at : at + size] for at in range(0, len(block), size)]


def model() -> "torch.nn.Sequential":
    """The MLP 16-64-64-1 with its fixed weights, in evaluation mode."""
    import torch  # noqa: PLC0415 (the limit has no model and must not pay for one)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = torch.nn.Sequential(
            torch.nn.Linear(len(FEATURES), HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, 1),
        )
    return module.eval()


def expected_scores(events: int) -> npt.NDArray[np.float32]:
    """Plain torch's scores of events 0..events-1: (events,) float32."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        scores: npt.NDArray[np.float32] = model()(torch.from_numpy(features(events))).squeeze(1).numpy()
    return scores


def _digits(letter: bytes, numbers: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.bytes_]:
    """`letter` and each number with leading zeros, as (n,) S<width + 1>."""
    table = np.empty((len(numbers), width + 1), np.uint8)
    table[:, 0] = letter[0]
    rest = numbers.astype(np.int64)
    for column in range(width, 0, -1):
        rest, digit = np.divmod(rest, 10)
        table[:, column] = digit + ord("0")
    return table.view(f"S{width + 1}").ravel()


def _varint6(zigzag: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Six-byte variable-length coding of numbers in [2^35, 2^42): (n, 6) uint8."""
    shifted = zigzag[:, None] >> np.arange(0, 42, 7)
    groups = (shifted & 0x7F).astype(np.uint8)
    groups[:, :5] |= 0x80
    return groups
