"""Labels and predictions in any order, through commits, aborts, crashes and lost stores: each pair comes out once."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import codec
from pipeline.labels import LabelStation, Store
from pipeline.labels.station import Outgoing
from pipeline.records import RecordBatch, TopicPartition

PREDICTIONS, LABELS = "t.predictions", "t.labels"
TOPICS = {"p": TopicPartition(PREDICTIONS, 0), "l": TopicPartition(LABELS, 0)}
EVENTS = [f"event-{n}" for n in range(2)]
NOW_S = 1_000_000.0


class Formats:
    """The three record formats, as the pipeline writes and reads them."""

    def __init__(self, folder: Path) -> None:
        registry = codec.FileRegistry(folder)
        schemas = {name: codec.load_schema(name) for name in ("prediction", "label", "outcome")}
        self._ids = {name: registry.register(f"{name}-value", schema) for name, schema in schemas.items()}
        self._schemas, self.rows = schemas, codec.RowCodec(registry)
        self.predictions = codec.ColumnarDecoder(registry, schemas["prediction"])
        self.labels = codec.ColumnarDecoder(registry, schemas["label"])
        self.outcomes = codec.ColumnarEncoder(schemas["outcome"], self._ids["outcome"])

    def prediction(self, event_id: str, offset: int) -> bytes:
        """What a worker writes."""
        record = {"event_id": event_id, "event_time": 5_000, "model_id": "m", "model_version": "1", "role": "champion"}
        record |= {"outputs": [0.25, 0.75], "label": "yes", "partition": 0, "offset": offset, "produced_at": 6_000}
        record |= {"slices": {"region": event_id}, "calibration_id": "c0ffee", "uncalibrated_outputs": [0.125, 0.875]}
        return self.rows.encode(self._ids["prediction"], self._schemas["prediction"], record)

    def label(self, event_id: str, label: str) -> bytes:
        """What a producer of labels writes."""
        record = {"event_id": event_id, "label": label, "value": None, "time": 9_000}
        return self.rows.encode(self._ids["label"], self._schemas["label"], record)


@dataclass
class Delivery:
    """A batch on its way to the station."""

    value: RecordBatch
    generation: int
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def ack(self) -> None:
        self.done.set()


class Counter:
    """Notes what the station reports."""

    def __init__(self) -> None:
        self.results: dict[str, int] = {}
        self.delays: list[float] = []

    def labels(self, result: str, n: int) -> None:
        if n:
            self.results[str(result)] = self.results.get(str(result), 0) + n

    def label_delays(self, seconds: Any) -> None:
        self.delays += seconds.tolist()

    def labels_waiting(self, keys: int) -> None: ...


class Process:
    """A station with its store, and its task."""

    def __init__(self, world: "World", path: Path) -> None:
        self.store = Store(path, source="here", wait_s=3600.0)
        self.station = LabelStation(
            self.store,
            predictions_topic=PREDICTIONS,
            labels_topic=LABELS,
            predictions=world.formats.predictions,
            labels=world.formats.labels,
            outcomes=world.formats.outcomes,
            wait_s=3600.0,
            clock=lambda: NOW_S,
            observer=world.counter,
        )
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.task = asyncio.ensure_future(self.station.run(self._deliveries(), world, world.send))

    async def _deliveries(self) -> AsyncIterator[Delivery]:
        while True:
            yield await self.queue.get()

    async def kill(self) -> None:
        """Without closing anything: what was sealed and not written is gone."""
        self.task.cancel()
        await asyncio.wait({self.task})
        self.store._sealed = {}
        self.store.close()


class World:
    """Two logs, a group's offsets and an open transaction; Place for the stations of two processes, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stores = folder, 2
        self.formats = Formats(folder / "registry")
        self.logs: dict[TopicPartition, list[bytes]] = {tp: [] for tp in TOPICS.values()}
        self.offsets: dict[TopicPartition, int] = {}
        self.position = dict.fromkeys(TOPICS.values(), 0)
        self.generation = 0
        self.open: list[bytes] = []
        self.outcomes: list[dict[str, Any]] = []
        self.counter = Counter()
        self.paths = [folder / "store-0", folder / "store-1"]
        self.processes = [Process(self, path) for path in self.paths]
        self.owner = 0

    @property
    def process(self) -> Process:
        """Whoever is assigned the partitions."""
        return self.processes[self.owner]

    # -- what the station asks ----------------------------------------------------------------

    def is_current(self, delivery: Any) -> bool:
        return bool(delivery.generation == self.generation)

    def reading(self, delivery: Any) -> object:
        return delivery.generation

    async def committed(self) -> Mapping[TopicPartition, int]:
        return dict(self.offsets)

    def since(self, tp: TopicPartition, time_ms: int) -> int:
        return 0

    def read(self, tp: TopicPartition, start: int, end: int) -> Iterable[RecordBatch]:
        for at in range(start, end, 2):
            yield self.batch(tp, at, min(at + 2, end))

    async def commit(self) -> None:
        async with self.process.station.between_batches:
            self.offsets.update({tp: offset for tp, offset in self.position.items() if offset})
            self.outcomes += [self.formats.rows.decode(value) for value in self.open]
            self.open = []
            self.process.station.keep()

    async def send(self, batch: RecordBatch, outgoing: Outgoing) -> None:
        assert not outgoing.rejects
        assert len(outgoing.keys) == len(outgoing.outcomes)
        assert set(outgoing.keys) <= set(batch.keys)
        self.open += outgoing.outcomes

    # -- what happens to it -------------------------------------------------------------------

    def batch(self, tp: TopicPartition, start: int, end: int) -> RecordBatch:
        values: list[bytes | None] = list(self.logs[tp][start:end])
        keys: list[bytes | None] = [b"key-%d" % n for n in range(start, end)]
        return RecordBatch(*tp, list(range(start, end)), keys, values, [1_000] * (end - start))

    async def deliver(self, tp: TopicPartition, n: int) -> None:
        start, end = self.position[tp], min(self.position[tp] + n, len(self.logs[tp]))
        if end > start:
            delivery = Delivery(self.batch(tp, start, end), self.generation)
            process = self.process
            process.queue.put_nowait(delivery)
            waiting = asyncio.ensure_future(delivery.done.wait())
            await asyncio.wait({waiting, process.task}, return_when=asyncio.FIRST_COMPLETED)
            if process.task.done():
                process.task.result()
            self.position[tp] = end

    def abort(self) -> None:
        self.process.station.drop()
        self._back()

    def rebalance(self) -> None:
        """A generation of its own; what is open stays open, as its partition stays."""
        self.generation += 1

    async def move(self) -> None:
        """The partitions go to the other process, which may have had them before."""
        await self.commit()
        self.owner = 1 - self.owner
        self.generation += 1

    async def crash(self, *, lose_store: bool) -> None:
        """Another process takes the place of the one that was killed, and its store."""
        await self.process.kill()
        if lose_store:
            self.paths[self.owner] = self.folder / f"store-{self.stores}"
            self.stores += 1
        self._back()
        self.processes[self.owner] = Process(self, self.paths[self.owner])

    def _back(self) -> None:
        self.generation += 1
        self.open = []
        self.position = {tp: self.offsets.get(tp, 0) for tp in TOPICS.values()}


STEPS = st.one_of(
    st.tuples(st.just("predict"), st.sampled_from(EVENTS)),
    st.tuples(st.just("label"), st.sampled_from(EVENTS), st.sampled_from(["yes", "no"])),
    st.tuples(st.just("deliver"), st.sampled_from(["p", "l"]), st.integers(1, 4)),
    st.tuples(st.sampled_from(["commit", "abort", "rebalance"])),
    st.tuples(st.sampled_from(["commit", "move", "crash", "crash and lose the store"])),
)


async def _step(world: World, what: str, *more: Any) -> None:
    match what:
        case "predict":
            world.logs[TOPICS["p"]].append(world.formats.prediction(more[0], EVENTS.index(more[0])))
        case "label":
            world.logs[TOPICS["l"]].append(world.formats.label(*more))
        case "deliver":
            await world.deliver(TOPICS[more[0]], more[1])
        case "commit":
            await world.commit()
        case "abort":
            world.abort()
        case "rebalance":
            world.rebalance()
        case "move":
            await world.move()
        case _:
            await world.crash(lose_store="lose" in what)


async def _play(steps: list[tuple[Any, ...]], folder: Path) -> World:
    world = World(folder)
    for step in steps:
        await _step(world, *step)
    for tp in TOPICS.values():
        await world.deliver(tp, len(world.logs[tp]))
    await world.commit()
    for process in world.processes:
        await process.kill()
    return world


@example(
    [
        ("predict", "event-0"),
        ("deliver", "p", 1),
        ("commit",),
        ("label", "event-0", "yes"),
        ("deliver", "l", 1),
        ("abort",),
    ]
)
@example(
    [
        ("predict", "event-0"),
        ("deliver", "p", 1),
        ("commit",),
        ("crash and lose the store",),
        ("label", "event-0", "yes"),
    ]
)
@example([("label", "event-0", "no"), ("deliver", "l", 1), ("rebalance",), ("predict", "event-0"), ("move",)])
@given(st.lists(STEPS, min_size=8, max_size=50))
@settings(deadline=None, max_examples=200)
def test_each_pair_comes_out_once_with_the_first_label(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = asyncio.run(_play(steps, Path(folder)))
    predicted = {step[1] for step in steps if step[0] == "predict"}
    first: dict[str, str] = {}
    for step in steps:
        if step[0] == "label":
            first.setdefault(step[1], step[2])
    expected = {event_id: label for event_id, label in first.items() if event_id in predicted}
    assert {o["event_id"]: o["label"] for o in world.outcomes} == expected
    assert len(world.outcomes) == len(expected)
    for outcome in world.outcomes:
        assert outcome["predicted"] == "yes"
        assert outcome["slices"] == {"region": outcome["event_id"]}
        assert (outcome["calibration_id"], outcome["uncalibrated_outputs"]) == ("c0ffee", [0.125, 0.875])
        assert outcome["offset"] == EVENTS.index(outcome["event_id"])
        np.testing.assert_allclose(outcome["outputs"], [0.25, 0.75])
    # Each label was counted as one thing, in the commit that it came with.
    labels = sum(step[0] == "label" for step in steps)
    kinds = world.counter.results
    met_as_prediction = kinds.get("matched", 0) - len(expected)
    assert met_as_prediction == 0
    assert kinds.get("early", 0) + kinds.get("duplicate", 0) + kinds.get("conflicting", 0) <= labels
    assert world.counter.delays == [4.0] * len(expected)
