"""Where a partition is read from when its group's offset does not say so, or is not there any more.

librdkafka's own answer to both, `auto.offset.reset`, jumps without a word. Here it is for a group that has committed
nothing; a gap in what was committed is told and counted, and a topic that is not the one that was read ends the reader.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_STORED, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.bus.messages import Notice
from pipeline.errors import ContractError
from pipeline.records import TopicPartition

log = structlog.get_logger(__name__)

OPTION = "auto.offset.reset"
#: librdkafka's words for each answer.
_FIRST = frozenset({"smallest", "earliest", "beginning"})
_LAST = frozenset({"largest", "latest", "end"})
_ERROR = "error"
REQUEST_TIMEOUT_S = 10.0
#: What asking for the group's offsets may hold up a rebalance. Offsets in somebody's open transaction take longer;
#: librdkafka waits for these by itself.
COMMITTED_TIMEOUT_S = 2.0


class Resets:
    """Answers librdkafka's question where to begin, partition by partition."""

    def __init__(self, options: Mapping[str, Any], on_missed: Callable[[str, int], None]) -> None:
        """on_missed: gets a topic, and how many of its offsets were deleted before they were read."""
        self._policy = str(options.get(OPTION, "earliest"))
        self._on_missed = on_missed

    def ask_us(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` that make librdkafka ask; a policy it does not know is left for it to refuse."""
        known = self._policy in _FIRST | _LAST
        return {**options, OPTION: _ERROR} if known else dict(options)

    def place(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        """Say of partitions that are being assigned where to begin, where the group has committed nothing.

        Here and not when librdkafka asks: an answer to that is an assignment, which may cross a rebalance.
        """
        try:
            committed = consumer.committed(partitions, timeout=COMMITTED_TIMEOUT_S)
        except KafkaException as error:
            log.info("the group's offsets cannot be asked now", error=error.args[0].str())
            return
        known = {(tp.topic, tp.partition) for tp in committed if tp.error is not None or tp.offset >= 0}
        for tp in partitions:
            if tp.offset < 0 and (tp.topic, tp.partition) not in known:
                tp.offset = self._for_new_group(TopicPartition(tp.topic, tp.partition))

    def answer(self, consumer: Consumer, question: Notice) -> _TopicPartition | None:
        """Have the partition of `question`, an error _AUTO_OFFSET_RESET, read on; from where, None if it has gone.

        Raises ContractError where going on would jump over records that are there, or may have been.
        """
        tp = TopicPartition(str(question.topic), question.partition)
        wanted = question.offset
        begin = self._committed(consumer, tp) if wanted is None or wanted < 0 else self._after_gap(consumer, tp, wanted)
        place = _TopicPartition(*tp, begin)
        if place not in consumer.assignment():
            return None
        _assign_anew(consumer, place)
        return place

    def _committed(self, consumer: Consumer, tp: TopicPartition) -> int:
        """What the group has committed after all, or where a new group begins.

        librdkafka (2.16, rdkafka_assignment.c, rd_kafka_assignment_apply_offsets) takes UNSTABLE_OFFSET_COMMIT, the
        broker's word while another's transaction that commits this offset is open, for "never committed" if the
        assignment has changed since it asked. Then it must ask again, however long that transaction takes
        (tests/faults/test_unstable_offsets.py).
        """
        try:
            (found,) = consumer.committed([_TopicPartition(*tp)], timeout=COMMITTED_TIMEOUT_S)
        except KafkaException:
            return int(OFFSET_STORED)
        if found.error is not None:
            return int(OFFSET_STORED)
        return int(found.offset) if found.offset >= 0 else self._for_new_group(tp)

    def _for_new_group(self, tp: TopicPartition) -> int:
        if self._policy == _ERROR:
            raise ContractError(
                f"{tp.topic}[{tp.partition}]: the group has committed no offset, and kafka.consumer_options says "
                f"{OPTION} = error: commit where to begin, or say earliest or latest"
            )
        return int(OFFSET_END if self._policy in _LAST else OFFSET_BEGINNING)

    def _after_gap(self, consumer: Consumer, tp: TopicPartition, wanted: int) -> int:
        try:
            first, end = consumer.get_watermark_offsets(_TopicPartition(*tp), timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:  # asked again: the same offset is refused again
            log.warning("offsets cannot be asked, trying again", topic=tp.topic, error=error.args[0].str())
            return wanted
        if wanted > end:
            raise ContractError(
                f"{tp.topic}[{tp.partition}]: to be read from offset {wanted}, but it ends at {end}: it was deleted "
                "and made anew, or its brokers have lost records; set the group's offsets to where to begin"
            )
        if wanted < first:
            if self._policy == _ERROR:
                raise ContractError(
                    f"{tp.topic}[{tp.partition}]: offsets {wanted} to {first - 1} were deleted before they were read, "
                    f"and kafka.consumer_options says {OPTION} = error"
                )
            log.error(
                "records deleted before they were read: lost, unless they were transaction markers",
                topic=tp.topic,
                partition=tp.partition,
                first_offset=wanted,
                last_offset=first - 1,
                offsets=first - wanted,
            )
            self._on_missed(tp.topic, first - wanted)
        return max(wanted, int(first))


def read_from(consumer: Consumer, place: _TopicPartition) -> None:
    """Have an assigned partition read on from `place`; what was fetched beyond it is thrown away."""
    try:
        consumer.seek(place)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001 (has no public name)
            raise
        _assign_anew(consumer, place)


def _assign_anew(consumer: Consumer, place: _TopicPartition) -> None:
    """For a partition that librdkafka is not fetching just then: it refuses a seek there."""
    consumer.incremental_unassign([place])
    consumer.incremental_assign([place])
