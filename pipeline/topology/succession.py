"""What a training that was asked for leads to: a challenger, the gate's verdict, a release, the report of all that.

Each step may be interrupted by the end of the process and is then done again, with the same result:

    1. train and judge   a child process leaves bundle and verdict in a folder named after what asked, the verdict last
    2. release           the releases take a decision of one id once

What asks is a trigger, or a schedule (schedule.py); whoever has the report sends it.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import structlog

from pipeline import codec, observe
from pipeline.bus.clients import ClientOptions
from pipeline.errors import ContractError, ExhaustedError, PipelineError, UnreachableError
from pipeline.models import bundle as bundles
from pipeline.models import fetching, releases
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Change, ModelRelease, Releases
from pipeline.records import RetrainingTrigger
from pipeline.retraining import executor
from pipeline.settings import Settings
from pipeline.topology.releases import decided, released_bundle
from pipeline.topology.virtual import of_inputs, where_accuracy_holds

log = structlog.get_logger(__name__)

#: Between two tries while there are too few labelled events, or something does not answer.
TRY_AGAIN_S = 15.0
#: What a child ends with where the data will not do, and where a broker or registry does not answer.
DATA, UNREACHABLE = 1, 5
#: What a report's approval comes to.
OUTCOMES: dict[str, observe.Outcome] = {"automatic": "accepted", "waiting": "waiting", "none": "refused"}
REQUEST, BUNDLE, RESULT = "request.json", "bundle.tar", "result.json"


class NotYetError(PipelineError):
    """Too few labelled events, or another successor on trial: that will pass."""


@dataclass(frozen=True)
class Asked:
    """One training that somebody asks for."""

    cause: Literal["trigger", "schedule"]
    #: Of what asks; with the cause the name of the folder of request and results.
    id: str
    #: The events to learn from, as `pipeline retrain --request` takes them, and the same for a person.
    window: Mapping[str, Any]
    told: str

    @property
    def name(self) -> str:
        return f"{self.cause}-{self.id}"

    @property
    def log(self) -> dict[str, str]:
        """For a line of the log."""
        return {f"{self.cause}_id": self.id}


def asked_by(trigger: RetrainingTrigger) -> Asked:
    """The training that a trigger asks for: on what came since the change."""
    changed_ms = trigger.change_event_time_ms
    changed = datetime.fromtimestamp(changed_ms / 1000, UTC).isoformat(timespec="milliseconds")
    told = f"since the change of trigger {trigger.trigger_id}, {changed}"
    return Asked("trigger", trigger.trigger_id, {"since": {"from_ms": changed_ms}}, told)


class Succession:
    """Carries out what is asked for, one at a time; `stop` ends the one in work, and all that would come."""

    def __init__(
        self,
        settings: Settings,
        released: ReleaseLog,
        options: ClientOptions,
        flags: Sequence[str],
        series: observe.LoopSeries,
    ) -> None:
        """flags: the global ones of this process, for the one that trains."""
        self._settings, self._releases, self._options, self._flags = settings, released, options, flags
        self._series = series
        self._schema = codec.event_schema(settings)
        self.stop = threading.Event()
        #: Held by whoever asks for trainings, until it has what it asked for.
        self.turn = asyncio.Lock()

    @property
    def exchange(self) -> Path:
        """Where each training has its folder."""
        return self._settings.path(self._settings.retraining.exchange).resolve()

    async def succeed(self, trigger: RetrainingTrigger) -> dict[str, Any] | None:
        """Train, judge, release; the report as a row of its schema. None if nothing is to be reported, or on a stop."""
        give_up_at = time.monotonic() + self._settings.retraining.labels_wait_s
        while not self.stop.is_set():
            try:
                return await asyncio.to_thread(self._attempt, trigger)
            except NotYetError as error:
                if time.monotonic() > give_up_at:
                    log.warning("no successor, given up", trigger_id=trigger.trigger_id, error=str(error))
                    return None
                log.info("successor has to wait", trigger_id=trigger.trigger_id, error=str(error))
            except UnreachableError as error:
                log.warning("successor has to wait", trigger_id=trigger.trigger_id, error=str(error))
            await asyncio.to_thread(self.stop.wait, TRY_AGAIN_S)
        return None

    def _attempt(self, trigger: RetrainingTrigger) -> dict[str, Any] | None:
        state, asked = self.state(), asked_by(trigger)
        champion = state.champion
        assert champion is not None
        if not self.judged(asked):
            if champion.model_version != trigger.model_version:
                told = {"of": trigger.model_version, "champion": champion.model_version}
                log.info("trigger is of a model no longer in service", trigger_id=trigger.trigger_id, **told)
                return None
            self.check_free(state)
            if (by := answered_by(self.exchange, trigger)) is not None:
                log.info("trigger was answered by a training since", trigger_id=trigger.trigger_id, answered_by=by)
                return None
            if (says := self._holds(trigger, champion)) is not None:
                log.info("trigger asks for no training", trigger_id=trigger.trigger_id, says=says)
                return None
        return self.carry_out(asked, state)

    def _holds(self, trigger: RetrainingTrigger, champion: ModelRelease) -> str | None:
        """That accuracy holds since the trigger's change, if it does and that is a reason. Raises UnreachableError."""
        settings = self._settings
        if settings.retraining.where_accuracy_holds == "train" or not of_inputs(trigger):
            return None
        bundle = released_bundle(settings, champion, self._schema)
        output = bundle.contract.output
        return where_accuracy_holds(settings, self._options, trigger, bundle.identity, output, rows_min(settings))

    # -- steps -----------------------------------------------------------------------------------

    def state(self) -> Releases:
        """What is released; the settings' model becomes champion where none is yet, so that there is one to succeed."""
        found = self._releases.state()
        if found.champion is not None:
            return found
        bundle = released_bundle(self._settings, None, self._schema)
        model = fetching.publish(bundle, self._settings.releases.store, self._settings.root)
        decision = decided(self._settings, f"first-{model.manifest_sha256[:16]}", "the model of the settings")

        def first(state: Releases) -> Change:
            return () if state.champion is not None else releases.release(state, model, decision)

        return self._releases.change(decision, first)

    def check_free(self, state: Releases) -> None:
        """Raise NotYetError while a canary is on trial."""
        if (canary := state.canary) is not None and self._settings.trial.enabled:
            raise NotYetError(f"{canary.model_version} is on trial: it may be what is asked for")

    def judged(self, asked: Asked) -> bool:
        """Whether the training was carried out, and its verdict is there."""
        return (self.exchange / asked.name / RESULT).exists()

    def carry_out(self, asked: Asked, state: Releases) -> dict[str, Any] | None:
        """Train and judge, if that was not done; release what was accepted; the report as a row of its schema.

        None where training fails, or on a stop. Raises NotYetError for too few labelled events, UnreachableError.
        """
        folder = self.exchange / asked.name
        if not self.judged(asked) and not self._train(asked, state, folder):
            return None
        result = json.loads((folder / RESULT).read_text("utf-8"))
        report: dict[str, Any] = result["report"]
        log.info("gate", **asked.log, accepted=report["accepted"], says=result["says"])
        if report["approval"] == "automatic":
            self._release(folder / BUNDLE, report)
        self._series.retrained(asked.cause, OUTCOMES[report["approval"]])
        return report

    def _train(self, asked: Asked, state: Releases, folder: Path) -> bool:
        """Bundle and result in `folder`; whether they are there. Raises NotYetError for too few labelled events."""
        settings, champion = self._settings, state.champion
        assert champion is not None
        folder.mkdir(parents=True, exist_ok=True)
        bundles.write(released_bundle(settings, champion, self._schema), folder / "parent.tar", overwrite=True)
        calibration = state.calibrations.get(champion.model_version)
        request = {
            **asked.window,
            "told": asked.told,
            "rows_min": rows_min(settings),
            "seed": 0,
            "cause": asked.cause,
            "trigger_id": asked.id if asked.cause == "trigger" else None,
            "executor": settings.retraining.executor,
            "asked_at_ms": int(time.time() * 1000),
            "judge": True,
            "calibration": calibration and calibration.parameters,
            "bundle_uri": str(folder / BUNDLE),
        }
        (folder / REQUEST).write_text(json.dumps(request, indent=1), "utf-8")
        command, limits = executor.chosen(settings.retraining, folder / REQUEST, self._flags)
        try:
            code = executor.run(command, limits, self.stop)
        except ExhaustedError as error:  # ends the training, and nothing else
            log.warning("training ended at a limit, no successor", **asked.log, error=str(error))
            self._series.retrained(asked.cause, "failed")
            return False
        if code == DATA:
            raise NotYetError("the labelled events will not do yet; the lines above say why")
        if code == UNREACHABLE:
            raise UnreachableError("training could not reach what it needs")
        if code:
            log.error("training failed, no successor", **asked.log, exit_code=code)
            self._series.retrained(asked.cause, "failed")
        return code == 0

    def _release(self, bundle: Path, report: dict[str, Any]) -> None:
        """As the gate's settings say, champion or canary; once, whatever happens. Raises UnreachableError."""
        model = fetching.publish(bundles.read(bundle), self._settings.releases.store, self._settings.root)
        report_id = report["report_id"]
        decision = decided(self._settings, f"report-{report_id}", "accepted by the gate", report_id)

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


def rows_min(settings: Settings) -> int:
    """Labelled events that it takes for the newest part to be as much as the gate asks for."""
    return math.ceil(settings.gate.rows_min / settings.retraining.newest_share)


def answered_by(exchange: Path, trigger: RetrainingTrigger) -> str | None:
    """The trigger of a finished training of a successor of the same model that began after this trigger was sent.

    Monitor and watch of errors each tell of one drift. Whatever became of the challenger, another one made of the same
    events would be no better; a trigger that is sent after that training began is news. A training on schedule answers
    none: it learns from the newest events, whether they came before the change or after it.
    """
    for result in sorted(exchange.glob(f"trigger-*/{RESULT}")):
        request = json.loads(result.with_name(REQUEST).read_text("utf-8"))
        of = json.loads(result.read_text("utf-8"))["report"]["champion_version"]
        if of == trigger.model_version and request.get("asked_at_ms", 0) >= trigger.produced_at_ms:
            return str(request["trigger_id"])
    return None
