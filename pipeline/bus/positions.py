"""Where the consumer reads: seeking, and the offsets Faust asks for. Mixed into consumer.Consumer."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer as _Consumer
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as _TopicPartition
from faust.transport import base
from faust.types import TP

from pipeline.bus.ledger import Ledger
from pipeline.bus.poller import Poller, PollerStoppedError
from pipeline.bus.resets import read_from
from pipeline.errors import ContractError, UnreachableError
from pipeline.records import TopicPartition

#: Longest wait for a broker's answer about offsets; it holds up polling meanwhile.
REQUEST_TIMEOUT_S = 10.0


class Positions(base.Consumer):
    """The part of Faust's consumer interface that is about positions."""

    ledger: Ledger
    _poller: Poller | None
    _assigned: set[TP]
    #: Seeks asked for and not done yet: what arrives of these partitions is from before.
    _seeking: Counter[TopicPartition]

    def _drop_fetched(self) -> None:
        raise NotImplementedError

    def _mind_room(self) -> None:
        raise NotImplementedError

    async def _ask(self, request: Callable[[_Consumer], Any]) -> Any:
        if self._poller is None:
            raise PollerStoppedError("the Kafka consumer has not started")
        return await asyncio.wrap_future(self._poller.ask(request))

    # -- seeking ------------------------------------------------------------------------

    async def seek(self, partition: TP, offset: int) -> None:
        """Read `partition` from `offset` next; what is in flight of it stays uncommitted.

        The streams' queues are emptied, and the other partitions go back to what was not done yet.
        Raises ContractError when the partition is not assigned.
        """
        tp = TopicPartition(*partition)
        if tp not in self.ledger:
            raise ContractError(f"{tp.topic}[{tp.partition}]: cannot seek, the partition is not assigned")
        self.ledger.revoke([tp])
        self.ledger.assign([tp])
        if not self.app.rebalancing:  # a rebalance has a generation of its own, and Faust compares it
            self.app.consumer_generation_id += 1
        await self._restart_from({**self._rewound(), tp: offset})

    def _rewound(self) -> dict[TopicPartition, int]:
        """Rewind the whole ledger; where to read again, for each partition that had something open."""
        offsets = {tp: self.ledger.rewind(tp) for tp in list(self.ledger)}
        return {tp: offset for tp, offset in offsets.items() if offset is not None}

    async def _restart_from(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read on from `offsets`, after a new generation id has made the streams skip what they hold.

        Everything up to the first await is one step for the loop, so that no batch arrives in between.
        """
        self._drop_fetched()
        self._seeking.update(offsets.keys())
        self._mind_room()

        def request(consumer: _Consumer) -> None:
            try:
                held = {TopicPartition(tp.topic, tp.partition) for tp in consumer.assignment()}
                for tp, offset in offsets.items():
                    if tp in held:
                        read_from(consumer, _TopicPartition(tp.topic, tp.partition, offset))
            finally:
                # In order with what the poller delivers: the next batch is from the new position.
                self.loop.call_soon_threadsafe(self._seeking.subtract, list(offsets))

        if offsets:
            await asyncio.shield(self._ask(request))  # whoever waits may be cancelled, what is said above must happen

    async def _seek(self, partition: TP, offset: int) -> None:
        await self.seek(partition, offset)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """`seek`, one partition after the other."""
        for tp, offset in partitions.items():
            await self.seek(tp, offset)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Read every assigned partition from its committed offset."""
        committed = await self.committed_offsets()
        await self.seek_wait(committed)
        return committed

    async def seek_to_beginning(self, *partitions: TP) -> None:
        """Read `partitions` (default: all that are assigned) from the first offset there is."""
        await self.seek_wait(await self.earliest_offsets(*(partitions or self._assigned)))

    async def perform_seek(self) -> None:
        """Nothing to do: librdkafka starts at the committed offset, a rebalance has seen to kept partitions."""

    # -- asking -------------------------------------------------------------------------

    async def committed_offsets(self) -> dict[TP, int]:
        """Offsets the broker has for the assigned partitions; those without one are left out.

        Raises UnreachableError while one is not decided: another's transaction that commits it is open still.
        """
        tps = [_TopicPartition(tp.topic, tp.partition) for tp in self._assigned]
        answer = await self._answer(lambda c: c.committed(tps, timeout=REQUEST_TIMEOUT_S))
        if refused := [tp for tp in answer if tp.error is not None]:
            tp = refused[0]
            raise UnreachableError(f"kafka: offset of {tp.topic}[{tp.partition}] cannot be read: {tp.error.str()}")
        return {TP(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    async def position(self, tp: TP) -> int | None:
        """Offset fetched next, None before the first record."""
        answer = await self._ask(lambda c: c.position([_TopicPartition(tp.topic, tp.partition)]))
        offset: int = answer[0].offset
        return offset if offset >= 0 else None

    def highwater(self, tp: TP) -> int:  # noqa: ARG002 (Faust's signature)
        """Faust asks this per message for its web pages, which are off; `highwaters` is the real one."""
        return 0

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """End offsets."""
        return {tp: (await self._watermarks(tp))[1] for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """First offsets that are still there."""
        return {tp: (await self._watermarks(tp))[0] for tp in partitions}

    async def _watermarks(self, tp: TP) -> tuple[int, int]:
        partition = _TopicPartition(tp.topic, tp.partition)
        first, end = await self._answer(lambda c: c.get_watermark_offsets(partition, timeout=REQUEST_TIMEOUT_S))
        return first, end

    async def _answer(self, request: Callable[[_Consumer], Any]) -> Any:
        try:
            return await self._ask(request)
        except KafkaException as error:
            raise UnreachableError(f"kafka: offsets cannot be read: {error.args[0].str()}") from error

    def assignment(self) -> set[TP]:
        """Partitions the streams read."""
        return set(self._assigned)

    def topic_partitions(self, topic: str) -> int | None:
        """Number of partitions of `topic`, None if there is no such topic."""
        count: int | None = self.transport.partition_count(topic)
        return count

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """See Transport.key_partition."""
        found: int | None = self.transport.key_partition(topic, key, partition)
        return found

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """See Transport.create_topic."""
        await self.transport.create_topic(topic, partitions, replication, **options)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109 (Faust's signature)
        raise NotImplementedError("batches are pushed by the poller; see _drain_messages")

    def _to_message(self, tp: TP, record: Any) -> Any:
        raise NotImplementedError("see _message")

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)
