"""The retrainer: a trigger makes a challenger, the gate judges it, and what the gate accepts is released.

A trigger is committed in one transaction with its report, which is sent last (succession.py): there is one a trigger.
Predictions go on meanwhile: workers learn of a release by its topic, and of nothing else here.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import structlog

from pipeline import codec
from pipeline.bus import batch_topic
from pipeline.bus.clients import ClientOptions
from pipeline.errors import SchemaError, SettingsError, TransactionAbortedError
from pipeline.models.release_log import ReleaseLog
from pipeline.records import RetrainingTrigger
from pipeline.topology.calibrations import Calibrations
from pipeline.topology.releases import Follower, release_log
from pipeline.topology.role import Role, is_current, make_app, once_reachable, prepare_topics, until_fault
from pipeline.topology.schedule import Schedule
from pipeline.topology.succession import Succession
from pipeline.topology.trials import Trials
from pipeline.topology.triggers import decoded

log = structlog.get_logger(__name__)

STOP_POLL_S = 0.2


async def build_retrainer(role: Role) -> None:
    """Wire the succession: triggers in, one report each out."""
    settings = role.settings
    if not settings.labels.enabled:
        raise SettingsError("retraining.enabled: labels.enabled is false, so there is nothing to learn from")
    await prepare_topics(settings)
    registry = codec.registry_of(settings)
    rows, schema = codec.RowCodec(registry), codec.load_schema("retraining-report")
    topic = settings.topic("retraining_reports")
    report_id = await once_reachable("waiting for the registry", lambda: registry.register(f"{topic}-value", schema))
    options = ClientOptions.from_settings(settings)
    released = release_log(settings, options)
    succession = Succession(settings, released, options, role.flags, role.metrics.loop)
    role.closers.append(succession.stop.set)
    app = make_app(role)

    def encode(report: dict[str, Any]) -> bytes:
        return rows.encode(report_id, schema, report)

    async def send(report: dict[str, Any]) -> None:
        await asyncio.to_thread(app.producer.batch.send, topic, report["report_id"].encode(), encode(report))

    @app.agent(batch_topic(app, settings.topic("retraining_triggers")))
    async def retrain(stream: Any) -> None:
        await until_fault(role, _work(app, stream.noack().events(), rows, succession, send))

    @app.task
    async def notice_stop() -> None:
        """Faust lets an agent finish what it has; training would take longer than any deadline."""
        while not app.should_stop:  # noqa: ASYNC110 (Faust has no event for it)
            await asyncio.sleep(STOP_POLL_S)
        succession.stop.set()
        app.consumer.abandon()

    if settings.retraining.every_s:
        _keep_to_schedule(role, Schedule(settings, options, succession, encode, rows.decode))
    if settings.calibration.every_outcomes:
        _calibrate(role, Calibrations(settings, released, options, succession.stop))
    if settings.trial.enabled:
        _try_out(role, Trials(settings, released, options, succession.stop, role.metrics.loop), released)


def _keep_to_schedule(role: Role, schedule: Schedule) -> None:
    @role.app.task
    async def keep_to_schedule() -> None:
        await until_fault(role, schedule.run(lambda: role.ready()[0]))


def _calibrate(role: Role, calibrations: Calibrations) -> None:
    @role.app.task
    async def calibrate() -> None:
        await until_fault(role, asyncio.to_thread(calibrations.run))


def _try_out(role: Role, trials: Trials, released: ReleaseLog) -> None:
    @role.app.task
    async def try_out() -> None:
        role.closers.append(Follower(released, trials.told).close)
        await until_fault(role, asyncio.to_thread(trials.run))


async def _work(
    app: Any,
    deliveries: AsyncIterable[Any],
    rows: codec.RowCodec,
    succession: Succession,
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Each trigger's report into the transaction that commits its offset; again, after an abort."""
    async for delivery in deliveries:
        triggers = [trigger for value in delivery.value.values if (trigger := _trigger_of(rows, value)) is not None]
        while is_current(app.consumer, delivery) and not succession.stop.is_set():
            try:
                for trigger in triggers:
                    async with succession.turn:
                        if (report := await succession.succeed(trigger)) is not None:
                            await send(report)
                break
            except TransactionAbortedError as error:
                log.warning("report withdrawn", error=str(error))
                await asyncio.sleep(STOP_POLL_S)
        if succession.stop.is_set():
            app.consumer.abandon()  # what is in work is done again by whoever comes next
            return
        delivery.ack()


def _trigger_of(rows: codec.RowCodec, value: bytes | None) -> RetrainingTrigger | None:
    try:
        return decoded(rows, value)
    except SchemaError as error:
        log.warning("not a trigger: skipped", error=str(error))
        return None
