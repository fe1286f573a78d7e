"""`pipeline gate`: may a challenger replace the champion? The gate of the retrainer, on a file and without Kafka."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from pipeline import __version__, measures
from pipeline.cli import render
from pipeline.cli.context import printable, say, settings_of, stdout, table
from pipeline.cli.evaluate_report import figure, title
from pipeline.cli.evaluate_scoring import Scorer
from pipeline.cli.evaluate_source import FileSource, Range
from pipeline.cli.evaluate_steps import WINDOW_ROWS_MIN, WINDOWS, bound, fitting, load_models, reading, write
from pipeline.cli.gate_report import page
from pipeline.cli.gate_scoring import Both, score_both
from pipeline.errors import DataError
from pipeline.models.bundle import Bundle
from pipeline.retraining.findings import Finding
from pipeline.retraining.gate import Contestant, Verdict, judge, refusals
from pipeline.retraining.latency import Latency, measure_latency
from pipeline.settings import Settings


def gate(
    ctx: typer.Context,
    challenger: Annotated[Path, typer.Option(metavar="BUNDLE", help="The model that may take over.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help="CSV or Parquet, of rows that neither was trained on.")],
    champion: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The model at work.  [dim]Else that of model.bundle.[/dim]")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Column with the truth.  [dim]Else events.label_field.[/dim]")
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="FIELD",
            help="No value of it may get worse (repeatable).  [dim]Else events.slice_fields.[/dim]",
        ),
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="WHERE", help="First row, or ISO time.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="WHERE", help="Where to stop, exclusive.")] = None,
    rows_max: Annotated[int, typer.Option(min=1, help="Read no more than this.")] = 1_000_000,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with all checks and plots (HTML).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as one JSON object.")] = False,
) -> None:
    """Judge whether a challenger may replace the champion, by labelled rows of a file that neither was trained on.

    Both score the same rows as a worker would. Better beyond chance, no slice worse, calibration no worse, latency
    within its budget: the gate's settings say what is asked. Nothing is released.
    Exit code 0: accepted; 1: refused, and the output says by which checks.

    [bold]Examples[/bold]

    pipeline gate --challenger models/candidate --data newest.csv

    pipeline gate --champion a.bundle --challenger b.bundle --data orders.csv --from 8000 --report gate.html
    """
    wanted = Range(bound(first, "--from"), bound(end, "--to"), rows_max)
    settings = settings_of(ctx)
    label = label_field or settings.events.label_field
    if label is None:
        raise typer.BadParameter("missing, and events.label_field is not set", param_hint="--label-field")
    if report is not None and not report.parent.is_dir():
        raise DataError(f"{report}: cannot be written: there is no folder {report.parent}")
    chosen = list(dict.fromkeys(slices or settings.events.slice_fields))
    source = FileSource(data, settings, wanted)
    source.check(label, chosen)
    paths = (champion or settings.path(settings.model.bundle), challenger)
    bundles = (fitting(paths[0], source.schema), fitting(paths[1], source.schema))

    both, latency = _scored(source, bundles, settings, label, chosen)
    contestants = (
        Contestant(bundles[0].model_version, bundles[0].contract.output, both.champion.scored),
        Contestant(bundles[1].model_version, bundles[1].contract.output, both.challenger.scored),
    )
    lost = refusals(both.champion_only, len(both.champion.scored) + both.champion.unlabelled, settings.gate)
    guards = [_held_out(source, bundles, label), lost]
    verdict = judge(*contestants, settings.gate, guards=guards, latency=latency)
    result = {
        **_about(settings, paths, bundles, source, label, both),
        **as_plain(verdict, contestants, timed=source.timed),
    }
    if report is not None:
        write(report, page(result))
    if as_json:
        sys.stdout.write(render.to_json(result) + "\n")
    else:
        _show(result)
    if report is not None:
        say(f"wrote {report}")
    if not verdict.accepted:
        raise typer.Exit(1)


# --------------------------------------------------------------------------- the steps


def _scored(
    source: FileSource, bundles: tuple[Bundle, Bundle], settings: Settings, label: str, slices: list[str]
) -> tuple[Both, Latency]:
    with reading(source) as on_read:
        first, second = (Scorer(source, model, settings) for model in load_models(settings, *bundles))
        both = score_both(source, (first, second), label, slices, settings.scoring.batch_max, on_read)
    return both, measure_latency(first.model, second.model, both.batches)


def _held_out(source: FileSource, bundles: tuple[Bundle, Bundle], label: str) -> Finding:
    """Whether the rows are new to both, as far as the fingerprints of their training data tell."""
    known = [
        bundle.training.rows_train
        if source.first_row < bundle.training.rows_train and source.is_data_of(bundle, label)
        else 0
        for bundle in bundles
    ]
    if not (trained := max(known)):
        return Finding("held_out", True, 0.0, 0.0, "neither was trained on the first rows of this very file")
    who = " and ".join(name for name, rows in zip(("champion", "challenger"), known, strict=True) if rows)
    seen = min(trained - source.first_row, source.size)
    told = f"{who} trained on the first {trained:,} rows of this very file; --from {trained} leaves them out"
    return Finding("held_out", False, float(seen), 0.0, told)


def _about(
    settings: Settings,
    paths: tuple[Path, Path],
    bundles: tuple[Bundle, Bundle],
    source: FileSource,
    label: str,
    both: Both,
) -> dict[str, Any]:
    """What was compared, on what, and how much of it could be."""
    described: dict[str, Any] = {**source.described(), "ordered_by": "time" if source.timed else "row"}
    if source.timed:
        times_ms = both.champion.times_ms
        described |= {"first_time_ms": int(times_ms[0]), "last_time_ms": int(times_ms[-1])}
    models = [
        {
            "bundle": str(path),
            "model_id": bundle.model_id,
            "model_version": bundle.model_version,
            "packed_at": bundle.manifest.created_at,
            "architecture": bundle.manifest.architecture.module,
            "classes": list(bundle.contract.output.classes),
            "rows_train": bundle.training.rows_train,
        }
        for path, bundle in zip(paths, bundles, strict=True)
    ]
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"pipeline {__version__}",
        "pipeline": settings.name,
        "champion": models[0],
        "challenger": models[1],
        "data": {**described, "label_field": label},
        "rows": {
            "read": both.champion.read,
            "only_champion_could_score": both.champion_only,
            "only_challenger_could_score": both.challenger_only,
            "unlabelled": both.champion.unlabelled,
            "judged": len(both.champion.scored),
        },
        "gate": settings.gate.model_dump(mode="json"),
    }


def as_plain(verdict: Verdict, contestants: tuple[Contestant, Contestant], *, timed: bool) -> dict[str, Any]:
    """The verdict as plain data, with what the page draws: what `gate_report.page` takes beside `_about`."""
    size = max(WINDOW_ROWS_MIN, -(-verdict.bounds.rows // WINDOWS))
    timelines = [measures.windows(one.scored, one.output, size) for one in contestants]
    if not timed:
        for window in (window for timeline in timelines for window in timeline):
            window["first_row"], window["last_row"] = window.pop("first_time_ms"), window.pop("last_time_ms")
    reports = (verdict.champion, verdict.challenger)
    return {
        "accepted": verdict.accepted,
        "approval": verdict.approval,
        "checks": [
            {"name": c.name, "passed": c.passed, "value": c.value, "bound": c.bound, "says": c.says}
            for c in verdict.checks
        ],
        "loss": verdict.loss,
        "change": {"mean": verdict.bounds.mean, "low": verdict.bounds.low, "high": verdict.bounds.high},
        "metrics": {who: found["metrics"] for who, found in zip(WHO, reports, strict=True)},
        "reliability": {who: found["reliability"] for who, found in zip(WHO, reports, strict=True)},
        "windows": dict(zip(WHO, timelines, strict=True)),
        "window_rows": size,
        "slices": [
            {
                "field": s.field,
                "value": s.value,
                "rows": s.bounds.rows,
                "champion": s.champion,
                "challenger": s.challenger,
                "change": s.bounds.mean,
                "low": s.bounds.low,
                "high": s.bounds.high,
                "worse": s.worse,
            }
            for s in verdict.slices
        ],
    }


WHO = ("champion", "challenger")


# --------------------------------------------------------------------------- what a person sees


def _show(result: dict[str, Any]) -> None:
    """Checks, metrics of both, and the verdict last."""
    console = stdout()
    names = [f"{result[who]['model_id']} {result[who]['model_version']}" for who in WHO]
    console.print(Text(printable(f"{names[1]} in place of {names[0]}, on {result['data']['name']}"), "bold"))
    rows = [
        (Text("passed", "green") if check["passed"] else Text("failed", "bold red"), check["name"], check["says"])
        for check in result["checks"]
    ]
    console.print(table(None, ("", "check", "what it found"), rows))
    before, after = (result["metrics"][who] for who in WHO)
    metrics = [
        (title(name), figure(before.get(name)), figure(after.get(name)))
        for name in dict.fromkeys([*before, *after])
        if not name.endswith("_of_no_change")
    ]
    console.print(table(f"on {result['rows']['judged']:,} rows", ("metric", *WHO), metrics, right=WHO))
    if result["accepted"]:
        waits = "; a person has to approve it" if result["approval"] == "waiting" else ""
        console.print(Text(f"accepted{waits}", "bold green"))
    else:
        failed = [check["name"] for check in result["checks"] if not check["passed"]]
        console.print(Text(f"refused by {', '.join(failed)}", "bold red"))
