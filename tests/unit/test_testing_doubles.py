"""The shipped test doubles do what they say: a double that lies makes every test with it worthless."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.errors import DeliveryError, DrainTimeoutError, ScoringError
from pipeline.records import Feature, FeatureContract, ModelIdentity, OutputContract, Reason, Stage
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
    Sent,
    record_batch,
)

BATCH = record_batch([b"a", b"b"], first_offset=3)
CONTRACT = FeatureContract((Feature("x", "number"),), OutputContract("regression", 2))


async def next_soon(source: ScriptedSource) -> "asyncio.Task[object]":
    """Ask for the next delivery, and give the source every chance to answer."""
    task = asyncio.ensure_future(anext(source))
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def test_a_source_plays_its_script() -> None:
    """Batches in order, `more_waiting` in between, and the end where the script ends."""
    source = ScriptedSource([BATCH, BATCH])
    assert source.more_waiting()
    assert [d.value async for d in source] == [BATCH, BATCH]
    assert not source.more_waiting()
    assert len(source.unacked) == 2


async def test_eof_ends_and_abort_breaks() -> None:
    """Nothing behind EOF is played; ABORT raises."""
    assert [d.value async for d in ScriptedSource([BATCH, EOF, BATCH])] == [BATCH]
    with pytest.raises(AbortedError):
        await anext(ScriptedSource([ABORT, BATCH]))


@pytest.mark.parametrize(("cue", "seems_to_wait"), [(PAUSE, False), (VANISH, True)])
async def test_a_pause_lasts_until_everything_is_acknowledged(cue: object, seems_to_wait: bool) -> None:
    """The next batch comes only then; whether one seemed to wait is the difference between the two cues."""
    source = ScriptedSource([BATCH, cue, BATCH])  # type: ignore[list-item]
    first = await anext(source)
    assert source.more_waiting() is seems_to_wait
    coming = await next_soon(source)
    assert not coming.done()
    assert first.ack()
    assert not first.ack()
    await asyncio.wait_for(coming, 5)


async def test_a_source_without_an_end_waits_for_more() -> None:
    """`push` wakes the reader, and `until` whoever waits for what the reader did."""
    source = ScriptedSource([], ends=False)
    coming = await next_soon(source)
    assert not coming.done()
    seen = asyncio.ensure_future(source.until(lambda: len(source.handed_out) == 1))
    await source.push(BATCH)
    await asyncio.wait_for(coming, 5)
    await asyncio.wait_for(seen, 5)


def test_a_record_batch_has_consecutive_offsets() -> None:
    """Offsets, keys and timestamps follow from the first offset."""
    assert (BATCH.offsets, BATCH.next_offset) == ([3, 4], 5)
    assert BATCH.keys == [b"3", b"4"]
    assert BATCH.timestamps_ms[1] - BATCH.timestamps_ms[0] == 1


def test_a_sink_remembers_in_order() -> None:
    """Batches and single records, with partition or headers where given."""
    sink = RecordingSink()
    sink.send_batch("a", [b"k", None], [b"1", None], partitions=[0, 1])
    sink.send("b", None, b"2", [("h", b"x")])
    sink.send_batch("a", [b"k"], [b"3"])
    assert sink.to("a") == [Sent("a", b"k", b"1", None, 0), Sent("a", None, None, None, 1), Sent("a", b"k", b"3")]
    assert sink.to("b") == [Sent("b", None, b"2", [("h", b"x")])]


def test_a_sink_fails_as_often_as_told_and_takes_nothing_then() -> None:
    """One error a call, in order, then it works again."""
    sink = RecordingSink()
    sink.fail()
    sink.fail(KeyError("x"))
    with pytest.raises(DeliveryError):
        sink.send("t", None, b"")
    with pytest.raises(KeyError):
        sink.send_batch("t", [None], [b""])
    sink.send("t", None, b"now")
    assert [s.value for s in sink.sent] == [b"now"]
    with pytest.raises(ValueError, match=r"longer|shorter"):
        sink.send_batch("t", [None], [b"", b""])


@pytest.mark.parametrize("door", ["batch", "single"])
def test_a_full_sink_makes_its_caller_wait(door: str) -> None:
    """Until there is room; or until it is closed, which is an error."""
    sink = RecordingSink()

    def call() -> None:
        sink.send_batch("t", [None], [b""]) if door == "batch" else sink.send("t", None, b"")

    with ThreadPoolExecutor(1) as pool:
        sink.fill()
        first = pool.submit(call)
        assert sink.waiting.wait(5)
        assert not first.done()
        sink.make_room()
        first.result(5)
        sink.fill()
        second = pool.submit(call)
        assert sink.waiting.wait(5)
        sink.close()
        with pytest.raises(DrainTimeoutError):
            second.result(5)
    assert len(sink.sent) == 1


def test_a_manual_clock_stands_still() -> None:
    """Until it is told to go on, and never back."""
    clock = ManualClock(10.0)
    assert clock() == clock() == 10.0
    clock.advance(2.5)
    assert clock() == 12.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def numbers(*xs: float) -> dict[str, np.ndarray]:
    return {"numbers": np.array([[x] for x in xs], dtype=np.float32)}


def test_a_scripted_model_computes_from_the_first_number() -> None:
    """Column j is x + j modulo 1, float32; chosen rows are NaN and no others."""
    model = ScriptedModel(CONTRACT, nan_on=frozenset({0.5}))
    outputs = model.score(numbers(0.25, 0.5))
    assert outputs.dtype == np.float32
    assert outputs[0].tolist() == [0.25, 0.25]
    assert np.isnan(outputs[1]).all()
    assert model.calls == [2]
    assert model.identity == ModelIdentity("scripted", "1")


def test_a_scripted_model_raises_as_often_as_told() -> None:
    """Only for a call with a chosen row, and only so many times."""
    model = ScriptedModel(CONTRACT, raise_on=frozenset({0.5}), raise_times=1)
    model.score(numbers(0.25))
    with pytest.raises(ScoringError):
        model.score(numbers(0.25, 0.5))
    model.score(numbers(0.5))
    for_ever = ScriptedModel(CONTRACT, raise_on=frozenset({0.5}))
    for _ in range(3):
        with pytest.raises(ScoringError):
            for_ever.score(numbers(0.5))


def test_a_scripted_model_hangs_until_released() -> None:
    """A call with a chosen row waits; afterwards none does."""
    model = ScriptedModel(CONTRACT, hang_on=frozenset({0.5}))
    thread = threading.Thread(target=model.score, args=(numbers(0.5),))
    thread.start()
    assert model.hanging.wait(5)
    assert thread.is_alive()
    model.release()
    thread.join(5)
    assert not thread.is_alive()
    model.score(numbers(0.5))


def test_an_observer_adds_up() -> None:
    """Everything it can be told is kept."""
    observer, identity = RecordingObserver(), ModelIdentity("m", "1")
    for _ in range(2):
        observer.events_read("t", 2)
        observer.scored(identity, 3)
        observer.rejected(Stage.DECODE, Reason.TOMBSTONE)
        observer.imputed("x:null", 4)
        observer.batch(5)
        observer.stage("decode", 0.1)
        observer.latencies("event", np.array([0.5]))
        observer.retried()
    assert observer.read == {"t": 4}
    assert observer.scored_by == {identity: 6}
    assert observer.rejections == {(Stage.DECODE, Reason.TOMBSTONE): 2}
    assert observer.imputations == {"x:null": 8}
    assert observer.batches == [5, 5]
    assert observer.stages == {"decode": 2}
    assert observer.seconds_since == {"event": [0.5, 0.5]}
    assert observer.retries == 2
