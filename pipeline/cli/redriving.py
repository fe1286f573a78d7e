"""What was redriven already, kept where Kafka keeps such things: the offsets of a consumer group.

The committed offset of a partition is where `redrive` of everything goes on. `redrive --reason R` must not
move that offset past other reasons' records, so what it did is kept in the commit's metadata: JSON,
reason -> next offset, at most 15 reasons of 40 bytes where brokers allow 4,096 (offset.metadata.max.bytes).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.bus.clients import ClientOptions, ErrorLog, make_consumer
from pipeline.bus.topics import ask_committed
from pipeline.bus.transactions import TransactionalProducer
from pipeline.errors import UnreachableError
from pipeline.records import TopicPartition


@dataclass
class Progress:
    """How far one partition of the dead letters has been redriven."""

    next_offset: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)

    def done(self, reason: str, offset: int) -> bool:
        return offset < max(self.next_offset, self.by_reason.get(reason, 0))

    def advance(self, only: str | None, next_offset: int) -> None:
        """Everything (of reason `only`, if given) below `next_offset` is done."""
        if only is None:
            self.next_offset = max(self.next_offset, next_offset)
            self.by_reason = {r: o for r, o in self.by_reason.items() if o > self.next_offset}
        elif next_offset > self.next_offset:
            self.by_reason[only] = max(next_offset, self.by_reason.get(only, 0))


class Memory:
    """Loads and commits the progress of a topic's partitions under a consumer group nobody joins."""

    def __init__(self, options: ClientOptions, group: str, topic: str) -> None:
        self.group, self.topic = group, topic
        self._consumer: Consumer = make_consumer(options.for_consumer(group), ErrorLog(group))

    def load(self, partitions: Iterable[int]) -> dict[int, Progress]:
        """Partition -> progress. Raises UnreachableError when the group's coordinator does not answer."""
        asked = [_TopicPartition(self.topic, p) for p in partitions]
        answer = ask_committed(self._consumer, self.group, asked)
        if refused := [tp for tp in answer if tp.error is not None]:
            tp = refused[0]
            raise UnreachableError(f"group {self.group}: partition {tp.partition} cannot be read: {tp.error.str()}")
        return {tp.partition: Progress(max(tp.offset, 0), _parse(tp.metadata)) for tp in answer}

    def commit(self, producer: TransactionalProducer, progress: dict[int, Progress]) -> None:
        """Commit what `producer` has sent, and the progress that comes of it, together.

        Raises FencedError when another redrive has begun, DeliveryError when nothing of both was committed.
        """
        places = {TopicPartition(self.topic, p): state for p, state in progress.items()}
        producer.commit(
            {tp: state.next_offset for tp, state in places.items()},
            self._consumer.consumer_group_metadata(),
            {tp: json.dumps(state.by_reason) for tp, state in places.items()},
        )

    def close(self) -> None:
        self._consumer.close()


def _parse(metadata: str | None) -> dict[str, int]:
    """Another tool may have committed for this group: what is not ours says nothing about reasons."""
    try:
        found = json.loads(metadata or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(reason): offset for reason, offset in found.items() if isinstance(offset, int)}
