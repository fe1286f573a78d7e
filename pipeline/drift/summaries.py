"""Adding up scored records into summaries: the drift room's part of the hot path.

Rows wait in a list until a chunk is worth NumPy's call overhead; a chunk is then turned to one row a
signal and every step runs over all its values at once. Cost: see benchmarks/drift.py.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.drift.bins import Bins
from pipeline.drift.joint import JointValues
from pipeline.drift.seasons import Deseasoner
from pipeline.records import Baseline, BatchSummary, Floats, Longs, ModelIdentity

Doubles = npt.NDArray[np.float64]

#: Rows worked through at once: (40, 2048) float32 is 320 kB, inside a core's L2 cache.
CHUNK_ROWS = 2048
#: Blocks a summary holds before neighbours are joined: 64 keep the detectors' resolution at 1/64 of a
#: commit interval, and 40 signals' means at 20 kB.
BLOCKS_MAX = 64


@dataclass(slots=True)
class _Partition:
    """Rows of one partition not yet added up, and the sums of those that are."""

    signals: int
    width: int
    block_events: int
    pending: list[tuple[Longs, Longs, Floats]] = field(default_factory=list)
    pending_rows: int = 0
    first_offset: int = -1
    last_offset: int = -1
    first_event_time_ms: int = 0
    last_event_time_ms: int = 0
    events: int = 0
    rejected: int = 0
    block_counts: Longs = field(init=False)
    block_last_offsets: Longs = field(init=False)
    block_last_times: Longs = field(init=False)
    block_sums: Doubles = field(init=False)
    block_values: Doubles = field(init=False)
    counts: Longs = field(init=False)
    sums: Doubles = field(init=False)
    squares: Doubles = field(init=False)
    histograms: Longs = field(init=False)

    def __post_init__(self) -> None:
        self.block_counts = np.empty(0, np.int64)
        self.block_last_offsets = np.empty(0, np.int64)
        self.block_last_times = np.empty(0, np.int64)
        self.block_sums = np.empty((self.signals, 0))
        self.block_values = np.empty((self.signals, 0))
        self.counts = np.zeros(self.signals, np.int64)
        self.sums = np.zeros(self.signals)
        self.squares = np.zeros(self.signals)
        self.histograms = np.zeros((self.signals, self.width), np.int64)


class SignalSummariser:
    """Implements contracts.Summariser on a model's baseline. Not thread-safe: one thread owns it.

    Keeps references to the arrays given to `add` until the next drain: they must not change.
    """

    def __init__(self, baseline: Baseline, identity: ModelIdentity) -> None:
        names = [s.name for s in baseline.signals]
        joint = baseline.joint
        #: The columns of the matrix; joint signals, which follow them in the summary, are made here.
        self.signals: tuple[str, ...] = baseline.given
        given = len(self.signals)
        self._names = names
        self._identity = identity
        self._block_events = baseline.block_events
        self._bins = bins = Bins.of(baseline)
        # Signals with many cuts first: cut k is compared for the first of them only. Joint signals after all others.
        self._order = np.argsort(-bins.counts[:given], kind="stable")
        self._joint_order = np.argsort(-bins.counts[given:], kind="stable")
        order = np.append(self._order, given + self._joint_order)
        self._back = np.argsort(order)
        self._cuts = _Cuts(bins.cuts[self._order], bins.width)
        self._joint_cuts = _Cuts(bins.cuts[given:][self._joint_order], bins.width)
        self._levels = bins.levels[order]
        self._bases = (np.arange(len(names)) * bins.width)[:, None]
        self._joint = JointValues(joint, baseline.signals, bins.width) if joint else None
        self._joint_of = self._back[[names.index(f"feature:{name}") for name in joint.features]] if joint else None
        self._season = Deseasoner(baseline.season, self.signals) if baseline.season else None
        self._rejected = self.signals.index("rejected") if "rejected" in self.signals else None
        self._partitions: dict[tuple[str, int], _Partition] = {}

    def add(self, topic: str, partition: int, offsets: Longs, event_times_ms: Longs, matrix: Floats) -> None:
        """N input records in offset order; `matrix` is float32 (n, len(signals)), NaN for no value."""
        if not len(offsets):
            return
        held = self._partitions.get((topic, partition))
        if held is None:
            held = _Partition(len(self._names), self._bins.width, self._block_events)
            self._partitions[topic, partition] = held
        held.pending.append((offsets, event_times_ms, matrix))
        held.pending_rows += len(offsets)
        if held.pending_rows >= CHUNK_ROWS:
            self._work_through(held)

    def drain(self) -> list[BatchSummary]:
        """Summaries of all added since the last drain, one per partition; nothing is kept."""
        partitions, self._partitions = self._partitions, {}
        summaries = []
        for (topic, partition), held in partitions.items():
            self._work_through(held)
            summaries.append(self._summary(topic, partition, held))
        return summaries

    def _work_through(self, held: _Partition) -> None:
        if not held.pending:
            return
        pending, held.pending, held.pending_rows = held.pending, [], 0
        offsets = np.concatenate([p[0] for p in pending])
        times = np.concatenate([p[1] for p in pending])
        matrix = np.concatenate([p[2] for p in pending]) if len(pending) > 1 else pending[0][2]
        if self._season is not None:
            matrix = self._season.of(matrix, times)
        values = np.ascontiguousarray(matrix.T[self._order])
        bins = self._cuts.bins_of(values)
        if self._joint is not None:
            products = self._joint.of(bins[self._joint_of])[self._joint_order]
            values = np.concatenate([values, products])
            bins = np.concatenate([bins, self._joint_cuts.bins_of(products)])
        missing = bins == self._bins.width - 1
        any_missing = bool(missing.any())

        n, signals = len(offsets), len(self._names)
        places = bins + self._bases
        # With whole pointers as indices, and no check of them, this takes half the time of levels[places].
        levels = self._levels.ravel().take(places, mode="clip")
        held.histograms += np.bincount(places.ravel(), minlength=self._bins.width * signals).reshape(signals, -1)
        if any_missing:
            values = np.where(missing, np.float32(0), values)
            held.counts += n - missing.sum(axis=1)
        else:
            held.counts += n
        exact = values.astype(np.float64)
        held.sums += exact.sum(axis=1)
        held.squares += np.einsum("ij,ij->i", exact, exact)
        if self._rejected is not None:
            held.rejected += int(np.nansum(matrix[:, self._rejected]))
        self._add_blocks(held, offsets, times, levels, missing if any_missing else None)

        if not held.events:
            held.first_offset = int(offsets[0])
            held.first_event_time_ms, held.last_event_time_ms = int(times.min()), int(times.max())
        held.last_offset = int(offsets[-1])
        held.first_event_time_ms = min(held.first_event_time_ms, int(times.min()))
        held.last_event_time_ms = max(held.last_event_time_ms, int(times.max()))
        held.events += n

    def _add_blocks(
        self, held: _Partition, offsets: Longs, times: Longs, levels: Doubles, missing: npt.NDArray[np.bool_] | None
    ) -> None:
        """Continue the open block, then begin new ones; join neighbours when there are too many."""
        n = len(offsets)
        size = held.block_events
        room = (-held.events) % size  # rows the open block still takes
        starts = np.arange(room, n, size)
        if room:
            starts = np.concatenate(([0], starts))
        ends = np.append(starts[1:], n)
        counts = ends - starts
        sums = np.add.reduceat(levels, starts, axis=1)
        present = np.broadcast_to(counts.astype(np.float64), sums.shape)
        if missing is not None:
            present = present - np.add.reduceat(missing, starts, axis=1, dtype=np.int64)
        if room:
            held.block_counts[-1] += counts[0]
            held.block_last_offsets[-1] = offsets[ends[0] - 1]
            held.block_last_times[-1] = times[ends[0] - 1]
            held.block_sums[:, -1] += sums[:, 0]
            held.block_values[:, -1] += present[:, 0]
        skip = 1 if room else 0
        held.block_counts = np.append(held.block_counts, counts[skip:])
        held.block_last_offsets = np.append(held.block_last_offsets, offsets[ends[skip:] - 1])
        held.block_last_times = np.append(held.block_last_times, times[ends[skip:] - 1])
        held.block_sums = np.concatenate([held.block_sums, sums[:, skip:]], axis=1)
        held.block_values = np.concatenate([held.block_values, present[:, skip:]], axis=1)
        while len(held.block_counts) > BLOCKS_MAX:
            _join_neighbours(held)

    def _summary(self, topic: str, partition: int, held: _Partition) -> BatchSummary:
        back = self._back
        with np.errstate(invalid="ignore"):
            means = (held.block_sums / held.block_values)[back]  # 0 / 0: NaN, no value
        histograms = held.histograms[back]
        bins = self._bins.counts + 1
        return BatchSummary(
            topic=topic,
            partition=partition,
            first_offset=held.first_offset,
            last_offset=held.last_offset,
            first_event_time_ms=held.first_event_time_ms,
            last_event_time_ms=held.last_event_time_ms,
            model_id=self._identity.model_id,
            model_version=self._identity.model_version,
            events=held.events,
            rejected=held.rejected,
            block_counts=held.block_counts.tolist(),
            block_last_offsets=held.block_last_offsets.tolist(),
            block_last_event_times_ms=held.block_last_times.tolist(),
            signals=list(self._names),
            means=means.tolist(),
            counts=held.counts[back].tolist(),
            sums=held.sums[back].tolist(),
            sums_of_squares=held.squares[back].tolist(),
            histograms=[row[:width].tolist() for row, width in zip(histograms, bins.tolist(), strict=True)],
        )


class _Cuts:
    """Cut points of signals, those with the most cuts first; (signals, most cuts), padded with infinity."""

    def __init__(self, cuts: Floats, width: int) -> None:
        self._cuts = np.ascontiguousarray(cuts)
        self._missing = width - 1
        counts = np.isfinite(cuts).sum(axis=1)
        self._having = [int((counts > k).sum()) for k in range(int(counts.max(initial=0)))]

    def bins_of(self, values: Floats) -> npt.NDArray[np.uint8]:
        """Bin of each value (signals, n): the number of cuts below it; the last bin for no value."""
        bins = np.zeros(values.shape, dtype=np.uint8)
        for k, having in enumerate(self._having):
            bins[:having] += values[:having] > self._cuts[:having, k, None]
        missing = np.isnan(values)
        if missing.any():
            bins[missing] = self._missing
        return bins


def _join_neighbours(held: _Partition) -> None:
    """Blocks of twice the size, each from two neighbours."""
    held.block_events *= 2
    starts = np.arange(0, len(held.block_counts), 2)
    lasts = np.minimum(starts + 1, len(held.block_counts) - 1)
    held.block_counts = np.add.reduceat(held.block_counts, starts)
    held.block_last_offsets = held.block_last_offsets[lasts]
    held.block_last_times = held.block_last_times[lasts]
    held.block_sums = np.add.reduceat(held.block_sums, starts, axis=1)
    held.block_values = np.add.reduceat(held.block_values, starts, axis=1)


def summary_to_dict(summary: BatchSummary) -> dict[str, Any]:
    """A summary as an Avro row; field names are the schema's."""
    return {name: getattr(summary, name) for name in BatchSummary.__slots__}


def summary_from_dict(row: dict[str, Any]) -> BatchSummary:
    """A summary from an Avro row; fields that this version does not know are left out, those of a canary optional."""
    return BatchSummary(**{name: row[name] for name in BatchSummary.__slots__ if name in row or "canary" not in name})
