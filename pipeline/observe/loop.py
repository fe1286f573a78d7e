"""Series of what becomes of models: trainings, trials, calibrations in use."""

from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter

from pipeline.observe.quality import Snapshot

Cause = Literal["trigger", "schedule"]
#: Of a training: accepted by the gate without a person, accepted and waiting for one, refused, or no challenger came.
Outcome = Literal["accepted", "waiting", "refused", "failed"]
Decision = Literal["promote", "withdraw", "rollback", "keep"]


class LoopSeries:
    """What the retrainer does, and what workers' outputs go through."""

    def __init__(self, registry: CollectorRegistry) -> None:
        trainings = Counter(
            "pipeline_retrainings",
            "Trainings of a challenger, by what asked for them and what became of them.",
            ["cause", "outcome"],
            registry=registry,
        )
        self._trainings = {(c, o): trainings.labels(c, o) for c in get_args(Cause) for o in get_args(Outcome)}
        decisions = Counter("pipeline_trial_decisions", "Trials that were decided.", ["action"], registry=registry)
        self._decisions = {action: decisions.labels(action) for action in get_args(Decision)}
        self._on_trial = Snapshot(
            "pipeline_on_trial", "1 for each model whose trial is not decided.", ("slot", "model_version"), registry
        )
        self._calibrations = Snapshot(
            "pipeline_calibration_info",
            "1 for each model in use whose outputs go through a calibration.",
            ("model_version", "role", "calibration_id"),
            registry,
        )

    def retrained(self, cause: Cause, outcome: Outcome) -> None:
        """A training has ended."""
        self._trainings[cause, outcome].inc()

    def trial_decided(self, action: Decision) -> None:
        """Something was decided on a canary, or on a fresh champion."""
        self._decisions[action].inc()

    def on_trial(self, models: Iterable[tuple[str, str]]) -> None:
        """These are on trial now, and no others: slot and version of each."""
        self._on_trial.replace(dict.fromkeys(models, 1.0))

    def calibrations(self, used: Iterable[tuple[str, str, str]]) -> None:
        """These are in use now, and no others: version and role of a model, id of its calibration."""
        self._calibrations.replace(dict.fromkeys(used, 1.0))
