"""Outcomes of two models of the same events, side by side: what a shadow is for."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.measures.scored import Numbers, Scored
from pipeline.quality.outcomes import of_model, outcomes_of
from pipeline.records import Longs, ModelIdentity, OutputContract

#: An event by one number: its partition, and its offset in the lower bits. 2^40 records are 35 years at 1,000 a second.
OFFSET_BITS = 40


class Side(NamedTuple):
    """One of the two models: which outcomes are its, and what its outputs are."""

    identity: ModelIdentity
    output: OutputContract


class Pairs:
    """Takes outcomes as they are read; has those of events that both models scored since a moment."""

    def __init__(self, first: Side, second: Side, since_ms: int) -> None:
        """since_ms: predictions made before are left out."""
        self._sides, self._since_ms = (first, second), since_ms
        self._parts: tuple[list[_Part], list[_Part]] = ([], [])

    def add(self, columns: pa.RecordBatch) -> None:
        """Decoded records of schemas/outcome.avsc."""
        for side, parts in zip(self._sides, self._parts, strict=True):
            parts.append(_part(columns, side, self._since_ms))

    @property
    def rows(self) -> tuple[int, int]:
        """Outcomes of each model, with or without the other's."""
        first, second = (sum(len(part.events) for part in parts) for parts in self._parts)
        return first, second

    def scored(self) -> tuple[Scored, Scored]:
        """The same n events by the first and the second model, in order of event time."""
        first, second = (
            _joined(parts, side.output.width) for parts, side in zip(self._parts, self._sides, strict=True)
        )
        _, rows, others = np.intersect1d(first.events, second.events, return_indices=True)
        order = np.argsort(first.scored.times_ms[rows], kind="stable")
        return first.scored.take(rows[order]), second.scored.take(others[order])


class _Part(NamedTuple):
    """(n,) events, and their outcomes."""

    events: Longs
    scored: Scored


def _part(columns: pa.RecordBatch, side: Side, since_ms: int) -> _Part:
    columns = of_model(columns, side.identity)
    partitions, offsets = (columns.column(name).to_numpy().astype(np.int64) for name in ("partition", "offset"))
    found = outcomes_of(columns, side.output, offsets=(partitions << OFFSET_BITS) | offsets)
    assert found.offsets is not None
    late = found.predicted_at_ms >= since_ms
    return _Part(found.offsets[late], Scored(found.outputs[late], found.truth[late], found.event_times_ms[late]))


def _joined(parts: list[_Part], width: int) -> _Part:
    outputs: Numbers = np.concatenate([np.empty((0, width)), *(part.scored.outputs for part in parts)])
    empty: Longs = np.empty(0, np.int64)
    events, times = (
        np.concatenate([empty, *columns])
        for columns in ([part.events for part in parts], [part.scored.times_ms for part in parts])
    )
    truth = np.concatenate([part.scored.truth for part in parts]) if parts else empty
    return _Part(events, Scored(outputs, truth, times))
