"""The drift monitor: batch summaries in, retraining triggers out."""

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import structlog

from pipeline import codec, drift, observe
from pipeline.bus import batch_topic, topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.errors import BundleError, ContractError
from pipeline.models import bundle as bundles
from pipeline.models.release_log import ReleaseLog
from pipeline.records import RecordBatch, TopicPartition
from pipeline.settings import Settings
from pipeline.topology.releases import refuse_early, release_log, released_bundle
from pipeline.topology.role import ConsumerPlace, Role, make_app, once_reachable, prepare_topics, until_fault
from pipeline.topology.triggers import Triggers, published

log = structlog.get_logger(__name__)

#: Before it is asked again whether a model whose summaries come is champion by now.
ASK_AGAIN_S = 1.0


def make_monitor(settings: Settings, bundle: bundles.Bundle) -> drift.DriftMonitor:
    """The monitor of a bundle's model."""
    return drift.DriftMonitor(
        bundle.baseline,
        pipeline=settings.name,
        model_id=bundle.model_id,
        model_version=bundle.model_version,
        settings=drift.MonitorSettings(
            settings.drift.delta, settings.drift.cooldown_events, settings.drift.window_events
        ),
        now_ms=lambda: int(time.time() * 1000),
    )


def _successor(
    settings: Settings, releases: ReleaseLog, schema: str, identity: tuple[str, str]
) -> drift.DriftMonitor | None:
    champion = releases.state().champion
    if champion is None or (champion.model_id, champion.model_version) != identity:
        return None
    try:
        return make_monitor(settings, released_bundle(settings, champion, schema))
    except (BundleError, ContractError) as error:
        log.warning("new champion cannot be watched", version=champion.model_version, error=str(error))
        return None


def make_station(
    settings: Settings, bundle: bundles.Bundle, metrics: observe.Metrics, decode: Callable[[bytes], dict[str, Any]]
) -> Any:
    """The drift monitor of the bundle's model, its state loaded, its folder held. Raises FencedError."""
    path = settings.path(settings.drift.state_dir) / "monitor.state"
    # Offsets mean something on one cluster and topic only, and not on a later topic of the same name.
    source = topics.identity(make_admin(ClientOptions.from_settings(settings)), settings.topic("batch_summaries"))
    return drift.MonitorStation(make_monitor(settings, bundle), path, decode, source=source, observer=metrics)


async def build_monitor(role: Role) -> None:
    """Wire the drift monitor: summaries in, one trigger a drift out; state saved when both are committed."""
    settings, metrics = role.settings, role.metrics
    schema = codec.event_schema(settings)
    releases = release_log(settings, ClientOptions.from_settings(settings))
    await asyncio.to_thread(refuse_early, lambda: released_bundle(settings, None, schema), releases)
    await prepare_topics(settings)
    bundle = await once_reachable(
        "waiting for the model", lambda: released_bundle(settings, releases.state().champion, schema)
    )
    triggers = await Triggers.registered(settings)
    decode = codec.RowCodec(codec.registry_of(settings)).decode
    station = await asyncio.to_thread(make_station, settings, bundle, metrics, decode)
    role.closers.append(station.close)

    def committed(outcome: str) -> None:
        if outcome == "ok":
            published(station.keep(), metrics)

    app = make_app(role, committed)

    summaries = settings.topic("batch_summaries")

    @app.agent(batch_topic(app, summaries))
    async def watch(stream: Any) -> None:
        app.consumer.commit_guard = lambda: station.between_batches
        place = _Summaries(app, summaries, lambda *identity: _successor(settings, releases, schema, identity))
        await until_fault(role, station.run(stream.noack().events(), place, partial(triggers.send, app)))


class _Summaries(ConsumerPlace):
    """What the station asks of the consumer (drift.station.Place)."""

    def __init__(self, app: Any, topic: str, successor: Callable[..., drift.DriftMonitor | None]) -> None:
        super().__init__(app)
        self._tp, self._find_successor = TopicPartition(topic, 0), successor
        #: Identity -> when it was last asked for: the old champion's last summaries are no reason to ask each time.
        self._asked_at: dict[tuple[str, str], float] = {}

    async def committed(self, _delivery: Any) -> int | None:
        return (await self.offsets()).get(self._tp)

    async def successor(self, model_id: str, model_version: str) -> drift.DriftMonitor | None:
        identity, now = (model_id, model_version), time.monotonic()
        if now - self._asked_at.get(identity, -ASK_AGAIN_S) < ASK_AGAIN_S:
            return None
        self._asked_at[identity] = now
        return await once_reachable("waiting for the new model", lambda: self._find_successor(*identity))

    def read(self, start: int, end: int) -> Iterator[RecordBatch]:
        return self.records(self._tp, start, end)
