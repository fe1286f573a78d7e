"""A table on a compacted topic of one partition, changed by whoever decides on what it holds now (compare and set).

A change of several keys is one Kafka transaction. Who wants one takes the table's transactional.id over, which fences
whoever had it before and ends what that one left open; then reads the table to its end, decides, writes and commits.
So of two that decide on the same state only one can commit, and the other is told so (FencedError). Nothing but the
topic is needed: no lock that a killed process could leave behind.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import structlog
from confluent_kafka import Message

from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.reading import Span, read, read_to_ends
from pipeline.bus.topics import offsets, watermarks
from pipeline.bus.transactions import TransactionalProducer
from pipeline.errors import ContractError, DeliveryError, FencedError, TransactionAbortedError, UnreachableError
from pipeline.records import TopicPartition

log = structlog.get_logger(__name__)

#: A commit is acknowledged before its end is in the log; that follows within milliseconds.
SETTLE_TIMEOUT_S = 5.0
SETTLE_POLL_S = 0.02
#: Tries of a change whose transaction was aborted, each on what the table holds by then.
CHANGE_ATTEMPTS_MAX = 3

#: Key -> value, in the order in which the keys came; a key without a value is not there.
Table = dict[bytes, bytes]
#: What a change writes, in this order; None takes a key out of the table.
Change = Sequence[tuple[bytes, bytes | None]]


class Journal:
    """The table; makes its clients anew for each call, and keeps none. Thread-safe."""

    def __init__(
        self, options: ClientOptions, topic: str, *, group: str, transactional_id: str, transaction_timeout_ms: int
    ) -> None:
        """group: only the name that the broker knows a reader by; nothing joins it and nothing is committed."""
        self.topic = topic
        self._options, self._group = options, group
        self._transactional_id, self._timeout_ms = transactional_id, transaction_timeout_ms
        #: Two threads of one process take turns: they would fence each other.
        self._changing = threading.Lock()

    def read(self) -> Table:
        """What is committed. Behind a transaction that stays open, as a killed process leaves it, nothing is seen.

        Raises ContractError when there is no such topic, UnreachableError when nobody answers.
        """
        first, stable, _ = self._settled()
        return self._read(first, stable)

    def _read(self, first: int, end: int) -> Table:
        table: Table = {}
        for messages in read(self._options, self._group, self.topic, {0: Span(first, end)}):
            _apply(table, messages)
        return table

    def _read_all(self) -> Table:
        """All that was committed, or UnreachableError: no decision is made on a part of it."""
        first, stable, end = self._settled()
        if stable < end:
            raise UnreachableError(f"topic {self.topic}: somebody's transaction is open on it; try again later")
        return self._read(first, end)

    def change(self, decide: Callable[[Table], Change]) -> Table:
        """Have what `decide` makes of the table written, all or nothing; the table after it.

        decide: pure; called again with what the table holds by then when the transaction had to be aborted. Values
        are unique to their change. What it raises ends the change, and nothing is written; nor is for no records.
        Raises FencedError when another change began before this one was committed, DeliveryError, UnreachableError when
        a stranger's transaction stays open on the topic, as `read` besides.
        """
        with self._changing:
            return self._change(decide)

    def _change(self, decide: Callable[[Table], Change]) -> Table:
        producer = TransactionalProducer(
            self._options.for_producer(), self._transactional_id, timeout_ms=self._timeout_ms
        )
        wanted: Change = ()
        try:
            for _ in range(CHANGE_ATTEMPTS_MAX):
                producer.take_over()
                table = self._read_all()
                if any(value is not None and table.get(key) == value for key, value in wanted):
                    return table  # committed, although the broker's answer said no such thing
                wanted = decide(dict(table))
                try:
                    self._write(producer, wanted)
                except TransactionAbortedError as error:
                    log.info("change of a table aborted, trying again", topic=self.topic, error=str(error))
                    producer.abort()
                else:
                    _put(table, wanted)
                    return table
        except FencedError as error:
            raise FencedError(f"topic {self.topic}: another change began meanwhile; look at what holds now") from error
        finally:
            producer.close()
        raise DeliveryError(f"topic {self.topic}: was not changed: the transaction was aborted again and again")

    def follow(self, stop: threading.Event) -> Iterator[Table]:
        """The table now, then after each later change, whole changes only, until `stop` is set.

        Of changes that come faster than they are taken, the last is seen. Blocks; for a thread of its own.
        Raises ContractError for a topic that is gone, UnreachableError for a fatal client error.
        """
        table: Table = {}
        for messages in read_to_ends(self._options, self._group, self.topic, stop):
            _apply(table, messages)
            yield dict(table)

    def _write(self, producer: TransactionalProducer, change: Change) -> None:
        for key, value in change:
            producer.send(self.topic, key, value)
        if change:
            producer.commit()

    def _settled(self) -> tuple[int, int, int]:
        """First offset, end of what is committed, end: the last two are one, unless a transaction stays open."""
        admin, partition = make_admin(self._options), TopicPartition(self.topic, 0)
        marks = watermarks(admin, self.topic)
        if len(marks) != 1:
            raise ContractError(f"topic {self.topic}: has {len(marks)} partitions, needs exactly 1 to keep one order")
        first, end = marks[partition]
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            stable = offsets(admin, [partition], committed_only=True)[partition]
            if stable >= end or time.monotonic() >= deadline:
                return first, min(stable, end), end
            time.sleep(SETTLE_POLL_S)


def _apply(table: Table, messages: Sequence[Message]) -> None:
    _put(table, [(message.key(), message.value()) for message in messages if message.key() is not None])


def _put(table: Table, change: Change) -> None:
    for key, value in change:
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
