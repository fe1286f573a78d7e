"""What the client says of one message, where its own words end a process or repeat for ever."""

from collections import Counter
from collections.abc import Iterable
from operator import methodcaller

from confluent_kafka import KafkaError, Message

from pipeline.errors import CorruptInputError
from pipeline.records import Headers

#: Deliveries of one damaged batch before it counts as damaged where it is stored: librdkafka fetches it again at
#: once, and what a network spoils once it does not spoil three times at the same place.
CORRUPT_TRIES = 3
_DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION})  # noqa: SLF001 (have no public names)


#: Called by way of C, which looks for an error that was set and not raised. Bytecode of Python 3.11, once it is
#: specialised, does not look: the error then comes up anywhere.
_ask_headers = methodcaller("headers")


def headers_of(messages: Iterable[Message]) -> list[Headers]:
    """The headers of each message; None where it has none, and where a name among them is no UTF-8.

    confluent-kafka 2.16 fails at such a name, and has a hole in its list from then on: nobody may ask again. The
    record is good, and must not end the process that reads it.
    """
    found: list[Headers] = []
    answers = map(_ask_headers, messages)
    while True:
        try:
            found.extend(answers)  # what came before an error stays in the list
        except SystemError:
            found.append(None)
        else:
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
