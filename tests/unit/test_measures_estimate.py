"""Accuracy before labels come: right while the model is calibrated, and shown to be wrong where it is not."""

import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.measures import Scored
from pipeline.measures.estimate import Estimator, estimated_windows, mean_absolute_error


def rows(n: int, spread: float, seed: int = 0, flipped: float = 0.0, too_sure: float = 1.0) -> Scored:
    """Two classes, easier the larger `spread` of the logits; a share of the truth is `flipped` (concept drift)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, n)
    truth = random.random(n) < 1 / (1 + np.exp(-logits))
    truth ^= random.random(n) < flipped
    return Scored(1 / (1 + np.exp(-too_sure * logits))[:, None], truth.astype(np.int64), np.arange(n))


def test_confidence_of_a_calibrated_model_is_its_accuracy() -> None:
    """In 95 of 100 windows the accuracy is in the range given, and the estimate follows harder inputs down."""
    estimator = Estimator()
    windows = estimated_windows(rows(200_000, 2.0), 1000, estimator)
    inside = [w["low"] <= w["accuracy"] <= w["high"] for w in windows]
    assert 0.91 <= np.mean(inside) <= 0.99
    error = mean_absolute_error(windows)
    assert error is not None
    assert error < 0.015
    easy, hard = (estimator.estimate(rows(20_000, spread).outputs) for spread in (4.0, 0.5))
    assert easy is not None
    assert hard is not None
    assert easy.accuracy > 0.85
    assert hard.accuracy < 0.65


def test_concept_drift_shows_in_the_error_only() -> None:
    """Labels that turn against the model are not seen in its confidence; once they are there the error says so."""
    windows = estimated_windows(rows(20_000, 2.0, flipped=0.3), 1000, Estimator())
    assert not any(w["low"] <= w["accuracy"] <= w["high"] for w in windows)
    assert mean_absolute_error(windows) == pytest.approx(0.18, abs=0.03)


def test_a_threshold_needs_no_calibration() -> None:
    """On rows like those it was fitted on it gives their accuracy, however sure the model is; confidence does not."""
    older, newer = rows(20_000, 2.0, too_sure=4.0), rows(20_000, 2.0, seed=1, too_sure=4.0)
    accuracy = float(((newer.outputs[:, 0] >= 0.5) == newer.truth).mean())
    by_threshold = Estimator.fit(older).estimate(newer.outputs)
    by_confidence = Estimator().estimate(newer.outputs)
    assert by_threshold is not None
    assert by_confidence is not None
    assert by_threshold.accuracy == pytest.approx(accuracy, abs=0.01)
    assert by_threshold.low < accuracy < by_threshold.high
    assert by_confidence.accuracy > accuracy + 0.1


def test_a_threshold_gives_back_the_accuracy_it_was_fitted_on() -> None:
    """By hand: 3 of 4 right, so the third highest confidence; none right: above all."""
    outputs = np.array([[0.9], [0.2], [0.7], [0.6]])
    three = Estimator.fit(Scored(outputs, np.array([1, 0, 1, 0]), np.arange(4)))
    assert three.threshold == 0.7
    assert three.estimate(outputs).accuracy == 0.75  # type: ignore[union-attr]
    none = Estimator.fit(Scored(outputs, np.array([0, 1, 0, 0]), np.arange(4)))
    assert none.estimate(outputs).accuracy == 0.0  # type: ignore[union-attr]
    with pytest.raises(ContractError, match="no labelled rows"):
        Estimator.fit(Scored(outputs[:0], np.empty(0, np.int64), np.empty(0, np.int64)))


def test_several_classes_by_hand() -> None:
    """The mean of the highest probability of each row, and its sampling range."""
    found = Estimator().estimate(np.tile([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5]], (10, 1)))
    assert found is not None
    assert found.accuracy == pytest.approx(0.6)
    assert found.accuracy - found.low == pytest.approx(
        1.96 * np.sqrt(0.7 * 0.3 + 0.5 * 0.5) * np.sqrt(10) / 20, rel=1e-4
    )
    assert found.high - found.accuracy == pytest.approx(found.accuracy - found.low)
    assert found.rows == 20


def test_nothing_to_estimate() -> None:
    """No rows have no accuracy; fewer than a window have no window; no window has no error."""
    assert Estimator().estimate(np.empty((0, 1))) is None
    assert estimated_windows(rows(9, 1.0), 10, Estimator()) == []
    assert mean_absolute_error([]) is None
