"""What models cost: the cases are the library's own kinds of features, and the page says what was measured."""

import numpy as np
import pytest

from benchmarks import models
from benchmarks.models import CASES, NO_BASELINE, Case, Found
from pipeline.scoring import speed
from pipeline.scoring.speed import Setup, Timing
from pipeline.scoring.tuning import Loss

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_a_case_is_the_same_every_time_and_takes_its_rows(case: Case) -> None:
    """Probabilities that differ between rows, and not between two makings."""
    first, second = (models.model(case, "float32") for _ in range(2))
    outputs = []
    for inputs in speed.made_up(case.contract, NO_BASELINE, 40):
        outputs.append(first.score(inputs))
        np.testing.assert_array_equal(second.score(inputs), outputs[-1])
    together = np.concatenate(outputs)
    assert together.shape == (40, 1)
    assert len(np.unique(together)) > 30


def timing(precision: str, batch: int, *cpu_s: float) -> Timing:
    return Timing(Setup(precision, 1, batch), tuple(1e6 / c for c in cpu_s), cpu_s)


def test_the_page_holds_costs_gains_and_losses() -> None:
    """Medians of the rounds; gains of the cheapest over the cheapest; a dash for what took too long."""
    timings = [
        timing("float32", 32, 4.0, 40.0, 4.0),
        timing("float32", 256, 2.0, 2.0, 2.0),
        timing("int8", 32, 1.0, 10.0, 1.0),
        timing("int8", 256, 1.6, 1.6, 1.6),
    ]
    loss = {"int8": Loss(0.01, 0.001, 0.0005)}
    text = models.page([Found(CASES[0], timings, loss)], 30.0)
    assert f"| {CASES[0].name} | float32 | 4 | 2 | - | - |" in text
    assert f"| {CASES[0].name} | int8 | 2.00 | 1.0e-02 | 1.0e-03 | 0.05 % |" in text
    assert "`python -m benchmarks.models --seconds 30`" in text
