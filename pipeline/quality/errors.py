"""The error of each outcome: what drift/errors.py watches."""

from typing import NamedTuple

import numpy as np

from pipeline.measures.scored import Numbers, predicted
from pipeline.quality.outcomes import Outcomes
from pipeline.records import Floats, Longs, ModelIdentity, OutputContract


class Errors(NamedTuple):
    """Of one model, in the order of the outcomes."""

    #: (n,) index of the outcome, its event's time in ms, and what `error_values` makes of it.
    rows: Longs
    event_times_ms: Longs
    values: Floats


def error_values(outputs: Numbers, truth: Numbers | Longs, output: OutputContract) -> Floats:
    """(n,) float32: 1 for a wrong class and 0 for the right one; the absolute error of a regression."""
    wrong = np.abs(truth - outputs[:, 0]) if output.kind == "regression" else predicted(outputs) != truth
    errors: Floats = wrong.astype(np.float32)
    return errors


def errors_of(outcomes: Outcomes, output: OutputContract) -> dict[ModelIdentity, Errors]:
    """Errors of the champions among the outcomes: in a moment of change, of two of them."""
    errors, found = error_values(outcomes.outputs, outcomes.truth, output), {}
    for index, identity in enumerate(outcomes.models):
        rows = np.flatnonzero(outcomes.model == index)
        if identity.role == "champion" and len(rows):
            found[identity] = Errors(rows, outcomes.event_times_ms[rows], errors[rows])
    return found
