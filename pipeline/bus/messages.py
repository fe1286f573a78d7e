"""What the client says of one message, where its own words end a process or repeat for ever."""

from collections import Counter

from confluent_kafka import KafkaError, Message

from pipeline.errors import CorruptInputError
from pipeline.records import Headers

#: Deliveries of one damaged batch before it counts as damaged where it is stored: librdkafka fetches it again at
#: once, and what a network spoils once it does not spoil three times at the same place.
CORRUPT_TRIES = 3
_DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION})  # noqa: SLF001 (have no public names)


def headers_of(message: Message) -> Headers:
    """A message's headers; None where it has none, and where a name among them is no UTF-8.

    confluent-kafka 2.16 raises a SystemError at such a name, and has a hole in its list from then on: nobody may ask
    again. The record is good, and must not end the process that reads it.
    """
    try:
        found: Headers = message.headers()
    except SystemError:
        return None
    return found


class Corruption:
    """Counts batches whose checksum (CRC-32C) is wrong: librdkafka delivers none of their records, and tries again."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, int, int]] = Counter()

    def check(self, message: Message) -> None:
        """Raises CorruptInputError for the error message of a batch that was damaged CORRUPT_TRIES times."""
        error: KafkaError = message.error()
        if error.code() not in _DAMAGED:
            return
        topic, partition, offset = place = (message.topic(), message.partition(), message.offset())
        self._seen[place] += 1
        if self._seen[place] >= CORRUPT_TRIES:
            raise CorruptInputError(
                f"{topic}[{partition}]@{offset}: a batch of records is damaged on the broker ({error.str()}); nothing "
                "of it was scored or committed. Let another replica lead, or give it up: stop the workers and set "
                "their group's offset behind it"
            )
