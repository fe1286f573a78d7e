"""The quality role: outcomes in, how good the models are as metrics, and triggers where the champion's errors rise."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import structlog

from pipeline import codec, observe
from pipeline.bus import batch_topic, topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.reading import record_batches
from pipeline.drift.error_station import ErrorStation, trigger_of
from pipeline.drift.errors import ErrorChange, ErrorWatch
from pipeline.errors import (
    BundleError,
    ContractError,
    SchemaError,
    UnreachableError,
)
from pipeline.models.releases import ModelRelease, Releases
from pipeline.quality import OutcomeReader, origin_of
from pipeline.records import ModelIdentity, OutputContract, RecordBatch, RetrainingTrigger, SignalEvidence
from pipeline.records import TopicPartition as Tp
from pipeline.settings import Settings
from pipeline.topology.releases import Follower, refuse_early, release_log, released_bundle
from pipeline.topology.role import ConsumerPlace, Role, make_app, once_reachable, prepare_topics, until_fault
from pipeline.topology.triggers import Triggers, decoded, published
from pipeline.topology.watching import Champion, Watching

log = structlog.get_logger(__name__)

#: Between two reports: 64 slices take 0.1 s, 1 % of a core.
REPORT_EVERY_S = 10.0
#: Offsets at the end of the triggers topic in which the monitor's latest is looked for; every second one is a marker.
LATEST_TRIGGERS = 20


def champion_of(settings: Settings, release: ModelRelease | None, schema: str) -> Champion:
    """The model of a release, or of the settings. Raises BundleError; UnreachableError when it may be had later."""
    bundle = released_bundle(settings, release, schema)
    return Champion(
        ModelIdentity(bundle.model_id, bundle.model_version), bundle.contract.output, origin_of(bundle.baseline)
    )


async def build_quality(role: Role) -> None:
    """Wire the watch of outcomes: outcomes in, triggers out; state saved when both are committed."""
    settings, metrics = role.settings, role.metrics
    schema = codec.event_schema(settings)
    releases = release_log(settings, ClientOptions.from_settings(settings))
    await asyncio.to_thread(refuse_early, lambda: released_bundle(settings, None, schema), releases)
    await prepare_topics(settings)
    champion = await once_reachable(
        "waiting for the model", lambda: champion_of(settings, releases.state().champion, schema)
    )
    triggers = await Triggers.registered(settings)
    station = await asyncio.to_thread(_make_station, settings, champion, metrics)
    role.closers.append(station.close)
    watching = Watching(settings, champion, station, lambda output: _reader(settings, output), metrics)

    def committed(outcome: str) -> None:
        if outcome == "ok":
            published(station.keep(), metrics)

    app = make_app(role, committed)
    place = _Outcomes(app, settings, schema)
    role.closers.append(Follower(releases, place.told).close)

    @app.agent(batch_topic(app, settings.topic("outcomes")))
    async def watch(stream: Any) -> None:
        app.consumer.commit_guard = lambda: watching.between_batches
        await until_fault(role, watching.run(stream.noack().events(), place, partial(triggers.send, app)))

    @app.task
    async def report() -> None:
        await until_fault(role, _report_often(watching, _Coverage(settings), metrics))


async def _report_often(watching: Watching, coverage: "_Coverage", metrics: observe.Metrics) -> None:
    while True:
        await watching.report()
        share = await asyncio.to_thread(coverage.share, watching)
        if share is not None:
            metrics.label_coverage(share)
        await asyncio.sleep(REPORT_EVERY_S)


def _make_station(settings: Settings, champion: Champion, metrics: observe.Metrics) -> ErrorStation:
    """The watch of the champion's errors, its state loaded, its folder held. Raises FencedError."""
    evidence = _Evidence(settings)

    def describe(change: ErrorChange, watch: ErrorWatch) -> RetrainingTrigger | None:
        if not settings.drift.enabled:
            return None
        return trigger_of(
            change,
            watch,
            pipeline=settings.name,
            moved=evidence.moved(watch),
            window_events=settings.drift.window_events,
            now_ms=int(time.time() * 1000),
        )

    path = settings.path(settings.drift.state_dir) / "quality.state"
    source = topics.identity(make_admin(ClientOptions.from_settings(settings)), settings.topic("outcomes"))
    watch = champion.watch(settings.drift.delta)
    return ErrorStation(watch, path, describe, source=source, observer=metrics)


def _reader(settings: Settings, output: OutputContract) -> OutcomeReader:
    events = settings.events
    decoder = codec.ColumnarDecoder(codec.registry_of(settings), codec.load_schema("outcome"))
    return OutcomeReader(decoder, output, by_key=events.key_field not in (None, events.id_field))


class _Evidence:
    """What the drift monitor has found of late."""

    def __init__(self, settings: Settings) -> None:
        self._options, self._group = ClientOptions.from_settings(settings), settings.group("quality")
        self._topic = settings.topic("retraining_triggers")
        self._rows = codec.RowCodec(codec.registry_of(settings))

    def moved(self, watch: ErrorWatch) -> list[SignalEvidence]:
        """What the monitor has found to have moved, within the time of the watch's latest outcomes; [] if nothing."""
        earliest_ms, _ = watch.event_times_ms()
        model = (watch.identity.model_id, watch.identity.model_version)
        found: list[SignalEvidence] = []
        for trigger in self._latest():
            signals = [signal for signal in trigger.signals if not signal.signal.startswith("error:")]
            of_model = (trigger.model_id, trigger.model_version) == model
            if of_model and signals and trigger.change_event_time_ms >= earliest_ms:
                found = signals
        return found

    def _latest(self) -> Iterator[RetrainingTrigger]:
        marks = topics.watermarks(make_admin(self._options), self._topic)
        _, end = marks[Tp(self._topic, 0)]
        for batch in record_batches(self._options, self._group, self._topic, 0, max(0, end - LATEST_TRIGGERS), end):
            for value in batch.values:
                try:
                    yield decoded(self._rows, value)
                except SchemaError:
                    continue  # the retrainer says so


class _Coverage:
    """Share of the predictions within the window that have a label by now."""

    def __init__(self, settings: Settings) -> None:
        self._admin = make_admin(ClientOptions.from_settings(settings))
        self._topic = settings.topic("predictions")

    def share(self, watching: Watching) -> float | None:
        """None without a prediction, and while nobody answers. Transactions take offsets: it is a little too low."""
        since_ms = int(time.time() * 1000) - watching.window_ms
        try:
            marks = topics.watermarks(self._admin, self._topic)
            made = sum(end - topics.offset_since(self._admin, tp, since_ms) for tp, (_, end) in marks.items())
        except (ContractError, UnreachableError) as error:
            log.info("coverage cannot be told now", error=str(error))
            return None
        return min(1.0, watching.quality.labelled_since(since_ms) / made) if made else None


class _Outcomes(ConsumerPlace):
    """What `Watching` asks of the consumer, and of the releases (see Place)."""

    def __init__(self, app: Any, settings: Settings, schema: str) -> None:
        super().__init__(app)
        self._settings, self._schema = settings, schema
        self._admin = make_admin(ClientOptions.from_settings(settings))
        self._release: ModelRelease | None = None
        self._champion: Champion | None = None

    def told(self, state: Releases) -> None:
        """The releases are these now."""
        if state.champion != self._release:
            self._release, self._champion = state.champion, None

    async def champion(self) -> Champion | None:
        release = self._release
        if release is not None and self._champion is None:
            try:
                found = await once_reachable(
                    "waiting for the new model", lambda: champion_of(self._settings, release, self._schema)
                )
            except (BundleError, ContractError) as error:
                log.warning("new champion cannot be watched", version=release.model_version, error=str(error))
                self._release = None
                return None
            if release == self._release:
                self._champion = found
        return self._champion

    async def committed(self) -> Mapping[Tp, int]:
        return await self.offsets()

    def bounds(self) -> Mapping[Tp, tuple[int, int]]:
        return topics.watermarks(self._admin, self._settings.topic("outcomes"))

    def since(self, tp: Tp, time_ms: int) -> int:
        return topics.offset_since(self._admin, tp, time_ms)

    def read(self, spans: Mapping[Tp, tuple[int, int]]) -> Iterator[RecordBatch]:
        for tp, (start, end) in spans.items():
            yield from self.records(tp, start, end)
