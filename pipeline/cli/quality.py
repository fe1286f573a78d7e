"""`pipeline quality`: how good the models are now, by the labels that came within a window."""

import re
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import typer
from confluent_kafka.admin import AdminClient

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, by_partition, read, unless_silent
from pipeline.cli import quality_view, render
from pipeline.cli.context import say, settings_of
from pipeline.cli.evaluate_source import Bound, Range, spans
from pipeline.cli.wiring import connect
from pipeline.measures.estimate import Estimator
from pipeline.measures.metrics import is_probability
from pipeline.measures.online import Counting
from pipeline.measures.scored import by_class
from pipeline.measures.sums import Sums
from pipeline.models import bundle as bundles
from pipeline.quality import OutcomeReader, Outcomes, Quality, origin_of
from pipeline.quality.outcomes import joined
from pipeline.records import OutputContract, RecordBatch
from pipeline.settings import Settings

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
#: Panes that the labels' times are cut into: an estimate's error is a mean over these, and the newest quarter of them
#: is held against those before for gaps that widen.
PANES = 24
#: Outcomes counted together.
CHUNK_ROWS = 65_536
#: Newest predictions whose accuracy is estimated: known to 1.96 x 0.5 / sqrt(10,000), 0.01.
ESTIMATED_ROWS = 10_000


def quality(
    ctx: typer.Context,
    window: Annotated[
        str, typer.Option(metavar="TIME", help="Labels that came within this time: 90m, 24h, 7d or 4w.")
    ] = "24h",
    rows_max: Annotated[int, typer.Option(min=1, help="Read no more outcomes than this, the newest.")] = 1_000_000,
    quantile: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="That the regression predicts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one line of JSON.")] = False,
) -> None:
    """Show how good each model version is, as a whole and per slice, by the labels that came lately.

    Reads the outcomes topic, which `pipeline run labels` writes; nothing is sent, and no consumer group is moved.

    [bold]Examples[/bold]

    pipeline quality

    pipeline quality --window 7d

    pipeline quality --json | jq '.versions[0].metrics'
    """
    window_s = _seconds(window)
    if quantile is not None and not 0 < quantile < 1:
        raise typer.BadParameter(f"{quantile} is not between 0 and 1", param_hint="--quantile")
    settings = settings_of(ctx)
    bundle = bundles.read(settings.path(settings.model.bundle))
    options, admin = connect(settings)
    now_ms = int(time.time() * 1000)
    since = Range(Bound(window, time_ms=now_ms - int(window_s * 1000)))
    topic, existing = settings.topic("outcomes"), topics.partition_counts(admin)
    wanted = spans(admin, topic, since) if topic in existing else {}
    there = sum(_size(span) for span in wanted.values())
    source = Source(settings, options, topic, newest(wanted, rows_max))
    outcomes, left_out = _read(source, bundle.contract.output)
    found = _counted(outcomes, Sums(bundle.contract.output, quantile, origin_of(bundle.baseline)), now_ms)
    result = {
        "pipeline": settings.name,
        "topic": topic,
        "window": {"from_ms": since.first.time_ms if since.first else 0, "to_ms": now_ms},
        "outcomes": {"read": len(outcomes) + sum(left_out.values()), "measured": len(outcomes), "left_out": left_out},
        "coverage": _coverage(settings, admin, outcomes, since) if there <= rows_max else None,
        "newest": _newest_estimate(settings, options, admin, bundle.contract.output),
        **found.report(),
    }
    if as_json:
        sys.stdout.write(render.to_json(result) + "\n")
    elif not len(outcomes):
        say(_nothing(settings, topic, window, result["outcomes"]["read"], topic in existing))
    else:
        quality_view.show(result)
    if there > rows_max:
        say(f"only the newest {rows_max:,} of {there:,} outcomes were read; --rows-max takes more")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smhdw])", text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if not seconds:
        raise typer.BadParameter(f"{text!r} is no time such as 90m, 24h, 7d or 4w", param_hint="--window")
    return seconds


# --------------------------------------------------------------------------- reading


class Source(NamedTuple):
    """Offsets of a topic to read, and with what."""

    settings: Settings
    options: ClientOptions
    topic: str
    spans: dict[int, Span]

    def batches(self) -> Iterator[RecordBatch]:
        """All of it. Raises UnreachableError when nothing comes any more."""
        found = read(self.options, f"{self.settings.name}-quality", self.topic, self.spans)
        for messages in unless_silent(found, self.topic):
            yield from by_partition(self.topic, messages)

    def decoder(self, schema: str) -> codec.ColumnarDecoder:
        return codec.ColumnarDecoder(codec.registry_of(self.settings), codec.load_schema(schema))


def _size(span: Span) -> int:
    return 0 if span.end is None else span.end - span.start


def newest(wanted: dict[int, Span], rows_max: int) -> dict[int, Span]:
    """At most about `rows_max` of these, the same share of each partition."""
    share = min(1.0, rows_max / max(1, sum(map(_size, wanted.values()))))
    return {p: Span(span.start + _size(span) - int(_size(span) * share), span.end) for p, span in wanted.items()}


def _read(source: Source, output: OutputContract) -> tuple[Outcomes, dict[str, int]]:
    """Outcomes in the order in which their labels became known, and how many records were none, by reason."""
    events = source.settings.events
    by_key = events.key_field not in (None, events.id_field)
    reader = OutcomeReader(source.decoder("outcome"), output, by_key=by_key)
    parts = [reader.take(batch) for batch in source.batches()]
    return joined(parts, output).by_label_time(), dict(reader.left_out)


def _counted(outcomes: Outcomes, sums: Sums, now_ms: int) -> Quality:
    """All outcomes, in PANES panes of equal length."""
    times_ms = np.minimum(outcomes.label_times_ms, now_ms)
    span_ms = int(times_ms.max() - times_ms.min()) + 1 if len(times_ms) else 1
    # Panes begin at multiples of their length: one pane more, and no label is before the window of PANES.
    found = Quality(Counting(sums, -(-span_ms // (PANES - 1)), PANES, fading=0.5))
    for start in range(0, len(outcomes), CHUNK_ROWS):
        found.add(outcomes.take(np.arange(start, min(start + CHUNK_ROWS, len(outcomes)))), latest_ms=now_ms)
    found.judge()
    return found


def _coverage(settings: Settings, admin: AdminClient, outcomes: Outcomes, since: Range) -> dict[str, Any] | None:
    """How many predictions of the window have a label by now: offsets of the predictions topic against outcomes.

    Offsets are also taken by the marks that end transactions: the share is a little too low where these are many.
    """
    topic = settings.topic("predictions")
    if topic not in topics.partition_counts(admin) or since.first is None or since.first.time_ms is None:
        return None
    predictions = sum(_size(span) for span in spans(admin, topic, since).values())
    answering = np.array([model.role != "shadow" for model in outcomes.models], dtype=np.bool_)[outcomes.model]
    labelled = int((answering & (outcomes.predicted_at_ms >= since.first.time_ms)).sum())
    share = min(1.0, labelled / predictions) if predictions else None
    return {"predictions": predictions, "labelled": labelled, "share": share}


def _newest_estimate(
    settings: Settings, options: ClientOptions, admin: AdminClient, output: OutputContract
) -> dict[str, Any] | None:
    """Accuracy of the champion's newest predictions by their confidences, labelled or not; None without any."""
    topic = settings.topic("predictions")
    if output.kind == "regression" or topic not in (counts := topics.partition_counts(admin)):
        return None
    each = -(-ESTIMATED_ROWS // counts[topic])
    marks = topics.watermarks(admin, topic)
    tails = {tp.partition: Span(max(first, end - each), end) for tp, (first, end) in marks.items()}
    source = Source(settings, options, topic, tails)
    decoder, parts = source.decoder("prediction"), [np.empty((0, output.width))]
    for batch in source.batches():
        columns = decoder.decode(batch.values).columns
        lists = columns.column("outputs")
        wanted = pc.and_(
            pc.equal(columns.column("role"), "champion"), pc.equal(pc.list_value_length(lists), output.width)
        )
        parts.append(lists.filter(wanted).flatten().to_numpy().astype(np.float64).reshape(-1, output.width))
    outputs = np.concatenate(parts)
    estimate = Estimator().estimate(outputs) if is_probability(by_class(outputs)) else None
    if estimate is None:
        return None
    return {"accuracy": estimate.accuracy, "low": estimate.low, "high": estimate.high, "predictions": estimate.rows}


def _nothing(settings: Settings, topic: str, window: str, read_count: int, exists: bool) -> str:
    """Why there is nothing to show, and what to do about it."""
    if read_count:
        return f"{topic}: {read_count:,} records, none of them an outcome of a model like {settings.model.bundle}"
    if not settings.labels.enabled:
        return f"{topic}: no outcomes; set labels.enabled = true, and write labels to {settings.topic('labels')}"
    if not exists:
        return f"{topic}: no outcomes yet; `pipeline run all` or `pipeline run labels` joins labels to predictions"
    return f"{topic}: no label came within {window}; --window looks further back, as far as the topic is kept"
