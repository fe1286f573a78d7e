"""`pipeline init`: from a stranger's file to a project that runs."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.text import Text

from pipeline.cli.context import quiet_logs, say, stdout, table
from pipeline.cli.inference import ID_FIELD, TIME_FIELD, Columns, Layout, infer
from pipeline.cli.training import train_bundle
from pipeline.errors import DataError, SettingsError
from pipeline.records import TrainingReport
from pipeline.retraining import tables
from pipeline.settings import DEFAULT_FILE

#: Folders and files a pipeline makes while it runs: no part of the project's history.
IGNORED = ("registry/", "state/", ".pipeline/")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Project folder to make.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="CSV or Parquet file, one event a row.")],
    label: Annotated[str, typer.Option(metavar="COLUMN", help="What the model is to predict.")],
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="When it happened; else the time of replay.")
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Identifies an event; else row-<n>.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Events with the same one stay in order; no feature. Else the id."),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="No part of the event (repeatable).")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the pipeline and its topics. [dim]Else DIR's name.[/dim]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing project.")] = False,
) -> None:
    """Make a project from a CSV or Parquet file: settings, event schema, and a first trained model.

    Types are inferred, the model is trained on the earlier part of the rows and measured on the later part.
    Rows are taken as time-ordered unless --time says when each happened.

    [bold]Examples[/bold]

    pipeline init shop --data orders.csv --label fraud --time created_at --id order_no

    pipeline init power --data elec.csv --label class --drop transfer
    """
    quiet_logs()
    _refuse_full(folder, force)
    name = _pipeline_name(name, folder)
    rows = tables.read(data)
    columns = Columns(label, time, id_, key, tuple(drop or ()))
    try:
        layout = infer(rows, columns, name)
        stdout().print(_inferred(rows.num_rows, data, columns, layout))
        say("training a first model on the earlier rows ...")
        report = make_project(folder, name, rows, columns, layout)
    except DataError as error:
        raise DataError("\n".join(f"{data}: {line}" for line in str(error).splitlines())) from None
    stdout().print(measured(report))
    stdout().print(_next_steps(folder, data))


def make_project(
    folder: Path,
    name: str,
    rows: pa.Table,
    columns: Columns,
    layout: Layout,
    bootstrap_servers: str = "127.0.0.1:9092",
) -> TrainingReport:
    """Train on the earlier part of `rows`, measure on the later, and write the project into `folder`."""
    is_new = not folder.exists()
    _make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as scratch:
            bundle = Path(scratch) / "champion"
            report = train_bundle(
                rows,
                label=columns.label,
                time=columns.time,
                features=[*layout.features],
                fields=layout.features,
                out=bundle,
                model_id=name,
            )
            _write(folder, _settings_text(name, columns, layout, bootstrap_servers), layout, bundle)
    except DataError:
        if is_new:
            folder.rmdir()  # what was begun in it is gone already
        raise
    return report


def _refuse_full(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file, not a folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; choose another folder, or overwrite the project in it with --force")


def _pipeline_name(name: str | None, folder: Path) -> str:
    if name is not None:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}", name):
            raise SettingsError(f"--name {name}: use letters, digits, . _ and -, beginning with a letter or digit")
        return name
    return re.sub(r"[^a-zA-Z0-9._-]+", "-", folder.resolve().name).strip("-._")[:200] or "pipeline"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from None


def _write(folder: Path, settings: str, layout: Layout, bundle: Path) -> None:
    """The bundle last: a folder with settings but no model says so in `pipeline check`."""
    files = {
        DEFAULT_FILE: settings,
        "schemas/event.avsc": json.dumps(layout.schema, indent=2, ensure_ascii=False) + "\n",
        ".gitignore": "\n".join(IGNORED) + "\n",
    }
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    champion = folder / "models" / "champion"
    champion.parent.mkdir(exist_ok=True)
    if champion.exists():
        shutil.rmtree(champion)
    bundle.rename(champion)


def _settings_text(name: str, columns: Columns, layout: Layout, bootstrap_servers: str) -> str:
    key = f"key_field = {json.dumps(layout.key_field)}\n" if layout.key_field else ""
    # A TOML basic string and a JSON string escape alike.
    return f"""\
# Settings of this pipeline. `pipeline check --settings` lists all of them;
# PIPELINE__SECTION__KEY in the environment overrides this file.
name = {json.dumps(name)}

[kafka]
# Where Kafka answers; `pipeline broker` runs one here.
bootstrap_servers = {json.dumps(bootstrap_servers)}

[events]
schema_file = "schemas/event.avsc"
id_field = "{ID_FIELD}"
{key}time_field = "{TIME_FIELD}"
# A column of the data, no part of an event: for evaluation only.
label_field = {json.dumps(columns.label, ensure_ascii=False)}

[model]
bundle = "models/champion"
"""


def _inferred(count: int, data: Path, columns: Columns, layout: Layout) -> object:
    named = {column: flag.removeprefix("--") for flag, column in columns.named().items()}
    rows: list[tuple[str, str, str]] = []
    for field in layout.schema["fields"]:
        column = field.get("column", field["name"])
        made = field["name"] in (ID_FIELD, TIME_FIELD) and column not in named
        kind = field["type"][1] if isinstance(field["type"], list) else field["type"]
        shown = kind["logicalType"] if isinstance(kind, dict) else kind
        optional = ", may be empty" if isinstance(field["type"], list) else ""
        role = "feature" if column in layout.features else named.get(column, field["name"])
        rows.append(("(made)" if made else column, f"{field['name']}: {shown}{optional}", role))
    rows += [(c, "-", why) for c, why in layout.left_out.items() if c not in named or c == columns.label]
    return table(f"{data}: {count:,} rows", ("column", "event field", "role"), rows)


def measured(report: TrainingReport) -> object:
    rows = [(name, f"{value:.4g}") for name, value in report.metrics.items()]
    title = f"trained on the first {report.rows_train:,} rows, measured on the {report.rows_validation:,} after them"
    return table(title, ("metric", "value"), rows, right=("value",))


def _next_steps(folder: Path, data: Path) -> Text:
    there = os.path.relpath(data.resolve(), folder.resolve())
    return Text.assemble(
        ("\nNext, in ", "bold"),
        (f"{folder}", "bold"),
        (":\n", "bold"),
        "  pipeline broker                # Kafka on this machine; or set kafka.bootstrap_servers\n",
        "  pipeline run all --workers 2   # in a second terminal\n",
        f"  pipeline replay {there} --rate 1000   # in a third; then: pipeline tail predictions\n",
    )
