"""Batches of records that arrived or lie damaged: what is done so that nothing behind them is lost."""

import time

import structlog
from confluent_kafka import Consumer, KafkaError, TopicPartition

from pipeline.bus.messages import Notice
from pipeline.bus.resets import read_from
from pipeline.errors import CorruptInputError

log = structlog.get_logger(__name__)

#: What was good before a damaged batch is scored and committed meanwhile: ten commits by default. Whoever then sets the
#: group's offset behind the batch gives up no more than the batch; a start that was too short goes on at the next.
DAMAGE_GRACE_S = 5.0
_DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION})  # noqa: SLF001 (have no public names)


def damage_of(notice: Notice) -> CorruptInputError | None:
    """What to say of a batch whose checksum (CRC-32C) is wrong; None for any other."""
    if notice.error.code() not in _DAMAGED:
        return None
    return CorruptInputError(
        f"{notice.topic}[{notice.partition}]@{notice.offset}: a batch of records is damaged ({notice.error.str()}); "
        "nothing of it was scored or committed. If it is again after a restart, it is so on the broker's disk: let "
        "another replica lead; or give it up: stop the workers and set their group's offset behind it"
    )


class Damage:
    """Partitions whose next batch is damaged: nothing more is fetched of them, and soon the consumer stops.

    librdkafka 2.16 must not go on by itself: it does so in the middle of the batch, takes what is there for the head of
    the next one, and may jump to whatever offset it reads there.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, int]] = set()
        self._first: CorruptInputError | None = None
        self._stop_at = 0.0

    def holds(self, consumer: Consumer, notice: Notice) -> bool:
        """Whether an error is of such a partition, which now waits in front of its damaged batch."""
        place = (str(notice.topic), notice.partition)
        if error := damage_of(notice):
            log.error("damaged batch", topic=place[0], partition=place[1], offset=notice.offset)
            there = TopicPartition(*place, notice.offset)
            read_from(consumer, there)
            consumer.pause([there])
            self._held.add(place)
            if self._first is None:
                self._first, self._stop_at = error, time.monotonic() + DAMAGE_GRACE_S
        return place in self._held

    def check(self) -> None:
        """Raises CorruptInputError once what was fetched before the damaged batch had time to be committed."""
        if self._first is not None and time.monotonic() >= self._stop_at:
            raise self._first
