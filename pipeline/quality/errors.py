"""The error of each outcome: what drift/errors.py watches."""

from typing import NamedTuple

import numpy as np

from pipeline.measures.scored import predicted
from pipeline.quality.outcomes import Outcomes
from pipeline.records import Floats, Longs, ModelIdentity, OutputContract


class Errors(NamedTuple):
    """Of one model, in the order of the outcomes."""

    #: (n,) index of the outcome, its event's time in ms, and float32: 1 for a wrong class and 0 for the right one; the
    #: absolute error of a regression.
    rows: Longs
    event_times_ms: Longs
    values: Floats


def errors_of(outcomes: Outcomes, output: OutputContract) -> dict[ModelIdentity, Errors]:
    """Errors of the champions among the outcomes: in a moment of change, of two of them."""
    if output.kind == "regression":
        errors = np.abs(outcomes.truth - outcomes.outputs[:, 0]).astype(np.float32)
    else:
        errors = (predicted(outcomes.outputs) != outcomes.truth).astype(np.float32)
    found = {}
    for index, identity in enumerate(outcomes.models):
        rows = np.flatnonzero(outcomes.model == index)
        if identity.role == "champion" and len(rows):
            found[identity] = Errors(rows, outcomes.event_times_ms[rows], errors[rows])
    return found
