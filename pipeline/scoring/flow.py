"""The hot path. Read `run` and `_step` from top to bottom: that is what happens to a record.

Batching: what waits when the model is free goes in the next step, over all partitions, up to `step_max`
records, the model getting up to `batch_max` rows a call; no timer unless `linger_ms` is set. One thread
decodes, scores, encodes and enqueues, step after step, so order per partition (and so per key) is that of
the input; librdkafka fetches, sends and waits for acknowledgements on its own threads meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from pipeline.contracts import Clock, Decoder, Delivery, Model, Observer, Summariser
from pipeline.errors import ScoringError, TransactionAbortedError, UnreachableError
from pipeline.records import Decoded, Floats, Longs, Reason, RecordBatch, Reject, Stage
from pipeline.scoring.fields import FIRST_TIME_MS, LAST_TIME_MS, NO_TIME_MS
from pipeline.scoring.publish import PredictionColumns, Publisher, prediction_labels, without_slices
from pipeline.scoring.refusal import InputLimit
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.validate import Validated, Validator

log = structlog.get_logger(__name__)

#: Longest wait between two tries while a registry is away.
BACKOFF_MAX_S = 5.0
#: How late the flow notices that an abort has called its batches back.
CALL_BACK_POLL_S = 0.02
#: How long a delivery in the stream's queue may take to come out of it: some turns of the event loop.
ARRIVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Batching and retries; see settings.ScoringSettings.

    step_max: records taken in one step; the model still gets at most `batch_max` rows a call.
    """

    batch_max: int = 1024
    step_max: int = 8192
    linger_ms: float = 0.0
    retries_max: int = 3
    retry_backoff_ms: float = 200.0


@dataclass(frozen=True, slots=True)
class Rows:
    """Record batches laid end to end: what one step works on."""

    batches: list[RecordBatch]
    values: list[bytes | None]
    keys: list[bytes | None]
    partitions: Longs
    offsets: Longs
    timestamps_ms: Longs

    @classmethod
    def of(cls, batches: list[RecordBatch]) -> "Rows":
        """All records of `batches`, in their order."""
        sizes = [len(b) for b in batches]
        return cls(
            batches,
            [v for b in batches for v in b.values] if len(batches) > 1 else batches[0].values,
            [k for b in batches for k in b.keys] if len(batches) > 1 else batches[0].keys,
            np.repeat(np.array([b.partition for b in batches], dtype=np.int64), sizes),
            np.concatenate([np.array(b.offsets, dtype=np.int64) for b in batches]),
            np.concatenate([np.array(b.timestamps_ms, dtype=np.int64) for b in batches]),
        )

    def __len__(self) -> int:
        return len(self.values)

    def keys_of(self, rows: Longs) -> list[bytes | None]:
        """Keys of some rows, which ascend."""
        return self.keys if len(rows) == len(self) else [self.keys[row] for row in rows.tolist()]

    def source(self, row: int) -> tuple[RecordBatch, int]:
        """The batch of a row and the row's index in it."""
        for batch in self.batches:
            if row < len(batch):
                return batch, row
            row -= len(batch)
        raise IndexError(row)

    def place(self, row: int) -> str:
        """Topic, partition and offset of a row, for a person."""
        batch, index = self.source(row)
        return f"{batch.topic}[{batch.partition}]@{batch.offsets[index]}"


@dataclass(frozen=True, slots=True)
class Scored:
    """What scoring made of rows; nothing has been sent yet."""

    rows: Rows
    decoded: Decoded
    checked: Validated
    #: Input row of each output, ascending; outputs (m, width); class indices or None.
    scored_rows: Longs
    outputs: Floats
    labels: Longs | None
    rejects: list[Reject]
    #: Encoded predictions, one per scored row.
    values: list[bytes]


class Flow:
    """Takes record batches, scores them, hands their outputs over, acknowledges them."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        validator: Validator,
        model: Model,
        publisher: Publisher,
        summariser: Summariser | None,
        observer: Observer,
        settings: FlowSettings,
        clock: Clock = time.time,
        input_limit: InputLimit | None = None,
    ) -> None:
        self._decoder = decoder
        self._validator = validator
        self._model = model
        self._publisher = publisher
        self._summariser = summariser
        self._observer = observer
        self._settings = settings
        self._clock = clock
        self._input_limit = input_limit or InputLimit()
        self._columns = PredictionColumns(model.contract, model.identity, clock)
        self._signals = SignalMatrix(summariser.signals, model.contract) if summariser else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        #: Held by a step, and by a commit: outputs of one never mix with the flush of the other.
        self._between_steps = asyncio.Lock()

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
            if self._summariser is not None:
                summaries = self._summariser.drain()
                await asyncio.get_running_loop().run_in_executor(self._thread, self._publisher.summaries, summaries)
            yield

    def forget(self) -> None:
        """Drop what was added up since the last commit: its records will be scored again."""
        if self._summariser is not None:
            self._summariser.drain()

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
        scored = self._score(Rows.of(batches))
        self._input_limit.take(len(scored.rows), scored.rejects, scored.rows.place)
        self._publish(scored)
        self._observe(scored)

    def _score(self, rows: Rows) -> Scored:
        """Everything that can fail on bad data or a bad model; has no effect outside. May be repeated."""
        started = time.perf_counter()
        decoded = self._decoder.decode(rows.values)
        decode_done = time.perf_counter()
        checked = self._validator.validate(decoded)
        validate_done = time.perf_counter()
        columns_scored, outputs = self._apply_model(checked)
        score_done = time.perf_counter()
        scored_rows = decoded.rows[columns_scored]
        finite = np.isfinite(outputs).all(axis=1)
        rejects = decoded.rejects + checked.rejects
        if not finite.all():
            rejects += [
                Reject(int(row), Stage.SCORE, Reason.OUTPUT_NOT_FINITE, "the model returned NaN or infinity")
                for row in scored_rows[~finite]
            ]
            columns_scored, scored_rows, outputs = columns_scored[finite], scored_rows[finite], outputs[finite]
        labels = prediction_labels(outputs, self._model.contract)
        values: list[bytes] = []
        if len(outputs):
            ids, slices = checked.ids, checked.slices
            if len(outputs) < len(ids):
                ids = [ids[i] for i in columns_scored]
                slices = None if slices is None else slices.take(pa.array(columns_scored))
            columns = self._columns.build(
                ids,
                checked.event_times_ms[columns_scored],
                outputs,
                labels,
                rows.partitions[scored_rows],
                rows.offsets[scored_rows],
                slices,
            )
            values, large = self._encode(columns, rows.keys_of(scored_rows))
            if large:
                rejects += [
                    Reject(int(scored_rows[i]), Stage.SCORE, Reason.OUTPUT_TOO_LARGE, told) for i, told in large.items()
                ]
                kept = [i for i in range(len(values)) if i not in large]
                scored_rows, outputs, values = scored_rows[kept], outputs[kept], [values[i] for i in kept]
                labels = None if labels is None else labels[kept]
        encode_done = time.perf_counter()
        for name, seconds in (
            ("decode", decode_done - started),
            ("validate", validate_done - decode_done),
            ("score", score_done - validate_done),
            ("encode", encode_done - score_done),
        ):
            self._observer.stage(name, seconds)
        return Scored(rows, decoded, checked, scored_rows, outputs, labels, rejects, values)

    def _encode(self, columns: pa.RecordBatch, keys: Sequence[bytes | None]) -> tuple[list[bytes], dict[int, str]]:
        """Kafka values of predictions, and what to say of each (by index) that its topic does not take.

        Slices are never the reason: a prediction that is too large with them goes without.
        """
        values = self._publisher.encode_predictions(columns)
        large = list(self._publisher.oversized(keys, values))
        if not large:
            return values, {}
        smaller = self._publisher.encode_predictions(without_slices(columns.take(pa.array(large))))
        for row, value in zip(large, smaller, strict=True):
            values[row] = value
        return values, self._publisher.oversized(keys, values)

    def _apply_model(self, checked: Validated) -> tuple[Longs, Floats]:
        """Column rows scored, ascending, and their outputs: model calls of one shape and ≤ batch_max rows each."""
        rows: list[Longs] = []
        outputs: list[Floats] = []
        step = self._settings.batch_max
        for inputs in checked.inputs:
            for start in range(0, len(inputs), step):
                part = slice(start, start + step)
                outputs.append(self._model.score({name: array[part] for name, array in inputs.arrays.items()}))
                rows.append(inputs.rows[part])
        if not outputs:
            return np.empty(0, np.int64), np.empty((0, self._model.contract.output.width), np.float32)
        if len(outputs) == 1:
            return rows[0], outputs[0]
        all_rows, all_outputs = np.concatenate(rows), np.concatenate(outputs)
        if len(checked.inputs) == 1:
            return all_rows, all_outputs
        order = np.argsort(all_rows, kind="stable")
        return all_rows[order], all_outputs[order]

    def _publish(self, scored: Scored) -> None:
        started = time.perf_counter()
        rows = scored.rows
        self._publisher.predictions(rows.keys_of(scored.scored_rows), scored.values)
        for reject in sorted(scored.rejects, key=lambda r: r.row):
            batch, row = rows.source(reject.row)
            headers = batch.headers[row] if batch.headers else None
            source = (batch.topic, batch.partition, batch.offsets[row])
            self._publisher.dead_letter(reject, source, batch.keys[row], batch.values[row], headers)
        if self._summariser is not None and self._signals is not None:
            self._summarise(scored, self._signals, self._summariser)
        self._observer.stage("publish", time.perf_counter() - started)

    def _summarise(self, scored: Scored, signals: SignalMatrix, summariser: Summariser) -> None:
        rows, checked = scored.rows, scored.checked
        decoded_rows = scored.decoded.rows
        matrix = signals.fill(
            len(rows), decoded_rows, checked.numbers, checked.nulls, scored.scored_rows, scored.outputs, scored.labels
        )
        # A producer may write any number there, and a summary's times are read as dates.
        times = np.clip(rows.timestamps_ms, FIRST_TIME_MS, LAST_TIME_MS)
        known = checked.event_times_ms != NO_TIME_MS
        times[decoded_rows[known]] = checked.event_times_ms[known]
        start = 0
        for batch in rows.batches:
            part = slice(start, start + len(batch))
            summariser.add(batch.topic, batch.partition, rows.offsets[part], times[part], matrix[part])
            start = part.stop

    def _observe(self, scored: Scored) -> None:
        observer, rows = self._observer, scored.rows
        for batch in rows.batches:
            observer.events_read(batch.topic, len(batch))
        observer.batch(len(rows))
        observer.scored(self._model.identity, len(scored.values))
        for reject in scored.rejects:
            observer.rejected(reject.stage, reject.reason)
        for key, count in scored.checked.imputed.items():
            observer.imputed(key, count)
        now_ms = self._clock() * 1000
        observer.latencies("broker", (now_ms - rows.timestamps_ms[scored.scored_rows]) / 1000)
        event_times = scored.checked.event_times_ms
        event_times = event_times[event_times != NO_TIME_MS]
        if len(event_times):
            observer.latencies("event", (now_ms - event_times) / 1000)


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
