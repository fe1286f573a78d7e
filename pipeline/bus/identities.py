"""Notices that a topic was deleted, or deleted and made anew, while it is read.

librdkafka 2.16 reads on at the same offset in a new topic of the same name, and commits there: what the new topic holds
below is jumped over without a word (measured: 100 of 1,000 records). Only the topic's id tells the two apart.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from pipeline.errors import ContractError

log = structlog.get_logger(__name__)

#: How late a new topic of the same name is noticed. One small request to one broker, and nobody waits for it.
ASK_EVERY_S = 2.0
#: An answer that is not there after this long belongs to an absent broker.
ANSWER_S = 1.0
#: Then ask no sooner than this. While it waits for a broker whose port refuses, librdkafka 2.16 connects again and
#: again without a pause (rd_kafka_broker_schedule_connection), with a whole core: two of three nodes down were enough.
ASK_AGAIN_S = 10.0
#: A broker that has just started may not know a topic yet; longer than its start takes (2 s).
GONE_AFTER_S = 15.0


class Identities:
    """The ids of topics that are read, asked now and then. `check` never waits."""

    def __init__(self, make_admin: Callable[[], AdminClient], clock: Callable[[], float] = time.monotonic) -> None:
        self._make_admin = make_admin
        self._clock = clock
        self._admin: AdminClient | None = None
        self._known: dict[str, str] = {}
        self._watched: set[str] = set()
        self._missing_since: dict[str, float] = {}
        self._asked: dict[str, Future[Any]] = {}
        self._ask_at = 0.0

    def watch(self, topics: Iterable[str]) -> None:
        """Ask for these, too, at the next `check`."""
        if new := set(topics) - self._watched:
            self._watched |= new
            self._ask_at = 0.0

    def forget(self) -> None:
        """Watch nothing, until told again; ids that were seen stay known."""
        self._watched.clear()

    def check(self) -> None:
        """Take answers in, ask when it is time. Raises ContractError for a topic that is gone or another one."""
        if self._asked:
            if all(future.done() for future in self._asked.values()):
                asked, self._asked = self._asked, {}
                for topic, future in asked.items():
                    if topic in self._watched:
                        self._take(topic, future)
            return
        if self._watched and self._clock() >= self._ask_at:
            self._ask_at = self._clock() + ASK_EVERY_S
            self._admin = self._admin or self._make_admin()
            asked = TopicCollection(sorted(self._watched))
            self._asked = self._admin.describe_topics(asked, request_timeout=ANSWER_S)

    def close(self) -> None:
        """Let the client go, in the thread that made it: an answer must not come into an interpreter that ends."""
        if self._asked:
            wait(self._asked.values(), ANSWER_S)
        self._asked, self._admin = {}, None

    def _take(self, topic: str, answer: "Future[Any]") -> None:
        try:
            found = str(answer.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                self._missing(topic)
            else:
                self._ask_at = self._clock() + ASK_AGAIN_S
            return
        self._missing_since.pop(topic, None)
        if self._known.setdefault(topic, found) != found:
            raise ContractError(
                f"topic {topic}: was deleted and made anew while it was read; what was committed of it since may lie "
                "behind records that nobody read: delete the group's offsets of this topic, then start again"
            )

    def _missing(self, topic: str) -> None:
        if topic not in self._known:  # never seen: may be on its way
            return
        now = self._clock()
        if now - self._missing_since.setdefault(topic, now) >= GONE_AFTER_S:
            raise ContractError(
                f"topic {topic}: was deleted while it was read; a new one (`pipeline topics create`) is read from its "
                "beginning"
            )
