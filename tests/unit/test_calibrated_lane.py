"""A calibration on the hot path: what is published, what the drift monitor is told, and what it costs when it comes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.measures.calibrators import Calibrator, Curve
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.scoring.lane import Lane
from pipeline.scoring.serving import Served
from pipeline.scoring.validate import Validator
from pipeline.testing import ScriptedModel, ScriptedSource
from tests.unit.test_flow import RecordingSummariser, Setup

ONE = FeatureContract((Feature("x", "number"),), OutputContract("classification", 1, ("no", "yes"), "sigmoid"))
TEMPERATURE = Calibrator("temperature", 1, 0, 2.0)
#: Says less than half of what the model does.
ISOTONIC = Calibrator("isotonic", 1, 0, curves=(Curve((0.0, 1.0), (0.0, 0.4)),))


def lane(s: Setup, calibrator: Calibrator | None, summariser: Any = None, **model: Any) -> Lane:
    """A model whose one output is x."""
    return Lane(
        ScriptedModel(ONE, **model),
        Validator(ONE, id_field="id", time_field="at"),
        s.flow._publisher,
        batch_max=1024,
        clock=s.clock,
        summariser=summariser,
        calibrator=calibrator,
        calibration_id=calibrator and calibrator.kind,
    )


def odds(p: float) -> float:
    return p / (1 - p)


@pytest.fixture
def s(tmp_path: Path) -> Setup:
    return Setup(tmp_path / "registry")


async def test_outputs_are_calibrated_and_the_models_own_are_kept(s: Setup) -> None:
    """Odds to the power of 1 / temperature; the class stays, the model's own output is published beside."""
    await s.flow.serve(Served(lane(s, TEMPERATURE)))
    await s.run(ScriptedSource([s.events(0.1, 0.75, 0.9)]))
    found = s.predictions()
    for prediction, x in zip(found, (0.1, 0.75, 0.9), strict=True):
        assert odds(prediction["outputs"][0]) == pytest.approx(odds(x) ** 0.5, rel=1e-5)
        assert prediction["uncalibrated_outputs"] == [np.float32(x)]
        assert prediction["calibration_id"] == "temperature"
    assert [p["label"] for p in found] == ["no", "yes", "yes"]


async def test_a_label_is_decided_by_the_calibrated_outputs_and_the_monitor_is_told_of_the_models_own(s: Setup) -> None:
    """To the monitor nothing has changed: its baseline is of the model."""
    summariser = RecordingSummariser()
    summariser.signals = ("score:yes", "class:yes", "rejected")  # type: ignore[assignment]
    await s.flow.serve(Served(lane(s, ISOTONIC, summariser)))
    await s.run(ScriptedSource([s.events(0.25, 0.75, 0.875)]))
    found = s.predictions()
    assert [p["label"] for p in found] == ["no"] * 3
    assert [p["outputs"][0] for p in found] == pytest.approx([0.1, 0.3, 0.35])
    ((*_, matrix),) = summariser.added
    assert matrix.tolist() == [[0.25, 0, 0], [0.75, 1, 0], [0.875, 1, 0]]


async def test_without_a_calibration_nothing_is_told_of_one(s: Setup) -> None:
    await s.flow.serve(Served(lane(s, None)))
    await s.run(ScriptedSource([s.events(0.25)]))
    ((prediction),) = s.predictions()
    assert (prediction["outputs"], prediction["calibration_id"]) == ([0.25], None)
    assert prediction["uncalibrated_outputs"] is None


async def test_it_comes_between_two_steps(s: Setup) -> None:
    """Each event goes through the one or the other; a retried step, too, has each prediction once."""
    await s.flow.serve(Served(lane(s, None)))
    s.flow._step([s.events(0.25, 0.5)])
    await s.flow.serve(Served(lane(s, TEMPERATURE, raise_on=frozenset({0.75}), raise_times=1)))
    await s.run(ScriptedSource([s.events(0.75, 0.5, first=2)]))
    assert [p["offset"] for p in s.predictions()] == [0, 1, 2, 3]
    assert [p["calibration_id"] for p in s.predictions()] == [None, None, "temperature", "temperature"]
    assert s.predictions()[2]["outputs"][0] == pytest.approx(1 / (1 + 3**-0.5))


async def test_an_output_that_is_no_number_is_refused_before_it_is_calibrated(s: Setup) -> None:
    """The clipping of a calibrator would make a probability of it."""
    await s.flow.serve(Served(lane(s, TEMPERATURE, nan_on=frozenset({0.75}))))
    await s.run(ScriptedSource([s.events(0.25, 0.75)]))
    assert [p["offset"] for p in s.predictions()] == [0]
    assert len(s.sink.to("dead-letters")) == 1


async def test_what_is_too_large_is_left_out_of_all_columns(tmp_path: Path) -> None:
    """The event beside it keeps its own outputs, before and after the calibration."""
    s = Setup(tmp_path / "registry", prediction_bytes_max=260)
    await s.flow.serve(Served(lane(s, TEMPERATURE, summariser := RecordingSummariser())))
    batch = s.events(0.25, 0.75)
    batch.keys[0] = b"k" * 250
    await s.run(ScriptedSource([batch]))
    ((prediction),) = s.predictions()
    assert (prediction["offset"], prediction["uncalibrated_outputs"]) == (1, [0.75])
    assert len(s.sink.to("dead-letters")) == 1
    assert len(summariser.added) == 1
