"""`pipeline check`: everything that can be wrong before a worker starts, all at once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.text import Text

from pipeline.bus import topics
from pipeline.bus.clients import ErrorLog, make_consumer, make_producer
from pipeline.cli.context import print_error, settings_of, stdout, table
from pipeline.cli.wiring import client_options, connect
from pipeline.codec import arrow_schema, event_schema, registry_of
from pipeline.errors import PipelineError
from pipeline.models import bundle as bundles
from pipeline.scoring import slices
from pipeline.settings import DEFAULT_FILE, ENVIRONMENT_PREFIX, Settings

#: An absent broker is a finding among others here, so it is not waited for as long as elsewhere.
BROKER_WAIT_S = 5.0


@dataclass
class Finding:
    """One thing that was looked at."""

    subject: str
    where: str
    #: One line each: key or file, what is wrong, what to do. Empty: it is all right.
    problems: list[str] = field(default_factory=list)
    remark: str = ""
    skipped: bool = False


def check(
    ctx: typer.Context,
    offline: Annotated[bool, typer.Option("--offline", help="Files only: no broker, no Schema Registry.")] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="Instead: list all settings with their defaults and meaning.")
    ] = False,
) -> None:
    """Check settings, schema, bundle, registry, broker and topics; report every problem at once.

    Exit code 0: nothing wrong. 1: problems. 2: the settings cannot be read.

    [bold]Examples[/bold]

    pipeline check

    pipeline --config prod.toml check --offline
    """
    if list_settings:
        _list_settings()
        return
    settings = settings_of(ctx)
    config = getattr(ctx.obj, "config", None) or Path(DEFAULT_FILE)
    findings = list(examine(settings, config, offline=offline))
    stdout().print(table(None, ("checked", "where", "result"), [(f.subject, f.where, _result(f)) for f in findings]))
    problems = [problem for finding in findings for problem in finding.problems]
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1)


def examine(settings: Settings, config: Path, *, offline: bool = False) -> Iterator[Finding]:
    """Look at one thing after the other; what depends on something broken is skipped, not guessed at."""
    where = str(config) if config.exists() else "defaults and environment"
    yield _guard("settings", where, f"{config}: ", lambda: _client_options(settings))
    schema_file = settings.path(settings.events.schema_file)
    schema: str | None = None

    def read_schema() -> tuple[list[str], str]:
        nonlocal schema
        schema = event_schema(settings)
        found = _schema_problems(settings, schema)
        return [f"{config}: {problem}" for problem in found], ""

    yield _guard("event schema", schema_file, f"{config}: ", read_schema)
    yield _guard("model bundle", settings.path(settings.model.bundle), "", lambda: _bundle(settings, schema))
    registry = settings.registry.url or str(settings.path(settings.registry.dir))
    if offline and settings.registry.url:
        yield Finding("registry", registry, skipped=True)
    else:
        yield _guard("registry", registry, f"{config}: registry: ", lambda: _registry(settings))
    servers = settings.kafka.bootstrap_servers
    if offline:
        yield Finding("broker", servers, skipped=True)
        yield Finding("topics", f"{settings.name}.*", skipped=True)
        return
    admin: Any = None

    def reach() -> tuple[list[str], str]:
        nonlocal admin
        _, admin = connect(settings, BROKER_WAIT_S)
        return [], ""

    yield _guard("broker", servers, f"{config}: ", reach)
    if admin is None:
        yield Finding("topics", f"{settings.name}.*", skipped=True)
    else:
        yield _guard("topics", f"{settings.name}.*", f"{config}: ", lambda: _topics(settings, admin))


def _guard(subject: str, where: Any, prefix: str, look: Callable[[], tuple[list[str], str]]) -> Finding:
    """A finding from `look`: its problems and remark, or the error it raised."""
    try:
        problems, remark = look()
    except PipelineError as error:
        return Finding(subject, str(where), [prefix + line for line in str(error).splitlines()])
    return Finding(subject, str(where), problems, remark)


def _client_options(settings: Settings) -> tuple[list[str], str]:
    """Make a consumer and a producer, which need no broker for that: librdkafka judges their options."""
    options, errors = client_options(settings), ErrorLog("check", quiet=True)
    make_consumer(options.for_consumer(settings.group("check")), errors).close()
    make_producer(options.for_producer(), errors)
    return [], ""


def _schema_problems(settings: Settings, text: str) -> list[str]:
    schema = json.loads(text)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return [f"events.schema_file: {settings.events.schema_file}: an event must be an Avro record"]
    fields = {f["name"]: f["type"] for f in schema["fields"]}
    events = settings.events
    problems = []
    for key in ("id_field", "key_field", "time_field"):
        name = getattr(events, key)
        if name is not None and name not in fields:
            problems.append(f"events.{key}: {events.schema_file} has no field {name!r}; it has {', '.join(fields)}")
    time_type = fields.get(events.time_field or "")
    branches = time_type if isinstance(time_type, list) else [time_type]
    logical = {b.get("logicalType") for b in branches if isinstance(b, dict)}
    if time_type is not None and "timestamp-millis" not in logical:
        problems.append(f"events.time_field: {events.time_field!r} in {events.schema_file} is no timestamp-millis")
    return problems + slices.schema_faults(arrow_schema(text), events.slice_fields)


def _bundle(settings: Settings, schema: str | None) -> tuple[list[str], str]:
    path = settings.path(settings.model.bundle)
    bundle = bundles.read(path)
    if schema is None:
        return [], "not compared with the event schema"
    misfits = bundles.check_fits(bundle, schema)
    return [f"{path}: does not fit {settings.events.schema_file}: {misfit}" for misfit in misfits], ""


def _registry(settings: Settings) -> tuple[list[str], str]:
    subject = f"{settings.topic('events')}-value"
    latest = registry_of(settings).latest(subject)
    return [], f"{subject}: id {latest[0]}" if latest else f"{subject}: registered by the first worker or replay"


def _topics(settings: Settings, admin: Any) -> tuple[list[str], str]:
    existing = topics.partition_counts(admin)
    missing = [name for name in settings.topic_names().values() if name not in existing]
    remark = f"created at start-up: {', '.join(missing)}" if missing and settings.topics.create else ""
    return topics.problems(settings, existing), remark


def _result(finding: Finding) -> Text:
    if finding.problems:
        count = len(finding.problems)
        return Text(f"{count} problem{'s' if count > 1 else ''}", style="red")
    if finding.skipped:
        return Text("not checked", style="yellow")
    return Text("ok" + (f" ({finding.remark})" if finding.remark else ""), style="green")


def _list_settings() -> None:
    """All settings: key, default, meaning; every one is also an environment variable."""
    rows = [(key, default, meaning) for key, default, meaning in all_settings(Settings)]
    stdout().print(table(None, ("setting", "default", "meaning"), rows))
    typer.echo(f"Environment: {ENVIRONMENT_PREFIX}SECTION__KEY; flags: --set section.key=value; file: [section] key")


def all_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, description) of every setting a person may give."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from all_settings(kind, f"{name}.")
        elif prefix + name not in ("root", "kafka.secrets"):
            default = info.get_default(call_default_factory=True)
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            yield prefix + name, "-" if default in (None, {}, []) else shown, info.description or ""
