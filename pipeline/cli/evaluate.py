"""`pipeline evaluate`: how good a model is on a file or on a range of a topic, and how far these are from its data."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline import __version__, measures
from pipeline.cli import evaluate_drift, render
from pipeline.cli.context import printable, say, settings_of, stdout, table
from pipeline.cli.evaluate_report import page
from pipeline.cli.evaluate_scoring import Rows, Scorer, score_all
from pipeline.cli.evaluate_source import FileSource, Range, Source, TopicSource
from pipeline.cli.evaluate_steps import WINDOW_ROWS_MIN, WINDOWS, bound, fitting, load_models, reading, write
from pipeline.errors import DataError
from pipeline.models import bundle as bundles
from pipeline.settings import Settings

#: Gaps shown on the terminal, the widest; the files have all.
GAPS_SHOWN = 8


def evaluate(
    ctx: typer.Context,
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help="CSV or Parquet file.")] = None,
    topic: Annotated[
        str | None, typer.Option(metavar="NAME", help="Topic to read.  [dim]Without --data: the events topic.[/dim]")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Folder or archive.  [dim]Else the one of model.bundle.[/dim]")
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Column or field with the truth.  [dim]Else events.label_field.[/dim]"),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="FIELD",
            help="Measure by its values, too (repeatable).  [dim]Else events.slice_fields.[/dim]",
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="WHERE", help="First row or offset (negative: before the end), or ISO time."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="WHERE", help="Where to stop, exclusive; the same.")
    ] = None,
    rows_max: Annotated[int, typer.Option(min=1, help="Read no more than this.")] = 1_000_000,
    window_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a point of the timeline.  [dim]Else 40 points.[/dim]")
    ] = None,
    delay_rows: Annotated[
        int, typer.Option(min=1, help="Rows after which a label is known: what no-change may repeat.")
    ] = 1,
    quantile: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="That the regression predicts.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of evaluation.json and .html.")] = Path("evaluation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what evaluation.json holds, in one line.")] = False,
) -> None:
    """Score a file, or a range of a topic, as a worker would, and measure it against the truth.

    Prints metrics and the widest gaps between slices; writes evaluation.json and a page with all plots, which
    needs nothing but a browser. Nothing is sent, and no consumer group is moved.

    [bold]Examples[/bold]

    pipeline evaluate --data orders.csv --from 8000 --slice country

    pipeline evaluate --bundle models/candidate --data newer.parquet --out candidate

    pipeline evaluate --from 2024-06-01 --to 2024-06-08T12:00Z --json | jq .metrics
    """
    if data is not None and topic is not None:
        raise typer.BadParameter("give --data or --topic, not both", param_hint="--topic")
    if quantile is not None and not 0 < quantile < 1:
        raise typer.BadParameter(f"{quantile} is not between 0 and 1", param_hint="--quantile")
    wanted = Range(bound(first, "--from"), bound(end, "--to"), rows_max)
    settings = settings_of(ctx)
    label = label_field or settings.events.label_field
    if label is None:
        raise typer.BadParameter("missing, and events.label_field is not set", param_hint="--label-field")

    chosen = list(dict.fromkeys(slices or settings.events.slice_fields))
    if data is not None:
        source: Source = FileSource(data, settings, wanted)
    else:
        source = TopicSource(topic or settings.topic("events"), settings, wanted, label)
    source.check(label, chosen)
    path = bundle or settings.path(settings.model.bundle)
    found = fitting(path, source.schema)
    _make_folder(out)
    warnings = list(_warnings(source, found, label))
    for warning in warnings:
        say(f"warning: {warning}")
    rows = _scored(source, found, settings, label, chosen)
    result = {
        **_about(settings, path, found, source, label, rows),
        "warnings": warnings,
        **_measured(rows, found, source, window_rows, quantile, delay_rows),
    }
    for name, text in (("evaluation.html", page(result)), ("evaluation.json", render.to_json(result) + "\n")):
        write(out / name, text)
    if as_json:
        sys.stdout.write(render.to_json(result) + "\n")
    else:
        _show(result)
    say(f"wrote {out / 'evaluation.html'} and {out / 'evaluation.json'}")


# --------------------------------------------------------------------------- the steps


def _warnings(source: Source, bundle: bundles.Bundle, label: str) -> Iterator[str]:
    """What makes the numbers say less than they seem to."""
    if source.left_out:
        told = f"only the first {source.size:,} of {source.size + source.left_out:,} events are read"
        yield f"{told}; --rows-max takes more, --from and --to choose"
    trained = bundle.training.rows_train
    if isinstance(source, FileSource) and source.first_row < trained and source.is_data_of(bundle, label):
        told = f"the model was trained on the first {trained:,} rows of this very file, in order of time"
        yield f"{told}: it knows their answers. --from {trained} leaves them out"


def _scored(source: Source, bundle: bundles.Bundle, settings: Settings, label: str, slices: list[str]) -> Rows:
    with reading(source) as on_read:
        (model,) = load_models(settings, bundle)
        return score_all(source, Scorer(source, model, settings), label, slices, bundle.baseline.given, on_read)


def _measured(
    rows: Rows,
    bundle: bundles.Bundle,
    source: Source,
    window_rows: int | None,
    quantile: float | None,
    delay_rows: int,
) -> dict[str, Any]:
    """All measures, the timeline of metrics, the timeline of drift."""
    output, scored = bundle.contract.output, rows.scored
    size = window_rows or max(WINDOW_ROWS_MIN, -(-len(scored) // WINDOWS))
    report = measures.measure(scored, output, quantile=quantile, delay_rows=delay_rows)
    del report["rows"]  # told with the others
    timeline = measures.windows(scored, output, size, quantile=quantile, delay_rows=delay_rows)
    drift = evaluate_drift.timeline(rows.signals, rows.times_ms, bundle.baseline, size)
    if not source.timed:
        for window in (*timeline, *drift["windows"]):
            window["first_row"], window["last_row"] = window.pop("first_time_ms"), window.pop("last_time_ms")
    return {**report, "windows": timeline, "drift": drift, "window_rows": size, "delay_rows": delay_rows}


def _about(
    settings: Settings, path: Path, bundle: bundles.Bundle, source: Source, label: str, rows: Rows
) -> dict[str, Any]:
    """What was measured, with what, and how much of it could be."""
    manifest = bundle.manifest
    described: dict[str, Any] = {**source.described(), "ordered_by": "time" if source.timed else "row"}
    if source.timed:
        described |= {"first_time_ms": int(rows.times_ms[0]), "last_time_ms": int(rows.times_ms[-1])}
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"pipeline {__version__}",
        "pipeline": settings.name,
        "model": {
            "bundle": str(path),
            "model_id": bundle.model_id,
            "model_version": bundle.model_version,
            "packed_at": manifest.created_at,
            "architecture": manifest.architecture.module,
            "output": bundle.contract.output.kind,
            "classes": list(bundle.contract.output.classes),
            "features": [feature.name for feature in bundle.contract.features],
            "training": manifest.training.model_dump(mode="json"),
            "made_with": manifest.made_with,
        },
        "data": {**described, "label_field": label},
        "rows": {
            "read": rows.read,
            "rejected": rows.rejected,
            "scored": rows.scored_count,
            "unlabelled": rows.unlabelled,
            "unknown_labels": rows.unknown_labels,
            "measured": len(rows.scored),
            "imputed": rows.imputed,
        },
        "examples": rows.examples,
    }


# --------------------------------------------------------------------------- what a person sees


def _show(result: dict[str, Any]) -> None:
    """Counts, metrics beside those of packing, and the widest gaps."""
    console, rows, model = stdout(), result["rows"], result["model"]
    counts = [("read", rows["read"]), *((f"rejected: {reason}", n) for reason, n in rows["rejected"].items())]
    counts += [("scored", rows["scored"])]
    counts += [(f"without {result['data']['label_field']}", rows["unlabelled"])] if rows["unlabelled"] else []
    counts += [("of classes the model does not know", rows["unknown_labels"])] if rows["unknown_labels"] else []
    console.print(Text(printable(f"{model['model_id']} {model['model_version']} on {result['data']['name']}"), "bold"))
    console.print(table(None, ("rows", "count"), [(what, f"{n:,}") for what, n in counts], right=("count",)))
    packed = model["training"]["metrics"]
    metrics = [
        (name, f"{value:.4g}", f"{packed[name]:.4g}" if name in packed else "-")
        for name, value in result["metrics"].items()
    ]
    names = ("metric", "here", "when packed")
    console.print(table(f"on {rows['measured']:,} rows", names, metrics, right=names[1:]))
    if gaps := widest(result["gaps"]):
        console.print(gaps_table(gaps[:GAPS_SHOWN]))


def gaps_table(gaps: list[dict[str, Any]], title: str = "widest gaps whose interval leaves 0 out") -> Table:
    """Gaps as measures.slices gives them, a line each."""
    columns = ("slice", "measure", "in it", "in the rest", "difference", "95 % interval", "rows")
    shown = [
        (
            f"{gap['field']} = {gap['value'] or '(empty)'}",
            gap["measure"],
            f"{gap['value_of_slice']:.4g}",
            f"{gap['of_rest']:.4g}",
            f"{gap['difference']:+.4g}",
            f"{gap['low']:+.4g} to {gap['high']:+.4g}",
            f"{gap['rows']:,}",
        )
        for gap in gaps
    ]
    return table(title, columns, shown, right=columns[2:])


def widest(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gaps that chance does not explain, the widest first."""
    real = [gap for gap in gaps if gap["low"] > 0 or gap["high"] < 0]
    return sorted(real, key=lambda gap: -abs(gap["difference"]))


def _make_folder(out: Path) -> None:
    """Before the work, not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made: {error.strerror}") from None
