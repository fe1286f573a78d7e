"""What the demo sees of its pipeline, as any consumer could: it reads the output topics and adds up."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
from confluent_kafka import Message
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, read
from pipeline.cli.context import table
from pipeline.cli.demo_data import Broken, Plan, f1_of, row_number
from pipeline.codec import RowCodec
from pipeline.settings import Settings

#: The throughput shown is that of the last so many seconds.
WINDOW_S = 2.0


class Tally:
    """Counts what comes out. Filled by reader threads, read by the view; each field has one writer."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        n = len(plan)
        self.predictions = np.zeros(n, dtype=np.int64)
        self.labels: list[str | None] = [None] * n
        #: Seconds from the event's making to a consumer's having its prediction; NaN before.
        self.latencies_s = np.full(n, np.nan)
        self.foreign = 0
        self.dead_values: list[bytes | None] = []
        self.reasons: Counter[str] = Counter()
        self.triggers: list[dict[str, Any]] = []
        self._recent: list[tuple[float, int]] = []

    def prediction(self, _message: Message, record: dict[str, Any]) -> None:
        row = row_number(record["event_id"], self.plan.first_row)
        if not 0 <= row < len(self.predictions):
            self.foreign += 1
            return
        self.predictions[row] += 1
        self.labels[row] = record["label"]
        self.latencies_s[row] = time.time() - record["event_time"].timestamp()

    def dead_letter(self, message: Message, _record: dict[str, Any]) -> None:
        reason = dict(message.headers() or []).get("pipeline.reason", b"?")
        self.dead_values.append(message.value())
        self.reasons[(reason or b"?").decode()] += 1

    def trigger(self, _message: Message, record: dict[str, Any]) -> None:
        self.triggers.append(record)

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
    """Reads the three output topics from their beginnings, each on a thread of its own."""

    def __init__(self, settings: Settings, options: ClientOptions, rows: RowCodec, tally: Tally) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="demo-watch")

        def avro(message: Message) -> dict[str, Any]:
            record: dict[str, Any] = rows.decode(message.value())
            return record

        def follow(role: str, partitions: int, decode: Callable[[Message], Any], take: Callable[..., None]) -> None:
            spans: Mapping[int, Span] = {p: Span(0, None) for p in range(partitions)}
            ends = partial(self._at_end, role)
            for batch in read(options, f"{settings.name}-demo", settings.topic(role), spans, ends):
                for message in batch:
                    take(message, decode(message))
                if self._stopped.is_set():
                    return

        count = settings.topics.partitions
        self._connecting = {(role, p) for role in ("predictions", "dead_letters") for p in range(count)}
        self._connecting.add(("retraining_triggers", 0))
        self._connected = threading.Event()
        self._futures = [
            self._pool.submit(follow, "predictions", count, avro, tally.prediction),
            self._pool.submit(follow, "dead_letters", count, lambda _m: {}, tally.dead_letter),
            self._pool.submit(follow, "retraining_triggers", 1, avro, tally.trigger),
        ]

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


def signal_means(metrics_text: str) -> dict[str, float]:
    """Latest mean of every drift signal out of the monitor's /metrics."""
    return {
        sample.labels["signal"]: sample.value
        for family in text_string_to_metric_families(metrics_text)
        for sample in family.samples
        if sample.name == "pipeline_drift_signal_mean"
    }


def moved(means: Mapping[str, float], baseline: Mapping[str, tuple[float, float]]) -> list[tuple[str, float, float]]:
    """(signal, standard deviations from the baseline's mean, mean) of watched signals, furthest first."""
    found = [
        (name, (mean - baseline[name][0]) / baseline[name][1], mean)
        for name, mean in means.items()
        if name in baseline and baseline[name][1] > 0 and np.isfinite(mean)
    ]
    return sorted(found, key=lambda f: -abs(f[1]))


def live(tally: Tally, sent: int, lag: int | None, signals: list[tuple[str, float, float]]) -> RenderableType:
    """The view while it runs."""
    plan = tally.plan
    state = "normal" if sent <= plan.shift_at else f"sensor shifted since event {plan.shift_at:,}"
    rows = [
        ("input", f"{sent:,} of {len(plan):,} events sent; {state}"),
        ("throughput", f"{tally.rate():,.0f} events/s"),
        ("latency", f"p50 {tally.latency_ms(0.5, 5_000):.1f} ms   p99 {tally.latency_ms(0.99, 5_000):.1f} ms"),
        ("lag", "-" if lag is None else f"{lag:,} events not yet committed"),
        ("predictions", f"{int(tally.predictions.sum()):,}"),
        ("dead letters", f"{len(tally.dead_values):,}"),
        ("drift signals", "  ".join(f"{name} {z:+.2f} sd" for name, z, _ in signals[:3]) or "-"),
        ("triggers", ", ".join(t["trigger_id"][:12] for t in tally.triggers) or "none"),
    ]
    return Group(Text("pipeline demo: NASA Shuttle telemetry, two workers, one monitor", style="bold"), _pairs(rows))


def plain(tally: Tally, sent: int) -> str:
    """One line of the view, where there is no terminal."""
    return (
        f"sent {sent:,}/{len(tally.plan):,}  out {tally.out:,}  {tally.rate():,.0f}/s  "
        f"p50 {tally.latency_ms(0.5, 5_000):.1f} ms  p99 {tally.latency_ms(0.99, 5_000):.1f} ms  "
        f"dead letters {len(tally.dead_values)}  triggers {len(tally.triggers)}"
    )


class Verdict:
    """The demo's balance: every event accounted for, or not."""

    def __init__(self, tally: Tally, broken: Broken, *, uncommitted: int) -> None:
        good = np.ones(len(tally.plan), dtype=np.bool_)
        good[broken.rows] = False
        self._tally, self._good = tally, good
        self.sent = len(tally.plan)
        self.lost_events = int((tally.predictions[good] == 0).sum())
        self.duplicates = int(np.maximum(tally.predictions[good] - 1, 0).sum()) + int(tally.predictions[~good].sum())
        missing = Counter(broken.values) - Counter(tally.dead_values)
        extra = Counter(tally.dead_values) - Counter(broken.values)
        self.lost_dead_letters = sum(missing.values())
        self.extra_dead_letters = sum(extra.values())
        self.wrong_reasons = sum((Counter(r.value for r in broken.reasons) - tally.reasons).values())
        self.uncommitted = uncommitted

    @property
    def lost(self) -> int:
        return self.lost_events + self.lost_dead_letters

    @property
    def found(self) -> list[tuple[int, dict[str, Any]]]:
        """(events between the shift and the trigger, trigger) of each trigger."""
        # One event in BROKEN_EVERY is never decoded and still counts: the monitor counts records, not rows.
        return [(int(t["events_seen"]) - self._tally.plan.shift_at, t) for t in self._tally.triggers]

    def quality(self, first: int, last: int) -> tuple[float, float]:
        """Accuracy and F1 of the anomaly class over the scored rows of [first, last)."""
        rows = [r for r in range(first, last) if self._good[r] and self._tally.labels[r] is not None]
        labels = self._tally.plan.labels()
        truth = np.array([labels[r] == "1" for r in rows], dtype=np.bool_)
        said = np.array([self._tally.labels[r] == "1" for r in rows], dtype=np.bool_)
        return float((truth == said).mean()) if rows else float("nan"), f1_of(truth, said)

    def summary(self) -> RenderableType:
        """The table a person reads at the end."""
        tally, plan = self._tally, self._tally.plan
        before, after = self.quality(0, plan.shift_at), self.quality(plan.shift_at, len(plan))
        rows = [
            ("events in", f"{self.sent:,}"),
            ("predictions out", f"{int(tally.predictions.sum()):,}"),
            ("dead letters", f"{len(tally.dead_values):,}: " + _reasons(tally.reasons)),
            ("lost", f"{self.lost:,}"),
            ("duplicated", f"{self.duplicates + self.extra_dead_letters:,}"),
            ("uncommitted", f"{self.uncommitted:,}"),
            ("latency", f"p50 {tally.latency_ms(0.5):.1f} ms, p99 {tally.latency_ms(0.99):.1f} ms, event to consumer"),
            ("before the shift", f"accuracy {before[0]:.4f}, F1 {before[1]:.4f}"),
            ("after the shift", f"accuracy {after[0]:.4f}, F1 {after[1]:.4f}"),
        ]
        for events, trigger in self.found:
            place = f"{events:,} events after the shift" if events >= 0 else f"{-events:,} events BEFORE the shift"
            rows.append(("trigger", f"{trigger['severity']}, {place}; id {trigger['trigger_id'][:16]}"))
            rows += [("", _evidence(signal)) for signal in trigger["signals"]]
        if not tally.triggers:
            rows.append(("trigger", "NONE: the shift was not found"))
        return _pairs(rows)


def _reasons(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none"


def _evidence(signal: Mapping[str, Any]) -> str:
    return (
        f"{signal['signal']}: mean {signal['before_mean']:.3f} -> {signal['after_mean']:.3f}, "
        f"PSI {signal['psi']:.2f}, KL {signal['kl']:.2f} ({signal['detector']})"
    )


def _pairs(rows: list[tuple[str, str]]) -> RenderableType:
    shown = table(None, ("what", "how much"), rows)
    shown.show_header = False
    return shown
