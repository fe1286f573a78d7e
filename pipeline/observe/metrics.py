"""Every series the pipeline exports, in one container. Nothing else creates a series.

Each series lives as long as the process, so labels come from closed sets. Where a set is closed by
configuration only (topics, features, signals, model versions), it is bounded here as well: what comes
after `LABEL_SETS_MAX` sets of values is counted under "other".
"""

from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.observe.bounds import LABEL_SETS_MAX, OTHER, printable
from pipeline.observe.loop import LoopSeries
from pipeline.observe.quality import QualitySeries
from pipeline.records import ModelIdentity, Reason, Stage

StageName = Literal["decode", "validate", "score", "encode", "publish", "commit"]
Since = Literal["event", "broker"]
Severity = Literal["minor", "major", "critical"]

#: 1 to 65,536 rows, settings' largest batch_max.
BATCH_ROWS_EDGES = tuple(float(2**e) for e in range(17))
#: 50 µs (validating one batch takes 65 µs) to 10 s (a commit on a struggling broker).
STAGE_SECONDS_EDGES = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
#: Half a millisecond to two minutes, each edge about 1.4 times the one before: an interpolated quantile
#: is then off by at most 20 % of itself or so, which a person watching a live view does not notice.
LATENCY_EDGES_S = tuple(float(f"{0.0005 * 2 ** (i / 2):.2g}") for i in range(37))
#: A second to three months, where the people are who know what became of an event.
LABEL_DELAY_EDGES_S = tuple(
    float(s) for s in (1, 10, 60, 600, 3_600, 21_600, 86_400, 172_800, 604_800, 1_209_600, 2_592_000, 7_776_000)
)
#: The one series of a histogram without a label.
ALL = ""

M = TypeVar("M", Counter, Gauge, Histogram)


class _Bounded(Generic[M]):
    """Children of a labelled metric, found without prometheus_client's locking, and at most LABEL_SETS_MAX of them."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._labels = len(metric._labelnames)  # noqa: SLF001 (has no public name)
        self._children: dict[tuple[str, ...], M] = {}
        self._lock = Lock()

    def __call__(self, *values: str) -> M:
        child = self._children.get(values)
        return self._add(values) if child is None else child

    def _add(self, values: tuple[str, ...]) -> M:
        with self._lock:
            if len(self._children) >= LABEL_SETS_MAX:
                values = (OTHER,) * self._labels
            if values not in self._children:
                self._children[values] = self._metric.labels(*map(printable, values))
            return self._children[values]

    def forget(self, *values: str) -> None:
        with self._lock:
            if self._children.pop(values, None) is not None:
                self._metric.remove(*map(printable, values))


class LatencyHistogram(Collector):
    """A Prometheus histogram that takes whole arrays, and answers for its quantiles."""

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str | None = None,
        values: tuple[str, ...] = (ALL,),
        edges_s: tuple[float, ...] = LATENCY_EDGES_S,
    ) -> None:
        """One series for each of `values` of `label`, or one of all observations without a label."""
        self._name, self._documentation = name, documentation
        self._labels = [] if label is None else [label]
        self._edges = np.array(edges_s)
        self._counts = {value: np.zeros(len(self._edges) + 1, dtype=np.int64) for value in values}
        self._sums = dict.fromkeys(values, 0.0)
        self._lock = Lock()

    def observe_many(self, value: str, seconds: npt.NDArray[np.float64]) -> None:
        """Add observations (n,). Negative ones, from clocks that disagree, count as 0; NaN is left out."""
        seconds = np.maximum(seconds, 0.0)
        total = float(seconds.sum())
        if not np.isfinite(total):
            seconds = seconds[np.isfinite(seconds)]
            total = float(seconds.sum())
        added = np.bincount(np.searchsorted(self._edges, seconds), minlength=len(self._edges) + 1)
        with self._lock:
            self._counts[value] += added
            self._sums[value] += total

    def quantile(self, value: str, q: float) -> float:
        """The q-quantile in seconds, linear inside a bucket, the last edge beyond it; NaN before any observation."""
        with self._lock:
            cumulative = np.cumsum(self._counts[value])
        total = int(cumulative[-1])
        if total == 0:
            return float("nan")
        # The first bucket that is not empty holds the smallest value, also for q = 0.
        place = int(np.searchsorted(cumulative, max(q * total, 0.5)))
        if place >= len(self._edges):
            return float(self._edges[-1])
        low = float(self._edges[place - 1]) if place else 0.0
        below = int(cumulative[place - 1]) if place else 0
        inside = int(cumulative[place]) - below
        return low + (float(self._edges[place]) - low) * (q * total - below) / inside

    def describe(self) -> list[Metric]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        with self._lock:
            state = {value: (np.cumsum(counts), self._sums[value]) for value, counts in self._counts.items()}
        names = [str(edge) for edge in self._edges.tolist()] + ["+Inf"]
        for value, (cumulative, total) in state.items():
            family.add_metric(
                [value] if self._labels else [], list(zip(names, cumulative.astype(float).tolist(), strict=True)), total
            )
        yield family


class Metrics:
    """All series, and one method per thing that happens. Thread-safe; no method raises for any text given to it."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """registry: where the series are registered; by default one of its own, with process and platform facts."""
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            registry.register(PLATFORM_COLLECTOR)
            registry.register(GC_COLLECTOR)
        self.registry = registry
        self._hot_path(registry)
        self._kafka(registry)
        self._model_and_drift(registry)
        self._joined(registry)
        self.loop = LoopSeries(registry)

    def _hot_path(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._events = _Bounded(counter("pipeline_events", "Records read, good or bad.", "topic"))
        self._predictions = _Bounded(
            counter("pipeline_predictions", "Predictions made.", "model_version", "role"),
        )
        rejections = counter("pipeline_rejections", "Records refused.", "stage", "reason")
        self._rejections = {(s, r): rejections.labels(s.value, r.value) for s in Stage for r in Reason}
        self._imputations = _Bounded(
            counter(
                "pipeline_imputations", "Values replaced by the feature's policy, as <feature>:<policy>.", "feature"
            )
        )
        self._batch_rows = Histogram(
            "pipeline_batch_rows", "Records scored together.", buckets=BATCH_ROWS_EDGES, registry=registry
        )
        stages = Histogram(
            "pipeline_stage_seconds",
            "Time a batch spends in a stage.",
            ["stage"],
            buckets=STAGE_SECONDS_EDGES,
            registry=registry,
        )
        self._stages = {name: stages.labels(name) for name in get_args(StageName)}
        self._latency = LatencyHistogram(
            "pipeline_latency_seconds",
            "Age of a record when its prediction is handed to Kafka, since its event time or since the broker had it.",
            "since",
            get_args(Since),
        )
        registry.register(self._latency)
        self._retries = counter("pipeline_retries", "Batches scored again because the model failed.")
        trials = counter("pipeline_trial_failures", "Models on trial put out of service for failing.", "role")
        self._trial_failures = {role: trials.labels(role) for role in ("canary", "shadow", OTHER)}
        self._shadow_skipped = counter(
            "pipeline_shadow_skipped", "Events the shadow did not score, to keep to its share of time."
        )

    def _kafka(self, registry: CollectorRegistry) -> None:
        self._lag = _Bounded(
            Gauge(
                "pipeline_lag_records",
                "Records on a partition not yet read.",
                ["topic", "partition"],
                registry=registry,
            )
        )
        self._commits = _Bounded(Counter("pipeline_commits", "Offset commits.", ["outcome"], registry=registry))
        self._rebalances = _Bounded(Counter("pipeline_rebalances", "Group rebalances.", ["kind"], registry=registry))
        self._in_flight = Gauge("pipeline_in_flight_records", "Records read and not yet committed.", registry=registry)
        self._missed = _Bounded(
            Counter("pipeline_missed_offsets", "Offsets deleted before they were read.", ["topic"], registry=registry)
        )
        self._broker_errors = _Bounded(
            Counter("pipeline_broker_errors", "Errors reported by the Kafka client.", ["kind"], registry=registry)
        )
        self._ready = Gauge("pipeline_ready", "1 when warmed up, in the group and assigned.", registry=registry)

    def _model_and_drift(self, registry: CollectorRegistry) -> None:
        self._model_info = Gauge(
            "pipeline_model_info",
            "1 for each model in use.",
            ["model_id", "model_version", "device"],
            registry=registry,
        )
        self._models: dict[str, tuple[str, str, str]] = {}
        self._models_lock = Lock()
        failures = Counter(
            "pipeline_release_failures",
            "Released models that could not be put into service.",
            ["slot"],
            registry=registry,
        )
        self._release_failures = {slot: failures.labels(slot) for slot in ("champion", "canary", "shadow", OTHER)}
        self._signal_means = _Bounded(
            Gauge("pipeline_drift_signal_mean", "Latest block mean of a signal.", ["signal"], registry=registry)
        )
        self._alarms = _Bounded(Counter("pipeline_drift_alarms", "Detections.", ["signal"], registry=registry))
        triggers = Counter("pipeline_triggers", "Retraining triggers sent.", ["severity"], registry=registry)
        self._triggers = {name: triggers.labels(name) for name in (*get_args(Severity), OTHER)}
        self._monitor_events = Counter(
            "pipeline_monitor_events", "Events seen by the drift monitor.", registry=registry
        )

    def _joined(self, registry: CollectorRegistry) -> None:
        self._labels = _Bounded(
            Counter("pipeline_labels", "Labels read, by what they were.", ["result"], registry=registry)
        )
        self._label_delays = LatencyHistogram(
            "pipeline_label_delay_seconds", "From an event to its label.", edges_s=LABEL_DELAY_EDGES_S
        )
        registry.register(self._label_delays)
        self._labels_waiting = Gauge(
            "pipeline_labels_waiting", "About how many predictions and labels wait or have met.", registry=registry
        )
        self._coverage = Gauge(
            "pipeline_label_coverage", "Share of the window's predictions with a label by now.", registry=registry
        )
        self._quality = QualitySeries(registry)

    # -- the hot path, once a batch ----------------------------------------------------------

    def events_read(self, topic: str, n: int) -> None:
        self._events(topic).inc(n)

    def scored(self, identity: ModelIdentity, n: int) -> None:
        self._predictions(identity.model_version, identity.role).inc(n)

    def rejected(self, stage: Stage, reason: Reason, n: int = 1) -> None:
        self._rejections[stage, reason].inc(n)

    def imputed(self, feature_key: str, n: int) -> None:
        """feature_key: "<feature>:null", ":clip", ":range" or ":unknown"."""
        self._imputations(feature_key).inc(n)

    def batch(self, rows: int) -> None:
        self._batch_rows.observe(rows)

    def stage(self, name: str, seconds: float) -> None:
        """name: one of StageName; others are ignored."""
        if (child := self._stages.get(name)) is not None:
            child.observe(seconds)

    def latencies(self, since: str, seconds: npt.NDArray[np.float64]) -> None:
        """Ages of n records in seconds, (n,); since: "event" or "broker", others are ignored."""
        if since in get_args(Since):
            self._latency.observe_many(since, seconds)

    def retried(self) -> None:
        self._retries.inc()

    def trial_failed(self, role: str) -> None:
        """role: "canary" or "shadow"."""
        self._trial_failures.get(role, self._trial_failures[OTHER]).inc()

    def shadow_skipped(self, n: int) -> None:
        self._shadow_skipped.inc(n)

    # -- Kafka -------------------------------------------------------------------------------

    def lag(self, topic: str, partition: int, n: int) -> None:
        self._lag(topic, str(partition)).set(n)

    def forget_lag(self, topic: str, partition: int) -> None:
        """The partition went to another instance, whose lag it is now."""
        self._lag.forget(topic, str(partition))

    def committed(self, outcome: str) -> None:
        """outcome: "ok", "refused", "retried", "aborted" or "failed"."""
        self._commits(outcome).inc()

    def rebalanced(self, kind: str) -> None:
        """kind: "assigned", "revoked" or "lost"."""
        self._rebalances(kind).inc()

    def in_flight(self, n: int) -> None:
        self._in_flight.set(n)

    def missed(self, topic: str, n: int) -> None:
        """n offsets of `topic` were deleted before they were read."""
        self._missed(topic).inc(n)

    def broker_error(self, kind: str) -> None:
        """kind: librdkafka's name of the error."""
        self._broker_errors(kind).inc()

    def ready(self, is_ready: bool) -> None:
        self._ready.set(is_ready)

    # -- model and drift ---------------------------------------------------------------------

    def model(self, identity: ModelIdentity, device: str) -> None:
        """A model is in use from now on, in place of the one that had its role."""
        labels = (printable(identity.model_id), printable(identity.model_version), printable(device))
        with self._models_lock:
            self._forget_model(identity.role)
            self._models[identity.role] = labels
            self._model_info.labels(*labels).set(1)

    def model_gone(self, role: str) -> None:
        """No model has this role any more."""
        with self._models_lock:
            self._forget_model(role)

    def _forget_model(self, role: str) -> None:
        before = self._models.pop(role, None)
        if before is not None and before not in self._models.values():
            self._model_info.remove(*before)

    def release_failed(self, slot: str) -> None:
        """A released model could not be put into service; slot: "champion", "canary" or "shadow"."""
        self._release_failures.get(slot, self._release_failures[OTHER]).inc()

    def drift_signal(self, name: str, value: float) -> None:
        self._signal_means(name).set(value)

    def alarm(self, signal: str) -> None:
        self._alarms(signal).inc()

    def trigger(self, severity: str) -> None:
        self._triggers.get(severity, self._triggers[OTHER]).inc()

    def monitor_events(self, n: int) -> None:
        self._monitor_events.inc(n)

    # -- labels ------------------------------------------------------------------------------

    def labels(self, result: str, n: int) -> None:
        """result: one of labels.Result."""
        self._labels(result).inc(n)

    def label_delays(self, seconds: npt.NDArray[np.float64]) -> None:
        """Seconds from n events to their labels, (n,)."""
        self._label_delays.observe_many(ALL, seconds)

    def labels_waiting(self, keys: int) -> None:
        self._labels_waiting.set(keys)

    def label_coverage(self, share: float) -> None:
        self._coverage.set(share)

    def quality(self, versions: Iterable[Mapping[str, Any]]) -> None:
        """What outcomes say now, in place of what they said before; versions: those of `quality.Quality.report()`."""
        self._quality.show(versions)

    # -- read back, for live views -----------------------------------------------------------

    def quantile(self, since: Since, q: float) -> float:
        """Seconds below which a share q (0 to 1) of all latencies lies; NaN before the first."""
        return self._latency.quantile(since, q)

    def total(self, sample: str, **labels: str) -> float:
        """Sum of a sample ("pipeline_events_total") over all series that carry `labels`; 0 without any."""
        wanted: Any = labels.items()
        family = self.registry.restricted_registry([sample])
        return sum(
            s.value for m in family.collect() for s in m.samples if s.name == sample and wanted <= s.labels.items()
        )
