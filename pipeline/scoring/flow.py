"""The hot path. Read `run` and `_step` from top to bottom: that is what happens to a record.

Batching: what waits when the model is free goes in the next step, over all partitions, up to `step_max`
records, the model getting up to `batch_max` rows a call; no timer unless `linger_ms` is set. One thread
decodes, scores, encodes and enqueues, step after step, so order per partition (and so per key) is that of
the input; librdkafka fetches, sends and waits for acknowledgements on its own threads meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from pipeline.contracts import Clock, Decoder, Delivery, Observer
from pipeline.errors import ScoringError, TransactionAbortedError, UnreachableError
from pipeline.records import BatchSummary, Decoded, ModelRole, RecordBatch, Reject
from pipeline.scoring.fields import NO_TIME_MS
from pipeline.scoring.lane import Lane, Rows, Scored
from pipeline.scoring.publish import Publisher
from pipeline.scoring.refusal import InputLimit
from pipeline.scoring.serving import Served, canary_rows, part_of
from pipeline.scoring.tried import Stopwatch, Tried

log = structlog.get_logger(__name__)

Mask = npt.NDArray[np.bool_]

#: Longest wait between two tries while a registry is away.
BACKOFF_MAX_S = 5.0
#: How late the flow notices that an abort has called its batches back.
CALL_BACK_POLL_S = 0.02
#: How long a delivery in the stream's queue may take to come out of it: some turns of the event loop.
ARRIVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Batching and retries; see settings.ScoringSettings.

    step_max: records taken in one step. shadow_time_max: share of the scoring thread's time that a shadow may take.
    """

    step_max: int = 8192
    linger_ms: float = 0.0
    retries_max: int = 3
    retry_backoff_ms: float = 200.0
    shadow_time_max: float = 0.2


class Flow:
    """Takes record batches, scores them, hands their outputs over, acknowledges them."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        served: Served,
        publisher: Publisher,
        observer: Observer,
        settings: FlowSettings,
        clock: Clock = time.time,
        input_limit: InputLimit | None = None,
    ) -> None:
        self._decoder = decoder
        self._served = served
        #: Champions that were replaced since the last commit: what they added up is due with it.
        self._replaced: list[Lane] = []
        self._tried = Tried(served.canary)
        self._publisher = publisher
        self._observer = observer
        self._settings = settings
        self._clock = clock
        self._input_limit = input_limit or InputLimit()
        self._shadow_s, self._shadow_since = 0.0, time.perf_counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        #: Held by a step, and by a commit: outputs of one never mix with the flush of the other.
        self._between_steps = asyncio.Lock()

    async def serve(self, served: Served) -> bool:
        """From the next step on these models are in service: loaded and warm, so that no event waits for them.

        Whether that is a change. One that failed and was taken out of service comes back with any change.
        """
        async with self._between_steps:
            self._tried.follow(served.canary)
            if served == self._served:
                return False
            if served.champion is not self._served.champion:
                self._replaced.append(self._served.champion)
            if served.shadow is not self._served.shadow:
                self._shadow_s, self._shadow_since = 0.0, time.perf_counter()
            self._served = served
            return True

    async def run(
        self,
        deliveries: AsyncIterable[Delivery],
        more_waiting: Callable[[], bool],
        is_current: Callable[[Delivery], bool] = lambda _delivery: True,
    ) -> None:
        """Score until `deliveries` ends.

        more_waiting: whether the next delivery is there already. is_current: whether one that was taken is
        still to be done: an aborted transaction calls back what it held, to deliver it again.
        Raises ScoringError when the model failed on a batch for good (the batch is not acknowledged),
        InputRefusedError when too much input was bad (the same), DeliveryError when the sink refused an output.
        """
        source = aiter(deliveries)
        coming = asyncio.ensure_future(anext(source, None))
        try:
            while (delivery := await coming) is not None:
                waiting, count = [delivery], len(delivery.value)
                coming = asyncio.ensure_future(anext(source, None))
                linger_until = time.monotonic() + self._settings.linger_ms / 1000
                while count < self._settings.step_max and await _comes(coming, more_waiting, linger_until):
                    if (delivery := coming.result()) is None:
                        break
                    waiting.append(delivery)
                    count += len(delivery.value)
                    coming = asyncio.ensure_future(anext(source, None))
                async with self._between_steps:
                    current = [d for d in waiting if is_current(d)]
                    aborted = await self._step_with_retries([d.value for d in current]) if current else False
                    if not aborted:
                        for done in waiting:
                            done.ack()
                if aborted:
                    await self._until_called_back(waiting, is_current)
        finally:
            coming.cancel()

    @asynccontextmanager
    async def between_steps(self) -> AsyncIterator[None]:
        """For a commit: no step runs inside, and summaries of all steps before were handed to the sink."""
        async with self._between_steps:
            if summaries := self._drain():
                await asyncio.get_running_loop().run_in_executor(self._thread, self._publisher.summaries, summaries)
            yield

    def forget(self) -> None:
        """Drop what was added up since the last commit: its records will be scored again."""
        self._drain()

    def _drain(self) -> list[BatchSummary]:
        lanes = [*self._replaced, self._served.champion]
        self._replaced.clear()
        return self._tried.tell([summary for lane in lanes for summary in lane.drain()])

    def close(self) -> None:
        """Let the scoring thread go; a call into a hung model is left behind."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _until_called_back(self, held: list[Delivery], is_current: Callable[[Delivery], bool]) -> None:
        """After an abort while sending: the next commit goes back to the last one, and delivers these again."""
        while any(is_current(delivery) for delivery in held):  # noqa: ASYNC110 (the commit knows nothing of us)
            await asyncio.sleep(CALL_BACK_POLL_S)
        for delivery in held:
            delivery.ack()  # of what is called back: only says that it is no longer held

    async def _step_with_retries(self, batches: list[RecordBatch]) -> bool:
        """Retry a failing model `retries_max` times with doubling waits; wait for an absent registry.

        Whether the transaction was aborted on the way, so that the batches will come again.
        """
        loop = asyncio.get_running_loop()
        backoff_s = self._settings.retry_backoff_ms / 1000
        failures = 0
        while True:
            try:
                await loop.run_in_executor(self._thread, self._step, batches)
            except UnreachableError as error:
                log.warning("waiting for the registry", error=str(error))
            except ScoringError as error:
                if failures >= self._settings.retries_max:
                    where = ", ".join(f"{b.topic}[{b.partition}]@{b.first_offset}" for b in batches)
                    raise ScoringError(
                        f"{error} (after {failures + 1} tries on the batch at {where}; nothing of it was committed)"
                    ) from error
                failures += 1
                self._observer.retried()
                log.warning("model failed, trying again", error=str(error), failures=failures)
            except TransactionAbortedError as error:
                log.warning("outputs withdrawn", error=str(error))
                return True
            else:
                return False
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    # -- on the scoring thread ---------------------------------------------------------------

    def _step(self, batches: list[RecordBatch]) -> None:
        """Decode, validate, score, encode; then, all of it having gone well, hand over and add up."""
        rows = Rows.of(batches)
        started = time.perf_counter()
        decoded = self._decoder.decode(rows.values)
        self._observer.stage("decode", time.perf_counter() - started)
        parts, canarys = self._score(rows, decoded)
        rejects = decoded.rejects + [reject for part in parts for reject in part.rejects]
        self._input_limit.take(len(rows), rejects, rows.place)
        self._publish(rows, parts, rejects, canarys)
        self._observe(rows, parts, rejects)
        if self._served.shadow is not None:
            self._score_in_shadow(self._served.shadow, rows, decoded)

    def _score(self, rows: Rows, decoded: Decoded) -> tuple[list[Scored], Mask | None]:
        """What each model in service makes of its rows, and which rows are the canary's. May be repeated."""
        served, timed = self._served, self._observer.stage
        if served.canary is None:
            return [served.champion.score(rows, decoded, timed)], None
        canarys = canary_rows(rows, served.share)
        try:
            tried = self._try(served.canary, rows, part_of(decoded, canarys))
        except ScoringError as error:
            self._withdraw("canary", error)
            return [served.champion.score(rows, decoded, timed)], None
        return [served.champion.score(rows, part_of(decoded, ~canarys), timed), tried], canarys

    def _try(self, canary: Lane, rows: Rows, decoded: Decoded) -> Scored:
        """What the canary makes of its rows; now and then beside the time that the champion takes for them."""
        watch = Stopwatch()

        def timed(stage: str, seconds: float) -> None:
            watch(stage, seconds)
            self._observer.stage(stage, seconds)

        if not self._tried.is_compared(len(decoded.rows)):
            return canary.score(rows, decoded, timed)
        champion_first = self._tried.champion_first
        champion_s = self._champion_s(rows, decoded) if champion_first else 0.0
        scored = canary.score(rows, decoded, timed)
        champion_s = champion_s if champion_first else self._champion_s(rows, decoded)
        self._tried.compared(champion_s, watch.score_s)
        return scored

    def _champion_s(self, rows: Rows, decoded: Decoded) -> float:
        """Seconds that the champion takes for rows of the canary, 0 if it fails on them; nothing else comes of it."""
        watch = Stopwatch()
        try:
            self._served.champion.score(rows, decoded, watch)
        except ScoringError:
            return 0.0
        return watch.score_s

    def _withdraw(self, role: ModelRole, error: ScoringError) -> None:
        """A model on trial that failed costs no event: from now on this process does without it."""
        log.error("model on trial failed, out of service here", model_role=role, error=str(error))
        self._observer.trial_failed(role)
        if role == "canary":
            self._tried.failed(str(error))
        self._served = self._served.without(role)

    def _publish(self, rows: Rows, parts: list[Scored], rejects: list[Reject], canarys: Mask | None) -> None:
        started = time.perf_counter()
        for part in parts:
            self._publisher.predictions(rows.keys_of(part.scored_rows), part.values)
        for reject in sorted(rejects, key=lambda r: r.row):
            batch, row = rows.source(reject.row)
            headers = batch.headers[row] if batch.headers else None
            source = (batch.topic, batch.partition, batch.offsets[row])
            self._publisher.dead_letters.send(reject, source, batch.keys[row], batch.values[row], headers)
        self._served.champion.summarise(parts[0], canarys)
        self._observer.stage("publish", time.perf_counter() - started)

    def _observe(self, rows: Rows, parts: list[Scored], rejects: list[Reject]) -> None:
        observer = self._observer
        for batch in rows.batches:
            observer.events_read(batch.topic, len(batch))
        observer.batch(len(rows))
        for reject in rejects:
            observer.rejected(reject.stage, reject.reason)
        now_ms = self._clock() * 1000
        for part in parts:
            observer.scored(part.lane.identity, len(part.values))
            for key, count in part.checked.imputed.items():
                observer.imputed(key, count)
            observer.latencies("broker", (now_ms - rows.timestamps_ms[part.scored_rows]) / 1000)
            event_times = part.checked.event_times_ms
            event_times = event_times[event_times != NO_TIME_MS]
            if len(event_times):
                observer.latencies("event", (now_ms - event_times) / 1000)

    def _score_in_shadow(self, shadow: Lane, rows: Rows, decoded: Decoded) -> None:
        """Once what counts is on its way, and only within the shadow's share of this thread's time."""
        now = time.perf_counter()
        if self._shadow_s > self._settings.shadow_time_max * (now - self._shadow_since):
            self._observer.shadow_skipped(len(rows))
            return
        try:
            scored = shadow.score(rows, decoded, lambda _stage, _seconds: None)
        except ScoringError as error:
            self._withdraw("shadow", error)
            return
        self._publisher.shadow_predictions(rows.keys_of(scored.scored_rows), scored.values)
        self._observer.scored(shadow.identity, len(scored.values))
        self._shadow_s += time.perf_counter() - now


async def _comes(coming: "asyncio.Future[Any]", more_waiting: Callable[[], bool], linger_until: float) -> bool:
    """Whether the next delivery is here by the end of the linger, or at once where one seems to wait.

    Seems: a rebalance may empty the queue after this has looked. What the flow holds must not wait for the
    next delivery then, for the rebalance waits for it.
    """
    left_s = linger_until - time.monotonic()
    if more_waiting():
        left_s = max(left_s, ARRIVAL_S)
    if left_s > 0 and not coming.done():
        await asyncio.wait({coming}, timeout=left_s)
    return coming.done()


def queue_waits(stream: Any) -> Callable[[], bool]:
    """Whether a Faust-like stream has its next event at hand."""
    queue = stream.channel.queue
    return lambda: not queue.empty()
