"""Record batches of the outcomes topic -> rows, each offset once."""

from collections import Counter

from pipeline.contracts import Decoder
from pipeline.quality.outcomes import Outcomes, outcomes_of
from pipeline.records import OutputContract, RecordBatch, TopicPartition

UNDECODABLE = "undecodable"


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
        self._decoder, self._output, self._by_key = decoder, output, by_key
        #: Offset after the last one that was taken.
        self.positions: dict[TopicPartition, int] = {}
        #: Records that are no outcomes of such models, by reason.
        self.left_out: Counter[str] = Counter()

    def take(self, batch: RecordBatch) -> Outcomes:
        """Rows of the records that were not taken before. Raises UnreachableError if a schema cannot be had now."""
        place = TopicPartition(batch.topic, batch.partition)
        position = self.positions.get(place, 0)
        fresh = [row for row, offset in enumerate(batch.offsets) if offset >= position]
        decoded = self._decoder.decode([batch.values[row] for row in fresh])
        keys = [batch.keys[fresh[row]] for row in decoded.rows.tolist()] if self._by_key else None
        found = outcomes_of(decoded.columns, self._output, keys)
        if fresh:
            self.positions[place] = batch.next_offset
        if decoded.rejects:
            self.left_out[UNDECODABLE] += len(decoded.rejects)
        self.left_out += found.left_out
        return found
