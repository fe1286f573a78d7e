"""Adding up scored records into summaries: the drift room's part of the hot path.

Rows wait in a list until a chunk is worth NumPy's call overhead; a chunk is then turned to one row a signal and every
step runs over all its values at once. Indicators that are 0 throughout a chunk, as most are (no null, nothing
rejected), are only counted. Cost: `python -m benchmarks.drift --only cost`.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.drift.bins import Bins, is_indicator
from pipeline.drift.joint import JointValues
from pipeline.drift.seasons import Deseasoner
from pipeline.records import Baseline, BatchSummary, Floats, Longs, ModelIdentity

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Rows worked through at once, to twice as many: (17, 2048) float64 is 280 kB, inside a core's L2 cache.
CHUNK_ROWS = 2048
#: Joint signals of 16 features take as long as all else together, so they are made of every k-th row: k such that of
#: the rows of the summary before it would have been about so many.
JOINT_ROWS = 4096
#: Blocks a summary holds before neighbours are joined: 64 keep the detectors' resolution at 1/64 of a
#: commit interval, and the means of 50 signals at 26 kB.
BLOCKS_MAX = 64


@dataclass(slots=True)
class _Partition:
    """Rows of one partition not yet added up, and the sums of those that are."""

    signals: int
    width: int
    block_events: int
    #: Joint signals are made of every so many rows.
    joint_every: int
    pending: list[tuple[Longs, Longs, Floats]] = field(default_factory=list)
    pending_rows: int = 0
    first_offset: int = -1
    last_offset: int = -1
    first_event_time_ms: int = 0
    last_event_time_ms: int = 0
    events: int = 0
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

    def blocks_of(self, n: int) -> tuple[bool, Longs]:
        """Whether the next n rows begin in the block that is open, and where among them each block begins."""
        starts = np.arange(-self.events % self.block_events, n, self.block_events)
        goes_on = self.events % self.block_events > 0
        return goes_on, np.append(0, starts) if goes_on else starts

    def blocks_came(
        self, goes_on: bool, counts: Longs, last_offsets: Longs, last_times: Longs, sums: Doubles, present: Doubles
    ) -> None:
        """Blocks (k,), their sums and numbers of values (signals, k); `goes_on`: the first is the open one."""
        if goes_on:
            self.block_counts[-1] += counts[0]
            self.block_last_offsets[-1], self.block_last_times[-1] = last_offsets[0], last_times[0]
            self.block_sums[:, -1] += sums[:, 0]
            self.block_values[:, -1] += present[:, 0]
        new = slice(int(goes_on), None)
        self.block_counts = np.append(self.block_counts, counts[new])
        self.block_last_offsets = np.append(self.block_last_offsets, last_offsets[new])
        self.block_last_times = np.append(self.block_last_times, last_times[new])
        self.block_sums = np.concatenate([self.block_sums, sums[:, new]], axis=1)
        self.block_values = np.concatenate([self.block_values, present[:, new]], axis=1)
        while len(self.block_counts) > BLOCKS_MAX:
            self._join_neighbours()

    def _join_neighbours(self) -> None:
        """Blocks of twice the size, each from two neighbours."""
        self.block_events *= 2
        starts = np.arange(0, len(self.block_counts), 2)
        lasts = np.minimum(starts + 1, len(self.block_counts) - 1)
        self.block_counts = np.add.reduceat(self.block_counts, starts)
        self.block_last_offsets = self.block_last_offsets[lasts]
        self.block_last_times = self.block_last_times[lasts]
        self.block_sums = np.add.reduceat(self.block_sums, starts, axis=1)
        self.block_values = np.add.reduceat(self.block_values, starts, axis=1)


class SignalSummariser:
    """Implements contracts.Summariser on a model's baseline. Not thread-safe: one thread owns it.

    Keeps references to the arrays given to `add` until the next drain: they must not change.
    """

    def __init__(self, baseline: Baseline, identity: ModelIdentity) -> None:
        joint = baseline.joint
        #: The columns of the matrix; joint signals, which follow them in the summary, are made here.
        self.signals: tuple[str, ...] = baseline.given
        self._names = [s.name for s in baseline.signals]
        self._identity = identity
        self._block_events = baseline.block_events
        self._bins = bins = Bins.of(baseline)
        given = len(self.signals)
        # Within, signals have another order: numbers, then indicators, then joint signals; of each those with many
        # cuts first, as cut k is compared for the first of them only.
        flags = [is_indicator(name) and count == 1 for name, count in zip(self.signals, bins.counts, strict=False)]
        self._order = np.lexsort((-bins.counts[:given], np.array(flags)))
        self._joint_order = np.argsort(-bins.counts[given:], kind="stable")
        order = np.append(self._order, given + self._joint_order)
        self._back = np.argsort(order)
        self._numbers = np.arange(given - sum(flags))
        self._flags = np.arange(len(self._numbers), given)
        self._joints = np.arange(given, len(order))
        self._cuts = bins.cuts[order[:given]]
        self._number_cuts, self._joint_cuts = _Cuts(self._cuts[self._numbers]), _Cuts(bins.cuts[order[given:]])
        self._levels, self._no_value = bins.levels[order], bins.width - 1
        self._bases = (np.arange(len(order)) * bins.width)[:, None]
        self._joint = JointValues(joint, baseline.signals, bins.width) if joint else None
        self._joint_of = self._back[[self._names.index(f"feature:{f}") for f in joint.features]] if joint else None
        self._season = Deseasoner(baseline.season, self.signals) if baseline.season else None
        self._rejected = self._back[self.signals.index("rejected")] if "rejected" in self.signals else None
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._joint_every: dict[tuple[str, int], int] = {}

    def add(self, topic: str, partition: int, offsets: Longs, event_times_ms: Longs, matrix: Floats) -> None:
        """N input records in offset order; `matrix` is float32 (n, len(signals)), NaN for no value."""
        if not len(offsets):
            return
        held = self._partitions.get((topic, partition))
        if held is None:
            every = self._joint_every.get((topic, partition), 1)
            held = _Partition(len(self._names), self._bins.width, self._block_events, every)
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
        self._joint_every = {place: max(1, held.events // JOINT_ROWS) for place, held in partitions.items()}
        return summaries

    def _work_through(self, held: _Partition) -> None:
        if not held.pending:
            return
        pending, held.pending, held.pending_rows = held.pending, [], 0
        offsets = np.concatenate([p[0] for p in pending])
        times = np.concatenate([p[1] for p in pending])
        rows = np.concatenate([p[2].T for p in pending], axis=1)
        if self._season is not None:
            rows = self._season.of(rows.T, times).T
        ends = np.linspace(0, len(offsets), max(1, len(offsets) // CHUNK_ROWS) + 1).astype(int).tolist()
        for start, end in pairwise(ends):
            part = slice(start, end)
            self._add_chunk(held, offsets[part], times[part], rows[self._order, part])

    def _add_chunk(self, held: _Partition, offsets: Longs, times: Longs, given: Floats) -> None:
        """given: (signals of the matrix, n), in the order that is used within."""
        n = len(offsets)
        goes_on, starts = held.blocks_of(n)
        sums = np.zeros((len(held.counts), len(starts)))
        present = np.empty(sums.shape)
        present[:] = np.diff(starts, append=n)

        raised = given[self._flags].any(axis=1)  # NaN too is something
        chosen, cuts = self._numbers, self._number_cuts
        if raised.any():
            chosen = np.append(chosen, self._flags[raised])
            cuts = _Cuts(self._cuts[chosen])
        values = given[chosen]
        with np.errstate(over="ignore"):
            whole = np.isfinite(values.sum(axis=1))  # half the time of looking at each
        bins = cuts.bins_of(values)
        if whole.all():
            sums[chosen], present[chosen] = self._tally(held, chosen, values, bins, None, starts)
        else:
            # Scores within slices have values in some rows only: the others need not pay for that.
            missing = np.isnan(values[~whole])
            bins[~whole] = np.where(missing, self._no_value, bins[~whole])
            for part, gaps in ((whole, None), (~whole, missing)):
                rows = chosen[part]
                sums[rows], present[rows] = self._tally(held, rows, values[part], bins[part], gaps, starts)
        held.counts += n
        held.histograms[self._flags[~raised], 0] += n
        if self._joint is not None:
            sums[self._joints], present[self._joints] = self._tally_joint(self._joint, held, bins, starts)
        ends = np.append(starts[1:], n) - 1
        held.blocks_came(goes_on, ends - starts + 1, offsets[ends], times[ends], sums, present)

        if not held.events:
            held.first_offset = int(offsets[0])
            held.first_event_time_ms, held.last_event_time_ms = int(times.min()), int(times.max())
        held.last_offset = int(offsets[-1])
        held.first_event_time_ms = min(held.first_event_time_ms, int(times.min()))
        held.last_event_time_ms = max(held.last_event_time_ms, int(times.max()))
        held.events += n

    def _tally_joint(
        self, joint: JointValues, held: _Partition, bins: npt.NDArray[np.uint8], starts: Longs
    ) -> tuple[Doubles, Doubles]:
        """As `_tally`, of the products of every k-th row. bins: of all values of all rows."""
        n, first, every = bins.shape[1], -held.events % held.joint_every, held.joint_every
        values = joint.of(bins[self._joint_of, first::every])[self._joint_order]
        missing = np.isnan(values)
        held.counts[self._joints] -= n - values.shape[1]
        starts = np.maximum(-((first - starts) // every), 0)  # rounded up: the first of them within the block
        bins = self._joint_cuts.bins_of(values)
        bins[missing] = self._no_value
        return self._tally(held, self._joints, values, bins, missing if missing.any() else None, starts)

    def _tally(
        self,
        held: _Partition,
        chosen: Longs,
        values: Floats,
        bins: npt.NDArray[np.uint8],
        missing: Mask | None,
        starts: Longs,
    ) -> tuple[Doubles, Doubles]:
        """Add up values (chosen, n); sums of their levels, and values that there are, in the blocks from `starts`."""
        places = bins + self._bases[chosen]
        held.histograms += np.bincount(places.ravel(), minlength=held.histograms.size).reshape(held.histograms.shape)
        # With whole pointers as indices, and no check of them, this takes half the time of levels[places].
        levels = self._levels.ravel().take(places, mode="clip")
        present = np.broadcast_to(
            np.diff(starts, append=values.shape[1]).astype(np.float64), (len(chosen), len(starts))
        )
        if missing is not None:
            present = present - _sums(missing, starts)
            values = np.where(missing, np.float32(0), values)
            held.counts[chosen] -= missing.sum(axis=1)
        exact = values.astype(np.float64)
        held.sums[chosen] += exact.sum(axis=1)
        held.squares[chosen] += np.einsum("ij,ij->i", exact, exact)
        return _sums(levels, starts), present

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
            rejected=0 if self._rejected is None else int(held.sums[self._rejected]),
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

    def __init__(self, cuts: Floats) -> None:
        self._cuts = np.ascontiguousarray(cuts)
        counts = np.isfinite(cuts).sum(axis=1)
        self._having = [int((counts > k).sum()) for k in range(int(counts.max(initial=0)))]

    def bins_of(self, values: Floats) -> npt.NDArray[np.uint8]:
        """Bin of each value (signals, n): the number of cuts below it, 0 for NaN."""
        bins = np.zeros(values.shape, dtype=np.uint8)
        above = np.empty(values.shape, dtype=np.bool_)
        count = above.view(np.uint8)  # added as bytes: a bool would be cast, value by value
        for k, having in enumerate(self._having):
            np.greater(values[:having], self._cuts[:having, k, None], out=above[:having])
            bins[:having] += count[:having]
        return bins


def _sums(rows: npt.NDArray[Any], starts: Longs) -> Doubles:
    """Sums of rows (m, n) over the spans that begin at `starts`, (m, spans); an empty span may begin at n."""
    if not rows.shape[1]:
        return np.zeros((len(rows), len(starts)))
    sums: Doubles = np.add.reduceat(rows, np.minimum(starts, rows.shape[1] - 1), axis=1, dtype=np.float64)
    sums[:, np.diff(starts, append=rows.shape[1]) == 0] = 0.0  # reduceat gives the value that stands there
    return sums


def summary_to_dict(summary: BatchSummary) -> dict[str, Any]:
    """A summary as an Avro row; field names are the schema's."""
    return {name: getattr(summary, name) for name in BatchSummary.__slots__}


def summary_from_dict(row: dict[str, Any]) -> BatchSummary:
    """A summary from an Avro row; fields that this version does not know are left out, those of a canary optional."""
    return BatchSummary(**{name: row[name] for name in BatchSummary.__slots__ if name in row or "canary" not in name})
