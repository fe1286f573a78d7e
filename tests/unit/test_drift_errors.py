"""Errors of a model are watched as its signals are; real drift is told from virtual drift."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.drift import autoregressive
from pipeline.drift.bins import kind_of
from pipeline.drift.errors import ABSOLUTE, LEARN_OUTCOMES, RECENT_OUTCOMES, WRONG, Around, ErrorChange, ErrorWatch
from pipeline.drift.verdict import verdict
from pipeline.records import Floats, ModelIdentity, SignalEvidence

MODEL = ModelIdentity("m", "1")
PARTITIONS = 3


def feed(watch: ErrorWatch, errors: Floats, seed: int = 0, first: int = 0) -> list[tuple[int, ErrorChange]]:
    """Changes, with the outcomes read by then; in batches of any size, of partitions that take turns.

    The event of outcome i happened at i ms; its offset is that of its partition's share.
    """
    random = np.random.default_rng(seed)
    found, at, turn = [], 0, 0
    positions = [first] * PARTITIONS
    while at < len(errors):
        n = min(int(random.integers(1, 300)), len(errors) - at)
        offsets = np.arange(positions[turn], positions[turn] + n)
        positions[turn] += n
        change = watch.take("outcomes", turn, offsets, np.arange(at, at + n), errors[at : at + n])
        at += n
        turn = (turn + 1) % PARTITIONS
        if change is not None:
            found.append((at, change))
    return found


def wrong(seed: int, n: int, rate: float) -> Floats:
    return (np.random.default_rng(seed).random(n) < rate).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_steady_errors_raise_no_alarm(seed: int) -> None:
    """100,000 outcomes each: independent, in runs (a model that is wrong is so for a while), and absolute ones."""
    assert feed(ErrorWatch(MODEL, WRONG), wrong(seed, 100_000, 0.2), seed) == []
    runs = autoregressive(np.random.default_rng(seed), 100_000, 1, 0.9)[:, 0] > 0.8
    assert feed(ErrorWatch(MODEL, WRONG), runs.astype(np.float32), seed) == []
    heavy = np.random.default_rng(seed).lognormal(0, 1.5, 100_000).astype(np.float32)
    assert feed(ErrorWatch(MODEL, ABSOLUTE), heavy, seed) == []


def test_a_rise_of_errors_is_found_with_its_evidence() -> None:
    """From 15 % to 25 %: within 1,000 outcomes, dated, once, with the offsets that show it."""
    errors = np.concatenate([wrong(1, 12_000, 0.15), wrong(2, 12_000, 0.25)])
    watch = ErrorWatch(MODEL, WRONG)
    ((read, change),) = feed(watch, errors)
    assert 12_000 < read <= 13_000
    assert change.rose
    assert (change.evidence.signal, change.evidence.detector) == (WRONG, "adwin")
    assert change.evidence.before_mean == pytest.approx(0.15, abs=0.02)
    assert change.evidence.after_mean == pytest.approx(0.25, abs=0.06)
    assert abs(change.change_event_time_ms - 12_000) < 400
    assert {r.topic for r in change.ranges} == {"outcomes"}
    assert sum(r.last_offset - r.first_offset + 1 for r in change.ranges) == pytest.approx(read - 12_000, abs=600)


def test_errors_that_fall_do_not_hide_a_rise_after_them() -> None:
    """Both are told, soon after they happen: a change for the better starts no cooldown."""
    errors = np.concatenate([wrong(1, 8_000, 0.3), wrong(2, 3_000, 0.1), wrong(3, 3_000, 0.3)])
    (better, worse) = feed(ErrorWatch(MODEL, WRONG), errors)
    assert (better[1].rose, worse[1].rose) == (False, True)
    assert better[0] < 9_000
    assert 11_000 < worse[0] < 12_000


def test_absolute_errors_that_grow_are_found() -> None:
    """A regression's, bounded by their ranks: one wild error is nothing."""
    random = np.random.default_rng(5)
    errors = np.abs(random.normal(size=20_000)).astype(np.float32)
    errors[15_000] = 1e9
    assert feed(ErrorWatch(MODEL, ABSOLUTE), errors) == []
    errors[12_000:] *= 2
    ((read, change),) = feed(ErrorWatch(MODEL, ABSOLUTE), errors)
    assert 12_000 < read < 12_800
    assert change.rose


def test_a_model_that_was_never_wrong_is_watched_too() -> None:
    """Its first errors are a change: a share, whatever it was, is taken as such."""
    errors = np.concatenate([wrong(1, 10_000, 0.0), wrong(2, 4_000, 0.05)])
    watch = ErrorWatch(MODEL, WRONG)
    ((read, change),) = feed(watch, errors)
    assert watch.baseline is not None
    assert kind_of(watch.baseline) == "share"
    assert 10_000 < read < 12_000
    assert change.rose


def test_offsets_count_once() -> None:
    """What is read again, while learning or later, changes nothing."""
    once, twice = ErrorWatch(MODEL, WRONG), ErrorWatch(MODEL, WRONG)
    errors = wrong(4, 6_000, 0.2)
    for start in range(0, 6_000, 500):
        part = slice(start, start + 500)
        batch = (np.arange(start, start + 500), np.arange(start, start + 500), errors[part])
        once.take("outcomes", 0, *batch)
        for _ in range(2):
            twice.take("outcomes", 0, *batch)
        wide = slice(max(0, start - 200), start + 500)
        offsets = np.arange(wide.start, wide.stop)
        twice.take("outcomes", 0, offsets, offsets, errors[wide])
    assert once.state_dict() == twice.state_dict()


def test_learning_ends_within_a_batch() -> None:
    """Whichever batch completes the baseline: what it holds beyond that is watched."""
    whole, divided = ErrorWatch(MODEL, WRONG), ErrorWatch(MODEL, WRONG)
    n = LEARN_OUTCOMES + 1_000
    offsets, errors = np.arange(n), np.concatenate([wrong(1, LEARN_OUTCOMES, 0.2), wrong(2, 1_000, 0.4)])
    whole.take("outcomes", 0, offsets, offsets, errors)
    for part in (slice(0, LEARN_OUTCOMES), slice(LEARN_OUTCOMES, n)):
        divided.take("outcomes", 0, offsets[part], offsets[part], errors[part])
    assert whole.state_dict() == divided.state_dict()


@pytest.mark.parametrize("stop", [500, LEARN_OUTCOMES, 5_000, 8_200])
def test_a_restart_changes_nothing(stop: int) -> None:
    """State through JSON, at any point: the same changes, the same state."""
    errors = np.concatenate([wrong(1, 8_000, 0.15), wrong(2, 3_000, 0.3)])

    def run(watch: ErrorWatch, start: int, end: int) -> list[ErrorChange]:
        found = []
        for at in range(start, end, 100):
            offsets = np.arange(at, at + 100)
            found.append(watch.take("outcomes", 0, offsets, offsets, errors[at : at + 100]))
        return [change for change in found if change is not None]

    whole, first, second = (ErrorWatch(MODEL, WRONG) for _ in range(3))
    expected = run(whole, 0, len(errors))
    before = run(first, 0, stop)
    assert second.load(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    # What came last may come again.
    assert before + run(second, stop - 100, len(errors)) == expected
    assert len(expected) == 1
    assert second.state_dict() == whole.state_dict()


def test_the_state_of_another_model_is_not_taken_up() -> None:
    """Nor that of another kind of error."""
    watch = ErrorWatch(MODEL, WRONG)
    feed(watch, wrong(1, 3_000, 0.2))
    other = ErrorWatch(ModelIdentity("m", "2"), WRONG)
    assert not other.load(watch.state_dict())
    assert other.baseline is None
    assert not ErrorWatch(MODEL, ABSOLUTE).load(watch.state_dict())


# --------------------------------------------------------------------------- before and since


def test_errors_around_a_time_hold_their_confidence() -> None:
    """Of 300 watches of errors in runs, nine in ten intervals or more have the true difference, which is 0, in them."""
    inside = 0
    for seed in range(300):
        watch = ErrorWatch(MODEL, WRONG)
        runs = autoregressive(np.random.default_rng(seed), 4_000, 1, 0.7)[:, 0] > 0.8
        watch.take("outcomes", 0, np.arange(4_000), np.arange(4_000), runs.astype(np.float32))
        around = watch.around(3_000)
        assert around is not None
        inside += around.low <= 0 <= around.high
    assert 270 <= inside < 300


def test_errors_around_a_time_go_by_the_time_of_events() -> None:
    """Labels came in any order; only the latest are kept."""
    watch = ErrorWatch(MODEL, WRONG)
    n = 3_000
    times = np.random.default_rng(6).permutation(n)
    assert watch.around(n // 2) is None
    watch.take("outcomes", 0, np.arange(n), times, (times >= 2_500).astype(np.float32))
    around = watch.around(2_500)
    assert around is not None
    assert (around.before_mean, around.after_mean) == (0.0, 1.0)
    assert (around.before_count, around.after_count) == (2_500, 500)
    assert 0.9 < around.low < 1.0 < around.high
    assert watch.around(0) is None
    watch.take("outcomes", 0, np.arange(n, 3 * n), np.full(2 * n, 10**6), np.zeros(2 * n, np.float32))
    assert watch.around(2_500) is None
    assert len(watch._recent) == RECENT_OUTCOMES


# --------------------------------------------------------------------------- verdicts


def evidence(signal: str, before: float, after: float, psi: float = 0.3) -> SignalEvidence:
    return SignalEvidence(signal, "adwin", before, after, 5_000, 500, 0.1, psi)


def changed(before: float, after: float, signal: str = WRONG) -> ErrorChange:
    return ErrorChange(evidence(signal, before, after), 0, 400, [])


def around(before: float, after: float, half: float, signal: str = WRONG) -> Around:
    return Around(signal, before, after, 2_000, 1_000, after - before - half, after - before + half)


MOVED = [evidence("feature:x", 0.0, 1.0)]


@pytest.mark.parametrize(
    ("signals", "change", "beside", "kind", "severity", "advice"),
    [
        (
            MOVED,
            None,
            around(0.10, 0.11, 0.02),
            "virtual",
            "minor",
            "inputs moved, accuracy holds (errors 10.0% before",
        ),
        (MOVED, None, around(0.10, 0.14, 0.02), "real", "critical", "errors rose from 10.0% to 14.0%, and so did inp"),
        (MOVED, None, around(0.10, 0.12, 0.04), "unknown", "major", "inputs moved: retrain on the window"),
        (MOVED, None, None, "unknown", "major", "(labels since the change: 0, too few to tell)"),
        (MOVED, changed(0.1, 0.2), None, "real", "critical", "errors rose from 10.0% to 20.0%, and so did inputs"),
        (MOVED, changed(0.2, 0.1), around(0.2, 0.1, 0.03), "virtual", "minor", "accuracy holds"),
        ([], changed(0.1, 0.2), None, "real", "critical", "inputs did not: what they mean has changed: retrain"),
        ([], changed(0.2, 0.1), None, "better", "minor", "errors fell from 20.0% to 10.0%"),
        (MOVED, None, around(2.0, 2.1, 0.2, ABSOLUTE), "virtual", "minor", "(errors 2 before, 2.1 since"),
        (MOVED, None, around(0.2, 0.21, 0.1, ABSOLUTE), "unknown", "major", "too few to tell"),
        ([evidence("null:x", 0.0, 0.2)], None, around(0.1, 0.1, 0.01), "data", "major", "check the producer"),
        ([evidence("rejected", 0.2, 0.0)], None, around(0.1, 0.1, 0.01), "virtual", "minor", "accuracy holds"),
        ([evidence("rejected", 0.0, 0.2)], changed(0.1, 0.2), None, "data", "critical", "errors rose from 10.0% to"),
    ],
)
def test_verdicts(signals: Any, change: Any, beside: Any, kind: str, severity: str, advice: str) -> None:
    """What moved and what that means, in one line."""
    found = verdict(signals, change, beside, since=600, window_events=20_000)
    assert (found.kind, found.severity) == (kind, severity)
    assert advice in found.advice
    assert "\n" not in found.advice


def test_nothing_has_no_verdict() -> None:
    """To ask is a mistake of the caller's."""
    with pytest.raises(ValueError, match="nothing to judge"):
        verdict([], None, None, 0, 1)
