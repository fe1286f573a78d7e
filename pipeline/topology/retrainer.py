"""The retrainer: a trigger makes a challenger, the gate judges it, and what the gate accepts is released.

Each step may be interrupted by the end of the process and is then done again, with the same result:

    1. train and judge   a child process leaves bundle and verdict in a folder named after the trigger, the verdict last
    2. release           the releases take a decision of one id once
    3. report            in one transaction with the trigger's offset

So a trigger is committed once its report is on the topic, and there is one report a trigger. Predictions go on
meanwhile: workers learn of a release by its topic, and of nothing else here.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from pipeline import codec
from pipeline.bus import batch_topic
from pipeline.bus.clients import ClientOptions
from pipeline.errors import (
    ContractError,
    PipelineError,
    SchemaError,
    SettingsError,
    TransactionAbortedError,
    UnreachableError,
)
from pipeline.models import bundle as bundles
from pipeline.models import fetching, releases
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Change, Decision, ModelRelease, Releases
from pipeline.records import RetrainingTrigger
from pipeline.retraining import executor
from pipeline.settings import Settings
from pipeline.topology.releases import Follower, release_log, released_bundle
from pipeline.topology.role import Role, is_current, make_app, once_reachable, prepare_topics, until_fault
from pipeline.topology.trials import Trials
from pipeline.topology.triggers import decoded

log = structlog.get_logger(__name__)

#: Between two tries while there are too few labelled events, or something does not answer.
TRY_AGAIN_S = 15.0
STOP_POLL_S = 0.2
#: What a child ends with where the data will not do, and where a broker or registry does not answer.
DATA, UNREACHABLE = 1, 5
BUNDLE = "bundle.tar"


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
    succession = Succession(settings, released, role.flags)
    role.closers.append(succession.stop.set)
    app = make_app(role)

    async def send(report: dict[str, Any]) -> None:
        value = rows.encode(report_id, schema, report)
        await asyncio.to_thread(app.producer.batch.send, topic, report["report_id"].encode(), value)

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

    if settings.trial.enabled:
        trials = Trials(settings, released, options, succession.stop, role.metrics.loop)

        @app.task
        async def try_out() -> None:
            role.closers.append(Follower(released, trials.told).close)
            await until_fault(role, asyncio.to_thread(trials.run))


async def _work(
    app: Any,
    deliveries: AsyncIterable[Any],
    rows: codec.RowCodec,
    succession: "Succession",
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Each trigger's report into the transaction that commits its offset; again, after an abort."""
    async for delivery in deliveries:
        triggers = [trigger for value in delivery.value.values if (trigger := _trigger_of(rows, value)) is not None]
        while is_current(app.consumer, delivery) and not succession.stop.is_set():
            try:
                for trigger in triggers:
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


class Succession:
    """What one trigger leads to. One at a time; `stop` ends the one in work, and all that would come."""

    def __init__(self, settings: Settings, released: ReleaseLog, flags: Sequence[str]) -> None:
        """flags: the global ones of this process, for the one that trains."""
        self._settings, self._releases, self._flags = settings, released, flags
        self._schema = codec.event_schema(settings)
        self.stop = threading.Event()

    async def succeed(self, trigger: RetrainingTrigger) -> dict[str, Any] | None:
        """Train, judge, release; the report as a row of its schema. None if nothing is to be reported, or on a stop."""
        give_up_at = time.monotonic() + self._settings.retraining.labels_wait_s
        while not self.stop.is_set():
            try:
                return await asyncio.to_thread(self._attempt, trigger)
            except _NotYetError as error:
                if time.monotonic() > give_up_at:
                    log.warning("no successor, given up", trigger_id=trigger.trigger_id, error=str(error))
                    return None
                log.info("successor has to wait", trigger_id=trigger.trigger_id, error=str(error))
            except UnreachableError as error:
                log.warning("successor has to wait", trigger_id=trigger.trigger_id, error=str(error))
            await asyncio.to_thread(self.stop.wait, TRY_AGAIN_S)
        return None

    def _attempt(self, trigger: RetrainingTrigger) -> dict[str, Any] | None:
        state = self._state()
        champion = state.champion
        assert champion is not None
        exchange = self._settings.path(self._settings.retraining.exchange)
        folder = (exchange / f"trigger-{trigger.trigger_id}").resolve()
        verdict = folder / "result.json"
        if not verdict.exists():
            if champion.model_version != trigger.model_version:
                told = {"of": trigger.model_version, "champion": champion.model_version}
                log.info("trigger is of a model no longer in service", trigger_id=trigger.trigger_id, **told)
                return None
            if (canary := state.canary) is not None and self._settings.trial.enabled:
                raise _NotYetError(f"{canary.model_version} is on trial: it may be what the trigger asks for")
            if (by := answered_by(exchange, trigger)) is not None:
                log.info("trigger was answered by a training since", trigger_id=trigger.trigger_id, answered_by=by)
                return None
            if not self._train(trigger, champion, folder):
                return None
        result = json.loads(verdict.read_text("utf-8"))
        report: dict[str, Any] = result["report"]
        log.info("gate", trigger_id=trigger.trigger_id, accepted=report["accepted"], says=result["says"])
        if report["approval"] == "automatic":
            self._release(folder / BUNDLE, report)
        return report

    def _state(self) -> Releases:
        """What is released; the settings' model becomes champion where none is yet, so that there is one to succeed."""
        found = self._releases.state()
        if found.champion is not None:
            return found
        bundle = released_bundle(self._settings, None, self._schema)
        model = fetching.publish(bundle, self._settings.releases.store, self._settings.root)
        decision = self._decision(f"first-{model.manifest_sha256[:16]}", "the model of the settings", None)

        def first(state: Releases) -> Change:
            return () if state.champion is not None else releases.release(state, model, decision)

        return self._releases.change(decision, first)

    def _train(self, trigger: RetrainingTrigger, champion: ModelRelease, folder: Path) -> bool:
        """Bundle and result in `folder`; whether they are there. Raises _NotYetError for too few labelled events."""
        settings = self._settings
        folder.mkdir(parents=True, exist_ok=True)
        bundles.write(released_bundle(settings, champion, self._schema), folder / "parent.tar", overwrite=True)
        changed = datetime.fromtimestamp(trigger.change_event_time_ms / 1000, UTC).isoformat(timespec="milliseconds")
        request = {
            "since": {"from_ms": trigger.change_event_time_ms},
            "told": f"since the change of trigger {trigger.trigger_id}, {changed}",
            # So that the newest part is as much as the gate asks for.
            "rows_min": math.ceil(settings.gate.rows_min / settings.retraining.newest_share),
            "seed": 0,
            "trigger_id": trigger.trigger_id,
            "executor": settings.retraining.executor,
            "asked_at_ms": int(time.time() * 1000),
            "judge": True,
            "bundle_uri": str(folder / BUNDLE),
        }
        (folder / "request.json").write_text(json.dumps(request, indent=1), "utf-8")
        command, limits = executor.chosen(settings.retraining, folder / "request.json", self._flags)
        code = executor.run(command, limits, self.stop)
        if code == DATA:
            raise _NotYetError("the labelled events will not do yet; the lines above say why")
        if code == UNREACHABLE:
            raise UnreachableError("training could not reach what it needs")
        if code:
            log.error("training failed, no successor", trigger_id=trigger.trigger_id, exit_code=code)
        return code == 0

    def _release(self, bundle: Path, report: dict[str, Any]) -> None:
        """As the gate's settings say, champion or canary; once, whatever happens. Raises UnreachableError."""
        model = fetching.publish(bundles.read(bundle), self._settings.releases.store, self._settings.root)
        decision = self._decision(f"report-{report['report_id']}", "accepted by the gate", report["report_id"])

        def accepted(state: Releases) -> Change:
            if state.champion is None or state.champion.model_version != report["champion_version"]:
                return ()  # another model was released meanwhile: it was not judged against that
            if self._settings.gate.release_as == "canary":
                return releases.canary(state, model, self._settings.gate.canary_share, decision)
            return releases.release(state, model, decision)

        try:
            self._releases.change(decision, accepted)
        except ContractError as error:
            log.warning("challenger not released", version=model.model_version, error=str(error))

    def _decision(self, release_id: str, reason: str, report_id: str | None) -> Decision:
        name, now_ms = self._settings.name, int(time.time() * 1000)
        return Decision(release_id, name, f"{name}-retrainer", now_ms, reason, report_id)


def answered_by(exchange: Path, trigger: RetrainingTrigger) -> str | None:
    """The trigger of a finished training of a successor of the same model that began after this trigger was sent.

    Monitor and watch of errors each tell of one drift. Whatever became of the challenger, another one made of the same
    events would be no better; a trigger that is sent after that training began is news.
    """
    for result in sorted(exchange.glob("trigger-*/result.json")):
        request = json.loads(result.with_name("request.json").read_text("utf-8"))
        of = json.loads(result.read_text("utf-8"))["report"]["champion_version"]
        if of == trigger.model_version and request.get("asked_at_ms", 0) >= trigger.produced_at_ms:
            return str(request["trigger_id"])
    return None


class _NotYetError(PipelineError):
    """Too few labelled events, or another successor on trial: that will pass."""
