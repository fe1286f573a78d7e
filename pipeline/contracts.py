"""Protocols between rooms: what each side guarantees, and what it does not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.records import (
    BatchSummary,
    Decoded,
    FeatureContract,
    Floats,
    Headers,
    ModelIdentity,
    Reason,
    RecordBatch,
    Stage,
)


class Registry(Protocol):
    """Schemas by id. Thread-safe; a schema once returned for an id never changes."""

    def schema(self, schema_id: int) -> str:
        """Avro JSON of `schema_id`.

        Raises SchemaError if no such id exists, UnreachableError if the registry does not answer
        (never the one for the other: an unknown id is a bad record, an absent registry is waited for).
        """
        ...

    def register(self, subject: str, schema: str) -> int:
        """Id of `schema` under `subject`, registering it if new.

        Raises SchemaError if it is not backward compatible with the subject's latest version.
        """
        ...

    def latest(self, subject: str) -> tuple[int, str] | None:
        """Id and Avro JSON of the newest version, or None for an unknown subject."""
        ...


class Decoder(Protocol):
    """Bytes to columns."""

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Columns of all decodable values, one Reject for each other one; never raises for bad data.

        Raises UnreachableError when a schema cannot be fetched now; nothing is then decided.
        """
        ...


class Encoder(Protocol):
    """Columns to bytes in the Confluent wire format."""

    def encode(self, columns: pa.RecordBatch) -> list[bytes]:
        """One value per row. Raises SchemaError if the columns do not fit the schema."""
        ...


class Model(Protocol):
    """A loaded, verified and warmed-up model."""

    identity: ModelIdentity
    contract: FeatureContract

    def score(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """Outputs of shape (n, contract.output.width), activation applied, NaN left in place.

        Raises ScoringError when the module raises or returns another shape. Not thread-safe.
        """
        ...


class OutputSink(Protocol):
    """Where the hot path hands its outputs; delivery is confirmed by the commit, not by these calls."""

    def send_batch(
        self,
        topic: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Enqueue all records in order, waiting while the local queue is full.

        Guarantees: all or an exception; order per partition. Does not guarantee: delivery.
        """
        ...

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = None) -> None:
        """Enqueue one record, headers included; as `send_batch` otherwise."""
        ...


#: Seconds since the epoch; injected wherever time is read, so that tests own it.
Clock = Callable[[], float]


class Summariser(Protocol):
    """Adds up what the drift monitor needs to know of scored records, one input partition at a time."""

    #: Names of the watched signals, in the order of the columns of `add`'s matrix.
    signals: tuple[str, ...]

    def add(
        self,
        topic: str,
        partition: int,
        offsets: npt.NDArray[np.int64],
        event_times_ms: npt.NDArray[np.int64],
        matrix: npt.NDArray[np.float32],
    ) -> None:
        """N input records in offset order; `matrix` is (n, len(signals)), NaN where a record has no value.

        The arrays must not change until the next drain.
        """
        ...

    def drain(self) -> list[BatchSummary]:
        """Summaries of all added since the last drain, one per partition; the accumulators are then empty."""
        ...


class Observer(Protocol):
    """What the hot path reports, once a batch; implementations must be quick and never raise."""

    def events_read(self, topic: str, n: int) -> None: ...
    def scored(self, identity: ModelIdentity, n: int) -> None: ...
    def rejected(self, stage: Stage, reason: Reason, n: int = 1) -> None: ...
    def imputed(self, feature_key: str, n: int) -> None: ...
    def batch(self, rows: int) -> None: ...
    def stage(self, name: str, seconds: float) -> None: ...
    def latencies(self, since: str, seconds: npt.NDArray[np.float64]) -> None: ...
    def retried(self) -> None: ...
    def trial_failed(self, role: str) -> None: ...
    def shadow_skipped(self, n: int) -> None: ...


class Delivery(Protocol):
    """One record batch in work; a Faust event is one."""

    value: RecordBatch

    def ack(self) -> Any:
        """Say that its outputs were handed to the sink: it may be committed after the next flush."""
        ...
