"""`pipeline calibrate`: probabilities made to mean what they say, by the newest outcomes of the model in service."""

from enum import StrEnum
from typing import Annotated, Literal

import typer

from pipeline import codec
from pipeline.bus import topics
from pipeline.cli.context import local_time, say, settings_of, stdout, table
from pipeline.cli.releasing import decide, open_releases
from pipeline.cli.wiring import connect
from pipeline.errors import ContractError, DataError
from pipeline.models.calibrations import Calibration
from pipeline.models.releases import Releases
from pipeline.records import ModelIdentity, OutputContract
from pipeline.retraining.calibrating import Trial
from pipeline.retraining.calibrating import calibrate as try_to_calibrate
from pipeline.settings import Settings
from pipeline.topology.calibrations import calibration_of
from pipeline.topology.outcomes import newest_outcomes
from pipeline.topology.releases import released_bundle

#: The measures that are shown, and how a person calls them.
SHOWN = (
    ("log_loss", "log loss"),
    ("ece", "calibration error (ECE)"),
    ("brier", "Brier score"),
    ("accuracy", "accuracy"),
)


class KindOf(StrEnum):
    """Which calibrator to fit."""

    AUTO = "auto"
    TEMPERATURE = "temperature"
    PLATT = "platt"
    ISOTONIC = "isotonic"


class JudgeByOf(StrEnum):
    """What must not get worse."""

    CLASSES = "classes"
    ERRORS = "errors"


class SlotOf(StrEnum):
    """Whose version to calibrate."""

    CHAMPION = "champion"
    CANARY = "canary"
    SHADOW = "shadow"


def calibrate(
    ctx: typer.Context,
    last: Annotated[
        int, typer.Option(min=1, metavar="N", help="Outcomes to go by, the newest of the version.")
    ] = 20_000,
    kind: Annotated[
        KindOf, typer.Option(help="What to fit; auto: more than a temperature where that is better.")
    ] = KindOf.AUTO,
    judge_by: Annotated[
        JudgeByOf | None,
        typer.Option(
            help="classes: no class may be found less often; errors: not more may be wrong in all.  "
            "[dim]Else calibration.judge_by.[/dim]",
            show_default=False,
        ),
    ] = None,
    slot: Annotated[SlotOf, typer.Option(help="Whose version.")] = SlotOf.CHAMPION,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would come of it.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Publish outputs as the model gives them.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept with the calibration.")] = "",
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who decides.  [dim]Else USER@HOST.[/dim]")] = None,
) -> None:
    """Make probabilities mean what they say: fit a calibration on older outcomes, and use it if the newest prove it.

    Workers apply it between two batches, without a restart. Exit code 1: refused, and nothing was changed.

    [bold]Examples[/bold]

    pipeline calibrate --dry-run

    pipeline calibrate --last 50000 --kind temperature

    pipeline calibrate --withdraw
    """
    settings = settings_of(ctx)
    releases = open_releases(settings, create=True)
    state = releases.state()
    identity, output = _model(settings, state, slot.value)
    version, now = identity.model_version, state.calibrations.get(identity.model_version)
    if withdraw:
        if now is None:
            say(f"{version}: has no calibration")
        elif dry_run:
            typer.echo(f"{version}: would go without calibration {now.calibration_id}")
        else:
            releases.calibrate(version, None, now.calibration_id)
            typer.echo(f"{version}: goes without calibration {now.calibration_id}")
        return
    current = now.calibrator(identity, output) if now else None
    options, admin = connect(settings)
    if (topic := settings.topic("outcomes")) not in topics.partition_counts(admin):
        raise DataError(f"topic {topic}: is not there; labels.enabled and `pipeline run labels` make outcomes")
    scored = newest_outcomes(settings, options, admin, identity, output, last)
    trial = try_to_calibrate(
        scored,
        output,
        kind=kind.value,
        judge_by=judge_by.value if judge_by else settings.calibration.judge_by,
        current=current,
        alpha=settings.gate.alpha,
    )
    made = calibration_of(identity, trial, decide(settings, by, reason))
    _show(version, now, made, trial)
    if not trial.accepted:
        raise typer.Exit(1)
    if dry_run:
        say("--dry-run: nothing was changed")
    else:
        releases.calibrate(version, made, now.calibration_id if now else None)


def _model(
    settings: Settings, state: Releases, slot: Literal["champion", "canary", "shadow"]
) -> tuple[ModelIdentity, OutputContract]:
    """Which model is in a slot, and what it gives; without any release the one of the settings is champion."""
    release = state.slot(slot)
    if release is None and slot != "champion":
        raise ContractError(f"there is no {slot}")
    bundle = released_bundle(settings, release, codec.event_schema(settings))
    return bundle.identity, bundle.contract.output


# --------------------------------------------------------------------------- showing


def _show(version: str, now: Calibration | None, made: Calibration, trial: Trial) -> None:
    before = f"now: {now.kind} {now.calibration_id}" if now else "now: uncalibrated"
    until = local_time(trial.fitted_until_ms)
    typer.echo(f"{version}: fitted on {trial.fitted_rows:,} outcomes until {until}")
    typer.echo(f"judged by the {trial.judged_rows:,} newest ones:")
    rows = [
        (name, f"{trial.before[key]:.4f}", f"{trial.after[key]:.4f}", f"{trial.after[key] - trial.before[key]:+.4f}")
        for key, name in SHOWN
    ]
    shown = f"{made.kind} {made.calibration_id}"
    stdout().print(table(None, ("measure", before, shown, "change"), rows, (before, shown, "change")))
    detail = "" if made.kind == "isotonic" else f"temperature {trial.calibrator.temperature:.3f}; "
    if biases := trial.calibrator.biases:
        detail += f"biases {', '.join(f'{bias:+.3f}' for bias in biases)}; "
    typer.echo(f"{detail}{trial.changed:.2%} of the rows are decided for another class")
    for check in trial.checks:
        typer.echo(f"  {'passed' if check.passed else 'FAILED'}  {check.name:<9} {check.says}")
    typer.echo(trial.says)
