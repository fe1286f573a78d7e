"""Record batches of the outcomes topic -> rows, each offset once."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

import numpy as np

from pipeline.contracts import Decoder
from pipeline.quality.outcomes import Outcomes, outcomes_of
from pipeline.records import Longs, OutputContract, RecordBatch, TopicPartition

UNDECODABLE = "undecodable"
#: Records after which another partition may have its turn: what is far apart in time stays so.
TURN_ROWS = 500


class OutcomeReader:
    """Decodes outcomes and knows how far it has read.

    There is no state on disk: whoever starts reads the topic from a moment on (`bus.reading`, `bus.topics`), gives all
    of it to `take`, and goes on with what comes. Batches that overlap, as after a rebalance, count once.
    """

    def __init__(self, decoder: Decoder, output: OutputContract, *, by_key: bool) -> None:
        """decoder: into the columns of schemas/outcome.avsc. output: of the models that are measured.

        by_key: whether the no-change baseline of an event is the truth before of the same Kafka key: right where keys
        name things that have a history (a sensor, a customer), not where each event has a key of its own.
        """
        self._decoder, self.output, self._by_key = decoder, output, by_key
        #: Offset after the last one that was taken.
        self.positions: dict[TopicPartition, int] = {}
        #: Records that are no outcomes of such models, by reason.
        self.left_out: Counter[str] = Counter()

    def read(self, batch: RecordBatch) -> Outcomes:
        """Rows of all records, taken before or not, with their offsets. Raises UnreachableError, as `take`."""
        return self._decode(batch, np.arange(len(batch)))

    def take(self, batch: RecordBatch, known: Outcomes | None = None) -> Outcomes:
        """Rows of the records that were not taken before. Raises UnreachableError if a schema cannot be had now.

        known: what `read` gave of this batch, if it was asked.
        """
        place = TopicPartition(batch.topic, batch.partition)
        offsets = np.array(batch.offsets, dtype=np.int64)
        fresh = np.flatnonzero(offsets >= self.positions.get(place, 0))
        found = known if known is not None and len(fresh) == len(batch) else self._decode(batch, fresh)
        if len(fresh):
            self.positions[place] = batch.next_offset
        self.left_out += found.left_out
        return found

    def _decode(self, batch: RecordBatch, rows: Longs) -> Outcomes:
        chosen = rows.tolist()
        decoded = self._decoder.decode([batch.values[row] for row in chosen])
        keys = [batch.keys[chosen[row]] for row in decoded.rows.tolist()] if self._by_key else None
        offsets = np.array(batch.offsets, dtype=np.int64)[rows][decoded.rows]
        found = outcomes_of(decoded.columns, self.output, keys, offsets)
        if decoded.rejects:
            found.left_out[UNDECODABLE] += len(decoded.rejects)
        return found


def in_turn(batches: Iterable[RecordBatch]) -> Iterator[RecordBatch]:
    """The same records, as if they were read while they were written: partitions take turns, by Kafka's timestamps.

    Of each partition in the order of its offsets, which is that of `batches`. All are held in memory.
    """
    parts: dict[TopicPartition, list[RecordBatch]] = {}
    for batch in batches:
        parts.setdefault(TopicPartition(batch.topic, batch.partition), []).append(batch)
    records = []
    for place, found in parts.items():
        # A clock that goes back must not turn offsets round.
        times = accumulate((t for batch in found for t in batch.timestamps_ms), max)
        rows = ((batch, row) for batch in found for row in range(len(batch)))
        records += [(time, place, batch, row) for time, (batch, row) in zip(times, rows, strict=True)]
    records.sort(key=lambda record: record[0])  # stable: offsets of a partition stay in order
    for start in range(0, len(records), TURN_ROWS):
        turn: dict[TopicPartition, list[tuple[RecordBatch, int]]] = {}
        for _, place, batch, row in records[start : start + TURN_ROWS]:
            turn.setdefault(place, []).append((batch, row))
        for place, held in turn.items():
            yield RecordBatch(
                *place,
                [batch.offsets[row] for batch, row in held],
                [batch.keys[row] for batch, row in held],
                [batch.values[row] for batch, row in held],
                [batch.timestamps_ms[row] for batch, row in held],
            )
