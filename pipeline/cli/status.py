"""`pipeline status`: is it running, does it keep up, which model speaks, when did it last see drift."""

import itertools
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, read
from pipeline.cli import render
from pipeline.cli.context import local_time, settings_of, stdout, table
from pipeline.cli.wiring import connect
from pipeline.errors import SchemaError
from pipeline.settings import Settings

#: Rates are over this long: long enough for a few commits (every 500 ms), short enough to wait for.
RATE_WINDOW_S = 1.0
#: The last records of a partition are looked for in this many offsets: a few may be transaction markers.
LAST_OFFSETS = 10
#: Ports asked for a worker: `observe.port` + 1 to + 16, at once.
WORKER_PORTS = 16
LABELS_PORTS = 4
PROBE_TIMEOUT_S = 0.5

Status = dict[str, Any]


def status(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object (with --watch: one a line).")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
) -> None:
    """Show lag per partition, rates, model versions, processes and the last drift trigger.

    [bold]Examples[/bold]

    pipeline status

    pipeline status --json | jq .lag
    """
    settings = settings_of(ctx)
    options, admin = connect(settings)
    rows = codec.RowCodec(codec.registry_of(settings))
    looks = (gather(settings, options, admin, rows) for _ in itertools.count())
    if as_json or not watch:
        for found in looks:
            if as_json:
                sys.stdout.write(render.to_json(found) + "\n")
                sys.stdout.flush()
            else:
                stdout().print(_show(found))
            if not watch:
                return
    with Live(console=stdout(), auto_refresh=False) as live:
        for found in looks:
            live.update(_show(found), refresh=True)


def gather(settings: Settings, options: ClientOptions, admin: AdminClient, rows: codec.RowCodec) -> Status:
    """One look at everything; takes RATE_WINDOW_S. Raises UnreachableError when the broker goes away."""
    existing = topics.partition_counts(admin)
    names = {role: name for role, name in settings.topic_names().items() if name in existing}
    before, since = _counters(settings, admin, names), time.monotonic()
    processes = _probe(settings)
    last = {role: _last(options, settings, admin, names, role) for role in ("predictions", "retraining_triggers")}
    time.sleep(max(0.0, RATE_WINDOW_S - (time.monotonic() - since)))
    after, elapsed_s = _counters(settings, admin, names), time.monotonic() - since
    events = names.get("events")
    lag = topics.lag(admin, settings.group("worker"), events) if events else {}
    summaries = names.get("batch_summaries")
    return {
        "pipeline": settings.name,
        "bootstrap_servers": settings.kafka.bootstrap_servers,
        "missing_topics": sorted(set(settings.topic_names().values()) - existing.keys()),
        "lag": sum(lag.values()),
        "lag_by_partition": {str(tp.partition): n for tp, n in sorted(lag.items())},
        "monitor_lag": sum(topics.lag(admin, settings.group("monitor"), summaries).values()) if summaries else None,
        "labels_lag": sum(topics.lag(admin, settings.group("labels"), names["labels"]).values())
        if "labels" in names
        else None,
        "per_second": {name: round((after[name] - before[name]) / elapsed_s, 1) for name in after},
        "models": _models(last["predictions"], rows),
        "last_trigger": _decode_newest(last["retraining_triggers"], rows),
        "processes": processes,
    }


def _counters(settings: Settings, admin: AdminClient, names: dict[str, str]) -> dict[str, int]:
    """Sums that only grow: records written per topic, and events the workers are done with."""
    found: dict[str, int] = {
        role: sum(end for _, end in topics.watermarks(admin, names[role]).values())
        for role in ("events", "predictions", "dead_letters")
        if role in names
    }
    done = topics.committed(admin, settings.group("worker"))
    return {**found, "committed": sum(offset for tp, offset in done.items() if tp.topic == names.get("events"))}


def _last(
    options: ClientOptions, settings: Settings, admin: AdminClient, names: dict[str, str], role: str
) -> list[Message]:
    """The newest record of each partition of a role's topic."""
    if role not in names:
        return []
    marks = topics.watermarks(admin, names[role])
    spans = {tp.partition: Span(max(first, end - LAST_OFFSETS), end) for tp, (first, end) in marks.items()}
    newest: dict[int, Message] = {}
    for batch in read(options, f"{settings.name}-status", names[role], spans):
        newest.update({message.partition(): message for message in batch})
    return list(newest.values())


def _decoded(messages: list[Message], rows: codec.RowCodec) -> Iterator[dict[str, Any]]:
    for message in messages:
        try:
            yield rows.decode(message.value())
        except SchemaError:
            continue  # another tool's record: `pipeline tail` reports it


def _models(messages: list[Message], rows: codec.RowCodec) -> list[dict[str, Any]]:
    """Which models made the newest predictions, and in how many partitions."""
    seen = Counter((p["model_id"], p["model_version"], p["role"]) for p in _decoded(messages, rows))
    return [
        {"model_id": model, "model_version": version, "role": role, "partitions": n}
        for (model, version, role), n in sorted(seen.items())
    ]


def _decode_newest(messages: list[Message], rows: codec.RowCodec) -> dict[str, Any] | None:
    newest = sorted(messages, key=lambda message: int(message.timestamp()[1]))[-1:]
    return next(_decoded(newest, rows), None)


def _probe(settings: Settings) -> list[dict[str, Any]]:
    """The processes whose health endpoint answers. A port of 0 cannot be known here."""
    if not settings.observe.enabled or not settings.observe.port:
        return []
    probed = [("monitor", 1), *(("worker", n + 1) for n in range(WORKER_PORTS))]
    probed += [("labels", n + 1) for n in range(LABELS_PORTS) if settings.labels.enabled]
    probed += [("retrainer", 1)] if settings.retraining.enabled else []
    probed += [("quality", 1)] if settings.labels.enabled and settings.quality.enabled else []
    names = [role if role in ("monitor", "quality", "retrainer") else f"{role} {slot}" for role, slot in probed]
    urls = [f"http://{settings.observe.host}:{settings.observe.port_of(role, slot)}" for role, slot in probed]
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = list(pool.map(_readiness, urls))
    return [
        {"process": name, "url": url, "ready": ready}
        for name, url, ready in zip(names, urls, answers, strict=True)
        if ready is not None
    ]


def _readiness(url: str) -> bool | None:
    """Whether a process says it is ready; None if nothing answers there."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=PROBE_TIMEOUT_S) as answer:  # noqa: S310 (http, own host)
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return False if error.code == 503 else None
    except (OSError, ValueError):
        return None


def _show(found: Status) -> RenderableType:
    rates = found["per_second"]
    lag_rows = [(f"partition {p}", f"{n:,}") for p, n in found["lag_by_partition"].items()]
    heads = ("events in/s", "done/s", "predictions/s", "dead letters/s", "monitor lag")
    shown = [f"{rates.get(k, 0):,.0f}" for k in ("events", "committed", "predictions", "dead_letters")]
    parts: list[RenderableType] = [
        Text(f"{found['pipeline']} on {found['bootstrap_servers']}", style="bold"),
        table(None, heads, [(*shown, _lag(found))], right=heads),
        table(None, ("lag", "events"), [*lag_rows, ("total", f"{found['lag']:,}")], right=("events",)),
    ]
    for model in found["models"]:
        where = f"newest prediction in {model['partitions']} partition(s)"
        parts.append(Text(f"model: {model['model_id']} {model['model_version']} ({model['role']}), {where}"))
    states = [f"{p['process']} {'ready' if p['ready'] else 'not ready'}" for p in found["processes"]]
    parts.append(Text("processes: " + (", ".join(states) or "none answers on this machine's observe ports")))
    parts.append(Text("last trigger: " + _trigger(found["last_trigger"])))
    if found["missing_topics"]:
        parts.append(Text("missing topics: " + ", ".join(found["missing_topics"]), style="yellow"))
    return Group(*parts)


def _lag(found: Status) -> str:
    return "-" if found["monitor_lag"] is None else f"{found['monitor_lag']:,}"


def _trigger(trigger: dict[str, Any] | None) -> str:
    return f"{local_time(trigger['produced_at_ms'])}  {render.describe_trigger(trigger)}" if trigger else "none"
