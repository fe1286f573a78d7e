"""The metrics container: names, bounded labels, quantiles."""

from threading import Thread
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pipeline.observe.bounds import LABEL_SETS_MAX
from pipeline.observe.metrics import LATENCY_EDGES_S, Metrics
from pipeline.records import ModelIdentity, Reason, Stage

NAMES = {
    "pipeline_events_total": {"topic"},
    "pipeline_predictions_total": {"model_version", "role"},
    "pipeline_rejections_total": {"stage", "reason"},
    "pipeline_imputations_total": {"feature"},
    "pipeline_batch_rows_bucket": {"le"},
    "pipeline_stage_seconds_bucket": {"le", "stage"},
    "pipeline_latency_seconds_bucket": {"le", "since"},
    "pipeline_lag_records": {"topic", "partition"},
    "pipeline_commits_total": {"outcome"},
    "pipeline_rebalances_total": {"kind"},
    "pipeline_in_flight_records": set(),
    "pipeline_retries_total": set(),
    "pipeline_model_info": {"model_id", "model_version", "device"},
    "pipeline_drift_signal_mean": {"signal"},
    "pipeline_drift_alarms_total": {"signal"},
    "pipeline_triggers_total": {"severity"},
    "pipeline_monitor_events_total": set(),
    "pipeline_missed_offsets_total": {"topic"},
    "pipeline_broker_errors_total": {"kind"},
    "pipeline_trial_failures_total": {"role"},
    "pipeline_shadow_skipped_total": set(),
    "pipeline_release_failures_total": {"slot"},
    "pipeline_labels_total": {"result"},
    "pipeline_label_delay_seconds_bucket": {"le"},
    "pipeline_labels_waiting": set(),
    "pipeline_label_coverage": set(),
    "pipeline_quality_outcomes": {"model_version", "role"},
    "pipeline_quality": {"model_version", "role", "field", "value", "measure"},
    "pipeline_quality_gap": {"model_version", "role", "field", "value", "measure"},
    "pipeline_quality_gap_alarm": {"model_version", "role", "field", "value", "measure"},
    "pipeline_calibration_info": {"model_version", "role", "calibration_id"},
    "pipeline_retrainings_total": {"cause", "outcome"},
    "pipeline_on_trial": {"slot", "model_version"},
    "pipeline_trial_decisions_total": {"action"},
    "pipeline_ready": set(),
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Everything a scrape shows, parsed back."""
    text = generate_latest(metrics.registry).decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def version(text: str, *values: str | None) -> dict[str, Any]:
    """What a report says of a version with slices of these values."""
    parts = [{"field": text, "value": value, "measure": "accuracy"} for value in values or (text,)]
    return {
        "model_version": text,
        "role": "champion",
        "rows": 7,
        "metrics": {"accuracy": 0.9, "f1": 0.8, "roc_auc_error": 0.001},
        "slices": [{**part, "rows": 5, "metrics": {"accuracy": 0.7, "f1": 0.6}} for part in parts],
        "gaps": [{**part, "difference": -0.2} for part in parts],
        "alarms": parts,
    }


def use_everything(metrics: Metrics, text: str = "x") -> None:
    """Call each method once, `text` wherever text goes."""
    metrics.events_read(text, 3)
    metrics.scored(ModelIdentity(text, text), 2)
    metrics.rejected(Stage.DECODE, Reason.UNDECODABLE, 1)
    metrics.imputed(text, 4)
    metrics.batch(3)
    metrics.labels(text, 2)
    metrics.trial_failed(text)
    metrics.shadow_skipped(2)
    metrics.release_failed(text)
    metrics.label_delays(np.array([0.5, 100.0]))
    metrics.labels_waiting(5)
    metrics.quality([version(text)])
    metrics.stage(text, 0.1)
    metrics.latencies(text, np.array([0.1]))
    metrics.lag(text, 0, 7)
    metrics.committed(text)
    metrics.rebalanced(text)
    metrics.in_flight(5)
    metrics.retried()
    metrics.model(ModelIdentity(text, text), text)
    metrics.drift_signal(text, 0.5)
    metrics.alarm(text)
    metrics.trigger(text)
    metrics.monitor_events(9)
    metrics.broker_error(text)
    metrics.missed(text, 1)
    metrics.loop.calibrations([(text, text, text)])
    metrics.loop.on_trial([(text, text)])
    metrics.ready(True)


def test_every_series_has_its_documented_name_and_labels(metrics: Metrics) -> None:
    """Dashboards and alerts are written against these names."""
    use_everything(metrics)
    found: dict[str, set[str]] = {}
    for name, labels in samples(metrics):
        found.setdefault(name, set()).update(label for label, _ in labels)
    suffixes = ("_created", "_count", "_sum")
    assert {n: labels for n, labels in found.items() if not n.endswith(suffixes)} == NAMES


def test_what_happened_is_what_is_shown(metrics: Metrics) -> None:
    """Counts add up, gauges hold the last value."""
    use_everything(metrics, "t")
    metrics.events_read("t", 4)
    metrics.events_read("u", 1)
    metrics.in_flight(2)
    metrics.stage("decode", 0.003)
    metrics.trigger("major")
    metrics.ready(False)
    shown = samples(metrics)
    assert shown["pipeline_events_total", (("topic", "t"),)] == 7
    assert metrics.total("pipeline_events_total") == 8
    assert metrics.total("pipeline_events_total", topic="u") == 1
    assert metrics.total("pipeline_rejections_total", reason="undecodable") == 1
    assert metrics.total("pipeline_events_total", topic="none") == 0
    assert metrics.total("pipeline_in_flight_records") == 2
    assert metrics.total("pipeline_ready") == 0
    assert metrics.total("pipeline_triggers_total", severity="major") == 1
    assert shown["pipeline_stage_seconds_count", (("stage", "decode"),)] == 1
    assert shown["pipeline_stage_seconds_bucket", (("le", "0.005"), ("stage", "decode"))] == 1
    assert shown["pipeline_stage_seconds_bucket", (("le", "0.002"), ("stage", "decode"))] == 0


def test_hostile_label_values_cannot_grow_the_number_of_series(metrics: Metrics) -> None:
    """100,000 different texts for each label leave a bounded number of series, and lose no count."""
    for number in range(LABEL_SETS_MAX):
        use_everything(metrics, f"honest {number}")
    bound = len(samples(metrics))
    for number in range(100_000):
        metrics.imputed(f"hostile {number}", 1)
        metrics.drift_signal(f"hostile {number}", 0.0)
    for number in range(500):
        use_everything(metrics, f'hostile {number}"\n}}\ud800 {"x" * 1000}')
    # "other" is the one series more that each bounded name may have (and its _created twin).
    assert len(samples(metrics)) <= bound + 2 * len(NAMES)
    assert metrics.total("pipeline_imputations_total", feature="other") == 100_000 + 4 * 500
    assert metrics.total("pipeline_events_total") == 3 * (LABEL_SETS_MAX + 500)


def test_text_that_is_no_utf_8_does_not_break_the_scrape(metrics: Metrics) -> None:
    """A lone surrogate from a JSON escape, line breaks and quotes stay inside their label."""
    use_everything(metrics, '\ud800\n"}' + "y" * 5000)
    longest = max(len(value) for _, labels in samples(metrics) for _, value in labels)
    assert longest <= 256
    metrics.forget_lag('\ud800\n"}' + "y" * 5000, 0)
    assert metrics.total("pipeline_lag_records") == 0


def test_lag_of_a_lost_partition_is_forgotten(metrics: Metrics) -> None:
    """A partition that went to another instance leaves no stale lag, and may come back."""
    metrics.lag("t", 1, 50)
    metrics.lag("t", 2, 60)
    metrics.forget_lag("t", 1)
    metrics.forget_lag("t", 3)
    assert [labels for name, labels in samples(metrics) if name == "pipeline_lag_records"] == [
        (("partition", "2"), ("topic", "t"))
    ]
    metrics.lag("t", 1, 5)
    assert metrics.total("pipeline_lag_records") == 65


def test_a_new_model_takes_the_place_of_the_old_one(metrics: Metrics) -> None:
    """One info series per role; two roles with the same model share one."""
    metrics.model(ModelIdentity("m", "1"), "cpu")
    metrics.model(ModelIdentity("m", "2", "canary"), "cpu")
    metrics.model(ModelIdentity("m", "2"), "cpu")
    metrics.model(ModelIdentity("m", "3", "canary"), "cpu")
    shown = [dict(labels)["model_version"] for name, labels in samples(metrics) if name == "pipeline_model_info"]
    assert sorted(shown) == ["2", "3"]


def test_latencies_are_counted_in_the_right_buckets(metrics: Metrics) -> None:
    """As single observations would be: an edge belongs to its bucket, buckets are cumulative."""
    seconds = np.array([LATENCY_EDGES_S[0], 0.0011, 1.0, 1.0, 500.0])
    metrics.latencies("event", seconds)
    metrics.latencies("event", np.empty(0))
    shown = samples(metrics)
    for edge in LATENCY_EDGES_S:
        expected = int((seconds <= edge).sum())
        assert shown["pipeline_latency_seconds_bucket", (("le", str(edge)), ("since", "event"))] == expected
    assert shown["pipeline_latency_seconds_bucket", (("le", "+Inf"), ("since", "event"))] == 5
    assert shown["pipeline_latency_seconds_count", (("since", "event"),)] == 5
    assert shown["pipeline_latency_seconds_sum", (("since", "event"),)] == pytest.approx(seconds.sum())
    assert shown["pipeline_latency_seconds_count", (("since", "broker"),)] == 0


def test_impossible_latencies_do_no_harm(metrics: Metrics) -> None:
    """A clock ahead of ours counts as no latency; NaN and infinity are left out."""
    metrics.latencies("broker", np.array([-5.0, np.nan, np.inf, 0.01]))
    shown = samples(metrics)
    assert shown["pipeline_latency_seconds_count", (("since", "broker"),)] == 2
    assert shown["pipeline_latency_seconds_sum", (("since", "broker"),)] == pytest.approx(0.01)


@pytest.mark.parametrize("q", [0.01, 0.5, 0.95, 0.99])
def test_quantiles_are_close_to_the_true_ones(metrics: Metrics, q: float) -> None:
    """Interpolation inside a bucket errs by less than the bucket's width, a factor of 1.5."""
    seconds = np.random.default_rng(1).lognormal(-3, 1, 20_000)
    metrics.latencies("event", seconds)
    true = float(np.quantile(seconds, q))
    assert true / 1.1 < metrics.quantile("event", q) < true * 1.1


def test_quantiles_at_the_ends(metrics: Metrics) -> None:
    """Nothing seen is NaN; what lies beyond the last edge is that edge; q = 0 is the lowest bucket's lower edge."""
    assert np.isnan(metrics.quantile("event", 0.5))
    metrics.latencies("event", np.array([0.9, 10_000.0]))
    assert metrics.quantile("event", 1.0) == LATENCY_EDGES_S[-1]
    assert metrics.quantile("event", 0.0) == 0.72
    assert metrics.quantile("event", 0.5) == 1.0


def test_threads_lose_no_count(metrics: Metrics) -> None:
    """The scoring thread, the loop and Kafka's callbacks report at the same time."""

    def work() -> None:
        for number in range(500):
            metrics.latencies("event", np.array([0.1, 0.2]))
            metrics.imputed(f"feature {number % 20}", 1)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.total("pipeline_latency_seconds_count", since="event") == 4000
    assert metrics.total("pipeline_imputations_total") == 2000


def test_open_metrics_can_be_written() -> None:
    """The strict format accepts every family, those of the process included."""
    metrics = Metrics()
    use_everything(metrics)
    text = openmetrics(metrics.registry).decode()
    assert text.endswith("# EOF\n")
    assert "process_resident_memory_bytes" in text


def test_quality_is_replaced_as_a_whole(metrics: Metrics) -> None:
    """What the latest report does not name is no longer exported; slices have few measures, bounds of error none."""
    metrics.quality([version("1", "a", None), version("2")])
    metrics.quality([version("3", "a", None)])
    found = {key: value for key, value in samples(metrics).items() if key[0].startswith("pipeline_quality")}
    model = {"model_version": "3", "role": "champion"}

    def key(name: str, **labels: str) -> Any:
        return name, tuple(sorted((model | labels).items()))

    whole, by_slice = {"field": "", "value": ""}, [{"field": "3", "value": value} for value in ("a", "other")]
    assert found == {
        key("pipeline_quality_outcomes"): 7,
        key("pipeline_quality", **whole, measure="accuracy"): 0.9,
        key("pipeline_quality", **whole, measure="f1"): 0.8,
        **{key("pipeline_quality", **labels, measure="accuracy"): 0.7 for labels in by_slice},
        **{key("pipeline_quality_gap", **labels, measure="accuracy"): -0.2 for labels in by_slice},
        **{key("pipeline_quality_gap_alarm", **labels, measure="accuracy"): 1.0 for labels in by_slice},
    }


def test_a_report_without_bound_is_cut(metrics: Metrics) -> None:
    """Values of slices come from records: whatever a report holds, a scrape stays small."""
    metrics.quality([version("1", *map(str, range(2 * LABEL_SETS_MAX)))])
    gaps = [labels for name, labels in samples(metrics) if name == "pipeline_quality_gap"]
    assert len(gaps) == LABEL_SETS_MAX


def test_what_becomes_of_models_is_counted_and_shown(metrics: Metrics) -> None:
    """Trainings and decisions add up; who is on trial, and what is calibrated, is as it was said last."""
    loop = metrics.loop
    assert metrics.total("pipeline_retrainings_total") == 0
    for cause, outcome in (("trigger", "accepted"), ("schedule", "refused"), ("schedule", "refused")):
        loop.retrained(cause, outcome)  # type: ignore[arg-type]
    loop.trial_decided("withdraw")
    loop.on_trial([("canary", "v2"), ("champion", "v1")])
    loop.on_trial([("champion", "v1")])
    loop.calibrations([("v1", "champion", "c1")])
    loop.calibrations([("v1", "champion", "c2"), ("v3", "shadow", "c3")])
    assert metrics.total("pipeline_retrainings_total", cause="schedule", outcome="refused") == 2
    assert metrics.total("pipeline_retrainings_total", cause="trigger") == 1
    assert metrics.total("pipeline_trial_decisions_total", action="withdraw") == 1
    shown = samples(metrics)
    held = {labels: value for (name, labels), value in shown.items() if name == "pipeline_on_trial"}
    assert held == {(("model_version", "v1"), ("slot", "champion")): 1.0}
    assert metrics.total("pipeline_calibration_info") == 2
    assert metrics.total("pipeline_calibration_info", calibration_id="c1") == 0
