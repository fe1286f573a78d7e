"""The station's state survives every crash: no trigger is lost, none is repeated, no event counts twice."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from benchmarks.drift import IDENTITY, monitor_for, stationary, summaries
from pipeline.drift import DriftMonitor, MonitorStation, SignalSummariser, summary_to_dict
from pipeline.drift.station import FORMAT
from pipeline.errors import ContractError, DeliveryError, FencedError, SchemaError
from pipeline.records import Baseline, RecordBatch, RetrainingTrigger


def decode(value: bytes) -> dict[str, Any]:
    """JSON stands for Avro here; the station does not care."""
    try:
        row: dict[str, Any] = json.loads(value)
    except ValueError as error:
        raise SchemaError(f"undecodable: {error}") from error
    return row


@pytest.fixture(scope="module")
def stream() -> tuple[Baseline, list[RecordBatch]]:
    """Fetched batches of a summaries topic with a drift in the middle; some offsets are missing."""
    rows, baseline, generator = stationary("normal", 0.0, 40, 12_000)
    rows[6_000:, 1] += 2.0
    values = [
        json.dumps(summary_to_dict(s)).encode()
        for _, s in summaries(rows, SignalSummariser(baseline, IDENTITY), generator, drain=(100, 300))
    ]
    batches = []
    for start in range(0, len(values), 10):
        part = values[start : start + 10]
        offsets = [3 * (start + i) for i in range(len(part))]
        batches.append(RecordBatch("p.batch-summaries", 0, offsets, [None] * len(part), list(part), [0] * len(part)))
    return baseline, batches


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


class Log:
    """Kafka as the station sees it: what a transaction holds becomes visible at a commit, with the offset, or never."""

    def __init__(self, batches: list[RecordBatch]) -> None:
        self.batches = batches
        self.committed: int | None = None
        self.triggers: list[RetrainingTrigger] = []
        self._open: list[RetrainingTrigger] = []
        self._next_offset = 0

    async def send(self, trigger: RetrainingTrigger) -> None:
        self._open.append(trigger)

    def commit(self) -> None:
        self.triggers += self._open
        self.committed = self._next_offset
        self._open = []

    def abort(self) -> None:
        self._open = []

    def read(self, start: int, end: int) -> Iterator[RecordBatch]:
        """Batches of the topic from `start` to `end`."""
        for batch in self.batches:
            rows = [i for i, offset in enumerate(batch.offsets) if start <= offset < end]
            if rows:
                parts = [[column[i] for i in rows] for column in (batch.offsets, batch.keys, batch.values)]
                yield RecordBatch(batch.topic, 0, *parts, [0] * len(rows))

    async def run(self, station: MonitorStation, batches: int = 1_000_000, dies_at: str = "") -> None:
        """Up to so many batches, one a commit, from where the group is; power is lost at a step of the last."""
        station.resume(self.committed, self.read)
        for batch in list(self.read(self.committed or 0, 1_000_000))[:batches]:
            await station.take(batch, self.send)
            self._next_offset = batch.next_offset
            if dies_at == "before the commit":
                break
            self.commit()
            if dies_at == "before the save":
                break
            station.keep()
        self.abort()


@pytest.fixture(autouse=True)
def _saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.drift.station.SAVE_EVERY_S", 0.0)


@pytest.fixture
def open_station(tmp_path: Path) -> Iterator[Callable[..., MonitorStation]]:
    """Opens the station of a baseline's monitor, the one before being gone with its process."""
    opened: list[MonitorStation] = []

    def open_one(monitor: Baseline | DriftMonitor, **options: Any) -> MonitorStation:
        close()
        monitor = monitor_for(monitor) if isinstance(monitor, Baseline) else monitor
        opened.append(MonitorStation(monitor, tmp_path / "monitor.state", decode, **options))
        return opened[-1]

    def close() -> None:
        while opened:
            opened.pop().close()

    yield open_one
    close()


Open = Callable[..., MonitorStation]
Stream = tuple[Baseline, list[RecordBatch]]


@pytest.fixture
async def expected(stream: Stream, tmp_path: Path) -> list[RetrainingTrigger]:
    """The trigger of an uninterrupted run."""
    baseline, batches = stream
    whole = Log(batches)
    station = MonitorStation(monitor_for(baseline), tmp_path / "whole" / "monitor.state", decode)
    await whole.run(station)
    station.close()
    assert len(whole.triggers) == 1
    assert station.events_seen == 12_000
    return whole.triggers


@pytest.mark.parametrize("dies_at", ["", "before the commit", "before the save"])
async def test_power_lost_at_any_batch_changes_nothing(
    stream: Stream, open_station: Open, expected: list[RetrainingTrigger], dies_at: str
) -> None:
    """Each batch in a new process, after one that died on it: the triggers and counts of an uninterrupted run."""
    baseline, batches = stream
    topic = Log(batches)
    for _ in batches:
        if dies_at:
            await topic.run(open_station(baseline), 1, dies_at)
        await topic.run(open_station(baseline), 1 if dies_at != "before the save" else 0)
    assert topic.triggers == expected
    assert open_station(baseline).events_seen == 12_000


@pytest.mark.parametrize("lost_after", [1, 0.5, 0.9])
async def test_a_lost_state_is_rebuilt_and_sends_nothing_twice(
    stream: Stream, open_station: Open, expected: list[RetrainingTrigger], tmp_path: Path, lost_after: float
) -> None:
    """The file is gone, before or after the trigger: the summaries on the topic bring everything back."""
    baseline, batches = stream
    topic = Log(batches)
    await topic.run(open_station(baseline), int(len(batches) * lost_after))
    (tmp_path / "monitor.state").unlink()
    await topic.run(open_station(baseline))
    assert topic.triggers == expected
    assert open_station(baseline).events_seen == 12_000


async def test_a_lost_state_is_rebuilt_from_a_bounded_number_of_summaries(
    stream: Stream, open_station: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long topic is not read from its beginning."""
    baseline, batches = stream
    topic = Log(batches)
    await topic.run(open_station(baseline))
    (tmp_path / "monitor.state").unlink()
    monkeypatch.setattr("pipeline.drift.station.REBUILD_SUMMARIES_MAX", 30)
    await topic.run(again := open_station(baseline))
    assert 0 < again.events_seen < 6_000
    assert len(topic.triggers) == 1


async def test_an_abort_goes_back_to_what_was_saved(
    stream: Stream, open_station: Open, expected: list[RetrainingTrigger]
) -> None:
    """In one process: whatever was fed since the last commit is fed again, its trigger sent again."""
    baseline, batches = stream
    topic, station = Log(batches), open_station(baseline)
    for _ in batches:
        await topic.run(station, 1, "before the commit")
        await topic.run(station, 1)
    assert topic.triggers == expected
    assert station.events_seen == 12_000


async def test_a_state_that_is_seldom_saved_is_brought_up(
    stream: Stream, open_station: Open, expected: list[RetrainingTrigger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved at a trigger only: the rest of what was committed comes from the topic, and nothing is sent twice."""
    baseline, batches = stream
    monkeypatch.setattr("pipeline.drift.station.SAVE_EVERY_S", 1e9)
    topic, station = Log(batches), open_station(baseline)
    for _ in batches:
        await topic.run(station, 1, "before the commit")
        await topic.run(station, 1)
    assert topic.triggers == expected
    assert station.events_seen == 12_000
    again = open_station(baseline)  # the other has saved at its end
    assert again.events_seen == 12_000


async def test_a_refused_trigger_is_not_taken_for_sent(stream: Stream, open_station: Open) -> None:
    """What send raises reaches the caller, who does not acknowledge."""
    baseline, batches = stream
    station = open_station(baseline)

    async def refuse(_trigger: RetrainingTrigger) -> None:
        raise DeliveryError("refused")

    async def take_all() -> None:
        for batch in batches:
            await station.take(batch, refuse)

    with pytest.raises(DeliveryError):
        await take_all()
    assert station.keep() == []


async def test_a_state_has_one_monitor(stream: Stream, open_station: Open, tmp_path: Path) -> None:
    """While one holds it a second is refused; once it has ended the next one may."""
    baseline, _ = stream
    first = open_station(baseline)
    with pytest.raises(FencedError, match="another monitor keeps its state there"):
        MonitorStation(monitor_for(baseline), tmp_path / "monitor.state", decode)
    first.close()
    first.close()
    MonitorStation(monitor_for(baseline), tmp_path / "monitor.state", decode).close()


async def nowhere(_trigger: RetrainingTrigger) -> None:
    """Sends nothing."""


async def test_values_that_are_no_summaries_are_skipped(stream: Stream, open_station: Open, logs: list[Any]) -> None:
    """Garbage, a tombstone, a row without fields and a foreign model's summary: logged, counted, passed over."""
    baseline, batches = stream
    foreign = json.dumps({**json.loads(batches[0].values[0] or b""), "model_version": "7"}).encode()
    bad = RecordBatch("p.batch-summaries", 0, [0, 1, 2, 3], [None] * 4, [b"{", None, b"{}", foreign], [0] * 4)
    station = open_station(baseline)
    await station.take(bad, nowhere)
    assert (station.undecodable, station.skipped) == (3, 1)
    assert [line["where"] for line in logs] == [f"p.batch-summaries[0]@{i}" for i in range(4)]


async def test_summaries_below_the_saved_offset_are_skipped(stream: Stream, open_station: Open) -> None:
    """A group whose offsets were set back: what was counted comes again and is not even decoded."""
    baseline, batches = stream
    topic = Log(batches)
    await topic.run(open_station(baseline), 1)
    topic.committed = 0
    await topic.run(again := open_station(baseline), 1)
    assert again.skipped == len(batches[0])


async def test_damaged_state_is_set_aside_and_rebuilt(
    stream: Stream, open_station: Open, tmp_path: Path, logs: list[Any]
) -> None:
    """Truncated, flipped, empty or foreign bytes: keep the file, say so, rebuild from the topic."""
    baseline, batches = stream
    path, topic = tmp_path / "monitor.state", Log(batches)
    await topic.run(first := open_station(baseline), 1)
    good = path.read_bytes()
    for bad in (good[:-1], b"", b"\x00" * 100, good[:500] + bytes([good[500] ^ 1]) + good[501:]):
        path.write_bytes(bad)
        again = open_station(baseline)
        assert (tmp_path / "monitor.bad").read_bytes() == bad
        assert logs[-1]["reason"] == "it is damaged"
        again.resume(topic.committed, topic.read)
        assert again.events_seen == first.events_seen


async def test_state_of_another_model_keeps_its_place_only(stream: Stream, open_station: Open, logs: list[Any]) -> None:
    """Detectors begin anew for the new version, and read on from where the old one was."""
    baseline, batches = stream
    topic = Log(batches)
    await topic.run(open_station(baseline), 1)
    newer = DriftMonitor(baseline, pipeline="bench", model_id="bench", model_version="2")
    restarted = open_station(newer)
    assert logs[-1]["reason"] == "it belongs to another model version or baseline"
    restarted.resume(topic.committed, topic.read)
    topic.committed = 0
    await topic.run(restarted, 1)
    assert restarted.skipped == len(batches[0])
    assert newer.events_seen == 0


async def test_state_of_another_cluster_or_river_is_not_continued(
    stream: Stream, open_station: Open, tmp_path: Path, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets of another cluster mean nothing here; another River's detector state might."""
    baseline, batches = stream
    await Log(batches).run(open_station(baseline, source="a"), 1)
    await Log(batches).run(other := open_station(baseline, source="b"), 1)
    assert other.skipped == 0
    monkeypatch.setattr("pipeline.drift.state_file.river_version", lambda: "99")
    open_station(baseline, source="b")
    monkeypatch.setattr("pipeline.drift.station.FORMAT", 99)
    (tmp_path / "monitor.bad").replace(tmp_path / "monitor.state")
    open_station(baseline, source="b")
    assert [line["reason"].split(",")[0] for line in logs if "reason" in line] == [
        "it belongs to another cluster or topic",
        "its detectors are of River " + json.loads((tmp_path / "monitor.bad").read_bytes().split(b"\n")[1])["river"],
        f"its format is {FORMAT}",
    ]


async def test_what_is_committed_is_reported(stream: Stream, open_station: Open) -> None:
    """Events, latest means and alarms reach the observer, once, whatever was aborted in between."""

    class Observer:
        def __init__(self) -> None:
            self.events = 0
            self.names: set[str] = set()
            self.alarms: list[str] = []

        def monitor_events(self, n: int) -> None:
            self.events += n

        def drift_signal(self, name: str, value: float) -> None:
            self.names.add(name)

        def alarm(self, signal: str) -> None:
            self.alarms.append(signal)

    baseline, batches = stream
    observer, topic = Observer(), Log(batches)
    station = open_station(baseline, observer=observer)
    for _ in batches:
        await topic.run(station, 1, "before the commit")
        await topic.run(station, 1)
    assert observer.events == 12_000
    assert len(observer.names) == 16 + 16  # features, and how each goes with the others
    assert observer.alarms == [s.signal for t in topic.triggers for s in t.signals]


async def test_a_folder_that_cannot_be_written_is_an_error(
    stream: Stream, open_station: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At start and at every save the message names the setting and the path."""
    baseline, batches = stream
    (tmp_path / "file").write_text("")
    with pytest.raises(ContractError, match=r"drift.state_dir: .*file"):
        MonitorStation(monitor_for(baseline), tmp_path / "file" / "monitor.state", decode)
    (tmp_path / "monitor.state").mkdir()
    with pytest.raises(ContractError, match="cannot be read"):
        open_station(baseline)
    (tmp_path / "monitor.state").rmdir()
    station = open_station(baseline)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    await station.take(batches[0], nowhere)
    with pytest.raises(ContractError, match="No space left on device"):
        station.keep()


async def test_the_monitor_of_a_new_champion_takes_over_at_its_first_summary(
    stream: Stream, open_station: Open, logs: list[Any]
) -> None:
    """Each event of the new version counts once; stragglers of the old one not at all; a restart goes on with it."""
    baseline, batches = stream
    old = batches[:20]
    new = [
        RecordBatch(b.topic, 0, b.offsets, b.keys, [as_version("2", v) for v in b.values], b.timestamps_ms)
        for b in batches[20:]
    ]
    straggler = old[-1].values[-1]
    mixed = new[0]
    new[0] = RecordBatch(mixed.topic, 0, mixed.offsets, mixed.keys, [straggler, *mixed.values[1:]], mixed.timestamps_ms)
    deliveries = [Delivered(batch) for batch in (*old, *new)]
    asked: list[tuple[str, str]] = []

    class Place:
        commits = 0

        def is_current(self, _delivery: Any) -> bool:
            return True

        def reading(self, _delivery: Any) -> int:
            return 1

        async def committed(self, _delivery: Any) -> None:
            return None

        async def commit(self) -> None:
            self.commits += 1

        async def successor(self, model_id: str, version: str) -> DriftMonitor | None:
            asked.append((model_id, version))
            return DriftMonitor(baseline, pipeline="bench", model_id=model_id, model_version=version)

        def read(self, _start: int, _end: int) -> Iterator[RecordBatch]:
            return iter(())

    place, station = Place(), open_station(baseline)
    await station.run(_each(deliveries), place, nowhere)
    expected_events = sum(decode(v)["events"] for b in new for v in b.values if decode(v)["model_version"] == "2")
    assert station.events_seen == expected_events
    assert (asked, place.commits) == ([("bench", "2")], 1)
    assert all(delivery.acked for delivery in deliveries)
    station.keep()
    successor = DriftMonitor(baseline, pipeline="bench", model_id="bench", model_version="2")
    assert open_station(successor).events_seen == expected_events


def as_version(version: str, value: bytes | None) -> bytes:
    """A summary as that of another version's events."""
    return json.dumps({**decode(value or b""), "model_version": version}).encode()


class Delivered:
    """A fetched batch."""

    def __init__(self, value: RecordBatch) -> None:
        self.value, self.acked = value, False

    def ack(self) -> None:
        self.acked = True


async def _each(deliveries: list[Delivered]) -> AsyncIterator[Delivered]:
    for delivery in deliveries:
        yield delivery
