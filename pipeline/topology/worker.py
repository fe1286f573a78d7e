"""The worker: events in, predictions, dead letters and batch summaries out."""

import asyncio
import time
from typing import Any

import structlog

from pipeline import codec, drift
from pipeline.bus import batch_topic
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.limits import record_bytes_max
from pipeline.scoring.flow import Flow, FlowSettings, queue_waits
from pipeline.scoring.publish import Publisher
from pipeline.scoring.refusal import InputLimit
from pipeline.settings import Settings
from pipeline.topology.releases import Follower, refuse_early, release_log
from pipeline.topology.role import LateSink, Role, is_current, make_app, once_reachable, prepare_topics, until_fault
from pipeline.topology.serving import Serving

log = structlog.get_logger(__name__)


async def build_worker(role: Role) -> None:
    """Load, verify and warm up the models in service; wire the hot path into a Faust agent."""
    settings, metrics = role.settings, role.metrics
    schema = codec.event_schema(settings)
    releases = release_log(settings, ClientOptions.from_settings(settings))
    serving = Serving(settings, schema, metrics)
    await asyncio.to_thread(refuse_early, serving.check_settings, releases)
    await prepare_topics(settings)
    app = make_app(role)
    publisher, decoder = await _make_ends(role, schema, app)
    served = await once_reachable("waiting for the model", lambda: serving.start(releases.state(), publisher))
    serving.report(served)
    scoring = settings.scoring
    flow = Flow(
        decoder=decoder,
        served=served,
        publisher=publisher,
        observer=metrics,
        settings=FlowSettings(
            step_max=scoring.step_max,
            linger_ms=scoring.linger_ms,
            retries_max=scoring.retries_max,
            retry_backoff_ms=scoring.retry_backoff_ms,
            shadow_time_max=settings.releases.shadow_time_max,
        ),
        input_limit=InputLimit(**settings.input.model_dump()),
    )
    role.closers += [flow.close, Follower(releases, serving.told).close]

    @app.agent(batch_topic(app, settings.topic("events")))
    async def score(stream: Any) -> None:
        consumer = app.consumer
        consumer.commit_guard, consumer.on_aborted = flow.between_steps, flow.forget
        work = flow.run(stream.noack().events(), queue_waits(stream), lambda event: is_current(consumer, event))
        await until_fault(role, work)

    @app.task
    async def follow_releases() -> None:
        await until_fault(role, serving.keep(flow, publisher))


async def _make_ends(role: Role, schema: str, app: Any) -> tuple[Publisher, codec.ColumnarDecoder]:
    """Where outputs go, and what reads the inputs; their schemas are registered."""
    settings = role.settings
    registry = codec.registry_of(settings)
    prediction_schema, summary_schema = codec.load_schema("prediction"), codec.load_schema("batch-summary")

    def register() -> tuple[int, int]:
        events_subject = f"{settings.topic('events')}-value"
        if registry.latest(events_subject) is None:  # so that a producer of any kind finds it there
            registry.register(events_subject, schema)
        return (
            registry.register(f"{settings.topic('predictions')}-value", prediction_schema),
            registry.register(f"{settings.topic('batch_summaries')}-value", summary_schema),
        )

    prediction_id, summary_id = await once_reachable("waiting for the registry", register)
    rows = codec.RowCodec(registry)
    publisher = Publisher(
        LateSink(lambda: app.producer.batch),
        predictions_topic=settings.topic("predictions"),
        dead_letters_topic=settings.topic("dead_letters"),
        summaries_topic=settings.topic("batch_summaries"),
        prediction_encoder=codec.ColumnarEncoder(prediction_schema, prediction_id),
        encode_summary=lambda s: rows.encode(summary_id, summary_schema, drift.summary_to_dict(s)),
        clock=time.time,
        record_bytes_max=await asyncio.to_thread(_record_limits, settings),
        shadow_topic=settings.topic("shadow_predictions"),
    )
    return publisher, codec.ColumnarDecoder(registry, schema)


def _record_limits(settings: Settings) -> dict[str, int]:
    options = ClientOptions.from_settings(settings)
    outputs = [settings.topic("predictions"), settings.topic("dead_letters")]
    return record_bytes_max(make_admin(options), options, outputs)
