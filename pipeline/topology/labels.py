"""The labels role: predictions and labels in, outcomes and the dead letters of malformed labels out."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import codec, labels
from pipeline.bus import batch_topic, topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.limits import record_bytes_max
from pipeline.records import RecordBatch, Stage, TopicPartition
from pipeline.scoring.dead_letters import NO_LIMIT, DeadLetters
from pipeline.settings import Settings
from pipeline.topology.role import ConsumerPlace, LateSink, Role, make_app, once_reachable, prepare_topics, until_fault


async def build_labels(role: Role) -> None:
    """Wire the join: each label to its prediction, outcomes in one transaction with the offsets of both."""
    settings = role.settings
    await prepare_topics(settings)
    predictions, waiting = settings.topic("predictions"), settings.topic("labels")
    outcomes, dead = settings.topic("outcomes"), settings.topic("dead_letters")
    station = await _make_station(role)
    options = ClientOptions.from_settings(settings)
    limits = await asyncio.to_thread(record_bytes_max, make_admin(options), options, [dead])

    def committed(outcome: str) -> None:
        if outcome == "ok":
            station.keep()

    app = make_app(role, committed, companions={waiting: predictions})
    sink = LateSink(lambda: app.producer.batch)
    dead_letters = DeadLetters(sink, dead, time.time, limits.get(dead, NO_LIMIT))

    def hand_over(batch: RecordBatch, outgoing: Any) -> None:
        if outgoing.outcomes:
            sink.send_batch(outcomes, outgoing.keys, outgoing.outcomes)
        for reject in outgoing.rejects:
            role.metrics.rejected(Stage.LABEL, reject.reason)
            row, headers = reject.row, batch.headers
            source = (batch.topic, batch.partition, batch.offsets[row])
            dead_letters.send(reject, source, batch.keys[row], batch.values[row], headers[row] if headers else None)

    async def send(batch: RecordBatch, outgoing: Any) -> None:
        await asyncio.to_thread(hand_over, batch, outgoing)

    @app.agent(batch_topic(app, waiting, predictions))
    async def join(stream: Any) -> None:
        app.consumer.commit_guard, app.consumer.on_aborted = lambda: station.between_batches, station.drop
        await until_fault(role, station.run(stream.noack().events(), _Joined(app, settings), send))


async def _make_station(role: Role) -> labels.LabelStation:
    """The join on its store, which this slot of this machine holds from now on. Raises FencedError."""
    settings = role.settings
    registry = codec.registry_of(settings)
    schemas = {name: codec.load_schema(name) for name in ("prediction", "label", "outcome")}

    def register() -> int:
        subject = f"{settings.topic('labels')}-value"
        if registry.latest(subject) is None:  # so that whoever learns labels finds it there
            registry.register(subject, schemas["label"])
        return registry.register(f"{settings.topic('outcomes')}-value", schemas["outcome"])

    outcome_id = await once_reachable("waiting for the registry", register)

    def identity() -> str:
        admin = make_admin(ClientOptions.from_settings(settings))
        return " ".join(topics.identity(admin, settings.topic(role)) for role in topics.COPARTITIONED_ROLES)

    source = await once_reachable("waiting for the broker", identity)
    wait_s = settings.labels.wait_hours * 3600
    path = settings.path(settings.labels.state_dir) / f"labels-{role.slot}"
    store = await asyncio.to_thread(lambda: labels.Store(path, source=source, wait_s=wait_s))
    station = labels.LabelStation(
        store,
        predictions_topic=settings.topic("predictions"),
        labels_topic=settings.topic("labels"),
        predictions=codec.ColumnarDecoder(registry, schemas["prediction"]),
        labels=codec.ColumnarDecoder(registry, schemas["label"]),
        outcomes=codec.ColumnarEncoder(schemas["outcome"], outcome_id),
        wait_s=wait_s,
        clock=time.time,
        observer=role.metrics,
    )
    role.closers.append(station.close)
    return station


class _Joined(ConsumerPlace):
    """What the station asks of the consumer (labels.station.Place)."""

    def __init__(self, app: Any, settings: Settings) -> None:
        super().__init__(app)
        self._admin = make_admin(ClientOptions.from_settings(settings))

    async def committed(self) -> Mapping[TopicPartition, int]:
        return await self.offsets()

    def since(self, tp: TopicPartition, time_ms: int) -> int:
        return topics.offset_since(self._admin, tp, time_ms)

    def read(self, tp: TopicPartition, start: int, end: int) -> Iterator[RecordBatch]:
        return self.records(tp, start, end)
