"""Which role reads and writes which topic, and the only place that wires rooms together.

    worker    NAME.events -> NAME.predictions, NAME.dead-letters, NAME.batch-summaries
    monitor   NAME.batch-summaries -> NAME.retraining-triggers

Each role is a Faust app of its own with its own consumer group; cli/role.py runs it.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import faust
import structlog

from pipeline import codec, drift, observe
from pipeline.bus import Configuration, Hooks, Transactions, batch_topic, configure, topics
from pipeline.bus.clients import ClientOptions, make_admin, wait_for_broker
from pipeline.bus.limits import record_bytes_max
from pipeline.bus.reading import record_batches
from pipeline.errors import BundleError, ContractError, PipelineError, UnreachableError, explained
from pipeline.models import bundle as bundles
from pipeline.models import devices, loading
from pipeline.records import RecordBatch, TopicPartition
from pipeline.scoring.engine import TorchModel
from pipeline.scoring.flow import Flow, FlowSettings, queue_waits
from pipeline.scoring.publish import Publisher
from pipeline.scoring.refusal import InputLimit
from pipeline.scoring.validate import Validator
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How long one try waits for an absent broker: also how late a stop is noticed meanwhile.
BROKER_TRY_S = 2.0
#: Between two tries to reach an absent broker or registry at the start, on top of what a try takes.
ABSENT_PAUSE_S = 0.5
#: An absent broker or registry is mentioned this often.
ABSENT_REMIND_S = 30.0


class _App(faust.App):  # type: ignore[misc, name-defined, unused-ignore]
    """A Faust app without tables, web server or folders of its own."""

    logger = logging.getLogger("faust.app")  # mode logs each step of each service under its class's module

    def _create_directories(self) -> None:
        pass


@dataclass
class Role:
    """One running role: its app, and what ends it."""

    settings: Settings
    name: str
    slot: int
    metrics: observe.Metrics
    app: Any = None
    agents_ready: bool = False
    fault: "asyncio.Future[PipelineError]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    #: Run once the app has stopped, whatever stopped it.
    closers: list[Callable[[], None]] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Stop this role: nothing more is committed, and the process exits with the error's code."""
        if not self.fault.done():
            self.fault.set_result(explained(error))
        if self.app is not None and self.app._consumer is not None:  # noqa: SLF001 (do not make one now)
            self.app.consumer.abandon()

    def ready(self) -> tuple[bool, str]:
        """Warmed up, in the group and assigned."""
        if self.app is None or not self.agents_ready:
            return False, "starting"
        return (True, "ready") if self.app.consumer.assignment() else (False, "no partitions assigned")


def _make_app(role: Role, on_commit: Callable[[str], None] = lambda _outcome: None) -> Any:
    settings, metrics = role.settings, role.metrics
    app = _App(
        settings.group(role.name),
        broker="rdkafka://" + settings.kafka.bootstrap_servers.split(",")[0],
        broker_client_id=f"{settings.name}-{role.name}-{role.slot}",
        broker_commit_interval=settings.delivery.commit_interval_ms / 1000,
        stream_wait_empty=True,
        stream_recovery_delay=0.0,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        store="memory://",
        autodiscover=False,
    )

    def committed(outcome: str) -> None:
        metrics.committed(outcome)
        on_commit(outcome)

    hooks = Hooks(
        on_fault=role.fail,
        on_rebalance=lambda kind, _n: metrics.rebalanced(kind),
        on_commit=committed,
        on_commit_seconds=lambda seconds: metrics.stage("commit", seconds),
        on_in_flight=metrics.in_flight,
        on_missed=metrics.missed,
        on_broker_error=metrics.broker_error,
        on_statistics=_lag_reporter(role),
    )
    configure(
        app,
        Configuration(
            ClientOptions.from_settings(settings),
            hooks,
            poll_records=settings.scoring.step_max,
            in_flight_max=settings.scoring.in_flight_max,
            in_flight_max_bytes=settings.scoring.in_flight_max_bytes,
            drain_deadline_s=settings.delivery.shutdown_deadline_s,
            transactions=_transactions(role),
        ),
    )
    role.app = app
    return app


def _transactions(role: Role) -> Transactions | None:
    """Workers: as asked for. The monitor always: a trigger and the summary it came of commit together."""
    delivery, name = role.settings.delivery, role.settings.name
    if role.name == "monitor":
        own_id = f"{delivery.transactional_id_prefix or name}-monitor"
        return Transactions(own_id, delivery.transaction_timeout_ms, when_idle=False)  # a trigger may take 0.5 s
    if delivery.mode != "exactly_once":
        return None
    prefix = delivery.transactional_id_prefix or f"{name}-{role.name}-{socket.gethostname()}"
    return Transactions(f"{prefix}-{role.slot}", delivery.transaction_timeout_ms)


def _lag_reporter(role: Role) -> Callable[[str], None]:
    """Lag per assigned partition: its last stable offset, out of librdkafka's statistics, less what is committed.

    Before the first commit, their `consumer_lag`: of what a transaction commits, librdkafka's consumer never hears.
    """
    shown: set[tuple[str, int]] = set()

    def report(text: str) -> None:
        now: set[tuple[str, int]] = set()
        for name, topic in json.loads(text).get("topics", {}).items():
            for number, partition in topic.get("partitions", {}).items():
                lag, end = partition.get("consumer_lag", -1), partition.get("ls_offset", -1)
                done = role.app.consumer.ledger.last_committed(TopicPartition(name, int(number)))
                if done is not None and end >= 0:
                    lag = max(end - done, 0)
                if int(number) >= 0 and lag >= 0:
                    now.add((name, int(number)))
                    role.metrics.lag(name, int(number), lag)
        for name, number in shown - now:
            role.metrics.forget_lag(name, number)
        shown.clear()
        shown.update(now)

    return report


# --------------------------------------------------------------------------- preparation


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


async def once_reachable(waiting: str, call: Callable[[], T]) -> T:
    """What `call`, in a thread, returns once the broker or registry it asks is there, however long that takes.

    waiting: what is logged meanwhile, now and then.
    """
    reminded_at = -ABSENT_REMIND_S
    while True:
        try:
            return await asyncio.to_thread(call)
        except UnreachableError as error:
            if time.monotonic() - reminded_at >= ABSENT_REMIND_S:
                log.warning(waiting, error=str(error))
                reminded_at = time.monotonic()
            await asyncio.sleep(ABSENT_PAUSE_S)


async def prepare_topics(settings: Settings) -> None:
    """Wait for the broker as long as it takes; create what is missing; refuse what does not fit."""
    await once_reachable("waiting for the broker", lambda: _prepare_topics_once(settings))


def _prepare_topics_once(settings: Settings) -> None:
    options = ClientOptions.from_settings(settings)
    wait_for_broker(options, BROKER_TRY_S)
    admin = make_admin(options)
    if settings.topics.create and (created := topics.create(admin, topics.specs(settings))):
        log.info("topics created", topics=created)
    if problems := topics.problems(settings, topics.partition_counts(admin)):
        raise ContractError("\n".join(problems))


# --------------------------------------------------------------------------- worker


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
    app = _make_app(role)
    publisher = Publisher(
        _LateSink(lambda: app.producer.batch),
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
        work = flow.run(stream.noack().events(), queue_waits(stream), lambda event: _is_current(consumer, event))
        await _until_fault(role, work)


def _is_current(consumer: Any, event: Any) -> bool:
    return bool(consumer.is_current(event.message))


class _LateSink:
    """The app's batch producer, which exists once the app has started."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def send_batch(self, *args: Any, **kwargs: Any) -> None:
        self._get().send_batch(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> None:
        self._get().send(*args, **kwargs)


async def _until_fault(role: Role, work: Awaitable[None]) -> None:
    """Run an agent's work; a fault stops the role instead of Faust restarting the agent past it."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if not isinstance(error, PipelineError):
            log.exception("agent failed")
        role.fail(error)
        await asyncio.Event().wait()


# --------------------------------------------------------------------------- monitor


def make_station(
    settings: Settings, bundle: bundles.Bundle, metrics: observe.Metrics, decode: Callable[[bytes], dict[str, Any]]
) -> Any:
    """The drift monitor of the bundle's model, its state loaded, its folder held. Raises FencedError."""
    monitor = drift.DriftMonitor(
        bundle.baseline,
        pipeline=settings.name,
        model_id=bundle.model_id,
        model_version=bundle.model_version,
        settings=drift.MonitorSettings(
            settings.drift.delta, settings.drift.cooldown_events, settings.drift.window_events
        ),
        now_ms=lambda: int(time.time() * 1000),
    )
    path = settings.path(settings.drift.state_dir) / "monitor.state"
    # Offsets mean something on one cluster and topic only, and not on a later topic of the same name.
    source = topics.identity(make_admin(ClientOptions.from_settings(settings)), settings.topic("batch_summaries"))
    return drift.MonitorStation(monitor, path, decode, source=source, observer=metrics)


async def build_monitor(role: Role) -> None:
    """Wire the drift monitor: summaries in, one trigger a drift out; state saved when both are committed."""
    settings, metrics = role.settings, role.metrics
    schema = codec.event_schema(settings)
    bundle = await asyncio.to_thread(checked_bundle, settings, schema)
    await prepare_topics(settings)
    registry = codec.registry_of(settings)
    rows = codec.RowCodec(registry)
    trigger_schema = codec.load_schema("retraining-trigger")
    trigger_topic = settings.topic("retraining_triggers")
    subject = f"{trigger_topic}-value"
    trigger_id = await once_reachable("waiting for the registry", lambda: registry.register(subject, trigger_schema))
    station = await asyncio.to_thread(make_station, settings, bundle, metrics, rows.decode)
    role.closers.append(station.close)

    def committed(outcome: str) -> None:
        for trigger in station.keep() if outcome == "ok" else ():
            metrics.trigger(trigger.severity)
            log.warning(
                "retraining trigger",
                trigger_id=trigger.trigger_id,
                severity=trigger.severity,
                signals=[s.signal for s in trigger.signals],
            )

    app = _make_app(role, committed)

    async def send(trigger: Any) -> None:
        value = rows.encode(trigger_id, trigger_schema, drift.trigger_to_dict(trigger))
        await asyncio.to_thread(app.producer.batch.send, trigger_topic, trigger.trigger_id.encode(), value)

    summaries = settings.topic("batch_summaries")

    @app.agent(batch_topic(app, summaries))
    async def watch(stream: Any) -> None:
        app.consumer.commit_guard = lambda: station.between_batches
        await _until_fault(role, station.run(stream.noack().events(), _Summaries(app, summaries), send))


class _Summaries:
    """What the station asks of the consumer (drift.station.Place)."""

    def __init__(self, app: Any, topic: str) -> None:
        self._app, self._topic = app, topic

    def is_current(self, delivery: Any) -> bool:
        return _is_current(self._app.consumer, delivery)

    def reading(self, delivery: Any) -> int:
        return int(delivery.message.generation_id)

    async def committed(self, delivery: Any) -> int | None:
        offsets: dict[Any, int] = await self._app.consumer.committed_for_sure()
        return offsets.get(delivery.message.tp)

    def read(self, start: int, end: int) -> Iterator[RecordBatch]:
        return record_batches(self._app.rdkafka.options, self._app.conf.id, self._topic, 0, start, end)


ROLES: dict[str, Callable[[Role], Awaitable[None]]] = {"worker": build_worker, "monitor": build_monitor}
