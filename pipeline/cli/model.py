"""`pipeline model`: train the built-in model, pack one of your own, verify and show bundles.

Commands on releases are in model_releases.py, `tune` in model_tune.py.
"""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from pipeline.cli import model_releases, model_tune, render
from pipeline.cli.context import say, settings_of, stderr, stdout, table
from pipeline.cli.inference import Columns
from pipeline.cli.model_fields import features_of, slices_of
from pipeline.cli.model_view import described, policy, shape
from pipeline.errors import BundleError, DataError
from pipeline.models import bundle as bundles
from pipeline.models import manifest as manifests
from pipeline.models.manifest import Architecture, Training
from pipeline.records import Baseline, FeatureContract, TrainingReport
from pipeline.retraining import tables
from pipeline.retraining.targets import Task
from pipeline.scoring.slices import fitting
from pipeline.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(model_releases.app)  # without a name: its commands are `pipeline model`'s own
app.command("tune")(model_tune.tune)

Overwrite = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
BundlePath = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="Folder or archive.  [dim]Else the one of model.bundle.[/dim]")
]


# --------------------------------------------------------------------------- train


@app.command()
def train(
    ctx: typer.Context,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="CSV or Parquet file, one event a row.")],
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What to predict.  [dim]Else events.label_field.[/dim]")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="Orders the rows; else they are in order.")] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="No feature (repeatable).")] = None,
    out: Annotated[Path, typer.Option(help="Folder, or archive: .tar, .tar.gz, .tgz, .zip.")] = Path(
        "models/candidate"
    ),
    model_id: Annotated[
        str | None, typer.Option("--id", help="Name of the model.  [dim]Else the pipeline's.[/dim]")
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What kind of label it is.  [dim]Else by its values.[/dim]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same data and seed make the same model.")] = 0,
    force: Overwrite = False,
) -> None:
    """Train the built-in model on the earlier rows, measure it on the later ones, and pack it.

    In a project folder the features are the fields of its event schema; elsewhere all columns that can be.

    [bold]Examples[/bold]

    pipeline model train --data orders.csv --label fraud

    pipeline model train --data newer.parquet --out models/2024-06.tar.gz
    """
    from pipeline.cli.training import season_of, train_bundle  # noqa: PLC0415  a second that --help need not wait for

    settings = settings_of(ctx)
    label = label or settings.events.label_field
    if label is None:
        raise typer.BadParameter("missing, and events.label_field is not set", param_hint="--label")
    bundles.check_free(out, overwrite=force)  # before the work, not after it
    rows = tables.read(data)
    try:
        fields, time = features_of(settings, rows, Columns(label, time, drop=tuple(drop or ())))
        with stderr().status("training ...") as status:
            report = train_bundle(
                rows,
                label=label,
                features=[*fields],
                fields=fields,
                out=out,
                model_id=model_id or settings.name,
                time=time,
                task=task,
                seed=seed,
                overwrite=force,
                slices=slices_of(settings, rows),
                season=season_of(settings),
                progress=lambda epoch, most, loss: status.update(f"training: epoch {epoch} of {most}, loss {loss:.4g}"),
            )
    except DataError as error:
        raise DataError("\n".join(f"{data}: {line}" for line in str(error).splitlines())) from None
    stdout().print(_measured(report.rows_train, report.rows_validation, report.metrics))
    _tell_packed(out, bundles.read(out))


# --------------------------------------------------------------------------- pack


@app.command()
def pack(
    ctx: typer.Context,
    module: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:CLASS", help="A torch.nn.Module that is installed.")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help="Its state_dict as safetensors.")],
    contract: Annotated[Path, typer.Option(metavar="FILE", help="Features and output, as JSON.")],
    arguments: Annotated[str, typer.Option(metavar="JSON", help="Keyword arguments of the class.")] = "{}",
    out: Annotated[Path, typer.Option(help="Folder, or archive: .tar, .tar.gz, .tgz, .zip.")] = Path(
        "models/candidate"
    ),
    model_id: Annotated[
        str | None, typer.Option("--id", help="Name of the model.  [dim]Else the pipeline's.[/dim]")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Its version.  [dim]Else made of its content.[/dim]")] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="NAME>=VERSION", help="Package it needs (repeatable).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rows it was not trained on: for the drift baseline and metrics."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Truth in --data, for metrics.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Event times in --data, for drift.season_s.  [dim]Else events.time_field.[/dim]"
        ),
    ] = None,
    force: Overwrite = False,
) -> None:
    """Pack a model of your own: a class of an installed package, its weights, what it takes and returns.

    The module takes one mapping of tensors and returns float32 (rows, width): docs/bundles.md says which.
    Without --data there is no baseline, and drift of this model is not watched.

    [bold]Example[/bold]

    pipeline model pack shop.models:Net --weights net.safetensors --contract contract.json --data held_out.csv
    """
    settings = settings_of(ctx)
    made = _pack(
        module,
        weights,
        contract,
        _arguments(arguments),
        {"model_id": model_id or settings.name, "model_version": version, "requires": _requires(require or [])},
        data,
        label,
        settings,
        time,
    )
    bundles.write(made, out, overwrite=force)
    if made.training.metrics:
        stdout().print(_measured(None, made.training.rows_validation, made.training.metrics))
    _tell_packed(out, made)


def _pack(
    module: str,
    weights: Path,
    contract_file: Path,
    arguments: dict[str, Any],
    named: dict[str, Any],
    data: Path | None,
    label: str | None,
    settings: Settings,
    time: str | None,
) -> bundles.Bundle:
    """A bundle whose module was made, loaded and run; every fault names its file."""
    from pipeline.cli.training import check_contract  # noqa: PLC0415

    try:
        contract = manifests.parse_contract(_bytes(contract_file))
        check_contract(contract)
    except (BundleError, DataError) as error:
        raise BundleError(f"{contract_file}: {error}") from None
    try:
        architecture = Architecture(module=module, arguments=arguments)
    except ValueError:
        raise typer.BadParameter(f"{module!r} is not package.module:Class") from None
    content = _bytes(weights)
    plain = bundles.make(architecture=architecture, contract=contract, weights=content, **named)
    network = run_once(plain)
    if data is None:
        return plain
    baseline, training = _measure(network, contract, data, label, settings, time)
    return bundles.make(
        architecture=architecture, contract=contract, weights=content, baseline=baseline, training=training, **named
    )


def _measure(
    network: Any, contract: FeatureContract, data: Path, label: str | None, settings: Settings, time: str | None
) -> tuple[Baseline, Training]:
    from pipeline.cli import training  # noqa: PLC0415

    rows = tables.read(data)
    names = {feature.name: feature for feature in contract.features}
    if time is None and settings.events.time_field in rows.column_names:
        time = settings.events.time_field
    if missing := [name for name in (*names, *filter(None, (label, time))) if name not in rows.column_names]:
        raise DataError(f"{data}: no column {', '.join(map(repr, missing))}; there are {', '.join(rows.column_names)}")
    if label is not None:
        rows = rows.filter(pc.is_valid(rows.column(label)))
    slice_fields = fitting(rows.schema, settings.events.slice_fields)
    taken = list(dict.fromkeys([*names, *slice_fields]))
    columns = pa.RecordBatch.from_arrays(
        [pa.array(np.arange(rows.num_rows)), *(rows.column(name).combine_chunks() for name in taken)],
        names=[training.ID, *taken],
    )
    try:
        checked = training.validated(contract, columns, slice_fields)
        scored, outputs = training.score(network, contract, checked.inputs)
        report = TrainingReport(0, len(scored))
        if label is not None:
            truth = training.truth(rows.column(label), contract.output, label)[scored]
            report = TrainingReport(0, len(scored), *training.measure(outputs, contract, truth, truth[:0]))
        season = training.season_of(settings)
        times_ms = training.times_ms(rows, time) if season else None
        measured = (contract, checked, 0, scored, outputs, times_ms)
        baseline = training.baseline(*measured, slice_fields=slice_fields, **season)
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    used = rows.select([*names, *([label] if label else ())])
    return baseline, training.provenance(used, report)


def run_once(bundle: bundles.Bundle) -> Any:
    """The module of a bundle, after a small batch of every shape went through it."""
    from pipeline.models.loading import load_module  # noqa: PLC0415  imports torch
    from pipeline.scoring.engine import TorchModel  # noqa: PLC0415

    network = load_module(bundle)
    TorchModel(network, bundle.contract, bundle.identity, bundle.baseline, batch_max=2).warm_up()
    return network


def run_as_set(bundle: bundles.Bundle, settings: Settings) -> None:
    """As run_once, and at the precision of the settings; on the CPU. Raises BundleError, SettingsError."""
    run_once(bundle)
    if settings.scoring.precision != "float32":
        from pipeline.topology.serving import load_model  # noqa: PLC0415  imports faust

        model = settings.model.model_copy(update={"device": "cpu"})
        scoring = settings.scoring.model_copy(update={"batch_max": 2})
        load_model(settings.model_copy(update={"model": model, "scoring": scoring}), bundle)


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--arguments") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("not a JSON object of keyword arguments", param_hint="--arguments")
    return found


def _requires(given: list[str]) -> dict[str, str]:
    requires = dict(bundles.DEFAULT_REQUIRES)
    for requirement in given:
        matched = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*([<>=!].*)", requirement)
        if matched is None:
            raise typer.BadParameter(f"{requirement!r} is not of the form NAME>=VERSION", param_hint="--require")
        requires[matched[1]] = matched[2].replace(" ", "")
    return requires


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


# --------------------------------------------------------------------------- verify, show


@app.command()
def verify(ctx: typer.Context, bundle: BundlePath = None) -> None:
    """Check every digest, load the model and run it; compare it with the project's event schema, if there is one.

    Exit code 0: it can be used here. 1: it cannot, and one line says why.

    [bold]Example[/bold]  pipeline model verify models/candidate
    """
    settings = settings_of(ctx)
    path = bundle or settings.path(settings.model.bundle)
    found = bundles.read(path)
    try:
        run_as_set(found, settings)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    schema_file = settings.path(settings.events.schema_file)
    compared = "no event schema here to compare it with"
    if schema_file.exists():
        if misfits := bundles.check_fits(found, _bytes(schema_file).decode("utf-8", "replace")):
            raise BundleError("\n".join(f"{path}: does not fit {schema_file}: {misfit}" for misfit in misfits))
        compared = f"fits {schema_file}"
    typer.echo(f"{path}: {found.model_id} {found.model_version} is whole, loads and runs; {compared}")


@app.command()
def show(
    ctx: typer.Context,
    bundle: BundlePath = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as one JSON object.")] = False,
) -> None:
    """Show what a bundle is: identity, architecture, features, outputs, how it was trained.

    [bold]Examples[/bold]

    pipeline model show models/candidate.tar.gz

    pipeline model show --json | jq .training.metrics
    """
    settings = settings_of(ctx)
    path = bundle or settings.path(settings.model.bundle)
    found = bundles.read(path)
    if as_json:
        sys.stdout.write(render.to_json(found.manifest.model_dump(mode="json")) + "\n")
        return
    console = stdout()
    console.print(table(None, ("bundle", str(path)), described(found)))
    features = [(f.name, f.kind, shape(f), policy(f)) for f in found.contract.features]
    console.print(table(None, ("feature", "kind", "values", "when it is not so"), features))
    if found.training.metrics:
        training = found.training
        console.print(_measured(training.rows_train or None, training.rows_validation, training.metrics))


def _measured(trained: int | None, measured: int, metrics: dict[str, float]) -> object:
    title = (
        f"measured on {measured:,} rows"
        if trained is None
        else (f"trained on the first {trained:,} rows, measured on the {measured:,} after them")
    )
    return table(title, ("metric", "value"), [(n, f"{v:.4g}") for n, v in metrics.items()], right=("value",))


def _tell_packed(out: Path, bundle: bundles.Bundle) -> None:
    typer.echo(f"{out}: {bundle.model_id} {bundle.model_version}")
    say(f'To use it: model.bundle = "{out}" in pipeline.toml, or PIPELINE__MODEL__BUNDLE={out}; then pipeline check')
