"""`pipeline model tune`: how fast the model is here by batch size, threads and precision, and what to set."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.cli import render
from pipeline.cli.context import printable, say, settings_of, stderr, stdout, table
from pipeline.cli.evaluate_source import FileSource, Range
from pipeline.cli.processes import stop_signals
from pipeline.codec import ColumnarDecoder
from pipeline.contracts import Model
from pipeline.errors import BundleError, DataError, SettingsError
from pipeline.models import bundle as bundles
from pipeline.models.bundle import Bundle
from pipeline.scoring import speed, tuning
from pipeline.scoring.speed import Arrays, Setup, Timing
from pipeline.scoring.tuning import REFERENCE, Advice, Loss
from pipeline.scoring.validate import Validator
from pipeline.sections.serving import Precision
from pipeline.settings import Settings

#: Sizes that are tried, and rows that they are made of: those of a step, by default.
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
ROWS = 8192
#: With imports, loading and comparing under a minute, also on a busy machine.
SECONDS = 30.0
#: Rows in a call where speed is not the point.
PLAIN_BATCH = 256
#: Share of the time that a slow model may take to tell what a precision costs: then it is told on fewer rows.
LOSS_SHARE = 0.1
#: Below this two medians of one and the same are not told apart.
GAIN_SEEN = 1.05


def tune(
    ctx: typer.Context,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Folder or archive.  [dim]Else the one of model.bundle.[/dim]")
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or Parquet file of events.  [dim]Else rows drawn from the model's baseline.[/dim]"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="To measure for, about.")] = SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one line of JSON.")] = False,
) -> None:
    """Measure the model on this machine by batch size, torch threads and precision, and say what to set.

    Only the model's calls are measured, in turns. A lower precision is advised where it gains 10 % and changes fewer
    than 0.1 % of the labels (of a regression: of the outputs, by 1 % of their standard deviation). Nothing is changed.

    [bold]Examples[/bold]

    pipeline model tune

    pipeline model tune --bundle models/candidate --events orders.csv --seconds 120

    pipeline model tune --json | jq .advice
    """
    settings = settings_of(ctx)
    path = bundle or settings.path(settings.model.bundle)
    found = bundles.read(path)
    step = _made_up(found) if events is None else _read(found, events, settings)
    with stop_signals() as stop, _progress() as show:

        def on_turn(done: int, turns: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            show(done, turns)

        on_turn(0, 1)
        try:
            models, barred = _models(settings, found)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
        result = _measured(settings, models, step, seconds, on_turn)
    result = {
        "model": {"bundle": str(path), "model_id": found.model_id, "model_version": found.model_version},
        "rows": {"count": sum(map(speed.rows_of, step)), "source": "baseline" if events is None else str(events)},
        **result,
        "barred": barred,
    }
    if as_json:
        sys.stdout.write(render.to_json(result) + "\n")
    else:
        show_result(result)


# --------------------------------------------------------------------------- the rows


def _made_up(bundle: Bundle) -> list[Arrays]:
    if not bundle.baseline.signals:
        say("the bundle has no baseline: rows are random numbers, so what a precision costs is a guess; give --events")
    return speed.made_up(bundle.contract, bundle.baseline, ROWS)


def _read(bundle: Bundle, file: Path, settings: Settings) -> list[Arrays]:
    """The first rows of a file as a worker's inputs, repeated where they are few."""
    source = FileSource(file, settings, Range(rows_max=ROWS))
    if misfits := bundles.check_fits(bundle, source.schema):
        raise BundleError("\n".join(f"{bundle.model_id} does not fit the events: {misfit}" for misfit in misfits))
    decoder = ColumnarDecoder(source.registry, source.schema)
    validator = Validator(bundle.contract, id_field=settings.events.id_field, time_field=None)
    decoded = decoder.decode([value for chunk in source.chunks() for value in chunk.values])
    checked = validator.validate(decoded)
    if not checked.inputs:
        refused = [*decoded.rejects, *checked.rejects]
        raise DataError(f"{file}: none of the first {source.size:,} events can be scored ({refused[0].message})")
    return repeated([inputs.arrays for inputs in checked.inputs], ROWS)


def repeated(step: Sequence[Arrays], rows: int) -> list[Arrays]:
    """The same rows again and again, shape by shape, until they are `rows` or more."""
    times = -(-rows // sum(map(speed.rows_of, step)))
    return [{name: np.concatenate([array] * times) for name, array in inputs.items()} for inputs in step]


# --------------------------------------------------------------------------- measuring


def _models(settings: Settings, bundle: Bundle) -> tuple[dict[str, Model], dict[str, str]]:
    """The model at each precision that it has here, and why it does not have the others."""
    from pipeline.topology.serving import load_model  # noqa: PLC0415  two seconds, and torch

    models: dict[str, Model] = {}
    barred = {}
    for precision in get_args(Precision):
        # Batches are tried one by one, the largest perhaps not at all.
        scoring = settings.scoring.model_copy(update={"precision": precision, "batch_max": BATCHES[0]})
        try:
            models[precision] = load_model(settings.model_copy(update={"scoring": scoring}), bundle)
        except SettingsError as error:
            barred[precision] = str(error).removeprefix("scoring.precision: ")
    return models, barred


def _measured(
    settings: Settings,
    models: dict[str, Model],
    step: list[Arrays],
    seconds: float,
    on_turn: Callable[[int, int], None],
) -> dict[str, Any]:
    from pipeline.scoring.engine import set_threads  # noqa: PLC0415  torch

    now = Setup(settings.scoring.precision, settings.model.threads, settings.scoring.batch_max)
    device = str(getattr(models[REFERENCE], "device", "cpu"))
    threads = thread_counts(os.cpu_count() or 1, now.threads) if device == "cpu" else [now.threads]
    rates = {}
    for name, model in models.items():
        rates[name] = speed.probe(model, step, BATCHES[0])
        on_turn(0, 1)
    sizes = sorted({*BATCHES, min(now.batch, ROWS)})
    batches = speed.affordable(sizes, threads, rates, seconds)
    compared = thinned(step, int(LOSS_SHARE * seconds * min(rates.values())))
    outputs, losses = {}, {}
    for name, model in models.items():
        outputs[name] = np.concatenate([model.score(inputs) for inputs in compared])
        on_turn(0, 1)
        if name != REFERENCE:
            losses[name] = tuning.loss_of(outputs[REFERENCE], outputs[name], model.contract)
    setups = [Setup(name, count, batch) for name in models for count in threads for batch in batches]
    timings = speed.measure(models, step, setups, seconds=seconds, set_threads=set_threads, on_turn=on_turn)
    advice = tuning.advise(timings, losses, now._replace(batch=min(now.batch, ROWS)))
    return {
        "machine": {"device": device, "cores": os.cpu_count()},
        "rows_compared": len(outputs[REFERENCE]),
        "output": models[REFERENCE].contract.output.kind,
        "batches_left_out": [batch for batch in sizes if batch not in batches],
        **as_plain(timings, losses, advice),
    }


def thinned(step: Sequence[Arrays], rows: int) -> list[Arrays]:
    """Calls of PLAIN_BATCH rows from all over a step, of about `rows` rows together; one at the least."""
    parts = list(speed.parts_of(step, PLAIN_BATCH))
    return parts[:: max(1, -(-sum(map(speed.rows_of, parts)) // max(1, rows)))]


def thread_counts(cores: int, now: int) -> list[int]:
    """1, 2, 4, ... and all cores; and what is set now."""
    return sorted({1, *(1 << i for i in range(cores.bit_length()) if 1 << i <= cores), cores, now})


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr if that is a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _done, _all: None
        return
    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.completed}/{task.total} turns"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, turns: bar.update(task, completed=done, total=turns if turns > 1 else None)


# --------------------------------------------------------------------------- the result


def as_plain(timings: Sequence[Timing], losses: dict[str, Loss], advice: Advice) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {
        "speed": [
            {
                "precision": t.setup.model,
                "threads": t.setup.threads,
                "batch": t.setup.batch,
                "rows_per_s": t.rate,
                "rows_per_s_of_rounds": list(t.rows_per_s),
                "cpu_s_per_million": t.cpu_s,
            }
            for t in timings
        ],
        "losses": {name: asdict(loss) for name, loss in losses.items()},
        "advice": {
            **_keys(advice.setup),
            "now": _keys(advice.now),
            "rows_per_s": advice.rate,
            "gain": advice.gain,
        },
    }


def _keys(setup: Setup) -> dict[str, Any]:
    return {"precision": setup.model, "threads": setup.threads, "batch_max": setup.batch}


def show_result(result: dict[str, Any]) -> None:
    """Speed, losses and advice for a person."""
    console, model, rows = stdout(), result["model"], result["rows"]
    source = "drawn from its baseline" if rows["source"] == "baseline" else f"of {rows['source']}"
    machine = f"{result['machine']['device']}, {result['machine']['cores']} cores"
    told = f"{model['model_id']} {model['model_version']} on {rows['count']:,} rows {source}; {machine}"
    console.print(Text(printable(told), "bold"))
    batches = sorted({t["batch"] for t in result["speed"]})
    names = tuple(f"{batch:,}" for batch in batches)
    by_setup = {(t["precision"], t["threads"], t["batch"]): t for t in result["speed"]}
    kinds = list(dict.fromkeys(key[:2] for key in by_setup))
    title = "rows a second by rows in one call, and CPU seconds per million at the fastest"
    lines = []
    for kind in kinds:
        row = [by_setup[*kind, batch] for batch in batches]
        best = max(row, key=lambda t: t["rows_per_s"])
        lines.append((*kind, *(_short(t["rows_per_s"]) for t in row), f"{best['cpu_s_per_million']:.3g}"))
    right = ("threads", *names, "CPU s")
    console.print(table(title, ("precision", *right), lines, right=right))
    if left_out := result["batches_left_out"]:
        console.print(f"Not tried in this time: {', '.join(f'{b:,}' for b in left_out)}; --seconds gives more.")
    moved = "labels changed" if result["output"] == "classification" else "outputs moved"
    columns = ("largest difference", "mean difference", moved)
    losses = [
        (name, f"{loss['largest']:.2g}", f"{loss['mean']:.2g}", f"{loss['changed']:.3%}".replace("%", " %"))
        for name, loss in result["losses"].items()
    ]
    if losses:
        told = f"what outputs lose against float32, on {result['rows_compared']:,} rows"
        console.print(table(told, ("precision", *columns), losses, right=columns))
    for name, why in result["barred"].items():
        console.print(Text(printable(f"{name} was not measured: {why}")))
    console.print(Text("\n".join(advised(result["advice"]))))


def advised(advice: dict[str, Any]) -> Iterator[str]:
    """What to put into pipeline.toml."""
    gain = advice["gain"]
    told = "" if gain is None else f", {gain:.2f} times what is set now"
    if gain is not None and gain < GAIN_SEEN and advice["precision"] == advice["now"]["precision"]:
        told += ": leave it"
    yield f"\n# {_short(advice['rows_per_s'])} rows a second{told}"
    yield f"[model]\nthreads = {advice['threads']}\n"
    yield f'[scoring]\nbatch_max = {advice["batch_max"]}\nprecision = "{advice["precision"]}"'


def _short(rate: float) -> str:
    """Three digits: 1.23M, 456k, 78.9."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if rate >= 0.9995 * unit:
            scaled = rate / unit
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f}{name}"
    return f"{rate:.3g}"
