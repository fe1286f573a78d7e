"""Outcomes as they come: counted, and watched for errors of the champion that rise. Kafka is behind a `Place`."""

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import structlog

from pipeline import observe
from pipeline.drift.error_station import ErrorStation, Positions
from pipeline.drift.errors import ABSOLUTE, WRONG, ErrorWatch
from pipeline.errors import TransactionAbortedError
from pipeline.measures.online import Counting
from pipeline.measures.sums import Sums
from pipeline.quality import OutcomeReader, Quality, errors_of, in_turn
from pipeline.records import ModelIdentity, OutputContract, RecordBatch, RetrainingTrigger
from pipeline.records import TopicPartition as Tp
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: Panes of the window, as `pipeline quality` has: the newest quarter is held against those before.
PANES = 24
#: A start counts the window again, of no more than these, the newest, and watches as many at once of those that wait:
#: 200 MB while they are sorted, and 5 s.
AGAIN_OUTCOMES_MAX = 200_000
#: How soon it is noticed that an aborted transaction has called a batch back.
CALL_BACK_POLL_S = 0.05


class Champion(NamedTuple):
    """The model whose errors are watched, and what is to be known of it to read outcomes."""

    identity: ModelIdentity
    output: OutputContract
    #: For Sums.origin.
    origin: float

    def watch(self, delta: float) -> ErrorWatch:
        return ErrorWatch(self.identity, ABSOLUTE if self.output.kind == "regression" else WRONG, delta=delta)


class Place(Protocol):
    """Where the outcomes come from."""

    def is_current(self, delivery: Any) -> bool:
        """Whether it is still to be done: a rebalance or an abort calls back what was delivered before."""
        ...

    def reading(self, delivery: Any) -> object:
        """Equal for two deliveries with no rebalance, abort or seek between them."""
        ...

    async def committed(self) -> Mapping[Tp, int]:
        """The group's offsets of all assigned partitions that have one."""
        ...

    async def commit(self) -> None:
        """Commit what was acknowledged, now."""
        ...

    def bounds(self) -> Mapping[Tp, tuple[int, int]]:
        """First offset and end of every partition."""
        ...

    def since(self, tp: Tp, time_ms: int) -> int:
        """First offset of `tp` with a timestamp of `time_ms` or later; its end if there is none."""
        ...

    def read(self, spans: Mapping[Tp, tuple[int, int]]) -> Iterable[RecordBatch]:
        """What the topic holds of these offsets (start, end)."""
        ...

    async def champion(self) -> Champion | None:
        """Who is champion now; None if that is not known yet, or it cannot be read."""
        ...


class Watching:
    """Counts outcomes and watches the champion's errors in them. One task at a time may `run` it."""

    def __init__(
        self,
        settings: Settings,
        champion: Champion,
        station: ErrorStation,
        make_reader: Callable[[OutputContract], OutcomeReader],
        metrics: observe.Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings, self._station, self._metrics = settings, station, metrics
        self._make_reader, self._now_ms = make_reader, now_ms
        self._count_by(champion)
        #: Held by a batch in work, by a report and by a commit: none finds the other half done.
        self.between_batches = asyncio.Lock()

    def _count_by(self, champion: Champion) -> None:
        self._champion, self._reader = champion, self._make_reader(champion.output)
        counting = Counting(Sums(champion.output, None, champion.origin), self.window_ms // PANES, PANES, fading=0.5)
        self.quality = Quality(counting)
        #: Whether what the window holds of the past was read.
        self._counted = False

    @property
    def window_ms(self) -> int:
        return int(self._settings.quality.window_hours * 3_600_000)

    async def run(
        self, deliveries: AsyncIterable[Any], place: Place, send: Callable[[RetrainingTrigger], Awaitable[None]]
    ) -> None:
        """Take what comes until it ends. Raises what `send` raises, but for an abort."""
        reading: object = None
        async for delivery in deliveries:
            champion = await place.champion() if place.is_current(delivery) else None
            if champion is not None and champion.identity != self._champion.identity:
                await place.commit()  # what is open is the old model's
                async with self.between_batches:
                    reading = None if self._follow(champion) else reading
            aborted = False
            async with self.between_batches:
                if place.is_current(delivery) and place.reading(delivery) != reading:
                    reading = place.reading(delivery)
                    await self._resume(place)
                try:
                    if place.is_current(delivery):
                        await self._deliver(delivery.value, send)
                    delivery.ack()
                except TransactionAbortedError as error:
                    log.warning("triggers withdrawn", error=str(error))
                    aborted = True
            if aborted:  # the next commit goes back to the last one, and delivers this again
                while place.is_current(delivery):  # noqa: ASYNC110 (the commit knows nothing of us)
                    await asyncio.sleep(CALL_BACK_POLL_S)
                delivery.ack()

    async def _deliver(self, batch: RecordBatch, send: Callable[[RetrainingTrigger], Awaitable[None]]) -> None:
        tp = Tp(batch.topic, batch.partition)
        if self._station.position(tp) < batch.next_offset:  # else it was looked at while it waited
            await asyncio.to_thread(self._take, batch)
        await self._station.send(tp, batch.next_offset, send)

    def _follow(self, champion: Champion) -> bool:
        """Watch a new champion; whether outcomes are read in another way from now on, and counted again."""
        self._station.replace(champion.watch(self._settings.drift.delta))
        other = champion.output != self._champion.output
        if other:
            self._count_by(champion)
        self._champion = champion
        return other

    def _take(self, batch: RecordBatch, *, told: bool = False) -> None:
        """told: alarms of gaps in it were raised before."""
        tp, found = Tp(batch.topic, batch.partition), self._reader.read(batch)
        errors = errors_of(found, self._champion.output).get(self._champion.identity)
        assert found.offsets is not None
        if errors is None:
            self._station.feed(tp, batch.next_offset)
        else:
            self._station.feed(
                tp, batch.next_offset, (found.offsets[errors.rows], errors.event_times_ms, errors.values)
            )
        alarms = self.quality.add(self._reader.take(batch, found), latest_ms=self._now_ms())
        for identity, alarm in () if told else alarms:
            self._metrics.alarm(f"gap:{alarm.field}:{alarm.measure}")
            log.warning(
                "gap has widened",
                version=identity.model_version,
                role=identity.role,
                slice=f"{alarm.field}={'(all others)' if alarm.value is None else alarm.value}",
                measure=alarm.measure,
                difference=round(alarm.difference, 4),
                before=round(alarm.before, 4),
            )

    async def _resume(self, place: Place) -> None:
        """Go back to where the group is, and look at what waits in the order in which it was written."""
        committed = await place.committed()
        await asyncio.to_thread(self._read_again, committed, place)

    def _read_again(self, committed: Mapping[Tp, int], place: Place) -> None:
        known = self._station.resume(committed)
        spans = {}
        for tp, (first, end) in place.bounds().items():
            start, stop = self._span(tp, committed.get(tp, 0), known, place)
            spans[tp] = (max(start, first), min(max(stop, first), end))
        log.info("reading outcomes", outcomes_max=sum(max(0, end - start) for start, end in spans.values()))
        for batch in in_turn(place.read(spans)):
            self._take(batch, told=batch.next_offset <= committed.get(Tp(batch.topic, batch.partition), 0))
        self._station.resumed(committed)
        self._counted = True

    def _span(self, tp: Tp, committed: int, known: Positions | None, place: Place) -> tuple[int, int]:
        """What to read of a partition: from the watch's state, of the window once, and of what waits for delivery."""
        most = AGAIN_OUTCOMES_MAX // max(1, self._settings.topics.partitions)
        position = committed if known is None else known.get(tp, 0)
        start = position
        if committed and (not self._counted or known is None):
            window = place.since(tp, self._now_ms() - self.window_ms)
            start = min(position, max(window, committed - most))
        return start, committed if known is None else max(committed, position) + most

    async def report(self) -> None:
        """Show what outcomes say now as metrics."""
        async with self.between_batches:
            found = await asyncio.to_thread(self.quality.report)
        self._metrics.quality(found["versions"])
