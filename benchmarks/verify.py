"""Is the output right? Every event once, under its key, with plain torch's score. And when was it appended?"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from benchmarks import clients, job

#: float32 sums of 64 terms in another order differ by about 1e-7.
TOLERANCE = 1e-5

#: Kafka values -> (ids, scores or None for an output without scores).
Reader = Callable[[list[bytes]], tuple[pa.Array, npt.NDArray[np.float32] | None]]


@dataclass(frozen=True)
class Verdict:
    """How the outputs differ from what they must be; all zero when they are right."""

    lost: int
    duplicated: int
    #: Ids that no event has.
    foreign: int
    #: Scores further than TOLERANCE from plain torch's, NaN included.
    wrong_scores: int
    #: Outputs under another key than their event's.
    wrong_keys: int
    largest_error: float

    @property
    def right(self) -> bool:
        return not (self.lost or self.duplicated or self.foreign or self.wrong_scores or self.wrong_keys)

    def __str__(self) -> str:
        faults = {name: count for name, count in vars(self).items() if count and name != "largest_error"}
        return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in faults.items()) or "right"


@dataclass(frozen=True)
class Outputs:
    """All outputs of a run; four parallel arrays of length n, in the order of each partition."""

    #: Number in the event's id; -1 where it is none. (n,) int64.
    numbers: npt.NDArray[np.int64]
    #: (n,) S5
    keys: npt.NDArray[np.bytes_]
    #: (n,) float32, or None for an output without scores.
    scores: npt.NDArray[np.float32] | None
    #: The broker's append times. (n,) int64, milliseconds since the epoch.
    appended_ms: npt.NDArray[np.int64]

    def span_s(self) -> float:
        """Seconds from the first append to the last, to the clock's millisecond; never 0."""
        return max(1, int(self.appended_ms.max() - self.appended_ms.min())) / 1000


def compare(outputs: Outputs, events: int) -> Verdict:
    """`outputs` against the right answers for events 0..events-1."""
    known = (outputs.numbers >= 0) & (outputs.numbers < events)
    numbers = outputs.numbers[known]
    counts = np.bincount(numbers, minlength=events)
    errors = np.zeros(0, np.float32)
    if outputs.scores is not None:
        errors = np.abs(outputs.scores[known] - job.expected_scores(events)[numbers])
    return Verdict(
        lost=int((counts == 0).sum()),
        duplicated=int(np.maximum(counts - 1, 0).sum()),
        foreign=int((~known).sum()),
        wrong_scores=int((~(errors <= TOLERANCE)).sum()),
        wrong_keys=int((outputs.keys[known] != job.keys(events)[numbers]).sum()),
        largest_error=float(errors.max(initial=0.0)),
    )


def read(bootstrap_servers: str, topic: str, group: str, reader: Reader, deadline_s: float = 120.0) -> Outputs:
    """All outputs in `topic`. Raises TimeoutError past the deadline, ValueError for an empty topic."""
    numbers, keys, scores, times = [], [], [], []
    for messages in clients.read_all(bootstrap_servers, topic, group, deadline_s):
        if not messages:
            continue
        ids, some = reader([message.value() for message in messages])
        numbers.append(event_numbers(ids))
        keys.append(np.array([message.key() or b"" for message in messages], "S5"))
        times.append(np.array([message.timestamp()[1] for message in messages], np.int64))
        if some is not None:
            scores.append(some)
    if not numbers:
        raise ValueError(f"{topic}: no outputs")
    return Outputs(
        np.concatenate(numbers), np.concatenate(keys), np.concatenate(scores) if scores else None, np.concatenate(times)
    )


def event_numbers(ids: pa.Array) -> npt.NDArray[np.int64]:
    """The number in each id, -1 for a string that is not an id; (n,) int64."""
    good = pc.match_substring_regex(ids, "^e[0-9]{15}$")
    digits = pc.if_else(good, pc.utf8_slice_codeunits(ids, 1), "-1")
    numbers: npt.NDArray[np.int64] = digits.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return numbers


def read_events(values: list[bytes]) -> tuple[pa.Array, None]:
    """Reader of the echo's output: the events as they came."""
    return _decode(values, job.EVENT_SCHEMA_JSON, job.EVENT_SCHEMA_ID).column("id"), None


def read_scores(values: list[bytes]) -> tuple[pa.Array, npt.NDArray[np.float32]]:
    """Reader of the rivals' output."""
    columns = _decode(values, job.SCORE_SCHEMA_JSON, job.SCORE_SCHEMA_ID)
    return columns.column("id"), columns.column("score").to_numpy()


def read_predictions(schema: str) -> Reader:
    """Reader of `pipeline`'s Prediction; `schema` is its Avro JSON. The schema id is the registry's business."""

    def read(values: list[bytes]) -> tuple[pa.Array, npt.NDArray[np.float32]]:
        columns = _decode(values, json.dumps(json.loads(schema)), None)
        outputs = columns.column("outputs")
        if len(outputs.flatten()) != len(outputs):
            raise ValueError("a prediction does not have exactly one output")
        return columns.column("event_id"), outputs.flatten().to_numpy().astype(np.float32)

    return read


def _decode(values: Sequence[bytes], schema: str, schema_id: int | None) -> pa.RecordBatch:
    headers = {value[: job.HEADER_BYTES] for value in values}
    if schema_id is not None and headers != {job.wire_header(schema_id)}:
        raise ValueError(f"schema id: outputs with headers {sorted(headers)}, wanted id {schema_id} only")
    return pyruhvro.deserialize_array([value[job.HEADER_BYTES :] for value in values], schema)
