"""The hot path with real Avro and a scripted source, sink and model: batching, retries, order, acknowledgement."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline import __version__, codec
from pipeline.errors import DeliveryError, InputRefusedError, ScoringError, TransactionAbortedError, UnreachableError
from pipeline.records import BatchSummary, Decoded, Feature, FeatureContract, OutputContract, Reason, RecordBatch, Stage
from pipeline.scoring.flow import Flow, FlowSettings, queue_waits
from pipeline.scoring.lane import Lane
from pipeline.scoring.publish import Publisher
from pipeline.scoring.refusal import InputLimit
from pipeline.scoring.serving import Served
from pipeline.scoring.validate import Validator
from pipeline.testing import (
    ABORT,
    EOF,
    PAUSE,
    VANISH,
    AbortedError,
    ManualClock,
    RecordingObserver,
    RecordingSink,
    ScriptedModel,
    ScriptedSource,
    record_batch,
)

EVENT = json.dumps(
    {
        "type": "record",
        "name": "Event",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "x", "type": ["null", "float"], "default": None},
            {"name": "device", "type": ["null", "string"], "default": None},
            {"name": "trial", "type": "boolean", "default": False},
        ],
    }
)
CONTRACT = FeatureContract((Feature("x", "number"),), OutputContract("classification", 2, ("no", "yes")))
START_MS = 1_700_000_000_000


class RecordingSummariser:
    """Keeps what it is given; one summary per drain that says how many records it stands for."""

    signals = ("feature:x", "score:no", "class:yes", "null:x", "rejected")

    def __init__(self) -> None:
        self.added: list[tuple[str, int, list[int], list[int], npt.NDArray[np.float32]]] = []
        self._drained = 0

    def add(self, topic: str, partition: int, offsets: Any, event_times_ms: Any, matrix: Any) -> None:
        self.added.append((topic, partition, offsets.tolist(), event_times_ms.tolist(), matrix))

    def drain(self) -> list[BatchSummary]:
        new, self._drained = self.added[self._drained :], len(self.added)
        events = sum(len(a[2]) for a in new)
        if not events:
            return []
        nothing: list[Any] = []
        return [BatchSummary("t", 0, 0, 0, 0, 0, "m", "1", events, 0, *[nothing] * 9)]


class Setup:
    """A flow and everything it talks to."""

    def __init__(
        self,
        folder: Path,
        model: ScriptedModel | None = None,
        slice_fields: Sequence[str] = (),
        prediction_bytes_max: int | None = None,
        **settings: Any,
    ) -> None:
        registry = codec.FileRegistry(folder)
        schema_id = registry.register("events-value", EVENT)
        self.rows = codec.RowCodec(registry)
        rest = {"device": None, "trial": False}
        self.encode = lambda **event: self.rows.encode(schema_id, EVENT, {**rest, **event})
        prediction = codec.load_schema("prediction")
        self.model = model or ScriptedModel(CONTRACT)
        self.sink, self.observer, self.clock = RecordingSink(), RecordingObserver(), ManualClock(START_MS / 1000 + 1)
        self.summariser = RecordingSummariser()
        self.decoder: Any = codec.ColumnarDecoder(registry, EVENT)
        publisher = Publisher(
            self.sink,
            predictions_topic="predictions",
            dead_letters_topic="dead-letters",
            summaries_topic="summaries",
            prediction_encoder=codec.ColumnarEncoder(prediction, registry.register("predictions-value", prediction)),
            encode_summary=lambda summary: str(summary.events).encode(),
            clock=self.clock,
            record_bytes_max={"predictions": prediction_bytes_max} if prediction_bytes_max else None,
        )
        self.flow = Flow(
            decoder=self,
            served=Served(
                Lane(
                    self.model,
                    Validator(CONTRACT, id_field="id", time_field="at", slice_fields=slice_fields),
                    publisher,
                    batch_max=settings.pop("batch_max", 1024),
                    clock=self.clock,
                    summariser=self.summariser,
                )
            ),
            publisher=publisher,
            observer=self.observer,
            settings=FlowSettings(**{"retry_backoff_ms": 0.0, **settings}),
            clock=self.clock,
        )

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Any decoder a test puts in place."""
        decoded: Decoded = self.decoder.decode(values)
        return decoded

    def events(self, *xs: float | None, partition: int = 0, first: int = 0) -> RecordBatch:
        """Valid events with x as given; the id is partition:offset."""
        values = [self.encode(id=f"{partition}:{first + i}", at=START_MS + first + i, x=x) for i, x in enumerate(xs)]
        return record_batch(values, partition=partition, first_offset=first, timestamp_ms=START_MS)

    async def run(self, source: ScriptedSource) -> None:
        try:
            await asyncio.wait_for(self.flow.run(source, source.more_waiting), 20)
        finally:
            self.flow.close()

    def predictions(self) -> list[dict[str, Any]]:
        return [self.rows.decode(record.value) for record in self.sink.to("predictions")]


@pytest.fixture
def setup(tmp_path: Path) -> Callable[..., Setup]:
    return lambda *args, **settings: Setup(tmp_path / "registry", *args, **settings)


def exactly(value: float) -> float:
    return float(np.float32(value))


async def test_a_prediction_says_everything_about_its_event(setup: Callable[..., Setup]) -> None:
    """Id, time, model, outputs, label, source, time of scoring; the key is the event's; all is acknowledged."""
    s = setup()
    source = ScriptedSource([s.events(0.25, 0.5, partition=3, first=7)])
    await s.run(source)
    first, second = s.predictions()
    assert {k: v for k, v in first.items() if k not in ("event_time", "produced_at")} == {
        "event_id": "3:7",
        "model_id": "scripted",
        "model_version": "1",
        "role": "champion",
        "outputs": [0.25, 0.25],
        "label": "no",
        "partition": 3,
        "offset": 7,
        "slices": {},
        "calibration_id": None,
        "uncalibrated_outputs": None,
    }
    assert [r.key for r in s.sink.to("predictions")] == [b"7", b"8"]
    assert second["offset"] == 8
    assert source.unacked == []
    assert s.observer.read == {"events": 2}
    assert s.observer.scored_by == {s.model.identity: 2}
    assert s.observer.seconds_since["event"] == pytest.approx([1 - 0.007, 1 - 0.008])
    assert s.observer.seconds_since["broker"] == pytest.approx([1.0, 0.999])


async def test_slices_travel_with_the_prediction(setup: Callable[..., Setup]) -> None:
    """As text, without nulls, each with its own event: also where others of the step were refused."""
    s = setup(slice_fields=("device", "trial"))
    devices = ["ios", None, "web", "tv"]
    values = [
        s.encode(id=str(i), at=START_MS, x=None if i == 2 else 0.5, device=device, trial=i > 0)
        for i, device in enumerate(devices)
    ]
    values.insert(1, b"broken")
    await s.run(ScriptedSource([record_batch(values)]))
    assert len(s.sink.to("dead-letters")) == 2
    assert [(p["event_id"], p["slices"]) for p in s.predictions()] == [
        ("0", {"device": "ios", "trial": "false"}),
        ("1", {"trial": "true"}),
        ("3", {"device": "tv", "trial": "true"}),
    ]


async def test_a_slice_never_costs_a_prediction(setup: Callable[..., Setup]) -> None:
    """A long value is cut; what is too large for the topic goes without slices; only what still is, is refused."""
    s = setup(slice_fields=("device",), prediction_bytes_max=600)
    values = [s.encode(id=id_, at=START_MS, x=0.5, device="d" * 1_000) for id_ in ("a", "b" * 300, "c" * 600)]
    await s.run(ScriptedSource([record_batch(values)]))
    assert [(p["event_id"][0], p["slices"]) for p in s.predictions()] == [("a", {"device": "d" * 128}), ("b", {})]
    (letter,) = s.sink.to("dead-letters")
    assert letter.value == values[2]


async def test_what_waits_is_taken_together(setup: Callable[..., Setup]) -> None:
    """All that waits goes in one step, over partitions; the model gets batch_max rows; behind a pause is the next."""
    s = setup(batch_max=4)
    source = ScriptedSource(
        [s.events(0.1, 0.2), s.events(0.3, 0.4, 0.5, partition=1), PAUSE, s.events(0.6, first=2)],
    )
    await s.run(source)
    assert s.observer.batches == [5, 1]
    assert s.model.calls == [4, 1, 1]
    assert [p["event_id"] for p in s.predictions()] == ["0:0", "0:1", "1:0", "1:1", "1:2", "0:2"]


async def test_a_step_takes_no_more_than_step_max(setup: Callable[..., Setup]) -> None:
    """Once step_max is reached the rest waits for the next step; a larger delivery is not cut."""
    s = setup(step_max=3)
    batches = [s.events(0.1, 0.2), s.events(0.3, 0.4, first=2), s.events(0.5, first=4), s.events(*[0.5] * 5, first=5)]
    await s.run(ScriptedSource(batches))
    assert s.observer.batches == [4, 6]


@pytest.mark.parametrize(("linger_ms", "steps"), [(10_000.0, [2]), (0.0, [1, 1])])
async def test_linger_waits_for_more_and_without_it_nobody_waits(
    setup: Callable[..., Setup], linger_ms: float, steps: list[int]
) -> None:
    """With linger, what comes a moment later is in the same step; without, the first is done before it comes."""
    s = setup(step_max=2, linger_ms=linger_ms)
    source = ScriptedSource([s.events(0.1)], ends=False)
    running = asyncio.ensure_future(s.run(source))
    await source.until(lambda: len(source.handed_out) == 1 and (linger_ms > 0 or not source.unacked))
    await source.push(s.events(0.2, first=1))
    await source.until(lambda: len(source.handed_out) == 2 and not source.unacked)
    running.cancel()
    assert s.observer.batches == steps


async def test_what_seemed_to_wait_and_vanished_holds_nothing_up(setup: Callable[..., Setup]) -> None:
    """A rebalance empties the queue after the flow saw more in it: what it holds is done all the same."""
    s = setup()
    source = ScriptedSource([s.events(0.1), VANISH, s.events(0.2, first=1)])
    await s.run(source)
    assert source.unacked == []
    assert len(s.predictions()) == 2


async def test_a_failing_model_is_tried_again_with_growing_waits(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises twice and then works: one prediction per event, waits that double, two retries reported."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    s = setup(ScriptedModel(CONTRACT, raise_on=frozenset({0.5}), raise_times=2), retry_backoff_ms=100, retries_max=3)
    source = ScriptedSource([s.events(0.5)])
    monkeypatch.setattr(asyncio, "sleep", note)
    await s.run(source)
    assert [w for w in waits if w] == [0.1, 0.2]
    assert s.observer.retries == 2
    assert len(s.predictions()) == 1
    assert source.unacked == []


async def test_a_model_that_keeps_failing_ends_the_flow_with_nothing_acknowledged(setup: Callable[..., Setup]) -> None:
    """Retries used up: ScoringError names the batch; no output of it was sent; what was done before stays done."""
    s = setup(ScriptedModel(CONTRACT, raise_on=frozenset({0.5})), retries_max=2)
    source = ScriptedSource([s.events(0.25), PAUSE, s.events(0.5, 0.25, first=1), s.events(0.25, partition=1)])
    with pytest.raises(ScoringError, match=r"after 3 tries on the batch at events\[0\]@1, events\[1\]@0"):
        await s.run(source)
    assert s.model.calls == [1, 3, 3, 3]
    assert [d.value.first_offset for d in source.unacked] == [1, 0]
    assert len(s.sink.sent) == 1


async def test_a_sink_that_refuses_ends_the_flow_with_nothing_acknowledged(setup: Callable[..., Setup]) -> None:
    """DeliveryError goes out unchanged, without a retry."""
    s = setup()
    s.sink.fail()
    source = ScriptedSource([s.events(0.1)])
    with pytest.raises(DeliveryError):
        await s.run(source)
    assert len(source.unacked) == 1
    assert s.model.calls == [1]


async def test_a_source_that_breaks_leaves_what_was_not_scored_unacknowledged(setup: Callable[..., Setup]) -> None:
    """The error goes out; EOF, on the other hand, is a clean end behind which nothing is played."""
    s = setup()
    source = ScriptedSource([s.events(0.1), PAUSE, ABORT])
    with pytest.raises(AbortedError):
        await s.run(source)
    assert source.unacked == []
    s = setup()
    source = ScriptedSource([s.events(0.1), EOF, s.events(0.2, first=1)])
    await s.run(source)
    assert [d.acked for d in source.handed_out] == [True]


async def test_an_aborted_transaction_leaves_its_batches_to_be_called_back(setup: Callable[..., Setup]) -> None:
    """Outputs withdrawn while sending: nothing is acknowledged until the batch is called back; then it is let go."""
    s = setup()
    s.sink.fail(TransactionAbortedError("told to"))
    source = ScriptedSource([s.events(0.1)], ends=False)
    called_back: list[Any] = []
    running = asyncio.ensure_future(s.flow.run(source, source.more_waiting, lambda d: d not in called_back))
    await source.until(lambda: len(source.handed_out) == 1)
    while not s.model.calls:  # noqa: ASYNC110 (the scoring thread has no event to wait for)
        await asyncio.sleep(0)
    async with s.flow.between_steps():  # as the commit that follows: it finds the batch not done
        assert [d.acked for d in source.handed_out] == [False]
        s.flow.forget()
        called_back += source.handed_out
    await source.push(s.events(0.1))
    await source.until(lambda: len(source.handed_out) == 2 and not source.unacked)
    running.cancel()
    s.flow.close()
    assert len(s.predictions()) == 1


async def test_what_was_called_back_is_not_scored(setup: Callable[..., Setup]) -> None:
    """A batch that is no longer current is let go without a prediction: it will be delivered again."""
    s = setup()
    source = ScriptedSource([s.events(0.1), s.events(0.2, first=1)])
    await asyncio.wait_for(s.flow.run(source, source.more_waiting, lambda d: d.value.first_offset == 1), 20)
    s.flow.close()
    assert [p["event_id"] for p in s.predictions()] == ["0:1"]
    assert source.unacked == []


async def test_nan_outputs_are_dead_letters_of_their_rows_alone(setup: Callable[..., Setup]) -> None:
    """The model returns NaN for one row: that one is a dead letter, its neighbours are predictions."""
    s = setup(ScriptedModel(CONTRACT, nan_on=frozenset({0.5})))
    await s.run(ScriptedSource([s.events(0.25, 0.5, 0.75)]))
    assert [p["event_id"] for p in s.predictions()] == ["0:0", "0:2"]
    assert [r.key for r in s.sink.to("predictions")] == [b"0", b"2"]
    (letter,) = s.sink.to("dead-letters")
    assert letter.key == b"1"
    assert dict(letter.headers or ())["pipeline.reason"] == b"output_not_finite"
    assert s.observer.rejections == {(Stage.SCORE, Reason.OUTPUT_NOT_FINITE): 1}


async def test_a_broken_record_becomes_a_dead_letter_with_its_bytes_and_where_it_came_from(
    setup: Callable[..., Setup],
) -> None:
    """Key, bytes and foreign headers untouched; ours say topic, partition, offset, stage, reason, version, time."""
    s = setup()
    good, broken = s.events(0.25), b"\x00\x00\x00\x03\xe7not avro"
    values = [good.values[0], broken, None]
    headers: Any = [None, [("trace", b"\x00\x01"), ("pipeline.attempt", b"2"), ("pipeline.reason", b"old")], None]
    batch = record_batch(values, partition=2, first_offset=40, keys=[b"a", b"\xff", None], headers=headers)
    await s.run(ScriptedSource([batch]))
    letter, tombstone = s.sink.to("dead-letters")
    assert (letter.key, letter.value) == (b"\xff", broken)
    found = dict(letter.headers or ())
    assert letter.headers is not None
    assert letter.headers[0] == ("trace", b"\x00\x01")
    assert len(found) == len(letter.headers), "none twice"
    assert found.pop("__connect.errors.exception.message")
    assert found == {
        "trace": b"\x00\x01",
        "__connect.errors.topic": b"events",
        "__connect.errors.partition": b"2",
        "__connect.errors.offset": b"41",
        "__connect.errors.stage": b"decode",
        "__connect.errors.class.name": b"pipeline.records.Reject",
        "pipeline.reason": b"unknown_schema",
        "pipeline.schema.id": b"999",
        "pipeline.version": __version__.encode(),
        "pipeline.time": b"2023-11-14T22:13:21.000+00:00",
        "pipeline.attempt": b"2",
    }
    assert (tombstone.key, tombstone.value) == (None, None)
    assert dict(tombstone.headers or ())["pipeline.reason"] == b"tombstone"
    assert len(s.predictions()) == 1


async def test_rejects_of_every_stage_keep_the_order_of_their_records(setup: Callable[..., Setup]) -> None:
    """Undecodable, null and NaN in one batch: one dead letter each, in the records' order."""
    s = setup(ScriptedModel(CONTRACT, nan_on=frozenset({0.5})))
    values = [s.events(0.5).values[0], b"", s.events(None).values[0], s.events(0.25).values[0]]
    await s.run(ScriptedSource([record_batch(values)]))
    reasons = [dict(r.headers or ())["pipeline.reason"] for r in s.sink.to("dead-letters")]
    assert reasons == [b"output_not_finite", b"empty_value", b"null_feature"]
    assert len(s.predictions()) == 1


async def test_a_batch_of_nothing_but_broken_records_is_acknowledged(setup: Callable[..., Setup]) -> None:
    """No call of the model, one dead letter each, no prediction."""
    s = setup()
    source = ScriptedSource([record_batch([None, b"", b"x"])])
    await s.run(source)
    assert s.model.calls == []
    assert len(s.sink.to("dead-letters")) == 3
    assert s.sink.to("predictions") == []
    assert source.unacked == []


async def test_an_absent_registry_is_waited_for(setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the model's retries would last: nothing is rejected, nothing is lost, no retry is counted."""
    s = setup(retries_max=1)
    real, times = s.decoder, 5

    class Away:
        def decode(self, values: Sequence[bytes | None]) -> Decoded:
            nonlocal times
            times -= 1
            if times >= 0:
                raise UnreachableError("the registry is away")
            decoded: Decoded = real.decode(values)
            return decoded

    s.decoder = Away()
    source = ScriptedSource([s.events(0.25)])
    await s.run(source)
    assert times == -1
    assert len(s.predictions()) == 1
    assert s.observer.retries == 0
    assert source.unacked == []


async def test_order_per_partition_is_the_inputs(setup: Callable[..., Setup]) -> None:
    """Many small batches of three partitions, mixed: each partition's predictions are in the order of its offsets."""
    s = setup(step_max=7, batch_max=5)
    script = [s.events(0.1, 0.2, 0.3, partition=i % 3, first=i // 3 * 3) for i in range(30)]
    await s.run(ScriptedSource(script))
    for partition in range(3):
        offsets = [p["offset"] for p in s.predictions() if p["partition"] == partition]
        assert offsets == list(range(30))


async def test_a_commit_waits_for_the_step_and_sends_its_summaries_first(setup: Callable[..., Setup]) -> None:
    """`between_steps`: entered once the step under way is done; summaries of all steps before are in the sink then."""
    s = setup(ScriptedModel(CONTRACT, hang_on=frozenset({0.5})))
    source = ScriptedSource([s.events(0.25, 0.5)])
    running = asyncio.ensure_future(s.flow.run(source, source.more_waiting))
    await asyncio.to_thread(s.model.hanging.wait)
    seen: list[tuple[int, int]] = []

    async def commit() -> None:
        async with s.flow.between_steps():
            seen.append((len(source.unacked), len(s.sink.to("summaries"))))

    committing = asyncio.ensure_future(commit())
    await asyncio.sleep(0.01)
    assert seen == []
    s.model.release()
    await asyncio.gather(running, committing)
    assert seen == [(0, 1)]
    assert s.sink.to("summaries")[0].value == b"2"


async def test_a_full_sink_holds_the_step_up_and_loses_nothing(setup: Callable[..., Setup]) -> None:
    """While the local queue is full nothing is acknowledged; with room again all of it is done."""
    s = setup()
    s.sink.fill()
    source = ScriptedSource([s.events(0.25)])
    running = asyncio.ensure_future(s.run(source))
    await asyncio.to_thread(s.sink.waiting.wait)
    assert len(source.unacked) == 1
    s.sink.make_room()
    await running
    assert len(s.predictions()) == 1
    assert source.unacked == []


async def test_summaries_get_one_row_a_record_with_its_signals(setup: Callable[..., Setup]) -> None:
    """Scored, rejected and null records: values where there are some, NaN elsewhere; event times where known."""
    s = setup()
    batch = record_batch([*s.events(0.25, None).values, b""], first_offset=5, timestamp_ms=START_MS + 100)
    await s.run(ScriptedSource([batch]))
    ((topic, partition, offsets, times, matrix),) = s.summariser.added
    assert (topic, partition, offsets) == ("events", 0, [5, 6, 7])
    assert times == [START_MS, START_MS + 1, START_MS + 102]
    nan = np.nan
    expected = [[0.25, 0.25, 0, 0, 0], [nan, nan, nan, 1, 1], [nan, nan, nan, nan, 1]]
    np.testing.assert_array_equal(matrix, np.array(expected, dtype=np.float32))


async def test_a_cancelled_flow_leaves_its_work_unacknowledged(setup: Callable[..., Setup]) -> None:
    """Cancelled in the middle of a step: the batch stays with whoever comes next."""
    s = setup(ScriptedModel(CONTRACT, hang_on=frozenset({0.5})))
    source = ScriptedSource([s.events(0.5), s.events(0.25, first=1)])
    running = asyncio.ensure_future(s.run(source))
    await asyncio.to_thread(s.model.hanging.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [d.acked for d in source.handed_out] == [False] * len(source.handed_out)
    s.model.release()


def test_queue_waits_asks_the_streams_queue() -> None:
    """Whether a Faust stream has its next event at hand is whether its channel's queue is not empty."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    stream = type("Stream", (), {"channel": type("Channel", (), {"queue": queue})})
    waits = queue_waits(stream)
    assert not waits()
    queue.put_nowait(1)
    assert waits()


async def test_too_much_bad_input_stops_before_it_is_sent(setup: Callable[..., Setup]) -> None:
    """The step that passes the limit sends nothing and is not acknowledged; what came before is."""
    s = setup(step_max=4)
    s.flow._input_limit = InputLimit(0.5, 8, 4)
    garbage = record_batch([b"garbage"] * 4, partition=0, first_offset=4, timestamp_ms=START_MS)
    more = record_batch([b"garbage"] * 4, partition=0, first_offset=8, timestamp_ms=START_MS)
    source = ScriptedSource([s.events(0.1, 0.2, 0.3, 0.4), garbage, more])
    with pytest.raises(InputRefusedError, match=r"8 of the latest 8 events are bad.*@8"):
        await s.run(source)
    assert len(s.predictions()) == 4
    assert len(s.sink.to("dead-letters")) == 4
    assert [d.value for d in source.unacked] == [more]
