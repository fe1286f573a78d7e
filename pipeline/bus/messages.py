"""What the client says of one message, where its own words end a process; and what it says in a record's place."""

from collections.abc import Iterable
from typing import NamedTuple

from confluent_kafka import KafkaError, Message

from pipeline.records import Headers


class Notice(NamedTuple):
    """What librdkafka says in the place of a record: an error, or that a partition has ended."""

    topic: str | None
    partition: int
    offset: int | None
    error: KafkaError

    @classmethod
    def of(cls, message: Message) -> "Notice":
        """What an error message says."""
        return cls(message.topic(), message.partition(), message.offset(), message.error())


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
