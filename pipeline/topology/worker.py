"""The worker: events in, predictions, dead letters and batch summaries out."""

import asyncio
import time
from typing import Any

import structlog

from pipeline import codec, drift
from pipeline.bus import batch_topic
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.limits import record_bytes_max
from pipeline.errors import BundleError, ContractError
from pipeline.models import bundle as bundles
from pipeline.models import devices, loading
from pipeline.scoring.engine import TorchModel
from pipeline.scoring.flow import Flow, FlowSettings, queue_waits
from pipeline.scoring.publish import Publisher
from pipeline.scoring.refusal import InputLimit
from pipeline.scoring.validate import Validator
from pipeline.settings import Settings
from pipeline.topology.role import LateSink, Role, is_current, make_app, once_reachable, prepare_topics, until_fault

log = structlog.get_logger(__name__)


def checked_bundle(settings: Settings, schema: str) -> bundles.Bundle:
    """The bundle of these settings, every digest right and fitting `schema`. Raises BundleError."""
    path = settings.path(settings.model.bundle)
    bundle = bundles.read(path)
    if misfits := bundles.check_fits(bundle, schema):
        raise BundleError(f"{path}: does not fit {settings.events.schema_file}: {'; '.join(misfits)}")
    return bundle


def load_model(settings: Settings, bundle: bundles.Bundle) -> TorchModel:
    """The bundle's model on its device, warmed up."""
    model = TorchModel(
        loading.load_module(bundle),
        bundle.contract,
        bundle.identity,
        bundle.baseline,
        device=devices.resolve(settings.model.device),
        threads=settings.model.threads,
        batch_max=settings.scoring.batch_max,
    )
    model.warm_up()
    return model


def _record_limits(settings: Settings) -> dict[str, int]:
    options = ClientOptions.from_settings(settings)
    outputs = [settings.topic("predictions"), settings.topic("dead_letters")]
    return record_bytes_max(make_admin(options), options, outputs)


async def build_worker(role: Role) -> None:
    """Load, verify and warm up the model; wire the hot path into a Faust agent."""
    settings, metrics = role.settings, role.metrics
    schema = codec.event_schema(settings)
    model = await asyncio.to_thread(lambda: load_model(settings, checked_bundle(settings, schema)))
    identity, device = model.identity, str(model.device)
    metrics.model(identity, device)
    events = settings.events
    validator = Validator(
        model.contract, id_field=events.id_field, time_field=events.time_field, slice_fields=events.slice_fields
    )
    if misfits := validator.check(codec.arrow_schema(schema)):
        raise ContractError("\n".join(misfits))
    log.info("model ready", model=identity.model_id, version=identity.model_version, device=device)
    await prepare_topics(settings)

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
    limits = await asyncio.to_thread(_record_limits, settings)
    app = make_app(role)
    publisher = Publisher(
        LateSink(lambda: app.producer.batch),
        predictions_topic=settings.topic("predictions"),
        dead_letters_topic=settings.topic("dead_letters"),
        summaries_topic=settings.topic("batch_summaries"),
        prediction_encoder=codec.ColumnarEncoder(prediction_schema, prediction_id),
        encode_summary=lambda s: rows.encode(summary_id, summary_schema, drift.summary_to_dict(s)),
        clock=time.time,
        record_bytes_max=limits,
    )
    scoring = settings.scoring
    watches_drift = settings.drift.enabled and bool(model.baseline.signals)
    flow = Flow(
        decoder=codec.ColumnarDecoder(registry, schema),
        validator=validator,
        model=model,
        publisher=publisher,
        summariser=drift.SignalSummariser(model.baseline, model.identity) if watches_drift else None,
        observer=metrics,
        settings=FlowSettings(
            batch_max=scoring.batch_max,
            step_max=scoring.step_max,
            linger_ms=scoring.linger_ms,
            retries_max=scoring.retries_max,
            retry_backoff_ms=scoring.retry_backoff_ms,
        ),
        input_limit=InputLimit(**settings.input.model_dump()),
    )
    role.closers.append(flow.close)

    @app.agent(batch_topic(app, settings.topic("events")))
    async def score(stream: Any) -> None:
        consumer = app.consumer
        consumer.commit_guard, consumer.on_aborted = flow.between_steps, flow.forget
        work = flow.run(stream.noack().events(), queue_waits(stream), lambda event: is_current(consumer, event))
        await until_fault(role, work)
