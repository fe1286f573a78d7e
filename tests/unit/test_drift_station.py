"""The station's state survives every crash: no trigger is lost, a repeated one has the same id."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from benchmarks.drift import IDENTITY, monitor_for, stationary, summaries
from pipeline.drift import DriftMonitor, MonitorStation, SignalSummariser, summary_to_dict
from pipeline.drift.station import FORMAT
from pipeline.errors import ContractError, DeliveryError, SchemaError
from pipeline.records import Baseline, RecordBatch, RetrainingTrigger


class Power(BaseException):
    """Stands for the machine stopping: nothing handles it."""


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


class Topic:
    """Where triggers go; loses power or refuses at the n-th publish."""

    def __init__(self, fail_at: int | None = None, failure: BaseException | None = None) -> None:
        self.triggers: list[RetrainingTrigger] = []
        self._calls = 0
        self._fail_at = fail_at
        self._failure = failure or Power()

    async def publish(self, trigger: RetrainingTrigger) -> None:
        if self._calls == self._fail_at:
            raise self._failure
        self._calls += 1
        self.triggers.append(trigger)


def _station(baseline: Baseline, folder: Path, **options: Any) -> MonitorStation:
    return MonitorStation(monitor_for(baseline), folder / "monitor.state", decode, **options)


async def _take_all(station: MonitorStation, batches: list[RecordBatch], publish: Any) -> None:
    for batch in batches:
        await station.take(batch, publish)


async def _expected(stream: tuple[Baseline, list[RecordBatch]], folder: Path) -> list[RetrainingTrigger]:
    baseline, batches = stream
    station, topic = _station(baseline, folder / "whole"), Topic()
    for batch in batches:
        await station.take(batch, topic.publish)
    assert len(topic.triggers) == 1
    return topic.triggers


async def test_a_restart_after_every_batch_changes_nothing(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path
) -> None:
    """Each batch in a new process: the triggers are those of one uninterrupted run."""
    expected = await _expected(stream, tmp_path)
    baseline, batches = stream
    topic = Topic()
    for batch in batches:
        station = _station(baseline, tmp_path)
        await station.republish(topic.publish)
        await station.take(batch, topic.publish)
    assert topic.triggers == expected


async def test_power_lost_before_publishing_publishes_after_the_restart(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path
) -> None:
    """The trigger waits in the saved outbox; the batch, read again, gives no second one."""
    expected = await _expected(stream, tmp_path)
    baseline, batches = stream
    with pytest.raises(Power):
        await _take_all(_station(baseline, tmp_path), batches, Topic(fail_at=0).publish)
    again, topic = _station(baseline, tmp_path), Topic()
    assert [t.trigger_id for t in again.outbox] == [expected[0].trigger_id]
    await again.republish(topic.publish)
    assert again.outbox == ()
    await _take_all(again, batches, topic.publish)
    assert topic.triggers == expected


async def test_power_lost_before_saving_reads_the_batch_again(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old state is whole, and the same batch gives the same trigger."""
    expected = await _expected(stream, tmp_path)
    baseline, batches = stream
    topic = Topic()
    for batch in batches:
        doomed = _station(baseline, tmp_path)
        monkeypatch.setattr("os.fsync", _no_power)
        with pytest.raises(Power):
            await doomed.take(batch, topic.publish)
        monkeypatch.undo()
        await _station(baseline, tmp_path).take(batch, topic.publish)
    assert topic.triggers == expected


def _no_power(_descriptor: int) -> None:
    raise Power


async def test_power_lost_after_publishing_repeats_the_same_id(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, but the cleared outbox was not saved: published once more, and recognisable."""
    expected = await _expected(stream, tmp_path)
    baseline, batches = stream
    topic = Topic()
    station = _station(baseline, tmp_path)

    async def publish(trigger: RetrainingTrigger) -> None:
        await topic.publish(trigger)
        monkeypatch.setattr("os.fsync", _no_power)

    with pytest.raises(Power):
        await _take_all(station, batches, publish)
    monkeypatch.undo()
    await _station(baseline, tmp_path).republish(topic.publish)
    assert [t.trigger_id for t in topic.triggers] == [expected[0].trigger_id] * 2


async def test_a_refused_trigger_stays_in_the_outbox(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path
) -> None:
    """What publish raises reaches the caller, who does not acknowledge; nothing is dropped."""
    baseline, batches = stream
    station = _station(baseline, tmp_path)
    topic = Topic(fail_at=0, failure=DeliveryError("refused"))
    with pytest.raises(DeliveryError):
        await _take_all(station, batches, topic.publish)
    assert len(station.outbox) == 1


async def test_values_that_are_no_summaries_are_skipped(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, logs: list[Any]
) -> None:
    """Garbage, a tombstone, a row without fields and a foreign model's summary: logged, counted, passed over."""
    baseline, batches = stream
    foreign = json.dumps({**json.loads(batches[0].values[0] or b""), "model_version": "7"}).encode()
    bad = RecordBatch("p.batch-summaries", 0, [0, 1, 2, 3], [None] * 4, [b"{", None, b"{}", foreign], [0] * 4)
    station = _station(baseline, tmp_path)
    await station.take(bad, Topic().publish)
    assert (station.undecodable, station.skipped) == (3, 1)
    assert [line["where"] for line in logs] == [f"p.batch-summaries[0]@{i}" for i in range(4)]


async def test_summaries_below_the_saved_offset_are_skipped(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path
) -> None:
    """Offsets that were not committed in time come again; they are not even decoded."""
    baseline, batches = stream
    await _station(baseline, tmp_path).take(batches[0], Topic().publish)
    again = _station(baseline, tmp_path)
    await again.take(batches[0], Topic().publish)
    assert again.skipped == len(batches[0])


async def test_damaged_state_is_set_aside(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, logs: list[Any]
) -> None:
    """Truncated, flipped, empty or foreign bytes: begin anew, keep the file, say so."""
    baseline, batches = stream
    path = tmp_path / "monitor.state"
    await _station(baseline, tmp_path).take(batches[0], Topic().publish)
    good = path.read_bytes()
    for bad in (good[:-1], b"", b"\x00" * 100, good[:500] + bytes([good[500] ^ 1]) + good[501:]):
        path.write_bytes(bad)
        _station(baseline, tmp_path)
        assert (tmp_path / "monitor.bad").read_bytes() == bad
        assert logs[-1]["reason"] == "it is damaged"


async def test_state_of_another_model_keeps_offsets_and_outbox_only(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, logs: list[Any]
) -> None:
    """Detectors begin anew for the new version; a trigger that was promised is still published."""
    baseline, batches = stream
    station = _station(baseline, tmp_path)
    with pytest.raises(Power):
        await _take_all(station, batches, Topic(fail_at=0).publish)
    newer = DriftMonitor(baseline, pipeline="bench", model_id="bench", model_version="2")
    restarted, topic = MonitorStation(newer, tmp_path / "monitor.state", decode), Topic()
    assert logs[-1]["reason"] == "it belongs to another model version or baseline"
    assert restarted.outbox == station.outbox
    assert MonitorStation(newer, tmp_path / "monitor.state", decode).outbox == station.outbox
    await restarted.republish(topic.publish)
    await restarted.take(batches[0], topic.publish)
    assert len(topic.triggers) == 1
    assert restarted.skipped == len(batches[0])
    assert newer.events_seen == 0


async def test_state_of_another_cluster_or_river_is_not_continued(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets of another cluster mean nothing here; another River's detector state might."""
    baseline, batches = stream
    await _station(baseline, tmp_path, source="a").take(batches[0], Topic().publish)
    other = _station(baseline, tmp_path, source="b")
    await other.take(batches[0], Topic().publish)
    assert other.skipped == 0
    monkeypatch.setattr("pipeline.drift.station._river_version", lambda: "99")
    _station(baseline, tmp_path, source="b")
    monkeypatch.setattr("pipeline.drift.station.FORMAT", 99)
    (tmp_path / "monitor.bad").replace(tmp_path / "monitor.state")
    _station(baseline, tmp_path, source="b")
    assert [line["reason"].split(",")[0] for line in logs if "reason" in line] == [
        "it belongs to another cluster or topic",
        "its detectors are of River " + json.loads((tmp_path / "monitor.bad").read_bytes().split(b"\n")[1])["river"],
        f"its format is {FORMAT}",
    ]


async def test_what_is_seen_is_reported(stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path) -> None:
    """Events, latest means and alarms reach the observer."""

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
    observer, topic = Observer(), Topic()
    station = _station(baseline, tmp_path, observer=observer)
    for batch in batches:
        await station.take(batch, topic.publish)
    assert observer.events == 12_000
    assert len(observer.names) == 16
    assert observer.alarms == [s.signal for t in topic.triggers for s in t.signals]


async def test_a_folder_that_cannot_be_written_is_an_error(
    stream: tuple[Baseline, list[RecordBatch]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At start and at every save the message names the setting and the path."""
    baseline, batches = stream
    (tmp_path / "file").write_text("")
    with pytest.raises(ContractError, match=r"drift.state_dir: .*file"):
        _station(baseline, tmp_path / "file")
    (tmp_path / "monitor.state").mkdir()
    with pytest.raises(ContractError, match="cannot be read"):
        _station(baseline, tmp_path)
    (tmp_path / "monitor.state").rmdir()
    station = _station(baseline, tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ContractError, match="No space left on device"):
        await station.take(batches[0], Topic().publish)
