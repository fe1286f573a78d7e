"""The same by slice, and the gaps between a slice and the rest."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.measures.intervals import newcombe, welch
from pipeline.measures.metrics import Answers
from pipeline.measures.scored import Flags, Scored
from pipeline.records import OutputContract

#: Below it a slice is only counted: the accuracy of 100 rows is known to 1.96 x 0.5 / sqrt(100), about 0.1.
SLICE_ROWS_MIN = 100
#: Rows that a rate of a gap needs on both sides: of 30, even 0 in 30 leaves up to 0.11 open (Wilson).
GAP_ROWS_MIN = 30
#: Values of a field that are told apart, those with the most rows: an identifier taken for a slice stays bearable.
VALUES_MAX = 100


def each(scored: Scored) -> Iterator[tuple[str, str, Flags]]:
    """Field, value and (n,) mask of its rows, for the VALUES_MAX most frequent values, in order of the value."""
    for field, values in scored.slices.items():
        names, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        for index in sorted(np.argsort(-counts, kind="stable")[:VALUES_MAX].tolist()):
            yield field, str(names[index]), inverse == index


def gaps(field: str, value: str, inside: Flags, answers: Answers, output: OutputContract) -> list[dict[str, Any]]:
    """How a slice differs from the rest, with 95 % confidence intervals; what too few rows say is left out.

    Two classes: selection rate (the share predicted as the second: demographic parity), true and false positive rate
    (equalised odds, Hardt et al. 2016). More classes: accuracy. Regression: mean absolute error. Each interval holds
    by itself and for independent rows: of 20 gaps that are none, one lies outside its interval.
    """
    found = []
    for measure, these, those in _compared(inside, answers, output):
        if min(len(these), len(those)) < GAP_ROWS_MIN:
            continue
        if these.dtype == np.bool_:
            difference, low, high = newcombe(int(these.sum()), len(these), int(those.sum()), len(those))
        else:
            difference, low, high = welch(these, those)
        found.append(
            {
                "field": field,
                "value": value,
                "measure": measure,
                "value_of_slice": float(these.mean()),
                "of_rest": float(those.mean()),
                "difference": difference,
                "low": low,
                "high": high,
                "rows": len(these),
            }
        )
    return found


def _compared(inside: Flags, answers: Answers, output: OutputContract) -> Iterator[tuple[str, Any, Any]]:
    """Measure, its values (n,) in the slice, and in the rest."""
    if output.kind == "regression":
        error = np.abs(answers.truth - answers.predicted)
        yield "mae", error[inside], error[~inside]
    elif answers.columns.shape[1] == 2:
        selected = answers.predicted == 1
        yield "selection_rate", selected[inside], selected[~inside]
        for name, of in (("true_positive_rate", answers.truth == 1), ("false_positive_rate", answers.truth != 1)):
            yield name, selected[inside & of], selected[~inside & of]
    else:
        right = answers.predicted == answers.truth
        yield "accuracy", right[inside], right[~inside]
