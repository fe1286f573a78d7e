"""What the client says of one message, where its own words end a process or repeat for ever."""

import time
from collections.abc import Iterable

import structlog
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from pipeline.bus.resets import read_from
from pipeline.errors import CorruptInputError
from pipeline.records import Headers

log = structlog.get_logger(__name__)

#: What was good before a damaged batch is scored and committed meanwhile: ten commits by default. Whoever then sets the
#: group's offset behind the batch gives up no more than the batch; a start that was too short goes on at the next.
DAMAGE_GRACE_S = 5.0
_DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION})  # noqa: SLF001 (have no public names)


def headers_of(messages: Iterable[Message]) -> list[Headers]:
    """The headers of each message; None where it has none, and where a name among them is no UTF-8.

    confluent-kafka 2.16 fails at such a name, and has a hole in its list from then on: nobody may ask again. The
    record is good, and must not end the process that reads it.
    """
    found: list[Headers] = []
    # Called by `map`, in C, which looks for an error that was set and not raised. Bytecode of Python 3.11, once it is
    # specialised, does not look: the error then comes up anywhere.
    answers = map(Message.headers, messages)
    while True:
        try:
            found.extend(answers)  # what came before an error stays in the list
        except SystemError:
            found.append(None)
        else:
            return found


def damage_of(message: Message) -> CorruptInputError | None:
    """What to say of the error message of a batch whose checksum (CRC-32C) is wrong; None for any other."""
    error: KafkaError = message.error()
    if error.code() not in _DAMAGED:
        return None
    return CorruptInputError(
        f"{message.topic()}[{message.partition()}]@{message.offset()}: a batch of records is damaged ({error.str()}); "
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

    def holds(self, consumer: Consumer, message: Message) -> bool:
        """Whether an error message is of such a partition, which now waits in front of its damaged batch."""
        place = (message.topic(), message.partition())
        if error := damage_of(message):
            log.error("damaged batch", topic=place[0], partition=place[1], offset=message.offset())
            there = TopicPartition(*place, message.offset())
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
