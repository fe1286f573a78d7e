"""`pipeline model release` and its like: who is champion, canary and shadow, and what led there."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import model_compare, render
from pipeline.cli.context import local_time, say, settings_of, stdout, table
from pipeline.codec import event_schema
from pipeline.errors import BundleError, ContractError
from pipeline.models import bundle as bundles
from pipeline.models import releases
from pipeline.models.bundle import Bundle
from pipeline.models.releases import Change, Decision, Model, ModelRelease, Releases
from pipeline.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

#: Rows `history` shows unless told otherwise: a screenful, the newest.
ROWS_SHOWN = 20

BundleAt = Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder, archive, or URL of one.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides.  [dim]Else USER@HOST.[/dim]")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, with the schema's names.")]


class Challenger(StrEnum):
    """The slots beside the champion's."""

    CANARY = "canary"
    SHADOW = "shadow"


SlotOf = Annotated[Challenger, typer.Argument(metavar="SLOT", help="canary or shadow.")]


# --------------------------------------------------------------------------- look


@app.command("list")
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show which model is champion, canary and shadow.

    [bold]Examples[/bold]

    pipeline model list

    pipeline model list --json | jq -r 'select(.slot == "champion").model_version'
    """
    settings = settings_of(ctx)
    state = _log(settings).state()
    held = [found for slot in releases.SLOTS if (found := state.slot(slot)) is not None]
    if as_json:
        _print_rows(held)
        return
    if not held:
        stdout().print(f"{settings.name}: nothing is released; `pipeline model release BUNDLE` makes a champion")
        return
    rows = [(e.slot, e.model_id, e.model_version, _share(e), *_who(e), e.uri) for e in held]
    stdout().print(table(None, ("slot", "model", "version", "share", "since", "by", "reason", "bundle"), rows))


@app.command()
def history(
    ctx: typer.Context,
    maximum: Annotated[int, typer.Option("--max", min=1, help="Changes to show, the newest.")] = ROWS_SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a change, all of them.")] = False,
) -> None:
    """Show every change of champion, canary and shadow, the newest last.

    [bold]Example[/bold]  pipeline model history --max 5
    """
    settings = settings_of(ctx)
    entries = _log(settings).state().history
    if as_json:
        _print_rows(entries)
        return
    rows = [(at, e.action, e.slot, e.model_version, _share(e), by, why) for e in entries for at, by, why in [_who(e)]]
    columns = ("time", "action", "slot", "version", "share", "by", "reason")
    stdout().print(table(f"{len(entries)} changes", columns, rows[-maximum:]))


app.command("compare")(model_compare.compare)


# --------------------------------------------------------------------------- change


@app.command()
def release(
    ctx: typer.Context,
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="BUNDLE", help="Folder, archive, or URL of one.  [dim]Else the one of model.bundle.[/dim]"
        ),
    ] = None,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Make a bundle champion at once.

    It is verified, loaded and run, compared with the event schema, and copied to releases.store (a URL stays where
    it is).

    [bold]Examples[/bold]

    pipeline model release

    pipeline model release models/candidate --reason "first model with the new shops"
    """
    settings = settings_of(ctx)
    model = _publish(settings, bundle or str(settings.path(settings.model.bundle)))
    _change(settings, by, reason, lambda state, decision: releases.release(state, model, decision))


@app.command()
def canary(
    ctx: typer.Context,
    bundle: BundleAt,
    share: Annotated[float, typer.Option(help="Share of the events, by key: above 0, below 1.")] = 0.1,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Let a bundle score a share of the events in the champion's place; repeated, change the share.

    [bold]Example[/bold]  pipeline model canary models/candidate --share 0.05
    """
    settings = settings_of(ctx)
    releases.check_share(share)  # before the work
    model = _publish(settings, bundle)
    _change(settings, by, reason, lambda state, decision: releases.canary(state, model, share, decision))


@app.command()
def shadow(ctx: typer.Context, bundle: BundleAt, reason: Reason = "", by: By = None) -> None:
    """Let a bundle score all events beside the champion, for comparison alone.

    [bold]Example[/bold]  pipeline model shadow s3://models/shop/candidate.tar
    """
    settings = settings_of(ctx)
    model = _publish(settings, bundle)
    _change(settings, by, reason, lambda state, decision: releases.shadow(state, model, decision))


@app.command()
def promote(ctx: typer.Context, slot: SlotOf = Challenger.CANARY, reason: Reason = "", by: By = None) -> None:
    """Make the canary, or the shadow, champion.

    [bold]Examples[/bold]

    pipeline model promote

    pipeline model promote shadow --reason "better for a week"
    """
    _change(settings_of(ctx), by, reason, lambda state, decision: releases.promote(state, slot.value, decision))


@app.command()
def rollback(
    ctx: typer.Context,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="An earlier champion.  [dim]Else the one before.[/dim]")
    ] = None,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Make the champion before this one champion again; once more, the one before that.

    [bold]Examples[/bold]

    pipeline model rollback --reason "twice the refunds"

    pipeline model rollback --to 4f1a2b3c4d5e
    """
    _change(settings_of(ctx), by, reason, lambda state, decision: releases.rollback(state, to, decision))


@app.command()
def withdraw(ctx: typer.Context, slot: SlotOf, reason: Reason = "", by: By = None) -> None:
    """Take the canary or the shadow out of service.

    [bold]Example[/bold]  pipeline model withdraw canary
    """
    _change(settings_of(ctx), by, reason, lambda state, decision: releases.withdraw(state, slot.value, decision))


@app.command()
def approve(
    ctx: typer.Context,
    report_id: Annotated[str, typer.Argument(metavar="REPORT", help="The id of a report of the gate.")],
    share: Annotated[float, typer.Option(help="Share of the events that it gets as canary.")] = 0.1,
    at_once: Annotated[bool, typer.Option("--champion", help="Make it champion, without a time as canary.")] = False,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Say yes to a challenger that the gate accepted and that waits for a person (gate.approval = "manual").

    It becomes canary. The champion must still be the one that the gate compared it with.

    [bold]Example[/bold]  pipeline model approve 3f9c1a2b4d5e6f70 --share 0.05
    """
    from pipeline.cli.releasing import find_report  # noqa: PLC0415

    settings = settings_of(ctx)
    releases.check_share(share)
    report = find_report(settings, report_id)
    uri = report.challenger_uri
    model = _publish(settings, uri if "://" in uri else str(settings.path(Path(uri))))
    if model.model_version != report.challenger_version:
        raise BundleError(f"{uri}: is {model.model_version}, and the gate accepted {report.challenger_version}")

    def approved(state: Releases, decision: Decision) -> Change:
        now = state.champion.model_version if state.champion else "none"
        if now != report.champion_version:
            told = (
                f"compared with champion {report.champion_version}, and that is {now} by now: let the gate judge anew"
            )
            raise ContractError(f"report {report_id}: {model.model_version} was {told}")
        if at_once:
            return releases.release(state, model, decision)
        return releases.canary(state, model, share, decision)

    _change(settings, by, reason, approved, report_id)


# --------------------------------------------------------------------------- their parts


def _log(settings: Settings, *, create: bool = False) -> Any:
    from pipeline.cli.releasing import open_releases  # noqa: PLC0415  half a second that --help need not wait for

    return open_releases(settings, create=create)


def _change(
    settings: Settings,
    by: str | None,
    reason: str,
    make: Callable[[Releases, Decision], Change],
    report_id: str | None = None,
) -> None:
    """Carry a change out and say what holds then; what a report asks for is carried out once."""
    from pipeline.cli.releasing import decide  # noqa: PLC0415

    decision = decide(settings, by, reason, report_id)
    state: Releases = _log(settings, create=True).change(decision, lambda now: make(now, decision))
    entry = next(e for e in state.history if e.release_id == decision.release_id)
    if (entry.released_by, entry.released_at_ms) != (decision.by, decision.at_ms):
        say(f"report {report_id} was approved already, {local_time(entry.released_at_ms)} by {entry.released_by}")
    for slot in releases.SLOTS:
        if (found := state.slot(slot)) is not None:
            share = f", {_share(found)} of the events" if slot == "canary" else ""
            typer.echo(f"{slot}: {found.model_id} {found.model_version}{share}")


def _publish(settings: Settings, where: str) -> Model:
    """What is at `where`, checked here, and where workers fetch it. Raises BundleError, UnreachableError."""
    from pipeline.models import fetching  # noqa: PLC0415  fsspec takes 0.1 s

    if "://" in where:
        found = fetching.read_at(where, settings.root)
        _check(settings, found, where)
        return Model(found.model_id, found.model_version, where, found.digest)
    found = bundles.read(Path(where))
    _check(settings, found, where)
    return fetching.publish(found, settings.releases.store, settings.root)


def _check(settings: Settings, bundle: Bundle, where: str) -> None:
    """Raise BundleError for a bundle that does not load, run, or fit the project's event schema, if there is one."""
    from pipeline.cli.model import run_as_set  # noqa: PLC0415

    try:
        run_as_set(bundle, settings)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from None
    schema_file = settings.path(settings.events.schema_file)
    if schema_file.exists() and (misfits := bundles.check_fits(bundle, event_schema(settings))):
        raise BundleError("\n".join(f"{where}: does not fit {schema_file}: {misfit}" for misfit in misfits))


def _print_rows(entries: Any) -> None:
    for entry in entries:
        sys.stdout.write(render.to_json(releases.to_row(entry)) + "\n")


def _share(entry: ModelRelease) -> str:
    return f"{entry.share * 100:g}%" if entry.slot == "canary" else ""


def _who(entry: ModelRelease) -> tuple[str, str, str]:
    return local_time(entry.released_at_ms), entry.released_by, entry.reason
