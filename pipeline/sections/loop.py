"""Sections of the loop: labels, quality, retraining, gate, releases, trials."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.sections.base import Section


class LabelSettings(Section):
    """Labels that come later, joined to their predictions (role `labels`)."""

    enabled: bool = Field(False, description="Whether labels come: `run all` then runs the role that joins them")
    wait_hours: float = Field(
        168.0,
        gt=0,
        le=87_600,
        description="How long a prediction and a label wait for each other; after it a label is counted as an orphan",
    )
    state_dir: Path = Field(
        Path("state"), description="Folder of what waits; 130 bytes of disk for each waiting prediction"
    )


class QualitySettings(Section):
    """How good models are by the labels that come, and triggers where the champion's errors rise (role `quality`)."""

    enabled: bool = Field(True, description="Whether outcomes are watched, where labels are joined; see drift.enabled")
    window_hours: float = Field(
        24.0, gt=0, le=87_600, description="Labels of so long ago are in the metrics; 24 panes of time"
    )


class CalibrationSettings(Section):
    """The champion's probabilities, made to mean what they say by its outcomes (role `retrainer`)."""

    every_outcomes: int = Field(
        0, ge=0, description="Outcomes after which another calibration is tried, used if it helps; 0: by hand only"
    )
    rows: int = Field(
        20_000, ge=300, le=1_000_000, description="Outcomes to go by, the newest of the champion's version"
    )
    kind: Literal["auto", "temperature", "platt", "isotonic"] = Field(
        "auto", description="What to fit; see docs/calibration.md"
    )
    judge_by: Literal["classes", "errors"] = Field(
        "classes",
        description="classes: no class may be found less often; errors: not more may be wrong in all, as where classes "
        "become rarer",
    )


class GateSettings(Section):
    """May a retrained model, the challenger, replace the champion? Both are scored on rows that neither has seen."""

    alpha: float = Field(
        0.05, ge=0.001, le=0.2, description="Chance that a challenger that is no better is accepted, at most"
    )
    loss: Literal["auto", "error", "balanced_error", "log_loss", "absolute_error", "squared_error"] = Field(
        "auto",
        description="What the challenger must have less of. auto: error for classes, absolute_error for regression; "
        "balanced_error and log_loss suit rare classes",
    )
    rows_min: int = Field(
        1000, ge=100, description="Labelled rows to judge by, at least; docs/gate.md says what so many can show"
    )
    slice_worse_max: float = Field(
        0.1, ge=0, description="How much worse a slice may get, as a share of the champion's mean loss on all rows"
    )
    log_loss_worse_max: float = Field(
        0.05, ge=0, description="How much worse the log loss may get, as a share of the champion's"
    )
    ece_worse_max: float = Field(
        0.02, ge=0, le=1, description="By how much the calibration error may grow; 1: by any amount"
    )
    refused_share_max: float = Field(
        0.001, ge=0, le=1, description="Share of the events that the champion takes which the challenger may refuse"
    )
    latency_ratio_max: float = Field(
        1.5, gt=0, description="Median time of a batch, as a multiple of the champion's on the same input"
    )
    approval: Literal["auto", "manual"] = Field(
        "auto", description="auto: an accepted challenger is released; manual: it waits for a person's yes"
    )
    release_as: Literal["champion", "canary"] = Field(
        "champion", description="What an accepted challenger becomes without a person's yes"
    )
    canary_share: float = Field(0.1, gt=0, lt=1, description="Share of the keys that a canary gets")


class RetrainingSettings(Section):
    """How `pipeline retrain` and the role `retrainer` make a successor of the model in service."""

    enabled: bool = Field(
        False,
        description="Whether triggers are acted on: `run all` then runs the role `retrainer`; needs labels",
    )
    labels_wait_s: float = Field(
        604_800.0, gt=0, description="How long the retrainer waits for enough labels of events since a change"
    )
    every_s: float = Field(
        0.0,
        ge=0,
        description="Train without a trigger, too, so long after the last training or release; 0: only by triggers",
    )
    where_accuracy_holds: Literal["skip", "train"] = Field(
        "skip",
        description="What a trigger of moved inputs leads to where the labels since show that the model errs no more "
        "than before",
    )
    window_rows: int = Field(
        20_000, ge=100, le=10_000_000, description="Newest labelled events to train on, unless told otherwise"
    )
    rows_max: int = Field(
        1_000_000, ge=100, le=100_000_000, description="Most labelled events held in memory, whatever is asked for"
    )
    newest_share: float = Field(
        0.2, gt=0, lt=1, description="Share of the window, its newest, that is only judged by and never learnt from"
    )
    stopping_share: float = Field(
        0.125, gt=0, lt=1, description="Share of the rest, its newest, that says when to stop learning"
    )
    label_delay_s: float | None = Field(
        None,
        ge=0,
        description="What a label needs, to keep out of training what was not known before the newest part; default: "
        "the labels' own times",
    )
    replay_share: float = Field(
        0.0, ge=0, lt=1, description="Share of what is learnt from that is drawn from before the window, so as not to "
        "forget it"
    )  # fmt: skip
    replay_reach: float = Field(
        5.0, gt=0, le=1000, description="How far back replay draws from, in lengths of the window"
    )
    start: Literal["warm", "fresh"] = Field(
        "warm",
        description="warm: from the weights of the model in service; fresh: from new ones, with new vocabularies and "
        "classes for the built-in model",
    )
    train: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Function of your own to train with, my.module:function; see docs/retraining.md",
    )
    augment: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Function of your own that the built-in recipe passes every batch through",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1)
    epochs_max: int = Field(60, ge=1, le=100_000, description="Passes over the data, if it does not stop before")
    patience: int = Field(8, ge=1, description="Passes without a better loss on the stopping part before it stops")
    executor: Literal["process", "command"] = Field(
        "process",
        description="process: a process of its own on this machine, within the limits below; command: whatever "
        "`retraining.command` starts",
    )
    command: str | None = Field(
        None,
        description="Command line that runs `pipeline retrain --request {request}` elsewhere and waits for its end, "
        "e.g. ray job submit -- pipeline retrain --request {request}",
    )
    exchange: Path = Field(
        Path("state/retraining"), description="Folder for requests and results; with a command, one that both sides see"
    )
    nice: int = Field(10, ge=0, le=19, description="Niceness of the process: scoring goes first")
    threads: int = Field(1, ge=1, le=256, description="Threads of torch and Arrow")
    memory_max_mb: int = Field(4096, ge=256, description="Memory of the process and its children above which it ends")
    time_max_s: float = Field(3600.0, gt=0, description="Time after which it is ended; also for a command")
    producer_field: str | None = Field(
        None,
        description='Field that says who sent an event, for the guard against one sender flooding; "key" takes '
        "the Kafka key up to `producer_separator`",
    )
    producer_separator: str = Field(":", min_length=1, max_length=10)
    producer_share_max: float = Field(0.5, gt=0, le=1, description="Largest share of the window from one sender")
    duplicates_max: float = Field(0.01, ge=0, le=1, description="Largest share of events whose id came before")
    separation_max: float = Field(
        0.95, gt=0.5, le=1, description="How well one feature may tell the labels apart (AUC) that did not do so before"
    )
    late_share_max: float = Field(
        0.01, ge=0, le=1, description="Largest share of events with a time in them that is after their label's"
    )
    flips_max: float = Field(
        0.05, ge=0, le=1, description="Largest share of events whose label the new model denies with confidence, "
        "beyond what its confidence allows for"
    )  # fmt: skip
    outlier_influence_max: float = Field(
        0.3, gt=0, le=1, description="Largest share that the 1 % of events farthest out may have in the spread"
    )
    per_day_max: int = Field(24, ge=1, description="Successors of one model within 24 hours")

    @model_validator(mode="after")
    def _command_is_there(self) -> "RetrainingSettings":
        if self.executor == "command" and "{request}" not in (self.command or ""):
            raise ValueError('command: with executor = "command", a command line with {request} in it')
        return self


class ReleaseSettings(Section):
    """Where released bundles are kept, for workers to fetch."""

    store: str = Field(
        "releases",
        min_length=1,
        description="Folder or URL (any of fsspec's, such as s3://bucket/models) that `pipeline model release` copies "
        "bundles to; a relative folder is each reader's own project folder's",
    )
    cache_dir: Path = Field(Path("state/models"), description="Folder of fetched bundles; the last few are kept")
    shadow_time_max: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of a worker's scoring time that a shadow may take; it skips the rest",
    )


class TrialSettings(Section):
    """What the role `retrainer` makes of a canary, and of a fresh champion, by their outcomes."""

    enabled: bool = Field(True, description="Whether it promotes, withdraws and rolls back; false: a person does")
    alpha: float = Field(
        0.05, ge=0.001, le=0.2, description="Chance of a wrong promotion, and of a wrong withdrawal, at most"
    )
    worse_max: float = Field(
        0.1, ge=0, description="How much worse a canary may be, as a share of the champion's mean loss (`gate.loss`)"
    )
    outcomes_min: int = Field(500, ge=100, description="Outcomes of each model before anything is decided by them")
    hours_max: float = Field(
        168.0, gt=0, le=87_600, description="A canary is withdrawn when nothing could be decided for so long"
    )
    watch_outcomes: int = Field(
        20_000, ge=0, description="A fresh champion may be rolled back within so many of its outcomes. 0: never"
    )
    rollback_worse_max: float = Field(
        0.25, ge=0, description="How much worse it may be than the one before it was last, as a share of that loss"
    )
    every_s: float = Field(10.0, ge=0.1, le=3600, description="Time between two looks")
