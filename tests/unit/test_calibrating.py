"""Calibrations on trial: those that help pass, others are refused with a reason, and a version has its own."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.measures import Scored
from pipeline.measures.calibrators import Calibrator, Curve
from pipeline.models.calibrations import Calibration, from_row, id_of, parameters_of, to_row
from pipeline.records import ModelIdentity, OutputContract
from pipeline.retraining.calibrating import Trial, calibrate, ece_change
from tests.unit.test_measures_calibrators import calibrated, contract, rows, shifted, softmax


def trial(n: int, classes: int, too_sure: float, seed: int = 0, **given: Any) -> Trial:
    return calibrate(rows(n, classes, too_sure, seed), contract(1 if classes == 2 else classes), **given)


def failed(found: Trial) -> set[str]:
    return {check.name for check in found.checks if not check.passed}


@pytest.mark.parametrize("classes", [2, 4])
def test_a_model_that_is_too_sure_is_mended(classes: int) -> None:
    """By a temperature, on the newest rows, which it was not fitted on; no class is decided differently."""
    found = trial(6_000, classes, 3.0)
    assert found.accepted
    assert found.says == "accepted: all 3 checks passed"
    assert found.calibrator.kind == "temperature"
    assert found.calibrator.temperature == pytest.approx(3.0, rel=0.15)
    assert found.changed == 0
    assert (found.fitted_rows, found.judged_rows) == (4_200, 1_800)
    assert (found.fitted_from_ms, found.fitted_until_ms) == (0, 4_199)
    assert found.before["ece"] > 0.05
    assert found.after["ece"] < 0.03
    assert found.after["log_loss"] < found.before["log_loss"]
    assert found.after["brier"] < found.before["brier"]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_calibrated_model_is_left_alone(classes: int) -> None:
    """Of 20 fits to chance none passes: two checks at 5 % each would have to be wrong at once."""
    found = [trial(1_500, classes, 1.0, seed) for seed in range(20)]
    assert not any(one.accepted for one in found)
    assert all("ece" in failed(one) for one in found)
    assert found[0].says.startswith("refused: log_loss: ")


def test_it_has_to_be_better_than_what_is_in_service() -> None:
    """The second fit to the same outcomes is refused; beside a calibration that went wrong a new one passes."""
    scored, output = rows(6_000, 2, 3.0), contract(1)
    first = calibrate(scored, output)
    again = calibrate(scored, output, current=first.calibrator)
    assert not again.accepted
    assert again.before == first.after
    wrong = replace(first.calibrator, temperature=0.3)
    assert calibrate(scored, output, current=wrong).accepted


def test_a_calibration_that_fitted_only_the_past_is_refused() -> None:
    """The model was too sure, and on the newest rows is not any more."""
    past, newest = rows(4_200, 2, 3.0), rows(1_800, 2, 1.0, seed=1, start_ms=4_200)
    both = Scored(
        np.concatenate([past.outputs, newest.outputs]),
        np.concatenate([past.truth, newest.truth]),
        np.concatenate([past.times_ms, newest.times_ms]),
    )
    found = calibrate(both, contract(1))
    assert failed(found) >= {"log_loss", "ece"}
    assert "higher, and not by chance" in found.says


def skewed(n: int, seed: int = 0) -> Scored:
    """What no temperature mends: the model says the square root of the probability."""
    random = np.random.default_rng(seed)
    true = random.random(n)
    return Scored(np.sqrt(true)[:, None], (random.random(n) < true).astype(np.int64), np.arange(n))


def test_isotonic_is_taken_where_it_is_better_and_rows_suffice() -> None:
    """With few rows, or nothing but a temperature to find, it is a temperature."""
    assert calibrate(skewed(8_000), contract(1)).calibrator.kind == "isotonic"
    assert calibrate(skewed(1_500), contract(1)).calibrator.kind == "temperature"
    assert trial(8_000, 2, 3.0).calibrator.kind == "temperature"


def test_a_class_that_would_be_found_less_often_is_named() -> None:
    """Isotonic moves what is decided: of a model trained with class weights it takes the rare class away."""
    found = calibrate(skewed(8_000), contract(1), kind="isotonic")
    assert failed(found) == {"classes"}
    assert found.changed > 0.1
    assert "b decided right in " in found.says
    assert "worse, and not by chance" in found.says


def test_a_line_is_taken_where_errors_judge_and_classes_have_become_rare() -> None:
    """It finds the rare class less often: refused where no class may lose, taken where fewer errors in all suffice."""
    scored, output = shifted(4_000, [0.0, -2.0], 1.0), contract(1)
    found = calibrate(scored, output, judge_by="errors")
    assert (found.accepted, found.calibrator.kind) == (True, "platt")
    assert found.after["accuracy"] > found.before["accuracy"] + 0.1
    assert calibrate(scored, output).calibrator.kind != "platt"
    assert failed(calibrate(scored, output, kind="platt")) == {"classes"}


def test_a_line_that_makes_more_errors_is_refused() -> None:
    """Rare in the past, frequent again on the newest rows."""
    past, newest = shifted(4_200, [0.0, -2.0], 1.0), shifted(1_800, [0.0, 2.0], 1.0, seed=1)
    truth, outputs = np.concatenate([past.truth, newest.truth]), np.concatenate([past.outputs, newest.outputs])
    found = calibrate(Scored(outputs, truth, np.arange(6_000)), contract(1), kind="platt", judge_by="errors")
    assert "errors" in failed(found)
    assert "wrong" in found.says


def test_of_several_classes_none_may_get_worse() -> None:
    """One whose probabilities were right is not sacrificed for two that were too sure, although the sum gains."""
    random = np.random.default_rng(3)
    n = 20_000
    logits = random.normal(0, 1.5, (n, 3))
    truth = (random.random((n, 1)) > softmax(logits).cumsum(axis=1)[:, :-1]).sum(axis=1)
    right = softmax(logits)
    # Within classes 1 and 2 too sure, between 0 and these as it should be.
    inner = softmax(4.0 * logits[:, 1:])
    outputs = np.hstack([right[:, :1], (1 - right[:, :1]) * inner])
    found = calibrate(Scored(outputs, truth, np.arange(n)), contract(3), kind="temperature")
    assert found.after["log_loss"] < found.before["log_loss"]
    assert "classes" in failed(found)
    assert "log loss of a " in found.says


@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_the_calibration_error(seed: int) -> None:
    """They hold what is in between, of rows that nothing ties together and of rows in blocks."""
    scored = rows(3_000, 2, 2.0, seed)
    after = calibrated(Calibrator("temperature", 1, 0, 2.0), scored)
    for block in (1, 40):
        bounds, errors = ece_change(scored, after, 0.05, block_rows=block)
        assert bounds.mean == pytest.approx(errors[1] - errors[0])
        assert bounds.low < bounds.high < 0
        assert abs(bounds.mean + 0.08) < 0.04
    nothing, _ = ece_change(scored, scored, 0.05)
    assert (nothing.low, nothing.high) == (0.0, 0.0)
    few, _ = ece_change(scored.take(slice(0, 30)), after.take(slice(0, 30)), 0.05, block_rows=20)
    assert (few.low, few.high) == (-np.inf, np.inf)


def test_what_cannot_be_calibrated_is_said_in_one_line() -> None:
    with pytest.raises(ContractError, match="299 labelled rows of known classes; it takes 300 at least"):
        trial(299, 2, 2.0)
    trial(300, 2, 2.0)
    with pytest.raises(ContractError, match="it takes 1,428 at least"):
        trial(1_427, 2, 2.0, kind="isotonic")
    trial(1_428, 2, 2.0, kind="isotonic")
    with pytest.raises(ContractError, match="a regression gives no probabilities"):
        calibrate(rows(400, 2, 1.0), OutputContract("regression", 1))
    logits = Scored(np.linspace(-3, 3, 400)[:, None], np.zeros(400, np.int64), np.arange(400))
    with pytest.raises(ContractError, match="outputs are no probabilities"):
        calibrate(logits, contract(1))


def test_rows_of_unknown_classes_are_left_out() -> None:
    """Nothing calibrates these: the trial is that of the others."""
    scored = rows(3_000, 3, 2.0)
    known = np.arange(3_000) % 10 > 0
    unknown = Scored(scored.outputs, np.where(known, scored.truth, -1), scored.times_ms)
    assert calibrate(unknown, contract(3)) == calibrate(scored.take(known), contract(3))


# --------------------------------------------------------------------------- of one version

MODEL = ModelIdentity("shop", "v1")


def made(calibrator: Calibrator, **changed: Any) -> Calibration:
    parameters = parameters_of(calibrator)
    numbers = dict.fromkeys(
        ("log_loss_before", "log_loss_after", "ece_before", "ece_after", "brier_before", "brier_after"), 0.5
    )
    return replace(
        Calibration(
            id_of("shop", "v1", parameters), "p", "shop", "v1", calibrator.kind, parameters, 700, 1, 2, 300, **numbers,
            calibrated_by="ann", reason="", calibrated_at_ms=3,
        ),
        **changed,
    )  # fmt: skip


def test_a_calibration_comes_back_from_its_record() -> None:
    """Exactly, curves included; whoever made the record may know more fields."""
    curve = Curve((0.1, 0.30000000000000004), (0.2, 0.9))
    isotonic = Calibrator("isotonic", 1, 2, curves=(curve,))
    calibration = made(isotonic)
    assert from_row({**to_row(calibration), "later": 1}) == calibration
    assert calibration.calibrator(MODEL, contract(1)) == isotonic
    row = to_row(calibration)
    del row["kind"]
    with pytest.raises(ContractError, match="no field 'kind'"):
        from_row(row)


def test_an_id_names_model_version_and_parameters() -> None:
    """Anything else may differ; each of these makes another id, also where texts laid together are the same."""
    temperature = parameters_of(Calibrator("temperature", 1, 2, 1.5))
    ids = {
        id_of("shop", "v1", temperature),
        id_of("shop", "v2", temperature),
        id_of("shopv", "1", temperature),
        id_of("shop", "v1", parameters_of(Calibrator("temperature", 1, 2, 1.6))),
    }
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_version": "v2"}, "is of shop v2, not of shop v1"),
        ({"model_id": "other"}, "is of other v1, not of shop v1"),
        ({"parameters": "{"}, "its parameters are no JSON"),
        ({"parameters": "[]"}, "not the data of one"),
        ({"parameters": parameters_of(Calibrator("temperature", 2, 0))}, "is for 2 probabilities, the model gives 1"),
        ({"parameters": parameters_of(Calibrator("isotonic", 1, 0))}, "cannot be applied"),
        ({"parameters": parameters_of(Calibrator("temperature", 1, 0, float("nan")))}, "of even probabilities"),
    ],
)
def test_what_is_not_for_a_model_is_refused_before_any_event(changed: dict[str, str], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        made(Calibrator("temperature", 1, 0, 2.0), **changed).calibrator(MODEL, contract(1))


def test_parameters_are_json_that_others_read() -> None:
    found = json.loads(parameters_of(Calibrator("temperature", 1, 2, 1.5)))
    assert found == {"kind": "temperature", "width": 1, "fitted_until_ms": 2, "temperature": 1.5, "curves": []}
