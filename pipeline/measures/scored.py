"""Predictions beside their truth: what every measure is of."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ContractError
from pipeline.records import Longs, OutputContract

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
#: By name; a metric that these rows do not define is absent.
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scored:
    """n rows, in order of event time, with their truth. Raises ContractError if lengths differ."""

    #: (n, width) float64: probabilities as the model gives them ((n, 1): of the second of two classes), or values.
    outputs: Numbers
    #: Classification: (n,) int64 class index, -1 = a class the model does not know. Regression: (n,) float64.
    truth: npt.NDArray[Any]
    #: (n,) event time, milliseconds since the epoch.
    times_ms: Longs
    #: Field -> (n,) values as text, "" = null.
    slices: dict[str, npt.NDArray[np.str_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(self.outputs), len(self.truth), len(self.times_ms), *map(len, self.slices.values())}
        if len(lengths) > 1:
            raise ContractError(f"scored rows: columns of {sorted(lengths)} rows; give each the same number")

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: slice | Longs | Flags) -> "Scored":
        """Some of the rows: a slice, indices or a mask."""
        slices = {name: values[rows] for name, values in self.slices.items()}
        return Scored(self.outputs[rows], self.truth[rows], self.times_ms[rows], slices)


def check(scored: Scored, output: OutputContract) -> None:
    """Raises ContractError where the rows are no outputs of such a model, or not finite."""
    expected = (len(scored), output.width)
    if scored.outputs.shape != expected:
        raise ContractError(f"scored rows: outputs of shape {scored.outputs.shape}, the model gives {expected}")
    if not np.isfinite(scored.outputs).all() or not np.isfinite(scored.truth).all():
        raise ContractError("scored rows: an output or a truth is not finite; leave such rows out and count them")
    known = range(-1, max(output.width, 2))
    if (
        output.kind == "classification"
        and len(scored)
        and not known[0] <= scored.truth.min() <= scored.truth.max() <= known[-1]
    ):
        raise ContractError(f"scored rows: a truth outside {known[0]}..{known[-1]} is no class index of this model")


def by_class(outputs: Numbers) -> Numbers:
    """(n, classes): one column a class, also where the model gives only the second of two."""
    return np.hstack([1.0 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


def predicted(outputs: Numbers) -> Longs:
    """(n,) the class that a worker would publish; a tie goes to the second of one column, the first of several."""
    labels: Longs = (outputs[:, 0] >= 0.5 if outputs.shape[1] == 1 else outputs.argmax(axis=1)).astype(np.int64)
    return labels
