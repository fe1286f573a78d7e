"""The gate on a window of labelled events: rows, truths and slices meet as they do on a file."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.cli.gate_rows import judge_rows
from pipeline.errors import DataError
from pipeline.measures.calibrators import Calibrator
from pipeline.models import bundle as bundles
from pipeline.records import Feature, FeatureContract, ModelIdentity, OutputContract
from pipeline.retraining import window
from pipeline.retraining.findings import Finding
from pipeline.scoring.engine import TorchModel
from pipeline.settings import Settings, load
from tests.unit.test_cli_gate import Leaning

ROWS = 3_000
BORDER = 50.0


def model(border: float, *, most: float = 90.0, classes: tuple[str, ...] = ("no", "yes")) -> TorchModel:
    output = OutputContract("classification", 1, classes, "sigmoid")
    contract = FeatureContract((Feature("amount", "number", range=(0.0, most)),), output)
    return TorchModel(Leaning(border), contract, ModelIdentity("m", str(border)), bundles.NO_BASELINE)


def settings() -> Settings:
    """Latency is nothing that models of one weight show."""
    told = {"events.id_field": "id", "events.slice_fields": "shop,absent", "gate.latency_ratio_max": "100"}
    return load(overrides=told, environment={})


def labelled() -> pa.Table:
    """Events with their truth, which turns at BORDER, and one event without an amount."""
    random = np.random.default_rng(3)
    amount = random.uniform(0, 90, ROWS)
    yes = random.random(ROWS) < 1 / (1 + np.exp(-(amount - BORDER) / 10))
    facts: list[Any] = [
        [f"o{n}" for n in range(ROWS)],
        np.arange(ROWS) * 1000,
        np.where(yes, "yes", "no"),
        pa.nulls(ROWS, pa.float64()),
        np.arange(ROWS) * 1000 + 5,
        [[("shop", "ab"[n % 2])] for n in range(ROWS)],
        np.zeros(ROWS, np.int32),
        np.arange(ROWS),
    ]
    table = pa.table([pa.array(c, f.type) for c, f in zip(facts, window.FACTS, strict=True)], schema=window.FACTS)
    amounts = pa.array([None if n == 7 else a for n, a in enumerate(amount.tolist())])
    return table.add_column(0, "amount", amounts).add_column(0, "id", table.column(window.EVENT_ID))


def failed(verdict: Any) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


def test_a_better_model_is_accepted_and_the_other_way_round_refused() -> None:
    """Accuracies are those of the borders; the broken event is left out for both."""
    rows = labelled()
    verdict = judge_rows(rows, model(30.0), model(BORDER), settings())
    assert verdict.accepted, verdict.says
    assert verdict.bounds.rows == ROWS - 1
    amount = rows.column("amount").to_numpy(zero_copy_only=False)
    keep = ~np.isnan(amount)
    yes = np.array(rows.column(window.LABEL).to_pylist()) == "yes"
    for metrics, border in zip(verdict.metrics, (30.0, BORDER), strict=True):
        assert metrics["accuracy"] == pytest.approx(((amount >= border) == yes)[keep].mean())
    assert {(s.field, s.value) for s in verdict.slices} == {("shop", "a"), ("shop", "b"), ("absent", "")}
    assert {"better", "mcnemar"} <= failed(judge_rows(rows, model(BORDER), model(30.0), settings()))


def test_a_champion_is_judged_with_its_calibration() -> None:
    """One that has moved its border to where the truth turns leaves the challenger nothing to be better at."""
    moved = Calibrator("platt", 1, 0, biases=(0.0, (30.0 - BORDER) / 10))
    verdict = judge_rows(labelled(), model(30.0), model(BORDER), settings(), calibrator=moved)
    assert {"better", "mcnemar"} <= failed(verdict)
    assert verdict.metrics[0]["accuracy"] == verdict.metrics[1]["accuracy"]


def test_guards_and_refused_events_are_findings() -> None:
    """Of events that only the champion takes, and of the data."""
    rows = labelled()
    beyond = int((rows.column("amount").to_numpy(zero_copy_only=False) > 80).sum())
    verdict = judge_rows(rows, model(30.0), model(BORDER, most=80.0), settings())
    assert failed(verdict) == {"refusals"}
    assert verdict.bounds.rows == ROWS - 1 - beyond
    guard = Finding("duplicates", False, 0.5, 0.1, "half of them twice")
    assert failed(judge_rows(rows, model(30.0), model(BORDER), settings(), guards=(guard,))) == {"duplicates"}


def test_labels_meet_classes_by_name() -> None:
    """A challenger whose classes stand in the other order says the opposite with the same outputs."""
    verdict = judge_rows(labelled(), model(BORDER), model(BORDER, classes=("yes", "no")), settings())
    assert verdict.metrics[1]["accuracy"] == pytest.approx(1 - verdict.metrics[0]["accuracy"])


def test_no_row_that_both_take_is_an_error() -> None:
    """Also an empty window."""
    for rows in (labelled(), labelled().slice(0, 0)):
        with pytest.raises(DataError, match=rf"none of the {rows.num_rows:,} labelled events could be scored by both"):
            judge_rows(rows, model(30.0, most=0.0), model(BORDER), settings())


def test_outputs_that_are_not_finite_are_left_out() -> None:
    """As a worker does, which makes dead letters of them: the challenger refuses these events."""

    class Broken(Leaning):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            outputs = super().forward(inputs)
            return torch.where(inputs["numbers"][:, :1] > 80, torch.nan, outputs)

    broken = TorchModel(Broken(BORDER), model(BORDER).contract, ModelIdentity("m", "2"), bundles.NO_BASELINE)
    assert failed(judge_rows(labelled(), model(30.0), broken, settings())) == {"refusals"}
