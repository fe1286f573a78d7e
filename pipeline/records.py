"""The frozen vocabulary that passes between rooms: records, features, baselines, summaries.

Everything here is plain data: no I/O, no torch, no faust, no Kafka client.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Headers = Sequence[tuple[str, bytes | None]] | None
Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]


class TopicPartition(NamedTuple):
    """A topic name and a partition number."""

    topic: str
    partition: int


# --------------------------------------------------------------------------- transport


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutively fetched records of one topic-partition; parallel sequences of length n ≥ 1.

    Offsets ascend strictly but may have gaps (compaction, aborted transactions).
    """

    topic: str
    partition: int
    #: As `array("q")` where they come from Kafka: NumPy takes that over as it is.
    offsets: Sequence[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    timestamps_ms: Sequence[int]
    #: None when no record of the batch carries headers.
    headers: list[Headers] | None = None
    #: What the records take in memory, at least: keys, values, headers. 0 if nobody counted.
    size_bytes: int = 0

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def first_offset(self) -> int:
        return self.offsets[0]

    @property
    def next_offset(self) -> int:
        """Offset to commit once the whole batch is done."""
        return self.offsets[-1] + 1


# --------------------------------------------------------------------------- rejection


class Reason(StrEnum):
    """Closed set of reasons for a dead letter: also the metric label."""

    TOMBSTONE = "tombstone"
    EMPTY_VALUE = "empty_value"
    WRONG_MAGIC = "wrong_magic"
    TRUNCATED_HEADER = "truncated_header"
    UNKNOWN_SCHEMA = "unknown_schema"
    SCHEMA_MISMATCH = "schema_mismatch"
    UNDECODABLE = "undecodable"
    TRAILING_BYTES = "trailing_bytes"
    NULL_FEATURE = "null_feature"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    UNKNOWN_CATEGORY = "unknown_category"
    WRONG_SHAPE = "wrong_shape"
    MISSING_ID = "missing_id"
    OUTPUT_NOT_FINITE = "output_not_finite"
    OUTPUT_TOO_LARGE = "output_too_large"
    MISSING_LABEL = "missing_label"


class Stage(StrEnum):
    """Where on the hot path a record was rejected."""

    DECODE = "decode"
    VALIDATE = "validate"
    SCORE = "score"
    LABEL = "label"


@dataclass(frozen=True, slots=True)
class Reject:
    """One record that will become a dead letter; `row` indexes its source batch."""

    row: int
    stage: Stage
    reason: Reason
    message: str
    schema_id: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """Columns of the decodable records of a batch, and the records that were not.

    `columns` has one row per good record, under the *reader* schema's field names;
    `rows[i]` is the index in the source batch of column row i (ascending).
    """

    columns: pa.RecordBatch
    rows: Longs
    rejects: list[Reject]


# --------------------------------------------------------------------------- features

FeatureKind = Literal["number", "category", "bytes", "sequence"]
NullPolicy = Literal["reject", "impute"]
RangePolicy = Literal["reject", "clip", "impute"]
CategoryPolicy = Literal["reject", "unknown"]


@dataclass(frozen=True, slots=True)
class Feature:
    """What the model expects of one event field, and what happens when it is not so.

    - number: float32 scalar. NaN and ±Inf follow `on_null`; outside `range`, `on_range`.
    - category: string (or enum, boolean, integer, as text); index in `vocabulary` + 1; 0 is "unknown".
    - bytes: a fixed-shape array of `dtype`, C order, little endian, `shape` without batch axis.
    - sequence: list of numbers, length 1..`shape[0]`; padded with 0 in a bucket of its own.
    """

    name: str
    kind: FeatureKind
    shape: tuple[int, ...] = ()
    dtype: Literal["float32", "uint8", "int16"] = "float32"
    vocabulary: tuple[str, ...] = ()
    on_null: NullPolicy = "reject"
    impute: float | str | None = None
    range: tuple[float, float] | None = None
    on_range: RangePolicy = "reject"
    on_unknown: CategoryPolicy = "unknown"


@dataclass(frozen=True, slots=True)
class OutputContract:
    """What the model returns: float32 of shape (n, `width`).

    classification: `classes` names the columns; `activation` turns logits into probabilities
    (sigmoid with width 1 and two classes: column = probability of `classes[1]`).
    regression: `classes` is empty and predictions carry no label.
    """

    kind: Literal["classification", "regression"]
    width: int
    classes: tuple[str, ...] = ()
    activation: Literal["none", "softmax", "sigmoid"] = "none"


@dataclass(frozen=True, slots=True)
class FeatureContract:
    """The features of a model in the order its module receives them, and its output.

    A module's `forward` takes one mapping of tensors:
    "numbers" float32 (n, number features), "categories" int64 (n, category features),
    each bytes feature by its name, `dtype` tensor (n, *shape), each sequence feature by its
    name, float32 (n, longest in the batch), with "<name>_lengths" int64 (n,).
    Keys without features are absent.
    """

    features: tuple[Feature, ...]
    output: OutputContract

    def of_kind(self, kind: FeatureKind) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.kind == kind)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Validated rows of one shape, ready for the engine: NumPy arrays keyed as the module's inputs."""

    arrays: dict[str, npt.NDArray[Any]]
    #: Index of each row in `Decoded.columns`; (n,) int64.
    rows: Longs

    def __len__(self) -> int:
        return len(self.rows)


#: What is made of a model's predictions: they are acted on, for all events or for some, or kept aside.
ModelRole = Literal["champion", "canary", "shadow"]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model made a prediction."""

    model_id: str
    model_version: str
    role: ModelRole = "champion"


# --------------------------------------------------------------------------- drift


#: In a signal's name: every value of a category feature that has no signal of its own.
OTHER = "(other)"


@dataclass(frozen=True, slots=True)
class SignalBaseline:
    """What one signal looked like on the training data's held-out part.

    Names: "feature:<name>", "score:<class or output>" (values), "null:<feature>",
    "class:<label>" (0/1 indicators), "rejected" (0/1 per input record), "joint:<feature>" (products); of parts of the
    stream "category:<feature>=<value>", "slice:<field>=<value>" (0/1) and "score:<class or output>@<field>=<value>".
    `edges` are the m+1 finite, float32-exact edges of m histogram bins; a value x is in bin j when
    edges[j] < x <= edges[j+1]; the outer bins also take what lies beyond. A signal that had no value
    (count 0) is not watched.
    """

    name: str
    count: int
    mean: float
    variance: float
    minimum: float
    maximum: float
    edges: tuple[float, ...]
    histogram: tuple[int, ...]
    #: Of the bounded values: lag-1 autocorrelation, and integrated autocorrelation time (≥ 1, in events).
    autocorrelation: float
    autocorrelation_time: float


@dataclass(frozen=True, slots=True)
class JointWeights:
    """Which number features are watched together, and how much each says of each; see drift/joint.py.

    weights[i][j]: of feature j in "joint:<feature i>"; 0 where i is j.
    """

    features: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Season:
    """What the time in a season says of signals; see drift/seasons.py.

    Phases are equally long parts of `period_s` seconds since the epoch; per signal and phase the median and the
    interquartile range (> 0), in the signal's own unit. Signals that are not named have no season.
    """

    period_s: float
    #: How many seasons it was measured over.
    seasons: float
    signals: tuple[str, ...]
    medians: tuple[tuple[float, ...], ...]
    ranges: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Baselines of all signals, and the shortest block (events) that workers add up; see drift/baseline.py."""

    signals: tuple[SignalBaseline, ...]
    block_events: int
    #: What the last signals, "joint:<name>", are made of; None where there are none.
    joint: JointWeights | None = None
    #: What is taken out of values before anything else; None where no season is known.
    season: Season | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the signals whose values rows have; the joint ones, which follow, are made of these."""
        together = len(self.joint.features) if self.joint else 0
        return tuple(signal.name for signal in self.signals[: len(self.signals) - together])


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a worker tells the drift monitor of one contiguous range of one input partition.

    Blocks hold the same number of consecutive input records, the last one fewer (a remainder): the
    baseline's `block_events`, or that times a power of two where the range would need too many blocks.
    `means[s]` are block means of signal s after bounding to [0, 1]; NaN where a block had no value.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    first_event_time_ms: int
    last_event_time_ms: int
    model_id: str
    model_version: str
    events: int
    rejected: int
    block_counts: list[int]
    block_last_offsets: list[int]
    #: Event time of the last record of each block: shown in triggers, orders nothing.
    block_last_event_times_ms: list[int]
    signals: list[str]
    means: list[list[float]]
    #: Per signal, over the whole range and unbounded: values seen, sum, sum of squares, histogram.
    counts: list[int]
    sums: list[float]
    sums_of_squares: list[float]
    histograms: list[list[int]]
    #: What this worker tells of the canary beside it, for whoever decides on its trial: its version, "" for nothing;
    canary_version: str = ""
    #: why it was taken out of service here, "" while it was not;
    canary_failure: str = ""
    #: its time as a multiple of the champion's, of steps in which both scored the same rows.
    canary_latency_ratios: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SignalEvidence:
    """Why one signal is part of a trigger.

    detector: "adwin" (changed within the stream), "spread" (scatters otherwise, around a mean that may have stayed),
    "baseline" (differs from the training data) or "moved" (did not alarm by itself, but changed at the same point).
    Means are in the signal's own units; KL (after from baseline, nats) and PSI compare histograms on its bins.
    """

    signal: str
    detector: str
    before_mean: float
    after_mean: float
    before_count: int
    after_count: int
    kl: float
    psi: float


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """An inclusive range of offsets of one input partition."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int


@dataclass(frozen=True, slots=True)
class RetrainingTrigger:
    """One alarm for one drift: the evidence and what to do with it (schemas/retraining-trigger.avsc).

    `evidence` holds what was seen since the change; `window` what to train on: `settings.drift.window_events`
    events from the change on, so its last offsets may not be written yet.
    """

    trigger_id: str
    pipeline: str
    model_id: str
    model_version: str
    signals: list[SignalEvidence]
    change_event_time_ms: int
    change_events_ago: int
    evidence: list[OffsetRange]
    window: list[OffsetRange]
    severity: Literal["minor", "major", "critical"]
    advice: str
    events_seen: int
    detected_event_time_ms: int
    next_allowed_after_events: int
    produced_at_ms: int


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training run measured on the held-out, newest part of its data."""

    rows_train: int
    rows_validation: int
    metrics: dict[str, float] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
