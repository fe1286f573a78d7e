"""The watch of errors survives every crash: no trigger is lost or repeated, in whatever order outcomes come again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from pipeline.drift.error_station import FORMAT, ErrorStation, trigger_of
from pipeline.drift.errors import WRONG, ErrorChange, ErrorWatch
from pipeline.errors import ContractError, FencedError
from pipeline.records import ModelIdentity, RetrainingTrigger, SignalEvidence, TopicPartition

MODEL = ModelIdentity("m", "1")
PARTITIONS, BATCH = 2, 200
#: Errors rise in the middle: 15 % to 35 %.
OUTCOMES = 8_000


def describe(change: ErrorChange, watch: ErrorWatch) -> RetrainingTrigger | None:
    return trigger_of(change, watch, pipeline="p", moved=[], window_events=20_000, now_ms=7)


class Topic:
    """Kafka as the station sees it: what a transaction holds becomes visible with the offsets, or never."""

    def __init__(self, errors: Any) -> None:
        #: Outcome i is in partition i % PARTITIONS.
        self.errors = errors
        self.committed: dict[TopicPartition, int] = {}
        self.triggers: list[RetrainingTrigger] = []
        self.open: list[RetrainingTrigger] = []

    async def send(self, trigger: RetrainingTrigger) -> None:
        self.open.append(trigger)

    def batches(self, start: dict[TopicPartition, int], end: dict[TopicPartition, int] | None = None) -> Iterator[Any]:
        """Partition, next offset and errors of BATCH outcomes each; partitions take turns."""
        per_partition = len(self.errors) // PARTITIONS
        for first in range(0, per_partition, BATCH):
            for partition in range(PARTITIONS):
                tp = TopicPartition("outcomes", partition)
                stop = per_partition if end is None else end.get(tp, 0)
                offsets = np.arange(max(first, start.get(tp, 0)), min(first + BATCH, stop))
                if len(offsets):
                    numbers = offsets * PARTITIONS + partition
                    yield tp, int(offsets[-1]) + 1, (offsets, numbers, self.errors[numbers])

    def resume(self, station: ErrorStation, waiting: int = 0) -> None:
        """Back to where the group is; what was committed comes again in another order, then so many that wait."""
        known = station.resume(self.committed)
        for batch in sorted(self.batches(dict(known or {}), self.committed), key=lambda found: found[0]):
            station.feed(*batch)
        for batch in [] if known is None else list(self.batches(self.committed))[:waiting]:
            station.feed(*batch)
        station.resumed(self.committed)

    async def run(self, station: ErrorStation, batches: int = 10**6, dies_at: str = "", waiting: int = 0) -> None:
        """Up to so many batches, one a commit, from where the group is; power is lost at a step of the last."""
        self.open = []
        self.resume(station, waiting)
        for tp, next_offset, errors in list(self.batches(self.committed))[:batches]:
            station.feed(tp, next_offset, errors)
            await station.send(tp, next_offset, self.send)
            if dies_at == "before the commit":
                return
            self.triggers += self.open
            self.open = []
            self.committed[tp] = next_offset
            if dies_at == "before the save":
                return
            station.keep()


def rising(seed: int = 1, after: float = 0.35) -> Any:
    random = np.random.default_rng(seed)
    rates = np.where(np.arange(OUTCOMES) < OUTCOMES // 2, 0.15, after)
    return (random.random(OUTCOMES) < rates).astype(np.float32)


@pytest.fixture
def open_station(tmp_path: Path) -> Iterator[Callable[..., ErrorStation]]:
    """Opens a station, the one before being gone with its process."""
    opened: list[ErrorStation] = []

    def open_one(watch: ErrorWatch | None = None, source: str = "here", **options: Any) -> ErrorStation:
        close()
        path = tmp_path / "quality.state"
        opened.append(ErrorStation(watch or ErrorWatch(MODEL, WRONG), path, describe, source=source, **options))
        return opened[-1]

    def close() -> None:
        while opened:
            opened.pop().close()

    yield open_one
    close()


Open = Callable[..., ErrorStation]


@pytest.fixture
def saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.drift.error_station.SAVE_EVERY_S", 0.0)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_a_rise_makes_one_trigger_with_its_evidence(open_station: Open) -> None:
    """Critical, dated where errors rose, with offsets of the outcomes topic; no other before or after."""
    topic = Topic(rising())
    await topic.run(open_station())
    (trigger,) = topic.triggers
    assert (trigger.severity, trigger.model_version, trigger.produced_at_ms) == ("critical", "1", 7)
    assert [s.signal for s in trigger.signals] == [WRONG]
    assert abs(trigger.change_event_time_ms - OUTCOMES // 2) < 300
    assert {r.topic for r in trigger.evidence} == {"outcomes"}
    assert "errors rose from" in trigger.advice
    assert "inputs did not" in trigger.advice
    assert 4_000 < trigger.events_seen < 5_500


@pytest.mark.parametrize("errors", [np.full(OUTCOMES, 0.0), rising(2, 0.15), rising(3, 0.02)])
async def test_steady_and_falling_errors_make_none(open_station: Open, errors: Any) -> None:
    """A model that never errs, one that errs as ever, and one that errs less."""
    topic = Topic(errors.astype(np.float32))
    await topic.run(open_station())
    assert topic.triggers == []


@pytest.mark.parametrize("save_every_s", [0.0, 1e9])
@pytest.mark.parametrize("dies_at", ["before the commit", "before the save"])
@pytest.mark.parametrize(("seed", "waiting"), [(1, 0), (4, 0), (1, 3)])
async def test_power_lost_at_any_batch_sends_one_trigger(
    open_station: Open, monkeypatch: pytest.MonkeyPatch, dies_at: str, save_every_s: float, seed: int, waiting: int
) -> None:
    """Each batch in a new process, after one that died on it; outcomes come again in another order, or beforehand."""
    monkeypatch.setattr("pipeline.drift.error_station.SAVE_EVERY_S", save_every_s)
    topic = Topic(rising(seed))
    rounds = OUTCOMES // BATCH
    for _ in range(rounds):
        await topic.run(open_station(), 1, dies_at, waiting)
        await topic.run(open_station(), 1 if dies_at == "before the commit" else 0, waiting=waiting)
    await topic.run(open_station())
    assert len(topic.triggers) == 1


@pytest.mark.usefixtures("saves_always")
async def test_an_aborted_trigger_is_sent_again(open_station: Open) -> None:
    """And the state written ahead of it is not taken for true once the group has passed it."""
    topic, station = Topic(rising()), open_station()
    topic.resume(station)
    for tp, next_offset, errors in topic.batches({}):
        station.feed(tp, next_offset, errors)
        await station.send(tp, next_offset, topic.send)
        if topic.open:
            break
        topic.committed[tp] = next_offset
        station.keep()
    before = dict(topic.committed)
    topic.resume(station)  # the transaction was aborted
    passed = dict.fromkeys(before, OUTCOMES // PARTITIONS)
    assert open_station().resume(passed) == before
    await topic.run(open_station())
    assert len(topic.triggers) == 1


async def test_a_change_found_while_reading_again_is_told_with_the_next_batch(open_station: Open) -> None:
    """Committed without it, as another order had it later; the state is not saved before it is sent."""
    topic, station = Topic(rising()), open_station()
    topic.resume(station)
    topic.committed = {TopicPartition("outcomes", p): OUTCOMES // PARTITIONS - BATCH for p in range(PARTITIONS)}
    station = open_station()
    topic.resume(station)
    assert station.keep() == []
    assert open_station().resume(topic.committed) == {}
    await topic.run(open_station(), 1)
    assert len(topic.triggers) == 1


async def test_what_waits_is_sent_and_saved_once_all_of_it_was_delivered(open_station: Open) -> None:
    """Fed beforehand, a trigger belongs to the transaction of the last outcomes that it may have come of."""
    topic, station = Topic(rising()), open_station()
    batches = list(topic.batches({}))
    topic.resume(station, waiting=len(batches))
    for tp, next_offset, errors in batches:
        assert topic.open == []
        assert station.position(tp) == OUTCOMES // PARTITIONS
        station.feed(tp, next_offset, errors)
        assert station.keep() == []
        await station.send(tp, next_offset, topic.send)
    assert len(topic.open) == 1
    assert station.keep() == topic.open


async def test_a_lost_state_is_made_again_and_says_nothing(open_station: Open, tmp_path: Path, logs: list[Any]) -> None:
    """What is read then was told; what comes after is watched as if nothing had been lost."""
    topic = Topic(rising())
    await topic.run(open_station())
    counted = open_station()
    topic.resume(counted)
    (tmp_path / "quality.state").unlink()
    again = open_station()
    topic.resume(again)
    assert again.watch.outcomes == counted.watch.outcomes
    await topic.run(open_station())
    assert len(topic.triggers) == 1
    assert any("is lost" in line["event"] for line in logs)


@pytest.mark.parametrize("spoil", ["damage", "format", "source"])
async def test_a_state_that_is_no_use_is_set_aside(
    open_station: Open, tmp_path: Path, logs: list[Any], spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason; the file is kept under another name."""
    await Topic(rising()).run(open_station(), 5)
    file = tmp_path / "quality.state"
    if spoil == "damage":
        file.write_bytes(file.read_bytes()[:-1])
    if spoil == "format":
        monkeypatch.setattr("pipeline.drift.error_station.FORMAT", FORMAT + 1)
    station = open_station(source="elsewhere" if spoil == "source" else "here")
    assert station.resume({}) == {}
    (line,) = [line for line in logs if line["event"].endswith("not used")]
    assert {"damage": "damaged", "format": "format", "source": "another cluster"}[spoil] in line["reason"]
    assert file.with_suffix(".bad").exists()


@pytest.mark.usefixtures("saves_always")
async def test_a_new_champion_is_watched_anew_from_where_the_old_one_was(open_station: Open) -> None:
    """Also after a restart that finds the old one's state, and after an abort at once."""
    topic = Topic(rising())
    await topic.run(open_station())
    other = ErrorWatch(ModelIdentity("m", "2"), WRONG)
    station = open_station(other)
    assert station.resume(topic.committed) == topic.committed
    assert station.watch.outcomes == 0
    station = open_station()
    topic.resume(station)
    station.replace(other)
    assert station.resume(topic.committed) == topic.committed
    assert (station.watch.identity.model_version, station.watch.outcomes) == ("2", 0)


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is held; a state that cannot be written ends the role."""
    path = tmp_path / "quality.state"
    first = ErrorStation(ErrorWatch(MODEL, WRONG), path, describe, source="")
    with pytest.raises(FencedError):
        ErrorStation(ErrorWatch(MODEL, WRONG), path, describe, source="")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ContractError, match="No space left"):
        first.resume({})
    first.close()


def test_inputs_that_moved_are_part_of_the_trigger() -> None:
    """They tell where to look; the errors come first."""
    moved = [SignalEvidence("feature:x", "adwin", 0.0, 1.0, 5_000, 500, 0.1, 0.3)]
    watch = ErrorWatch(MODEL, WRONG)
    watch.take("outcomes", 0, np.arange(3), np.array([5, 9, 7]), np.zeros(3, np.float32))
    evidence = SignalEvidence(WRONG, "adwin", 0.1, 0.2, 5_000, 500, 0.1, 0.3)
    found = trigger_of(ErrorChange(evidence, 0, 400, []), watch, pipeline="p", moved=moved, window_events=9, now_ms=1)
    assert found is not None
    assert [s.signal for s in found.signals] == [WRONG, "feature:x"]
    assert "and so did inputs" in found.advice
    assert found.detected_event_time_ms == 9
    assert json.dumps(found.advice)
