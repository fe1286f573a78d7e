"""The `pipeline` command: one file a command.

`COMMANDS` is the table of contents. A command's module, and with it torch, pyarrow or a Kafka client,
is imported when that command runs, so `pipeline --help` answers at once.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.cli.context import Flags, print_error
from pipeline.errors import PipelineError, explained


class Command(NamedTuple):
    """Where a command lives: `attribute` of `module` is a function, or a Typer with commands of its own."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "init": Command("init", "init", "Make a project from a CSV or Parquet file: settings, schema, trained model."),
    "check": Command("check", "check", "Check settings, schema, bundle, registry, broker, topics: all faults at once."),
    "demo": Command("demo", "demo", "Show the whole loop at work on real data, in about a minute."),
    "broker": Command("broker", "broker", "Run Apache Kafka on this machine."),
    "topics": Command("topics", "app", "Create and list the pipeline's topics."),
    "run": Command("run", "run", "Run workers, the drift monitor, or all of them."),
    "replay": Command("replay", "replay", "Send the rows of a file to the events topic."),
    "tail": Command("tail", "tail", "Print what is on a topic, decoded."),
    "dead-letters": Command("dead_letters", "app", "List what could not be scored, and send it again."),
    "model": Command("model", "app", "Train, pack, verify, show, tune and release model bundles."),
    "evaluate": Command("evaluate", "evaluate", "Measure a model on a file or a range of a topic; write a report."),
    "quality": Command("quality", "quality", "Show how good the models are now, by the labels that came lately."),
    "calibrate": Command(
        "calibrate", "calibrate", "Make probabilities mean what they say, by outcomes; refused where it does not help."
    ),
    "gate": Command("gate", "gate", "Judge whether a challenger may replace the champion, by labelled rows of a file."),
    "retrain": Command("retrain", "retrain", "Train a successor of the model in service on labelled events."),
    "verify": Command("verify", "verify", "Run this pipeline under load and faults, and count every event."),
    "status": Command("status", "status", "Show lag, rates, model versions and the last trigger."),
}

EPILOG = (
    "Start here:  pipeline demo\n\n"
    "On data of your own:  pipeline init shop --data orders.csv --label fraud  &&  cd shop  &&  pipeline check"
)


class CommandGroup(TyperGroup):
    """Imports a command's module when it is called, and turns every PipelineError into lines on stderr."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except PipelineError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            print_error(str(error))
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            # `pipeline tail ... | head`: the reader has what it wanted. Python would complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        return result


def load_command(name: str) -> Any:
    """The command `name` of the table, imported."""
    module, attribute, summary = COMMANDS[name]
    path = f"{__name__}.{module}"
    try:
        found = getattr(importlib.import_module(path), attribute)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise PipelineError(f"pipeline {name}: not part of this installation; reinstall the package") from None
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name)(found)
        found = app
    elif not found.info.help:
        found.info.help = summary
    command = typer.main.get_command(found)
    command.name = name
    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pipeline {__version__}")
        raise typer.Exit


def _callback(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Settings file (default: ./pipeline.toml)."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, e.g. kafka.bootstrap_servers=host:9092"),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the code an error came from.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Score a Kafka stream in micro-batches with PyTorch; drift alarms you can trust; nothing lost."""
    overrides: dict[str, str] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{assignment!r} is not KEY=VALUE", param_hint="--set")
        overrides[key.strip()] = value
    ctx.obj = Flags(config, overrides, debug)


def make_app() -> typer.Typer:
    """The whole command line, each command still unimported."""
    app = typer.Typer(
        name="pipeline",
        cls=CommandGroup,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
        # Typer's tracebacks show local variables, and those may hold secrets.
        pretty_exceptions_enable=False,
    )
    app.callback()(_callback)
    for name, command in COMMANDS.items():
        app.command(name, help=command.summary)(lambda: None)
    return app


def main() -> None:
    """Entry point of the console command `pipeline`."""
    # Importing faust looks through sys.argv for options of its own, among them --loop: it must not find ours.
    arguments, sys.argv[1:] = sys.argv[1:], []
    try:
        make_app()(arguments, prog_name="pipeline")
    except Exception as error:  # noqa: BLE001 (whatever it is: a cause in the last line, and a code of its own)
        traceback.print_exc()
        known = explained(error)
        print_error(str(known))
        sys.exit(known.exit_code)
