"""`pipeline topics`: create what is missing, show what is there."""

from typing import Annotated

import typer

from pipeline.bus import topics
from pipeline.cli.context import settings_of, stdout, table
from pipeline.cli.wiring import connect
from pipeline.errors import ContractError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


@app.command()
def create(
    ctx: typer.Context,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of new topics. [default: topics.partitions]")
    ] = None,
) -> None:
    """Create the pipeline's missing topics; leave existing ones as they are.

    [bold]Example[/bold]  pipeline topics create --partitions 8
    """
    settings = settings_of(ctx, topics__partitions=partitions)
    _, admin = connect(settings)
    created = set(topics.create(admin, topics.specs(settings)))
    for spec in topics.specs(settings):
        state = f"created, partitions: {spec.partitions}" if spec.name in created else "exists"
        typer.echo(f"{spec.name}: {state}")
    if problems := topics.problems(settings, topics.partition_counts(admin)):
        raise ContractError("\n".join(problems))


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """Show the pipeline's topics: partitions and records kept.

    [bold]Example[/bold]  pipeline topics list
    """
    settings = settings_of(ctx)
    _, admin = connect(settings)
    existing = topics.partition_counts(admin)
    rows = []
    for role, name in settings.topic_names().items():
        if name not in existing:
            rows.append((role, name, "-", "missing"))
            continue
        kept = sum(end - first for first, end in topics.watermarks(admin, name).values())
        rows.append((role, name, str(existing[name]), f"{kept:,}"))
    stdout().print(table(None, ("role", "topic", "partitions", "records"), rows, right=("partitions", "records")))
