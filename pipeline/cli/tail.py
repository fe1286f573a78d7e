"""`pipeline tail`: what is on a topic, decoded, a line each."""

import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.reading import Span, read
from pipeline.cli import render
from pipeline.cli.context import say, settings_of
from pipeline.cli.wiring import connect
from pipeline.errors import ContractError, SchemaError


class Stream(StrEnum):
    """The topics of a pipeline, by the name a person uses."""

    EVENTS = "events"
    PREDICTIONS = "predictions"
    TRIGGERS = "triggers"
    DEAD_LETTERS = "dead-letters"
    SUMMARIES = "summaries"
    LABELS = "labels"
    OUTCOMES = "outcomes"
    REPORTS = "reports"


ROLES = {
    Stream.EVENTS: ("events", render.describe_event),
    Stream.PREDICTIONS: ("predictions", render.describe_prediction),
    Stream.TRIGGERS: ("retraining_triggers", render.describe_trigger),
    Stream.DEAD_LETTERS: ("dead_letters", render.describe_dead_letter),
    Stream.SUMMARIES: ("batch_summaries", render.describe_summary),
    Stream.LABELS: ("labels", render.describe_label),
    Stream.OUTCOMES: ("outcomes", render.describe_outcome),
    Stream.REPORTS: ("retraining_reports", render.describe_report),
}


def tail(
    ctx: typer.Context,
    stream: Annotated[Stream, typer.Argument(help="Which topic.")],
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start at the oldest record kept.")] = False,
    maximum: Annotated[int | None, typer.Option("--max", min=1, help="Stop after this many records.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with the schema's names.")] = False,
    offset: Annotated[
        int | None, typer.Option(help="Start at this offset of each partition; negative: this many before the end.")
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", metavar="FIELD=VALUE", help="Only records with it (repeatable).")
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at what is the end now. (On with --from-beginning --max.)")
    ] = False,
) -> None:
    """Print what is on a topic, decoded; follow it until Ctrl-C unless told where to stop.

    [bold]Examples[/bold]

    pipeline tail predictions

    pipeline tail events --from-beginning --max 5 --json | jq .id

    pipeline tail predictions --filter label=fraud --offset -100

    pipeline tail dead-letters --from-beginning --until-end --filter pipeline.reason=null_feature
    """
    if from_beginning and offset is not None:
        raise typer.BadParameter("give --from-beginning or --offset, not both", param_hint="--offset")
    wanted = _wanted(filters or [])
    settings = settings_of(ctx)
    role, describe = ROLES[stream]
    topic = settings.topic(role)
    decode = render.dead_letter if stream is Stream.DEAD_LETTERS else _avro(codec.RowCodec(codec.registry_of(settings)))
    options, admin = connect(settings)
    bounded = until_end or (maximum is not None and (from_beginning or offset is not None))
    spans = _spans(admin, topic, partition, 0 if from_beginning else offset, bounded)
    left, undecodable = maximum, 0
    try:
        for batch in read(options, f"{settings.name}-tail", topic, spans):
            for message, record in _decoded(batch, decode, topic):
                if record is None:
                    undecodable += 1
                elif all(_text(_field(record, name)) == value for name, value in wanted):
                    text = render.to_json(record) if as_json else render.line(message, record, describe)
                    sys.stdout.write(text + "\n")
                    left = None if left is None else left - 1
                if left == 0:
                    return
            sys.stdout.flush()
    finally:
        if undecodable:
            say(f"{topic}: {undecodable} records could not be decoded and were left out")


def _wanted(filters: list[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in filters]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise typer.BadParameter(f"{name!r} is not FIELD=VALUE", param_hint="--filter")
    return [(name, value) for name, _, value in pairs]


def _field(record: render.Record, name: str) -> Any:
    """A field by name, or by dotted path into nested records; a name that holds dots itself comes first."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    """A value as `--json` shows it, strings without quotes: what a filter is compared with."""
    return value if isinstance(value, str) else json.dumps(render.json_safe(value))


def _avro(rows: codec.RowCodec) -> Callable[[Message], dict[str, Any]]:
    return lambda message: rows.decode(message.value())


def _decoded(
    batch: list[Message], decode: Callable[[Message], dict[str, Any]], topic: str
) -> Iterator[tuple[Message, dict[str, Any] | None]]:
    for message in batch:
        try:
            yield message, decode(message)
        except SchemaError as error:
            say(f"{topic} p{message.partition()}@{message.offset()}: left out: {error}")
            yield message, None


def _spans(admin: AdminClient, topic: str, partition: int | None, offset: int | None, bounded: bool) -> dict[int, Span]:
    """Where to read: from `offset` (None: the end; negative: from the end), to the end as of now if `bounded`."""
    marks = {tp.partition: mark for tp, mark in topics.watermarks(admin, topic).items()}
    if partition is not None:
        if partition not in marks:
            raise ContractError(f"topic {topic}: has no partition {partition}; it has 0 to {len(marks) - 1}")
        marks = {partition: marks[partition]}
    spans = {}
    for number, (first, end) in marks.items():
        start = end if offset is None else end + offset if offset < 0 else offset
        spans[number] = Span(min(max(start, first), end), end if bounded else None)
    return spans
