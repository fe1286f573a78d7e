"""Outcomes as the quality role takes them: in the order they were written, and of whoever is champion."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import codec
from pipeline.drift.error_station import ErrorStation, trigger_of
from pipeline.observe import Metrics
from pipeline.quality import OutcomeReader, in_turn
from pipeline.records import ModelIdentity, OutputContract, RecordBatch, RetrainingTrigger, TopicPartition
from pipeline.settings import Settings
from pipeline.topology.watching import Champion, Watching

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
FIRST = Champion(ModelIdentity("m", "1"), TWO, 0.0)
ROWS, PARTITIONS = 8_000, 2
SCHEMA = codec.load_schema("outcome")


class Registry:
    """Knows the outcomes' schema."""

    def schema(self, schema_id: int) -> str:
        assert schema_id == 7
        return SCHEMA

    def register(self, subject: str, schema: str) -> int:
        raise NotImplementedError(subject, schema)

    def latest(self, subject: str) -> tuple[int, str] | None:
        raise NotImplementedError(subject)


def topic(rates: list[float], versions: list[str]) -> list[RecordBatch]:
    """ROWS outcomes of versions one after the other, in PARTITIONS batches; rates: shares of wrong ones, likewise."""
    wrong = np.random.default_rng(1).random(ROWS) < np.repeat(rates, ROWS // len(rates))
    of = np.repeat(versions, ROWS // len(versions))
    rows = [
        {
            "event_id": f"e{n}",
            "model_id": "m",
            "model_version": str(of[n]),
            "role": "champion",
            "outputs": [0.9],
            "predicted": "yes",
            "label": "no" if wrong[n] else "yes",
            "event_time": n,
            "label_time": n,
            "predicted_at": n,
            "partition": 0,
            "offset": n,
            "slices": [],
        }
        for n in range(ROWS)
    ]
    columns = pa.RecordBatch.from_pylist(rows, schema=codec.arrow_schema(SCHEMA))
    values = codec.ColumnarEncoder(SCHEMA, 7).encode(columns)
    found = []
    for p in range(PARTITIONS):
        part = values[p::PARTITIONS]
        times = list(range(p, ROWS, PARTITIONS))
        found.append(RecordBatch("outcomes", p, list(range(len(part))), [None] * len(part), list(part), times))
    return found


class Delivered:
    def __init__(self, value: RecordBatch) -> None:
        self.value, self.acked = value, False

    def ack(self) -> None:
        self.acked = True


class Place:
    """A group that has committed nothing, and a topic."""

    def __init__(self, batches: list[RecordBatch], champions: dict[int, Champion] | None = None) -> None:
        """champions: who it is from which question on."""
        self._batches, self._champions = batches, champions or {}
        self.asked = self.commits = 0

    def is_current(self, _delivery: Any) -> bool:
        return True

    def reading(self, _delivery: Any) -> int:
        return 1

    async def committed(self) -> Mapping[TopicPartition, int]:
        return {}

    async def commit(self) -> None:
        self.commits += 1

    def bounds(self) -> Mapping[TopicPartition, tuple[int, int]]:
        return {TopicPartition(b.topic, b.partition): (0, b.next_offset) for b in self._batches}

    def since(self, tp: TopicPartition, time_ms: int) -> int:
        raise NotImplementedError(tp, time_ms)

    def read(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[RecordBatch]:
        for batch in self._batches:
            start, end = spans[TopicPartition(batch.topic, batch.partition)]
            assert (start, end) == (0, batch.next_offset)
            yield batch

    async def champion(self) -> Champion | None:
        self.asked += 1
        return next((c for since, c in sorted(self._champions.items(), reverse=True) if self.asked >= since), None)


class Run:
    """What a `Watching` of the first champion makes of batches."""

    def __init__(self, folder: Path) -> None:
        def describe(change: Any, watch: Any) -> RetrainingTrigger | None:
            return trigger_of(change, watch, pipeline="p", moved=[], window_events=1, now_ms=0)

        self.station = ErrorStation(FIRST.watch(0.002), folder / "quality.state", describe, source="")
        settings = Settings.model_validate({"topics": {"partitions": PARTITIONS}})
        self.watching = Watching(settings, FIRST, self.station, self._reader, Metrics())
        self.triggers: list[tuple[int, RetrainingTrigger]] = []
        self._delivered = 0

    def _reader(self, output: OutputContract) -> OutcomeReader:
        return OutcomeReader(codec.ColumnarDecoder(Registry(), SCHEMA), output, by_key=False)

    async def of(self, batches: list[RecordBatch], place: Place) -> None:
        async def each() -> AsyncIterator[Delivered]:
            for batch in batches:
                self._delivered += 1
                delivery = Delivered(batch)
                yield delivery
                assert delivery.acked

        async def send(trigger: RetrainingTrigger) -> None:
            self.triggers.append((self._delivered, trigger))

        await self.watching.run(each(), place, send)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.station.close()


async def test_a_backlog_is_watched_in_the_order_it_was_written(run: Run) -> None:
    """One partition is delivered before the other; the rise is one, dated, and told with the last of both."""
    batches = topic([0.1, 0.4], ["1"])
    await run.of(batches, Place(batches))
    ((delivered, trigger),) = run.triggers
    assert delivered == PARTITIONS
    assert abs(trigger.change_event_time_ms - ROWS // 2) < 300
    (version,) = run.watching.quality.report()["versions"]
    assert version["rows"] == ROWS  # each counted once


async def test_a_new_champion_is_watched_in_place_of_the_old_one(run: Run) -> None:
    """From when it is known; what is left of the old one is counted, and not watched."""
    batches = list(in_turn(topic([0.1, 0.1, 0.4, 0.1], ["1", "2"])))
    place = Place([], {len(batches) // 2: FIRST._replace(identity=ModelIdentity("m", "2"))})
    place.bounds = dict  # type: ignore[method-assign]
    await run.of(batches, place)
    assert run.station.watch.identity.model_version == "2"
    assert place.commits == 1
    assert run.station.watch.outcomes == ROWS // 2
    assert {v["model_version"]: v["rows"] for v in run.watching.quality.report()["versions"]} == {
        "1": 4_000,
        "2": 4_000,
    }
    assert run.triggers == []  # its errors fell


async def test_a_champion_with_other_classes_is_counted_anew(run: Run) -> None:
    """Outcomes mean something else then."""
    batches = list(in_turn(topic([0.1], ["1", "2"])))
    other = Champion(ModelIdentity("m", "2"), replace(TWO, classes=("yes", "no")), 0.0)
    place = Place([], {len(batches) // 2: other})
    place.bounds = dict  # type: ignore[method-assign]
    before = run.watching.quality
    await run.of(batches, place)
    assert run.watching.quality is not before
    assert run.watching.quality.counting.sums.output.classes == ("yes", "no")


def test_partitions_take_turns_by_time_and_keep_their_order() -> None:
    """A clock that goes back turns no offsets round."""

    def part(partition: int, times: list[int]) -> RecordBatch:
        n = len(times)
        return RecordBatch("t", partition, list(range(5, 5 + n)), [None] * n, [b"%d" % t for t in times], times)

    found = list(in_turn([part(0, [1, 900, 2, 3]), *[part(1, list(range(1_000)))]]))
    of_first = [offset for batch in found if batch.partition == 0 for offset in batch.offsets]
    assert of_first == [5, 6, 7, 8]
    place = next(i for i, batch in enumerate(found) if batch.partition == 0 and 6 in batch.offsets)
    assert any(batch.partition == 1 and 5 + 400 in batch.offsets for batch in found[:place])
    assert sum(map(len, found)) == 1_004
