"""Quality: however outcomes are divided and ordered it finds the same, and what `measure` and scikit-learn find."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.measures import Scored, measure
from pipeline.measures.estimate import Estimator
from pipeline.measures.online import Counting
from pipeline.measures.scored import by_class
from pipeline.measures.sums import Sums
from pipeline.quality import Outcomes, Quality
from pipeline.quality.known import KnownTruths
from pipeline.quality.outcomes import joined
from pipeline.records import ModelIdentity, OutputContract

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
THREE = OutputContract("classification", 3, ("a", "b", "c"), "softmax")
NUMBER = OutputContract("regression", 1)
CHAMPION, CANARY = ModelIdentity("m", "1"), ModelIdentity("m", "2", "canary")
EXAMPLES = settings(max_examples=30, deadline=None)
PANE_MS, PANES_MAX = 100, 4
kinds = st.sampled_from([TWO, THREE, NUMBER])
seeds = st.integers(0, 2**32 - 1)


def made(output: OutputContract, n: int, seed: int, models: Sequence[ModelIdentity] = (CHAMPION, CANARY)) -> Outcomes:
    """Outcomes of two models, with two slice fields, one of which a fifth of the rows lacks."""
    random = np.random.default_rng(seed)
    event_times_ms = random.integers(0, 1000, n)
    truth: Any
    if output.kind == "regression":
        outputs, truth = random.normal(5, 2, (n, 1)), random.normal(5, 2, n)
    else:
        logits = random.normal(0, 2, (n, max(2, output.width)))
        outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truth = np.where(random.random(n) < 0.6, outputs.argmax(axis=1), random.integers(-1, outputs.shape[1], n))
        outputs = outputs[:, -output.width :]
    shops, countries = random.choice(["north", "south", "west"], n), random.choice(["at", "be"], n, p=[0.7, 0.3])
    slices = {"shop": pa.array(shops), "country": pa.array(countries, mask=random.random(n) < 0.2)}
    times = (event_times_ms, event_times_ms + 5, event_times_ms + random.integers(0, 300, n))
    return Outcomes(tuple(models), random.integers(0, len(models), n), outputs, truth, *times, slices)


def quality(output: OutputContract) -> Quality:
    return Quality(Counting(Sums(output, 0.9 if output is NUMBER else None, 5.0), PANE_MS, PANES_MAX, 0.8))


def filled(output: OutputContract, *parts: Outcomes) -> Quality:
    found = quality(output)
    for part in parts:
        found.add(part)
    return found


#: They depend on what was known when: told apart in a test of their own.
BASELINES = {"accuracy_of_no_change", "kappa_temporal", "mae_of_no_change", "rmse_of_no_change"}


def plain(found: Quality) -> Any:
    """The report without what follows the order of the outcomes."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(inside) for key, inside in value.items() if key not in BASELINES | {"alarms"}}
        return [without(inside) for inside in value] if isinstance(value, list) else value

    return without(found.report())


def assert_same(first: Any, second: Any) -> None:
    """The same plain data, but for the order in which numbers were added."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == (pytest.approx(second, rel=1e-9, abs=1e-9) if isinstance(second, float) else second)


@EXAMPLES
@given(kinds, st.integers(0, 300), seeds, st.lists(st.integers(0, 300), max_size=3), st.randoms())
def test_any_batches_in_any_order_count_as_one(
    output: OutputContract, n: int, seed: int, cuts: list[int], random: Any
) -> None:
    """Cut anywhere, shuffled, or counted apart and merged: one report."""
    whole = made(output, n, seed)
    borders = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [whole.take(np.arange(i, j)) for i, j in itertools.pairwise(borders)]
    expected = plain(filled(output, whole))
    random.shuffle(parts)
    assert_same(plain(filled(output, *parts)), expected)
    merged = quality(output)
    for part in parts:
        merged.merge(filled(output, part))
    assert_same(plain(merged), expected)
    assert_same(plain(filled(output, joined(parts, output))), expected)


@EXAMPLES
@given(kinds, st.integers(1, 300) | st.just(3_000), seeds)
def test_a_report_is_what_measure_says_of_the_rows_of_the_window(output: OutputContract, n: int, seed: int) -> None:
    """Per model: metrics, slices and gaps, those of rows whose labels became known in the newest panes."""
    whole = made(output, n, seed)
    panes = whole.label_times_ms // PANE_MS
    window = panes > panes.max() - PANES_MAX
    report = filled(output, whole).report()
    for index, identity in enumerate(whole.models):
        inside = np.flatnonzero(window & (whole.model == index))
        found = [v for v in report["versions"] if v["model_version"] == identity.model_version]
        assert len(found) == bool(len(inside))
        for version in found:
            rows = whole.take(inside)
            slices = {name: np.array([v or "" for v in values.to_pylist()]) for name, values in rows.slices.items()}
            scored = Scored(rows.outputs, rows.truth, rows.event_times_ms, slices)
            expected = measure(scored, output, quantile=0.9)
            assert version["rows"] == len(inside)
            assert_metrics(version["metrics"], expected["metrics"])
            for part in version["slices"]:
                theirs = expected["slices"][part["field"]][part["value"]]
                assert part["rows"] == theirs["rows"]
                assert_metrics(part["metrics"], theirs["metrics"])
            # A prediction that lacks the field is no slice here.
            assert_same(version["gaps"], [gap for gap in ordered(expected["gaps"]) if gap["value"]])


def ordered(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(gaps, key=lambda gap: (gap["field"], gap["value"]))


def assert_metrics(found: dict[str, float], expected: dict[str, float]) -> None:
    """Exact, but for the AUCs, within the bounds given beside them, and the calibration error (see measures.sums)."""
    bounds = {name: found.get(f"{name}_error", 0.0) for name in ("roc_auc", "pr_auc")}
    names = expected.keys() - BASELINES - {"ece"}
    assert found.keys() - BASELINES - {"ece", "roc_auc_error", "pr_auc_error"} == names
    for name in names:
        assert abs(found[name] - expected[name]) <= bounds.get(name, 0.0) + 1e-9, name


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    """Of a whole window of one model, two classes all of which the model knows."""
    rows = made(TWO, 2000, seed, [CHAMPION])
    known = rows.take(np.flatnonzero(rows.truth >= 0))
    found = Quality(Counting(Sums(TWO), 10**6, 1, 0.5))
    found.add(known)
    (version,) = found.report()["versions"]
    mine, score, truth = version["metrics"], known.outputs[:, 0], known.truth
    labels = (score >= 0.5).astype(int)
    for name, expected in (
        ("accuracy", reference.accuracy_score(truth, labels)),
        ("balanced_accuracy", reference.balanced_accuracy_score(truth, labels)),
        ("precision", reference.precision_score(truth, labels)),
        ("recall", reference.recall_score(truth, labels)),
        ("f1", reference.f1_score(truth, labels)),
        ("log_loss", reference.log_loss(truth, score)),
        ("brier", reference.brier_score_loss(truth, score)),
    ):
        assert mine[name] == pytest.approx(expected), name
    for name, expected in (
        ("roc_auc", reference.roc_auc_score(truth, score)),
        ("pr_auc", reference.average_precision_score(truth, score)),
    ):
        assert abs(mine[name] - expected) <= mine[f"{name}_error"] + 1e-9, name
    estimate = Estimator().estimate(known.outputs)
    assert estimate is not None
    assert version["estimate"]["accuracy"] == pytest.approx(estimate.accuracy)


@EXAMPLES
@given(st.integers(1, 300), seeds)
def test_the_estimate_of_many_classes_is_the_mean_confidence(n: int, seed: int) -> None:
    """And its error is that of the panes that have rows enough."""
    rows = made(THREE, n, seed, [CHAMPION])
    found = Quality(Counting(Sums(THREE), 10**6, 1, 0.5))
    found.add(rows)
    (version,) = found.report()["versions"]
    estimated = by_class(rows.outputs).max(axis=1).mean()
    assert version["estimate"]["accuracy"] == pytest.approx(estimated)
    if n >= 100:
        expected = abs(estimated - (rows.outputs.argmax(axis=1) == rows.truth).mean())
        assert version["estimate"]["mean_absolute_error"] == pytest.approx(expected)
    else:
        assert version["estimate"]["mean_absolute_error"] is None


# --------------------------------------------------------------------------- no change

moments = st.integers(0, 30)
truths = st.lists(st.tuples(moments, st.integers(0, 20), st.sampled_from([None, b"a", b"b"])), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(truths, st.randoms())
def test_no_change_answers_with_the_latest_truth_known_then(rows: list[tuple[int, int, Any]], random: Any) -> None:
    """For each event: of those before it whose label was known at its time, the latest; whatever order they came in."""
    events = [(time, time + delay, float(index), key) for index, (time, delay, key) in enumerate(rows)]
    known = KnownTruths()
    shuffled = events.copy()
    random.shuffle(shuffled)
    for time, label_time, truth, key in shuffled:
        known.add(np.array([time]), np.array([label_time]), np.array([truth]), [key])
    times = np.array([time for time, *_ in events])
    found = known.before(times, -1.0, [key for *_, key in events])
    for (time, _, _, key), answer in zip(events, found.tolist(), strict=True):
        earlier = [(t, x) for t, label_time, x, k in events if k == key and label_time <= time and t < time]
        assert answer == (max(earlier)[1] if earlier else -1.0)
