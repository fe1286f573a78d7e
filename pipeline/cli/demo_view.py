"""What the demo sees of its pipeline, as any consumer could: it reads the output topics and adds up."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
from confluent_kafka import Message
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, read
from pipeline.cli.context import table
from pipeline.cli.demo_data import SHIFT, SHIFTED, Plan, row_number
from pipeline.cli.demo_feed import Feed
from pipeline.codec import RowCodec
from pipeline.models.releases import HISTORY
from pipeline.settings import Settings

#: The throughput shown is that of the last so many seconds, the accuracy that of the last so many outcomes.
WINDOW_S, WINDOW_OUTCOMES = 2.0, 1_000


class Tally:
    """Counts what comes out. Filled by reader threads, read by the view; each field has one writer."""

    def __init__(self, plan: Plan, version: str) -> None:
        """version: of the model that serves at first."""
        self.plan, self.version = plan, version
        n = len(plan)
        self.predictions = np.zeros(n, dtype=np.int64)
        #: Seconds from the event's making to a consumer's having its prediction; NaN before.
        self.latencies_s = np.full(n, np.nan)
        self.foreign = 0
        self.dead_values: list[bytes | None] = []
        self.reasons: Counter[str] = Counter()
        #: Outcomes of each row; whether the prediction was right, by which version, and whether that was the canary.
        self.outcomes = np.zeros(n, dtype=np.int64)
        self.right = np.zeros(n, dtype=np.bool_)
        self.versions: list[str | None] = [None] * n
        self.of_canary = np.zeros(n, dtype=np.bool_)
        self.newest: deque[bool] = deque(maxlen=WINDOW_OUTCOMES)
        self.triggers: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.releases: list[dict[str, Any]] = []
        #: When a consumer had the first of its kind, by time.monotonic().
        self.seen_at: dict[str, float] = {}
        self._recent: list[tuple[float, int]] = []

    def prediction(self, _message: Message, record: dict[str, Any]) -> None:
        row = row_number(record["event_id"], self.plan.first_row)
        if not 0 <= row < len(self.predictions):
            self.foreign += 1
            return
        self.predictions[row] += 1
        self.latencies_s[row] = time.time() - record["event_time"].timestamp()
        if record["model_version"] != self.version:
            self._saw("prediction")

    def dead_letter(self, message: Message, _record: dict[str, Any]) -> None:
        reason = dict(message.headers() or []).get("pipeline.reason", b"?")
        self.dead_values.append(message.value())
        self.reasons[(reason or b"?").decode()] += 1

    def outcome(self, _message: Message, record: dict[str, Any]) -> None:
        row = row_number(record["event_id"], self.plan.first_row)
        self.outcomes[row] += 1
        self.right[row] = record["predicted"] == record["label"]
        self.versions[row] = record["model_version"]
        self.of_canary[row] = record["role"] == "canary"
        self.newest.append(bool(self.right[row]))

    def trigger(self, _message: Message, record: dict[str, Any]) -> None:
        self.triggers.append(record)
        self._saw("trigger")

    def report(self, _message: Message, record: dict[str, Any]) -> None:
        self.reports.append(record)
        self._saw("report")

    def release(self, _message: Message, record: dict[str, Any]) -> None:
        self.releases.append(record)
        if record["model_version"] != self.version:
            self._saw(record["action"])

    def _saw(self, what: str) -> None:
        self.seen_at.setdefault(what, time.monotonic())

    @property
    def successor(self) -> str | None:
        """Version of the newest release, if it is another than the first model's."""
        version = self.releases[-1]["model_version"] if self.releases else self.version
        return None if version == self.version else version

    @property
    def given_up(self) -> bool:
        """Whether there will be no successor: the gate refused it, or it did not stand its trial as canary."""
        return "withdraw" in self.seen_at or any(not report["accepted"] for report in self.reports)

    @property
    def out(self) -> int:
        """Predictions and dead letters so far."""
        return int(self.predictions.sum()) + self.foreign + len(self.dead_values)

    def rate(self) -> float:
        """Outputs a second over the last WINDOW_S, or since the last time this was asked."""
        now = time.monotonic()
        self._recent.append((now, self.out))
        while len(self._recent) > 2 and self._recent[1][0] < now - WINDOW_S:
            self._recent.pop(0)
        (then, before), (_, after) = self._recent[0], self._recent[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def latency_ms(self, q: float, last: int | None = None) -> float:
        """The q-quantile over all events, or over the `last` rows that have a prediction; NaN before any."""
        known = self.latencies_s[~np.isnan(self.latencies_s)]
        known = known if last is None else known[-last:]
        return float(np.quantile(known, q)) * 1000 if len(known) else float("nan")


class Watch:
    """Reads the output topics from their beginnings, each on a thread of its own."""

    def __init__(self, settings: Settings, options: ClientOptions, rows: RowCodec, tally: Tally) -> None:
        self._stopped = threading.Event()

        def avro(message: Message) -> dict[str, Any]:
            record: dict[str, Any] = rows.decode(message.value())
            return record

        def follow(role: str, partitions: int, decode: Callable[[Message], Any], take: Callable[..., None]) -> None:
            spans: Mapping[int, Span] = {p: Span(0, None) for p in range(partitions)}
            ends = partial(self._at_end, role)
            for batch in read(options, f"{settings.name}-demo", settings.topic(role), spans, ends):
                for message in batch:
                    if (record := decode(message)) is not None:
                        take(message, record)
                if self._stopped.is_set():
                    return

        count = settings.topics.partitions
        takers: list[tuple[str, int, Callable[[Message], Any], Callable[..., None]]] = [
            ("predictions", count, avro, tally.prediction),
            ("dead_letters", count, lambda _m: {}, tally.dead_letter),
            ("outcomes", count, avro, tally.outcome),
            ("retraining_triggers", 1, avro, tally.trigger),
            ("retraining_reports", 1, avro, tally.report),
            ("model_releases", 1, lambda message: avro(message) if is_history(message) else None, tally.release),
        ]
        self._connecting = {(role, p) for role, partitions, _, _ in takers for p in range(partitions)}
        self._connected = threading.Event()
        self._pool = ThreadPoolExecutor(len(takers), thread_name_prefix="demo-watch")
        self._futures = [self._pool.submit(follow, *taker) for taker in takers]

    def _at_end(self, role: str, partition: int) -> None:
        self._connecting.discard((role, partition))
        if not self._connecting:
            self._connected.set()

    def await_connected(self, timeout_s: float) -> None:
        """Until every partition is being read: what comes then is seen when it comes."""
        self._connected.wait(timeout_s)
        self.check()

    def check(self) -> None:
        """Raise what a reader thread raised."""
        for future in self._futures:
            if future.done():
                future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True)


def is_history(message: Message) -> bool:
    """Whether a record of the releases is an entry of their history: a slot's own says the same, or nothing."""
    return (message.key() or b"").startswith(HISTORY.encode())


def signal_means(metrics_text: str) -> dict[str, float]:
    """Latest mean of every drift signal out of the monitor's /metrics."""
    return {s.labels["signal"]: s.value for s in _samples(metrics_text, "pipeline_drift_signal_mean")}


def models_in_use(metrics_text: str) -> set[str]:
    """Versions in service, out of a worker's /metrics."""
    return {s.labels["model_version"] for s in _samples(metrics_text, "pipeline_model_info")}


def _samples(metrics_text: str, name: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(metrics_text):
        yield from (sample for sample in family.samples if sample.name == name)


def moved(means: Mapping[str, float], baseline: Mapping[str, tuple[float, float]]) -> list[tuple[str, float, float]]:
    """(signal, standard deviations from the baseline's mean, mean) of watched signals, furthest first."""
    found = [
        (name, (mean - baseline[name][0]) / baseline[name][1], mean)
        for name, mean in means.items()
        if name in baseline and baseline[name][1] > 0 and np.isfinite(mean)
    ]
    return sorted(found, key=lambda f: -abs(f[1]))


def step(tally: Tally, feed: Feed) -> str:
    """Where the loop is, in words."""
    seen = tally.seen_at
    if tally.given_up:
        return "the successor was withdrawn" if "withdraw" in seen else "the gate refused the successor"
    if "promote" in seen:
        return f"{tally.successor} is champion"
    if "prediction" in seen:
        return f"{tally.successor} is on trial as canary, with half of the events"
    if "canary" in seen:
        return f"the gate accepted {tally.successor}, the workers load it"
    if "trigger" in seen:
        return "drift trigger: a successor is trained on what came since the change"
    return "watching" if feed.shifted_at is None else f"{SHIFTED} reads {SHIFT} too high; nobody has noticed yet"


def live(tally: Tally, feed: Feed, lag: int | None, signals: list[tuple[str, float, float]]) -> RenderableType:
    """The view while it runs."""
    held = "" if feed.held_at is None else "; the rest waits for the successor"
    rows = [
        ("input", f"{feed.sent:,} of {len(tally.plan):,} events sent, {feed.labelled:,} labels{held}"),
        ("throughput", f"{tally.rate():,.0f} events/s"),
        ("latency", latency(tally, 5_000)),
        ("lag", "-" if lag is None else f"{lag:,} events not yet committed"),
        ("predictions", f"{int(tally.predictions.sum()):,}"),
        ("dead letters", f"{len(tally.dead_values):,}"),
        ("accuracy", f"{accuracy_now(tally)} of the last {len(tally.newest):,} outcomes"),
        ("drift signals", "  ".join(f"{name} {z:+.2f} sd" for name, z, _ in signals[:3]) or "-"),
        ("loop", step(tally, feed)),
    ]
    return Group(Text("pipeline demo: NASA Shuttle telemetry", style="bold"), pairs(rows))


def plain(tally: Tally, feed: Feed) -> str:
    """One line of the view, where there is no terminal."""
    return (
        f"sent {feed.sent:,}/{len(tally.plan):,}  out {tally.out:,}  {tally.rate():,.0f}/s  "
        f"{latency(tally, 5_000)}  accuracy {accuracy_now(tally)}  {step(tally, feed)}"
    )


def latency(tally: Tally, last: int | None = None) -> str:
    """From the event to a consumer, of all events or of the last so many."""
    p50, p99 = (tally.latency_ms(q, last) for q in (0.5, 0.99))
    return "-" if np.isnan(p50) else f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def accuracy_now(tally: Tally) -> str:
    """Of the newest outcomes."""
    newest = tuple(tally.newest)
    return f"{sum(newest) / len(newest):.3f}" if newest else "-"


def pairs(rows: list[tuple[str, str]]) -> RenderableType:
    """A table of two columns without a head."""
    shown = table(None, ("what", "how much"), rows)
    shown.show_header = False
    return shown
