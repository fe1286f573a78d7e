"""`pipeline model compare`: the champion and the shadow on the events that both scored, by the labels that came."""

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from pipeline.cli import render
from pipeline.cli.context import local_time, printable, settings_of, stdout, table
from pipeline.cli.evaluate_report import figure, title
from pipeline.cli.evaluate_source import Bound, Range, spans
from pipeline.cli.quality import Source, newest
from pipeline.cli.releasing import open_releases
from pipeline.cli.wiring import connect
from pipeline.codec import event_schema
from pipeline.errors import ContractError, DataError
from pipeline.measures import measure
from pipeline.measures.metrics import is_probability
from pipeline.measures.scored import Scored, by_class
from pipeline.models.releases import ModelRelease
from pipeline.quality.pairs import Pairs, Side
from pipeline.records import ModelIdentity
from pipeline.retraining import comparing
from pipeline.retraining.comparing import LOSSES, Bounds, paired_losses
from pipeline.settings import Settings
from pipeline.topology.releases import released_bundle

#: Of each of the two sides: the interval is one of 95 %.
ALPHA = 0.025


def compare(
    ctx: typer.Context,
    rows_max: Annotated[int, typer.Option(min=1, help="Read no more outcomes than this, the newest.")] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one line of JSON.")] = False,
) -> None:
    """Compare the shadow with the champion: the same events, by the labels that came since both were in service.

    Whether a loss differs beyond chance is told by an interval that knows that neighbouring events resemble each other.
    Nothing is changed: `pipeline model promote shadow` does that.

    [bold]Examples[/bold]

    pipeline model compare

    pipeline model compare --json | jq '.losses.error.high < 0'
    """
    settings = settings_of(ctx)
    state = open_releases(settings).state()
    if state.champion is None or state.shadow is None:
        raise ContractError("there is no shadow to compare; `pipeline model shadow BUNDLE` makes one")
    since_ms = max(state.champion.released_at_ms, state.shadow.released_at_ms)
    schema = event_schema(settings)
    sides = [_side(settings, release, schema) for release in (state.champion, state.shadow)]
    pairs = Pairs(sides[0], sides[1], since_ms)
    _read(settings, pairs, since_ms, rows_max)
    first, second = pairs.scored()
    if not len(first):
        told = "{:,} outcomes of the champion and {:,} of the shadow".format(*pairs.rows)
        raise DataError(f"no event that both scored has a label yet: there are {told} since both were in service")
    result = {
        "pipeline": settings.name,
        "since_ms": since_ms,
        "rows": len(first),
        "outcomes": dict(zip(("champion", "shadow"), pairs.rows, strict=True)),
        "versions": {side.identity.role: side.identity.model_version for side in sides},
        "losses": {name: _plain(bounds) for name, bounds in _differences(sides, first, second, settings).items()},
        "metrics": {
            side.identity.role: measure(scored, side.output)["metrics"]
            for side, scored in zip(sides, (first, second), strict=True)
        },
    }
    if as_json:
        sys.stdout.write(render.to_json(result) + "\n")
    else:
        _show(result)


def _side(settings: Settings, release: ModelRelease, schema: str) -> Side:
    output = released_bundle(settings, release, schema).contract.output
    return Side(ModelIdentity(release.model_id, release.model_version, release.slot), output)


def _read(settings: Settings, pairs: Pairs, since_ms: int, rows_max: int) -> None:
    options, admin = connect(settings)
    topic = settings.topic("outcomes")
    wanted = newest(spans(admin, topic, Range(Bound("", time_ms=since_ms))), rows_max)
    source = Source(settings, options, topic, wanted)
    decoder = source.decoder("outcome")
    for batch in source.batches():
        pairs.add(decoder.decode(batch.values).columns)


def _differences(sides: list[Side], first: Scored, second: Scored, settings: Settings) -> dict[str, Bounds]:
    """Of each loss that both have, the gate's before the others."""
    kind = sides[0].output.kind
    known = LOSSES[kind]
    chosen = known[0] if settings.gate.loss == "auto" else settings.gate.loss
    names = [chosen, *(name for name in known if name != chosen)]
    if not all(is_probability(by_class(scored.outputs)) for scored in (first, second)):
        names = [name for name in names if name != "log_loss"]
    found = {}
    for name in names:
        of_first, of_second = paired_losses(name, (first, sides[0].output), (second, sides[1].output))
        found[name] = comparing.compare(of_first, of_second, ALPHA)
    return found


def _plain(bounds: Bounds) -> dict[str, Any]:
    return {"difference": bounds.mean, "low": bounds.low, "high": bounds.high}


def _show(result: dict[str, Any]) -> None:
    console, versions = stdout(), result["versions"]
    told = f"{result['pipeline']}: {result['rows']:,} events that both scored since {local_time(result['since_ms'])}"
    console.print(Text(printable(told), "bold"))
    names = tuple(f"{version} {role}" for role, version in versions.items())
    metrics = result["metrics"]
    rows = [
        (title(name), *(figure(metrics[role].get(name)) for role in versions))
        for name in dict.fromkeys(name for role in versions for name in metrics[role])
        if not name.endswith("_error")
    ]
    console.print(table(None, ("measure", *names), rows, right=names))
    losses = [
        (
            name.replace("_", " "),
            figure(found["difference"]),
            f"{figure(found['low'])} to {figure(found['high'])}",
            says,
        )
        for name, found in result["losses"].items()
        for says in (_says(found),)
    ]
    columns = ("loss", "shadow less champion", "95 % interval", "the shadow is")
    console.print(table(None, columns, losses, right=columns[1:3]))


def _says(found: dict[str, Any]) -> str:
    if found["high"] < 0:
        return "better"
    return "worse" if found["low"] > 0 else "not known to differ"
