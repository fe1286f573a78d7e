"""Calibrators: they find what is wrong with probabilities, leave right ones alone, and are refused where they harm."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from pipeline.errors import ContractError
from pipeline.measures import Scored, measure
from pipeline.measures.calibrators import (
    ROWS_MIN,
    TEMPERATURE_MAX,
    TEMPERATURE_MIN,
    Calibrator,
    Curve,
    Kind,
    accepts,
    fit,
    isotonic,
)
from pipeline.measures.scored import predicted
from pipeline.records import OutputContract

LINES: tuple[Kind, ...] = ("temperature", "platt")


def softmax(logits: Any) -> Any:
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def rows(n: int, classes: int, too_sure: float, seed: int = 0, start_ms: int = 0) -> Scored:
    """A model whose logits are `too_sure` times what they should be; two classes are one column."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, classes))
    truth = (random.random((n, 1)) > softmax(logits).cumsum(axis=1)[:, :-1]).sum(axis=1)
    outputs = softmax(too_sure * logits)
    return Scored(outputs[:, 1:] if classes == 2 else outputs, truth, start_ms + np.arange(n))


def contract(width: int) -> OutputContract:
    names = ("a", "b", "c", "d")[: max(2, width)]
    return OutputContract("classification", width, names, "sigmoid" if width == 1 else "softmax")


def calibrated(calibrator: Calibrator, scored: Scored) -> Scored:
    outputs = calibrator.apply(scored.outputs.astype(np.float32)).astype(np.float64)
    return Scored(outputs, scored.truth, scored.times_ms)


# --------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("too_sure", [0.5, 1.0, 3.0])
def test_a_temperature_is_found(classes: int, too_sure: float) -> None:
    """Logits too large by a factor are divided by it; the classes stay, the calibration error of new rows goes."""
    calibrator = fit(rows(20_000, classes, too_sure))
    assert calibrator.temperature == pytest.approx(too_sure, rel=0.05)
    newer = rows(20_000, classes, too_sure, seed=1)
    after = calibrated(calibrator, newer)
    assert (predicted(after.outputs) == predicted(newer.outputs)).all()
    output = contract(newer.outputs.shape[1])
    assert measure(after, output)["metrics"]["ece"] < 0.01
    if too_sure != 1.0:
        assert measure(newer, output)["metrics"]["ece"] > 0.05


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.floats(0.2, 5))
def test_no_temperature_has_less_loss(seed: int, classes: int, too_sure: float) -> None:
    """Newton's minimum is that of a bounded search over the logarithm of the temperature."""
    scored = rows(200, classes, too_sure, seed)
    found = fit(scored).temperature

    def loss(log_temperature: float) -> float:
        at = Calibrator("temperature", scored.outputs.shape[1], 0, float(np.exp(log_temperature)))
        columns = calibrated(at, scored).outputs
        columns = np.hstack([1 - columns, columns]) if classes == 2 else columns
        return float(-np.log(np.clip(columns[np.arange(200), scored.truth], 1e-7, 1)).mean())

    bounds = np.log([TEMPERATURE_MIN, TEMPERATURE_MAX])
    assert loss(np.log(found)) <= minimize_scalar(loss, bounds=bounds, method="bounded").fun + 1e-5


def test_a_temperature_has_bounds() -> None:
    """Never wrong would be infinitely sure (at 0.06 no loss is left), always wrong would know nothing."""
    truth = np.arange(200) % 2
    never_wrong = Scored(np.where(truth, 0.9, 0.1)[:, None], truth, np.arange(200))
    always_wrong = Scored(np.where(truth, 0.1, 0.9)[:, None], truth, np.arange(200))
    assert TEMPERATURE_MIN <= fit(never_wrong).temperature < 0.06
    assert fit(always_wrong).temperature == pytest.approx(TEMPERATURE_MAX, rel=1e-6)


def test_probabilities_of_0_and_1_stay_finite() -> None:
    """float32 rounds to them; what comes out is a probability all the same."""
    for kind in ("temperature", "isotonic"):
        calibrator = fit(rows(2000, 2, 2.0), kind)
        ends = calibrator.apply(np.array([[0.0], [1.0], [0.5]], np.float32))
        assert ends.dtype == np.float32
        assert ((ends >= 0) & (ends <= 1)).all()
        assert ends[0] < ends[2] < ends[1]


# --------------------------------------------------------------------------- isotonic


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=80))
def test_isotonic_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """At every score, between them and beyond both ends; scores tie, and so do targets."""
    scores, targets = (np.array(values, float) for values in zip(*pairs, strict=True))
    points, values = isotonic(scores, targets)
    assert (np.diff(points) > 0).all()
    assert (np.diff(values) >= -1e-12).all()
    everywhere = np.linspace(-2, 22, 97)
    reference = IsotonicRegression(out_of_bounds="clip").fit(scores, targets)
    np.testing.assert_allclose(np.interp(everywhere, points, values), reference.predict(everywhere), atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_isotonic_mends_what_no_temperature_can(classes: int) -> None:
    """A model that squares its probabilities: wrong by another amount at each end."""

    def skewed(seed: int) -> Scored:
        plain = rows(20_000, classes, 1.0, seed)
        outputs = plain.outputs**2
        return Scored(
            outputs if classes == 2 else outputs / outputs.sum(axis=1, keepdims=True), plain.truth, plain.times_ms
        )

    older, newer = skewed(0), skewed(1)
    calibrator = fit(older, "isotonic")
    output = contract(newer.outputs.shape[1])
    after = calibrated(calibrator, newer)
    assert measure(newer, output)["metrics"]["ece"] > 0.05
    assert measure(after, output)["metrics"]["ece"] < 0.015
    if classes == 3:
        assert after.outputs.sum(axis=1) == pytest.approx(np.ones(20_000), abs=1e-6)


def test_isotonic_is_never_certain() -> None:
    """Scores that told the classes apart so far leave one chance in rows + 2 for the first miss to come."""
    truth = np.arange(1000) % 2
    calibrator = fit(Scored(np.where(truth, 0.9, 0.1)[:, None], truth, np.arange(1000)), "isotonic")
    assert calibrator.apply(np.array([[0.0], [1.0]], np.float32))[:, 0] == pytest.approx([1 / 1002, 1001 / 1002])


# --------------------------------------------------------------------------- Platt


def shifted(n: int, biases: list[float], too_sure: float, seed: int = 0) -> Scored:
    """A model that is too sure, in a world where classes are more or less frequent than it thinks."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, len(biases)))
    truth = (random.random((n, 1)) > softmax(logits + biases).cumsum(axis=1)[:, :-1]).sum(axis=1)
    outputs = softmax(too_sure * logits)
    return Scored(outputs[:, 1:] if len(biases) == 2 else outputs, truth, np.arange(n))


@pytest.mark.parametrize("n", [200, 5_000])
def test_a_line_is_that_of_a_logistic_regression(n: int) -> None:
    """scikit-learn's, without a penalty, on the targets that Platt smooths: each row is of both classes, by weight."""
    scored = shifted(n, [0.0, -1.0], 2.0)
    made = fit(scored, "platt")
    logit = np.log(scored.outputs / (1 - scored.outputs))
    smoothed = np.where(np.arange(2 * n) < n, n + 1, 1) / (n + 2)
    truth = np.concatenate([scored.truth, 1 - scored.truth])
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(np.concatenate([logit, logit]), truth, smoothed)
    assert 1 / made.temperature == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert made.biases == pytest.approx((0.0, reference.intercept_[0]), abs=1e-4)


def test_lines_of_several_classes_are_found() -> None:
    """One temperature, and a bias for each class beside the first."""
    made = fit(shifted(40_000, [0.0, 1.0, -1.0, 0.5], 2.0), "platt")
    assert made.temperature == pytest.approx(2.0, rel=0.05)
    assert made.biases == pytest.approx((0.0, 1.0, -1.0, 0.5), abs=0.1)


def test_a_line_mends_classes_that_became_rare_as_no_temperature_can() -> None:
    """Of new rows: the calibration error goes, and fewer are decided wrong."""
    older, newer = shifted(5_000, [0.0, -2.0], 1.0), shifted(5_000, [0.0, -2.0], 1.0, seed=1)
    found = {kind: measure(calibrated(fit(older, kind), newer), contract(1))["metrics"] for kind in LINES}
    assert found["temperature"]["ece"] > 0.1
    assert found["platt"]["ece"] < 0.03
    assert found["platt"]["accuracy"] > found["temperature"]["accuracy"] + 0.1


def test_a_line_keeps_the_order_and_is_never_certain() -> None:
    """Outputs that say the opposite of the truth are made even, not turned round; an absent class keeps a chance."""
    truth = np.arange(1000) % 2
    outputs = np.where(truth, 0.1, 0.9)[:, None]
    assert fit(Scored(outputs, truth, np.arange(1000)), "platt").temperature == TEMPERATURE_MAX
    alone = fit(Scored(outputs, np.ones(1000, np.int64), np.arange(1000)), "platt")
    assert alone.apply(outputs.astype(np.float32)) == pytest.approx(1001 / 1002, abs=2e-3)
    assert np.isfinite(alone.apply(np.array([[0.0], [1.0]], np.float32))).all()


# --------------------------------------------------------------------------- all


def test_unknown_classes_are_left_out_of_the_fit() -> None:
    """They would make any model look too sure, and calibration cannot name them."""
    plain = rows(2000, 3, 2.0)
    strange = Scored(
        np.concatenate([plain.outputs, plain.outputs]),
        np.concatenate([plain.truth, np.full(2000, -1)]),
        np.arange(4000),
    )
    assert fit(strange).temperature == fit(plain).temperature
    assert fit(strange, "isotonic").curves == fit(plain, "isotonic").curves


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_too_few_rows_are_refused(kind: Any) -> None:
    """Fitted to noise it would harm; the error says what it takes."""
    n = ROWS_MIN[kind]
    assert fit(rows(n, 2, 1.0), kind).kind == kind
    with pytest.raises(ContractError, match=f"{n - 1} rows of known classes; {kind} takes {n} at least"):
        fit(rows(n - 1, 2, 1.0), kind)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_a_calibrator_goes_through_json(kind: Any, classes: int) -> None:
    """What is taken up again does the same to the last bit."""
    scored = rows(1500, classes, 2.0)
    made = fit(scored, kind)
    again = Calibrator.of(json.loads(json.dumps(made.plain(), allow_nan=False)))
    assert again == made
    outputs = scored.outputs.astype(np.float32)
    assert (again.apply(outputs) == made.apply(outputs)).all()


def test_what_is_no_calibrator_is_refused() -> None:
    """Foreign data, a kind of a later version, outputs of another width: one line, no guess."""
    made = Calibrator("isotonic", 1, 0, curves=(Curve((0.0, 1.0), (0.1, 0.9)),))
    with pytest.raises(ContractError, match="not the data of one"):
        Calibrator.of({"kind": "isotonic"})
    with pytest.raises(ContractError, match="'beta' is not known here"):
        Calibrator.of({**made.plain(), "kind": "beta"})
    with pytest.raises(ContractError, match="width 1, not of shape \\(1, 3\\)"):
        made.apply(np.ones((1, 3), np.float32))


# --------------------------------------------------------------------------- acceptance


def test_a_calibrator_that_helps_is_accepted() -> None:
    """On newer rows of a model that is too sure the log loss falls, and the reason says by how much."""
    accepted, reason = accepts(fit(rows(2000, 2, 3.0)), rows(2000, 2, 3.0, seed=1, start_ms=10_000))
    assert accepted
    assert reason.startswith("log loss 0.")
    assert "on 2,000 rows" in reason


def test_a_calibrator_that_does_not_help_is_refused() -> None:
    """Of 100 models that were calibrated all along at most a few pass by chance (5 % would); one of older ways none."""
    passed = 0
    for seed in range(100):
        fitted = fit(rows(1000, 2, 1.0, seed))
        passed += accepts(fitted, rows(1000, 2, 1.0, 1000 + seed, start_ms=10_000))[0]
    assert passed <= 8
    accepted, reason = accepts(fit(rows(2000, 2, 3.0)), rows(2000, 2, 1.0, seed=1, start_ms=10_000))
    assert not accepted
    assert "+" in reason


def test_a_calibrator_is_judged_by_enough_newer_rows_only() -> None:
    """Not by those it was fitted on, where it always helps; not by a handful."""
    older = rows(2000, 2, 3.0)
    assert accepts(fit(older), older) == (False, "it was fitted on rows as new as these; judge it by newer ones")
    few = rows(199, 2, 3.0, start_ms=10_000)
    assert accepts(fit(older), few) == (False, "199 rows to judge it by; it takes 200 at least")
