"""Calibrations: the champion's probabilities made to mean what they say, by its newest outcomes, again and again.

Runs in the role `retrainer`, on a thread of its own. How far outcomes have been looked at is committed like any
reader's offsets, so a start neither forgets nor hurries; a fit that was not committed is made again, and is then no
better than itself.
"""

import threading
from collections.abc import Mapping

import structlog
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import Admin, ClientOptions, ErrorLog, make_admin, make_consumer
from pipeline.errors import ContractError, DataError, PipelineError, UnreachableError
from pipeline.models.calibrations import Calibration, id_of, parameters_of
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Decision, ModelRelease
from pipeline.records import ModelIdentity, OutputContract, TopicPartition
from pipeline.retraining.calibrating import Trial, calibrate
from pipeline.settings import Settings
from pipeline.topology.outcomes import newest_outcomes
from pipeline.topology.releases import decided, released_bundle

log = structlog.get_logger(__name__)

#: Between two looks at how many outcomes have come: three requests to the broker.
LOOK_S = 1.0


def calibration_of(identity: ModelIdentity, trial: Trial, decision: Decision) -> Calibration:
    """What is kept of a calibrator that was fitted, and of who decided for it."""
    parameters = parameters_of(trial.calibrator)
    return Calibration(
        calibration_id=id_of(identity.model_id, identity.model_version, parameters),
        pipeline=decision.pipeline,
        model_id=identity.model_id,
        model_version=identity.model_version,
        kind=trial.calibrator.kind,
        parameters=parameters,
        fitted_rows=trial.fitted_rows,
        fitted_from_ms=trial.fitted_from_ms,
        fitted_until_ms=trial.fitted_until_ms,
        judged_rows=trial.judged_rows,
        log_loss_before=trial.before["log_loss"],
        log_loss_after=trial.after["log_loss"],
        ece_before=trial.before["ece"],
        ece_after=trial.after["ece"],
        brier_before=trial.before["brier"],
        brier_after=trial.after["brier"],
        calibrated_by=decision.by,
        reason=decision.reason,
        calibrated_at_ms=decision.at_ms,
    )


class Calibrations:
    """Tries another calibration of the champion each time enough outcomes have come, until `stop` is set."""

    def __init__(self, settings: Settings, released: ReleaseLog, options: ClientOptions, stop: threading.Event) -> None:
        self._settings, self._releases, self._options, self._stop = settings, released, options, stop
        self._schema = codec.event_schema(settings)
        self._topic, self._group = settings.topic("outcomes"), settings.group("calibrate")
        #: What the group had committed when it was last asked.
        self._looked_at: Mapping[TopicPartition, int] = {}
        #: The output of the version that was champion last: its bundle is read once.
        self._known: tuple[str, OutputContract] | None = None

    def run(self) -> None:
        """Blocks; for a thread of its own. What fails is tried again."""
        admin = make_admin(self._options)
        while not self._stop.wait(LOOK_S):
            try:
                if self._is_due(admin):
                    self._try(admin)
            except PipelineError as error:
                log.warning("calibration has to wait", error=str(error))

    def _is_due(self, admin: Admin) -> bool:
        """Whether enough outcomes have come since the last look. Raises UnreachableError."""
        wanted, marks = self._settings.calibration.every_outcomes, topics.watermarks(admin, self._topic)
        if sum(topics.behind(self._looked_at, marks).values()) < wanted:
            return False
        # It takes a consumer to ask, and another retrainer may have looked meanwhile: only where it matters.
        self._looked_at = topics.committed(admin, self._group, self._topic)
        return sum(topics.behind(self._looked_at, marks).values()) >= wanted

    def _try(self, admin: Admin) -> None:
        """One fit, in service if it helps. Raises UnreachableError."""
        ends = {tp.partition: end for tp, (_, end) in topics.watermarks(admin, self._topic).items()}
        state = self._releases.state()
        identity, output = self._champion(state.champion)
        now = state.calibrations.get(identity.model_version)
        chosen, alpha = self._settings.calibration, self._settings.gate.alpha
        told: dict[str, object] = {"version": identity.model_version}
        try:
            current = now.calibrator(identity, output) if now else None
            scored = newest_outcomes(self._settings, self._options, admin, identity, output, chosen.rows)
            trial = calibrate(scored, output, kind=chosen.kind, judge_by=chosen.judge_by, current=current, alpha=alpha)
            if trial.accepted:
                decision = decided(self._settings, "", f"after {chosen.every_outcomes:,} outcomes")
                made = calibration_of(identity, trial, decision)
                self._releases.calibrate(identity.model_version, made, now.calibration_id if now else None)
                told |= {"calibration_id": made.calibration_id, "kind": made.kind}
            log.info("calibrated" if trial.accepted else "calibration refused", says=trial.says, **told)
        except (ContractError, DataError) as error:  # too few outcomes, or a person was faster: more outcomes will tell
            log.info("not calibrated", reason=str(error), **told)
        self._commit(ends)

    def _champion(self, release: ModelRelease | None) -> tuple[ModelIdentity, OutputContract]:
        """Who is in service, and what it gives; the model of the settings where none is released."""
        if release is not None and self._known is not None and self._known[0] == release.model_version:
            return ModelIdentity(release.model_id, release.model_version), self._known[1]
        bundle = released_bundle(self._settings, release, self._schema)
        self._known = (bundle.model_version, bundle.contract.output)
        return bundle.identity, bundle.contract.output

    def _commit(self, ends: Mapping[int, int]) -> None:
        consumer = make_consumer(self._options.for_consumer(self._group), ErrorLog(self._group))
        try:
            places = [KafkaPartition(self._topic, partition, end) for partition, end in ends.items()]
            consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise UnreachableError(f"group {self._group}: cannot commit: {error.args[0].str()}") from error
        finally:
            consumer.close()
