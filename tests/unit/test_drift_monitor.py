"""The monitor finds what changed, stays quiet where nothing did, and tells it once."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.drift import IDENTITY, SIGNALS, autoregressive, monitor_for, stationary, summaries, watch
from pipeline.drift import (
    DriftMonitor,
    SignalSummariser,
    measure_baseline,
    trigger_from_dict,
    trigger_to_dict,
)
from pipeline.drift.evidence import advice_for, divergences, severity_of
from pipeline.records import BatchSummary, RetrainingTrigger, SignalBaseline, SignalEvidence


@pytest.mark.parametrize("seed", [11, 12])
def test_no_alarm_in_200000_stationary_autocorrelated_rows(seed: int) -> None:
    """16 signals with autocorrelation 0.7 over 4 partitions and drains of random size: no trigger."""
    rows, baseline, generator = stationary("normal", 0.7, seed, 200_000)
    assert watch(rows, baseline, generator, drain=(20, 1500)) == []


def test_no_alarm_on_heavy_tails() -> None:
    """Ranks keep lognormal outliers from looking like a change."""
    rows, baseline, generator = stationary("lognormal", 0.0, 13, 50_000)
    assert watch(rows, baseline, generator) == []


@pytest.mark.parametrize(("rho", "rows_max"), [(0.0, 600), (0.7, 1_800), (0.9, 6_000)])
def test_half_a_standard_deviation_is_found(rho: float, rows_max: int) -> None:
    """A step in one of 16 signals is found, named alone, and dated to where it happened."""
    rows, baseline, generator = stationary("normal", rho, 21, 40_000)
    rows[20_000:, 3] += 0.5
    ((read, trigger), *_) = watch(rows, baseline, generator)
    assert 20_000 < read <= 20_000 + rows_max
    assert [s.signal for s in trigger.signals] == ["feature:3"]
    (signal,) = trigger.signals
    assert signal.detector == "adwin"
    assert signal.after_mean - signal.before_mean == pytest.approx(0.5, abs=0.35)
    assert abs(trigger.change_event_time_ms - 20_000) < rows_max / 2


def test_one_drift_in_many_signals_is_one_trigger() -> None:
    """Eight signals move together: one trigger names most of them, and only them."""
    rows, baseline, generator = stationary("normal", 0.7, 22, 35_000)
    rows[20_000:, :8] += 0.7
    ((_, trigger),) = watch(rows, baseline, generator)
    named = {s.signal for s in trigger.signals}
    assert named <= set(SIGNALS[:8])
    assert len(named) >= 5


def test_evidence_counts_what_came_since_the_change() -> None:
    """Offsets and event times of the evidence lie after the change; the window begins there and goes on."""
    rows, baseline, generator = stationary("normal", 0.0, 23, 30_000)
    rows[20_000:, 0] += 3.0
    ((read, trigger),) = watch(rows, baseline, generator, drain=(700, 800))
    assert read - 20_000 <= 1_600
    assert abs(trigger.change_event_time_ms - 20_000) <= 50
    assert trigger.signals[0].psi > 2
    assert trigger.signals[0].after_mean == pytest.approx(3.0, abs=0.3)
    assert all(r.first_offset > 4_700 for r in trigger.evidence)  # about 5,000 rows a partition came before
    assert [r.partition for r in trigger.window] == [0, 1, 2, 3]
    assert all(4_700 < r.first_offset < 5_500 for r in trigger.window)
    assert sum(r.last_offset - r.first_offset + 1 for r in trigger.window) == pytest.approx(20_000, rel=0.01)


def test_a_null_rate_that_was_zero_alarms_when_it_moves() -> None:
    """A signal constant in the baseline is watched like any other."""
    signals = ("feature:x", "null:x", "rejected")
    rows = np.zeros((40_000, 3), dtype=np.float32)
    generator = np.random.default_rng(24)
    rows[:, 0] = generator.normal(size=len(rows))
    baseline = measure_baseline(signals, rows[:10_000])
    rows[25_000:, 1] = generator.random(15_000) < 0.05
    ((read, trigger), *_) = watch(rows[10_000:], baseline, generator)
    assert 15_000 < read < 16_500
    assert [s.signal for s in trigger.signals] == ["null:x"]
    assert "check the producer" in trigger.advice


def test_a_constant_feature_alarms_when_it_moves() -> None:
    """Leaving the one value it ever had is a change, however small the step."""
    rows = np.ones((30_000, 1), dtype=np.float32)
    baseline = measure_baseline(["feature:x"], rows[:5_000])
    rows[15_000:] += np.float32(1e-6)
    ((read, _), *_) = watch(rows, baseline, np.random.default_rng(25))
    assert 15_000 < read < 15_800


def test_rare_indicators_do_not_alarm() -> None:
    """One null in a thousand comes in clumps by chance; the likelihood ratio knows."""
    generator = np.random.default_rng(26)
    rows = (generator.random((210_000, 4)) < 0.001).astype(np.float32)
    baseline = measure_baseline([f"null:{i}" for i in range(4)], rows[:10_000])
    assert watch(rows[10_000:], baseline, generator, drain=(200, 900)) == []


def test_a_stream_that_had_shifted_before_it_was_watched_is_told() -> None:
    """ADWIN sees no change there: the comparison with the baseline does, once."""
    rows, baseline, generator = stationary("normal", 0.7, 27, 40_000)
    rows[:, 0] += 1.0
    ((read, trigger),) = watch(rows, baseline, generator)
    assert read < 8_000
    assert [(s.signal, s.detector) for s in trigger.signals] == [("feature:0", "baseline")]
    assert trigger.signals[0].before_count == 10_000


def test_a_change_of_variance_is_told() -> None:
    """The mean stays, the histogram does not."""
    rows, baseline, generator = stationary("normal", 0.0, 28, 40_000)
    rows[20_000:, 0] *= 2.5
    found = watch(rows, baseline, generator)
    assert [t.signals[0].signal for _, t in found] == ["feature:0"]
    assert 20_000 < found[0][0] < 24_000


def test_more_autocorrelation_than_the_baseline_promised_does_not_alarm() -> None:
    """A baseline measured on shuffled rows says 1; the stream's own fluctuations are believed instead."""
    generator = np.random.default_rng(29)
    rows = autoregressive(generator, 60_000, 4, 0.9)
    shuffled = generator.permutation(rows)[:10_000]
    baseline = measure_baseline([f"feature:{i}" for i in range(4)], shuffled)
    assert watch(rows, baseline, generator, drain=(200, 900)) == []


def test_a_drift_in_the_cooldown_is_told_at_its_end() -> None:
    """Nothing is sent during the cooldown, and nothing that lasts is forgotten."""
    rows, baseline, generator = stationary("normal", 0.0, 30, 50_000)
    rows[20_000:, 0] += 3.0
    rows[22_000:, 1] += 3.0
    (first, second) = watch(rows, baseline, generator)
    assert [s.signal for s in first[1].signals] == ["feature:0"]
    assert [s.signal for s in second[1].signals] == ["feature:1"]
    assert second[1].events_seen - first[1].events_seen >= first[1].next_allowed_after_events
    assert second[1].events_seen - first[1].events_seen < 10_500


def test_few_events_a_commit_do_not_change_what_is_found() -> None:
    """At 5 events a summary remainders are merged: no false alarm, and the step is found as soon."""
    rows, baseline, generator = stationary("normal", 0.7, 31, 24_000)
    rows[20_000:, 3] += 1.0
    ((read, trigger),) = watch(rows, baseline, generator, drain=(3, 8))
    assert 20_000 < read < 20_900
    assert [s.signal for s in trigger.signals] == ["feature:3"]


def _drifting() -> tuple[DriftMonitor, list[BatchSummary]]:
    rows, baseline, generator = stationary("normal", 0.7, 32, 26_000)
    rows[12_000:, 2] += 1.5
    given = [s for _, s in summaries(rows, SignalSummariser(baseline, IDENTITY), generator)]
    return monitor_for(baseline), given


def _run(monitor: DriftMonitor, given: list[BatchSummary]) -> list[RetrainingTrigger]:
    return [t for s in given if (t := monitor.take(s)) is not None]


def test_summaries_that_come_twice_count_once() -> None:
    """Each summary repeated, or a stretch replayed after a crash, gives the very same trigger."""
    once, given = _drifting()
    twice, replayed = _drifting()[0], _drifting()[0]
    expected = _run(once, given)
    assert len(expected) == 1
    assert _run(twice, [s for item in given for s in (item, item)]) == expected
    assert _run(replayed, given[:300] + given[200:]) == expected
    assert once.events_seen == twice.events_seen == replayed.events_seen == 26_000


def test_the_same_evidence_has_the_same_id() -> None:
    """The id leaves out when it was produced, and changes with the evidence."""
    monitor, given = _drifting()
    baseline = monitor._baseline
    late = DriftMonitor(baseline, pipeline="bench", model_id="bench", model_version="1", now_ms=lambda: 99)
    (one,), (other,) = _run(monitor, given), _run(late, given)
    assert (one.produced_at_ms, other.produced_at_ms) == (0, 99)
    assert one.trigger_id == other.trigger_id
    elsewhere = DriftMonitor(baseline, pipeline="other", model_id="bench", model_version="1")
    assert _run(elsewhere, given)[0].trigger_id != one.trigger_id


def test_foreign_and_misfit_summaries_are_refused_with_a_reason() -> None:
    """Another model version, other signals, or lists that do not fit: not counted, and said why."""
    monitor, (good, *_) = _drifting()
    for wrong, reason in (
        (dataclasses.replace(good, model_version="2"), "of model bench 2, not bench 1"),
        (dataclasses.replace(good, signals=["feature:y"]), "not the baseline's"),
        (dataclasses.replace(good, means=good.means[1:]), "do not fit"),
        (dataclasses.replace(good, block_counts=[]), "do not fit"),
        (dataclasses.replace(good, histograms=[[1]] * 16), "do not fit"),
    ):
        assert reason in str(monitor.refusal(wrong))
        assert monitor.take(wrong) is None
    assert monitor.events_seen == 0
    assert monitor.refusal(good) is None


def test_latest_means_are_those_of_watched_signals() -> None:
    """Before the first block there is none; afterwards each lies in [0, 1]."""
    monitor, given = _drifting()
    assert monitor.latest_means() == {}
    _run(monitor, given[:50])
    assert set(monitor.latest_means()) == {*SIGNALS, *(f"joint:{i}" for i in range(16))}
    assert all(0 <= mean <= 1 for mean in monitor.latest_means().values())


def test_a_signal_without_a_baseline_is_not_watched() -> None:
    """A feature that never had a value before does not stop the others."""
    rows = np.random.default_rng(33).normal(size=(12_000, 2)).astype(np.float32)
    rows[:, 1] = np.nan
    baseline = measure_baseline(["feature:x", "feature:never"], rows[:5_000])
    rows[6_000:, 1] = 1.0
    rows[9_000:, 0] += 3.0
    ((_, trigger),) = watch(rows, baseline, np.random.default_rng(34))
    assert [s.signal for s in trigger.signals] == ["feature:x"]


def test_a_trigger_survives_its_avro_row() -> None:
    """Also through JSON, and with fields of a later version beside."""
    monitor, given = _drifting()
    (trigger,) = _run(monitor, given)
    row = json.loads(json.dumps(trigger_to_dict(trigger)))
    assert trigger_from_dict({**row, "of_tomorrow": 1}) == trigger


def test_state_continues_bit_for_bit_across_a_drift() -> None:
    """Stopped and loaded from JSON anywhere, also between change and trigger: the same triggers and state."""
    monitor, given = _drifting()
    expected = _run(monitor, given)
    final = json.dumps(monitor.state_dict())
    for cut in (0, 1, 97, 440, 452, 700):
        first, second = _drifting()[0], _drifting()[0]
        triggers = _run(first, given[:cut])
        second.load(json.loads(json.dumps(first.state_dict())))
        triggers += _run(second, given[cut:])
        assert triggers == expected
        assert json.dumps(second.state_dict()) == final


def _evidence(signal: str, psi: float, before: float = 0.0, after: float = 1.0) -> SignalEvidence:
    return SignalEvidence(signal, "adwin", before, after, 100, 100, psi, psi)


def test_severity_asks_how_far_and_whether_the_outputs_moved() -> None:
    """Minor below PSI 0.1, critical when outputs moved by 0.25, major in between."""
    assert severity_of([_evidence("feature:x", 0.05)]) == "minor"
    assert severity_of([_evidence("feature:x", 3.0)]) == "major"
    assert severity_of([_evidence("score:a", 0.2)]) == "major"
    assert severity_of([_evidence("feature:x", 0.05), _evidence("rejected", 0.3)]) == "critical"


def test_advice_puts_producers_before_retraining() -> None:
    """Rejections and missing values are mended at the source; otherwise the window says when to train."""
    assert "dead letters" in advice_for("critical", [_evidence("rejected", 1.0)], 100, 20_000)
    assert "check the producer" in advice_for("major", [_evidence("null:x", 1.0)], 100, 20_000)
    assert "once 19900 more events" in advice_for("major", [_evidence("feature:x", 1.0)], 100, 20_000)
    assert advice_for("major", [_evidence("feature:x", 1.0)], 30_000, 20_000).startswith("inputs moved: retrain")
    assert "its inputs did not" in advice_for("critical", [_evidence("score:a", 1.0)], 100, 20_000)


def test_divergences_are_zero_for_the_baseline_itself() -> None:
    """KL and PSI vanish for equal shares, and stay finite where a bin is empty."""
    signal = SignalBaseline("feature:x", 100, 0, 1, 0, 1, (0.0, 1.0, 2.0), (50, 50), 0.0, 1.0)
    assert divergences(np.array([50.0, 50.0]), signal) == pytest.approx((0.0, 0.0))
    kl, psi = divergences(np.array([100.0, 0.0]), signal)
    assert 0.6 < kl < 0.7
    assert 2 < psi < 3
