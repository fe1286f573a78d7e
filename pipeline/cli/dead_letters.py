"""`pipeline dead-letters`: what could not be scored and why; sending it again once the cause is mended."""

import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from confluent_kafka import Message

from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, read
from pipeline.bus.transactions import TransactionalProducer
from pipeline.cli import render
from pipeline.cli.context import local_time, say, settings_of, stdout, table
from pipeline.cli.redriving import Memory, Progress
from pipeline.cli.wiring import connect
from pipeline.errors import ContractError, DeliveryError, PipelineError, TransactionAbortedError
from pipeline.records import Reason
from pipeline.scoring.dead_letters import ATTEMPT_HEADER, CONNECT, LEFT_OUT_HEADER, OWN, attempt_of
from pipeline.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

#: A record that failed again after this many redrives will fail the next time too: a person must look at it.
ATTEMPTS_MAX = 3
#: Dead letters held at once, and sent and remembered in one transaction.
CHUNK = 1000
#: Rows `list` shows unless told otherwise: a screenful, the newest.
ROWS_SHOWN = 20
REASON_HELP = "Only this reason: " + ", ".join(Reason) + "."


@app.command("list")
def list_(
    ctx: typer.Context,
    reason: Annotated[Reason | None, typer.Option(metavar="REASON", help=REASON_HELP)] = None,
    maximum: Annotated[
        int, typer.Option("--max", min=0, help="Rows to show, the newest; counts are of all.")
    ] = ROWS_SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a dead letter, all of them.")] = False,
) -> None:
    """Count dead letters by reason and show the newest.

    [bold]Examples[/bold]

    pipeline dead-letters list

    pipeline dead-letters list --reason null_feature --max 100

    pipeline dead-letters list --json | jq -r '."pipeline.reason"' | sort | uniq -c
    """
    settings = settings_of(ctx)
    options, admin = connect(settings)
    topic = settings.topic("dead_letters")
    spans = {tp.partition: Span(*mark) for tp, mark in topics.watermarks(admin, topic).items()}
    counts: Counter[str] = Counter()
    newest: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=maximum)
    for message in _letters(options, settings, spans):
        found = _reason(message)
        if reason is not None and found != reason:
            continue
        counts[found] += 1
        if as_json:
            sys.stdout.write(render.to_json(render.dead_letter(message)) + "\n")
        else:
            newest.append((message.timestamp()[1], _row(message)))
    if as_json:
        return
    console = stdout()
    if not counts:
        console.print(f"{topic}: no dead letters" + (f" with reason {reason}" if reason else ""))
        return
    rows = [*counts.most_common(), ("total", counts.total())]
    console.print(table(topic, ("reason", "count"), [(r, f"{n:,}") for r, n in rows], right=("count",)))
    if newest:
        columns = ("time", "dead letter", "reason", "stage", "event", "attempt", "message")
        console.print(table(f"newest {len(newest)}", columns, [row for _, row in sorted(newest)]))


@app.command()
def redrive(
    ctx: typer.Context,
    reason: Annotated[Reason | None, typer.Option(metavar="REASON", help=REASON_HELP)] = None,
    maximum: Annotated[int | None, typer.Option("--max", min=1, help="Send at most this many.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
) -> None:
    """Send dead letters' original keys and bytes to the topic they came from, each once.

    A record that was redriven three times and still failed is parked: it stays on the dead-letters topic
    and is not sent again. What was sent is remembered in the same transaction, so a second call sends only
    what is new, also after one that was killed.

    [bold]Examples[/bold]

    pipeline dead-letters redrive --dry-run

    pipeline dead-letters redrive --reason unknown_schema --max 1000
    """
    settings = settings_of(ctx)
    options, admin = connect(settings)
    topic = settings.topic("dead_letters")
    report = Report(dry_run)
    producer = None if dry_run else _take_over(options, settings)
    memory = Memory(options, settings.group("redrive"), topic)
    try:
        marks = {tp.partition: mark for tp, mark in topics.watermarks(admin, topic).items()}
        progress = memory.load(marks)
        spans = {p: Span(max(first, progress[p].next_offset), end) for p, (first, end) in marks.items()}
        letters = _letters(options, settings, spans)
        existing = topics.partition_counts(admin)
        while (plan := _plan(letters, progress, reason, report.left(maximum))).looked_at:
            _check_targets(plan, existing)
            if producer is not None:
                for partition, next_offset in plan.seen.items():
                    progress[partition].advance(reason, next_offset)
                _send(producer, plan, memory, progress)
            report.add(plan)
            if report.left(maximum) == 0:
                break
    except PipelineError:
        report.show()
        raise
    finally:
        memory.close()
    report.show_all()


def _take_over(options: ClientOptions, settings: Settings) -> TransactionalProducer:
    """A producer that ends what a redrive that was killed left open, and any redrive that still runs."""
    delivery = settings.delivery
    transactional_id = f"{delivery.transactional_id_prefix or settings.name}-redrive"
    producer = TransactionalProducer(
        options.for_producer(), transactional_id, timeout_ms=delivery.transaction_timeout_ms
    )
    producer.take_over()
    return producer


@dataclass
class Plan:
    """What to do with some dead letters."""

    send: list[tuple[Message, str]] = field(default_factory=list)
    parked: list[Message] = field(default_factory=list)
    foreign: list[Message] = field(default_factory=list)
    #: Too large as dead letters: what is there is not the record.
    cut: list[Message] = field(default_factory=list)
    looked_at: int = 0
    #: Partition -> offset after the last dead letter looked at.
    seen: dict[int, int] = field(default_factory=dict)


def _plan(letters: Iterator[Message], progress: dict[int, Progress], reason: Reason | None, left: int | None) -> Plan:
    """Look at up to CHUNK letters, or until `left` are to be sent."""
    plan = Plan()
    for message in letters:
        found = _reason(message)
        if (reason is None or found == reason) and not progress[message.partition()].done(found, message.offset()):
            headers = render.header_text(message)
            origin = headers.get(CONNECT + "topic")
            if origin is None:
                plan.foreign.append(message)
            elif "value" in headers.get(LEFT_OUT_HEADER, ""):
                plan.cut.append(message)
            elif attempt_of(message.headers()) >= ATTEMPTS_MAX:
                plan.parked.append(message)
            else:
                plan.send.append((message, origin))
        plan.seen[message.partition()] = message.offset() + 1
        plan.looked_at += 1
        if plan.looked_at >= CHUNK or len(plan.send) == left:
            break
    return plan


def _check_targets(plan: Plan, existing: dict[str, int]) -> None:
    """A topic that is gone would be made anew by the broker, with the wrong partitions, or be waited for."""
    for origin in {origin for _, origin in plan.send} - existing.keys():
        raise ContractError(f"topic {origin}: dead letters came from it, but it does not exist any more")


def _send(producer: TransactionalProducer, plan: Plan, memory: Memory, progress: dict[int, Progress]) -> None:
    """Send a chunk and remember it, both or neither. Raises FencedError, DeliveryError."""
    try:
        for message, origin in plan.send:
            kept = [h for h in message.headers() or () if not h[0].startswith((CONNECT, OWN))]
            attempt = str(attempt_of(message.headers()) + 1).encode()
            producer.send(origin, message.key(), message.value(), [*kept, (ATTEMPT_HEADER, attempt)])
        memory.commit(producer, {p: progress[p] for p in plan.seen})
    except TransactionAbortedError as error:
        raise DeliveryError(f"{error}; what was not reported as sent was not sent: redrive again") from error


class Report:
    """What a redrive did, said at its end."""

    def __init__(self, dry_run: bool) -> None:
        self._verb = "would send" if dry_run else "sent"
        self._sent: Counter[tuple[str, str]] = Counter()

    def left(self, maximum: int | None) -> int | None:
        return None if maximum is None else maximum - self._sent.total()

    def add(self, plan: Plan) -> None:
        self._sent.update((origin, _reason(message)) for message, origin in plan.send)
        for message in plan.parked:
            say(f"parked: {_position(message)} failed again after {ATTEMPTS_MAX} redrives; not sent")
        for message in plan.cut:
            say(f"left out: {_position(message)} was too large as a dead letter and lacks its value; not sent")
        for message in plan.foreign:
            say(f"left out: {_position(message)} has no header {CONNECT}topic; another tool wrote it")

    def show(self) -> None:
        for (origin, reason), count in self._sent.most_common():
            typer.echo(f"{self._verb} {count:,} to {origin} ({reason})")

    def show_all(self) -> None:
        self.show()
        if not self._sent:
            typer.echo("nothing to redrive")


def _position(message: Message) -> str:
    return f"p{message.partition()}@{message.offset()}"


def _letters(options: ClientOptions, settings: Settings, spans: dict[int, Span]) -> Iterator[Message]:
    for batch in read(options, f"{settings.name}-tail", settings.topic("dead_letters"), spans):
        yield from batch


def _reason(message: Message) -> str:
    return render.header_text(message).get(OWN + "reason", "unknown")


def _row(message: Message) -> tuple[Any, ...]:
    headers = render.header_text(message)
    source = "{} p{}@{}".format(*(headers.get(CONNECT + name, "?") for name in ("topic", "partition", "offset")))
    return (
        local_time(message.timestamp()[1]),
        _position(message),
        _reason(message),
        headers.get(CONNECT + "stage", "?"),
        source,
        headers.get(ATTEMPT_HEADER, "0"),
        headers.get(CONNECT + "exception.message", ""),
    )
