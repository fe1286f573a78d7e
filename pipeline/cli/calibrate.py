"""`pipeline calibrate`: probabilities made to mean what they say, by the newest outcomes of the model in service."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from confluent_kafka.admin import AdminClient

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, read, unless_silent
from pipeline.cli.context import local_time, say, settings_of, stdout, table
from pipeline.cli.evaluate_source import SILENCE_S, Bound, Range, spans
from pipeline.cli.releasing import decide, open_releases
from pipeline.cli.wiring import connect
from pipeline.errors import ContractError, DataError
from pipeline.measures.scored import Scored
from pipeline.models.calibrations import Calibration, id_of, parameters_of
from pipeline.models.releases import Decision, Releases
from pipeline.quality.outcomes import Outcomes, joined, outcomes_of
from pipeline.records import ModelIdentity, OutputContract
from pipeline.retraining.calibrating import Trial
from pipeline.retraining.calibrating import calibrate as try_to_calibrate
from pipeline.settings import Settings
from pipeline.topology.releases import released_bundle

#: Outcomes of each partition that are looked at, at most, for those of one version: at 200,000/s some seconds.
LOOKED_AT_MAX = 1_000_000

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
    ISOTONIC = "isotonic"


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
    kind: Annotated[KindOf, typer.Option(help="What to fit; auto: isotonic where it is better.")] = KindOf.AUTO,
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
    scored = _newest(settings, identity, output, last)
    trial = try_to_calibrate(scored, output, kind=kind.value, current=current, alpha=settings.gate.alpha)
    made = _made(identity, trial, decide(settings, by, reason))
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


def _made(identity: ModelIdentity, trial: Trial, decision: Decision) -> Calibration:
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


# --------------------------------------------------------------------------- reading


def _newest(settings: Settings, identity: ModelIdentity, output: OutputContract, rows: int) -> Scored:
    """The newest outcomes of a version in order of event time, outputs as the model gave them.

    Read further back until they are `rows`, or all that are looked at. Raises DataError if there are none.
    """
    options, admin = connect(settings)
    topic = settings.topic("outcomes")
    if topic not in topics.partition_counts(admin):
        raise DataError(f"topic {topic}: is not there; labels.enabled and `pipeline run labels` make outcomes")
    back = rows
    while True:
        back = min(back, LOOKED_AT_MAX)
        at = spans(admin, topic, Range(Bound(str(-back), number=-back)))
        found = joined(list(_outcomes(settings, options, topic, at, identity, output)), output)
        if len(found) >= rows or back == LOOKED_AT_MAX or _from_the_beginning(admin, topic, at):
            break
        back *= 4  # other versions have outcomes there, transactions take offsets
    if not len(found):
        raise DataError(f"topic {topic}: no outcome of {identity.model_id} {identity.model_version} among the newest")
    order = np.argsort(found.event_times_ms, kind="stable")[-rows:]
    return Scored(found.outputs[order], found.truth[order], found.event_times_ms[order])


def _from_the_beginning(admin: AdminClient, topic: str, at: dict[int, Span]) -> bool:
    first = {tp.partition: low for tp, (low, _) in topics.watermarks(admin, topic).items()}
    return all(span.start <= first[partition] for partition, span in at.items())


def _outcomes(
    settings: Settings,
    options: ClientOptions,
    topic: str,
    at: dict[int, Span],
    identity: ModelIdentity,
    output: OutputContract,
) -> Iterator[Outcomes]:
    """Outcomes of one version, whatever slot it was in."""
    decoder = codec.ColumnarDecoder(codec.registry_of(settings), codec.load_schema("outcome"))
    for messages in unless_silent(read(options, f"{settings.name}-calibrate", topic, at), topic, SILENCE_S):
        columns = decoder.decode([message.value() for message in messages]).columns
        wanted = pc.and_(
            pc.equal(columns.column("model_id"), identity.model_id),
            pc.equal(columns.column("model_version"), identity.model_version),
        )
        yield outcomes_of(_uncalibrated(columns.filter(wanted)), output)


def _uncalibrated(columns: pa.RecordBatch) -> pa.RecordBatch:
    """The same outcomes, with the outputs that a calibration was made of, where there was one."""
    outputs = pc.coalesce(columns.column("uncalibrated_outputs"), columns.column("outputs"))
    at = columns.schema.get_field_index("outputs")
    return columns.set_column(at, pa.field("outputs", outputs.type), outputs)


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
    detail = f"temperature {trial.calibrator.temperature:.3f}; " if made.kind == "temperature" else ""
    typer.echo(f"{detail}{trial.changed:.2%} of the rows are decided for another class")
    for check in trial.checks:
        typer.echo(f"  {'passed' if check.passed else 'FAILED'}  {check.name:<9} {check.says}")
    typer.echo(trial.says)
