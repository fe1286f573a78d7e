"""The verifier: a process that reads every committed prediction and says whether it is the next one due.

A prediction names partition and offset of its event. In exactly_once the predictions of a partition must have the
offsets 0, 1, 2, ... in this order: a jump ahead is loss, an offset seen before a duplicate, a step back a
reordering. That is counted in memory that depends on the number of partitions only. Id, key and score are compared
with what the event at that offset must have.

Lines out are the counts so far. The end of standard input means that nothing more will be written: the topic is
read to its end, and the last line says so.
"""

import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import pyruhvro
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from benchmarks import clients, job, ours, verify
from tests.soak.stream import POOL_EVENTS, Pool

REPORT_EVERY_S = 0.5


@dataclass
class Counts:
    """What was found so far."""

    #: Partition -> offset of the next prediction due.
    due: list[int]
    predicted: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    #: Predictions with another event's id or key, or another score than plain torch's.
    wrong: int = 0
    #: The first few faults, for people.
    faults: list[str] = field(default_factory=list)


class Verifier:
    """Compares predictions, in the order of each partition, with what is due."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._scores = job.expected_scores(POOL_EVENTS)
        self._schema = json.dumps(json.loads(ours.prediction_schema()))
        self.counts = Counts(due=[0] * len(pool.members))

    def take(self, messages: list[Message]) -> None:
        """Count these predictions."""
        values = [message.value()[job.HEADER_BYTES :] for message in messages]
        columns = pyruhvro.deserialize_array(values, self._schema)
        numbers = verify.event_numbers(columns.column("event_id"))
        keys = np.array([message.key() or b"" for message in messages], "S5")
        scores = columns.column("outputs").flatten().to_numpy()
        partitions = columns.column("partition").to_numpy()
        offsets = columns.column("offset").to_numpy()
        for partition in np.unique(partitions):
            rows = np.flatnonzero(partitions == partition)
            self._in_turn(int(partition), offsets[rows])
            expected = self._pool.at(int(partition), offsets[rows])
            right = (numbers[rows] == expected) & (keys[rows] == self._pool.keys[expected])
            right &= np.abs(scores[rows] - self._scores[expected]) <= verify.TOLERANCE  # False for NaN
            self.counts.wrong += int((~right).sum())
            if not right.all():
                self._note(f"partition {partition}: wrong at offsets {offsets[rows][~right][:5].tolist()}")
        self.counts.predicted += len(messages)

    def _in_turn(self, partition: int, offsets: npt.NDArray[np.int64]) -> None:
        counts, due = self.counts, self.counts.due[partition]
        before = np.concatenate(([due - 1], offsets[:-1]))
        highest = np.maximum.accumulate(before)
        repeated = offsets <= highest
        jumps = np.maximum(offsets - highest - 1, 0)
        back = offsets < before
        counts.lost += int(jumps.sum())
        counts.duplicated += int(repeated.sum())
        counts.reordered += int(back.sum())
        counts.due[partition] = max(due, int(offsets.max()) + 1)
        for row in np.flatnonzero(repeated | back | (jumps > 0))[:3]:
            self._note(f"partition {partition}: offset {offsets[row]} after {before[row]}")

    def _note(self, fault: str) -> None:
        if len(self.counts.faults) < 20:
            self.counts.faults.append(fault)


class Reader:
    """All partitions of a topic from their beginning, with the ends that were reached."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        options = {**clients.CONSUMER, "bootstrap.servers": bootstrap_servers, "group.id": f"{topic}.verifier"}
        self._consumer = Consumer({**options, "enable.partition.eof": True, "auto.offset.reset": "earliest"})
        self._partitions = [TopicPartition(topic, partition, 0) for partition in range(partitions)]
        self._at_end: set[int] = set()
        self._consumer.assign(self._partitions)

    def read(self) -> list[Message]:
        """The next committed records; waits a moment for the first."""
        messages = []
        for message in self._consumer.consume(clients.CONSUME_MAX, 0.1):
            error = message.error()
            if error is None:
                self._at_end.discard(message.partition())
                messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # has no public name
                self._at_end.add(message.partition())
            elif error.fatal() or not error.retriable():
                raise KafkaException(error)
        return messages

    def rest(self) -> Iterable[list[Message]]:
        """What is left up to the ends as they are now."""
        # An end is told once: begin anew where we are, and every partition tells it again.
        positions = [tp if tp.offset >= 0 else TopicPartition(tp.topic, tp.partition, 0) for tp in self._positions()]
        self._consumer.assign(positions)
        self._at_end.clear()
        while len(self._at_end) < len(self._partitions):
            yield self.read()

    def _positions(self) -> list[TopicPartition]:
        return list(self._consumer.position(self._partitions))

    def close(self) -> None:
        self._consumer.close()


def main(bootstrap_servers: str, topic: str, partitions: str) -> None:
    """Read until the input ends, and then the rest."""
    verifier = Verifier(Pool.make(int(partitions)))
    reader = Reader(bootstrap_servers, topic, int(partitions))
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    reported_at = 0.0
    while not ended.is_set():
        if messages := reader.read():
            verifier.take(messages)
        if time.monotonic() - reported_at > REPORT_EVERY_S:
            _say(verifier.counts, final=False)
            reported_at = time.monotonic()
    for messages in reader.rest():
        if messages:
            verifier.take(messages)
    reader.close()
    _say(verifier.counts, final=True)


def _say(counts: Counts, *, final: bool) -> None:
    sys.stdout.write(json.dumps({**asdict(counts), "final": final}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
