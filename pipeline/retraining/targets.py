"""The label column to what a model learns: classes or a number."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.records import OutputContract

Task = Literal["classification", "regression"]

#: Whole numbers are taken as classes up to this many different ones; more of them are a quantity or a count.
NUMBER_CLASSES_MAX = 20
#: More classes than a first model can learn, or a person can read in a confusion matrix.
CLASSES_MAX = 100


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be learnt of n rows."""

    task: Task
    #: Names of the classes, sorted; empty for a regression.
    classes: tuple[str, ...]
    #: (n,) int64 indices of classes, -1 for a class that the training part lacks; or (n,) float64 numbers.
    values: npt.NDArray[Any]

    def output(self) -> OutputContract:
        """Two classes are one column (probability of the second), more are one column each."""
        if self.task == "regression":
            return OutputContract("regression", 1)
        if len(self.classes) == 2:
            return OutputContract("classification", 1, self.classes, "sigmoid")
        return OutputContract("classification", len(self.classes), self.classes, "softmax")


def infer(label: pa.ChunkedArray, rows_train: int, name: str, task: Task | None = None) -> Target:
    """The target in a label column without nulls, whose first `rows_train` rows are trained on.

    Text and Booleans are classes, and so are up to NUMBER_CLASSES_MAX different whole numbers, unless `task`
    says otherwise; other numbers are a regression. Raises DataError naming the column if nothing can be learnt.
    """
    text = as_text(label)
    trained = text.slice(0, rows_train)
    if task is None:
        task = "classification" if _is_classes(label, trained) else "regression"
    if task == "regression":
        values = numbers(label, name)
        if np.ptp(values[:rows_train]) == 0:
            raise _constant(name, f"{values[0]:g}")
        return Target("regression", (), values)
    classes = sorted(pc.unique(trained).to_pylist(), key=_in_order)
    if len(classes) < 2:
        raise _constant(name, repr(classes[0]))
    if len(classes) > CLASSES_MAX:
        raise DataError(f"label {name!r}: {len(classes):,} classes, and at most {CLASSES_MAX} can be told apart here")
    indices = pc.index_in(text, value_set=pa.array(classes, pa.string())).fill_null(-1)
    return Target("classification", tuple(classes), indices.to_numpy().astype(np.int64))


def _is_classes(label: pa.ChunkedArray, trained: pa.ChunkedArray) -> bool:
    if not _is_number(label.type):
        return True
    whole: bool = pa.types.is_integer(label.type) or bool(pc.all(pc.equal(pc.round(label), label)).as_py())
    distinct: int = pc.count_distinct(trained).as_py()
    return whole and distinct <= NUMBER_CLASSES_MAX


def _constant(name: str, value: str) -> DataError:
    return DataError(f"label {name!r}: is {value} in all rows to train on; nothing can be learnt from that")


def numbers(label: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    """(n,) values of a label column without nulls. Raises DataError for what is no finite number."""
    if not (_is_number(label.type) or pa.types.is_boolean(label.type)):
        raise DataError(f"label {name!r}: {label.type} is no number, so there is no regression on it")
    values: npt.NDArray[np.float64] = label.cast(pa.float64(), safe=False).to_numpy()
    good = np.abs(values) <= np.finfo(np.float32).max  # False for NaN
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DataError(f"label {name!r}: row {row}: {values[row]:g} is no finite float32, so it cannot be learnt")
    return values


def _is_number(kind: pa.DataType) -> bool:
    return any((pa.types.is_integer(kind), pa.types.is_floating(kind), pa.types.is_decimal(kind)))


def as_text(label: pa.ChunkedArray) -> pa.ChunkedArray:
    """Class names: 1.0 and 1 are the same. Raises DataError for what has none."""
    if pa.types.is_floating(label.type) and bool(pc.all(pc.equal(pc.round(label), label)).as_py()):
        largest = pc.max(pc.abs(label)).as_py()
        if largest is not None and largest < 2**53:
            label = label.cast(pa.int64())
    try:
        return label.cast(pa.string())
    except pa.ArrowException:
        raise DataError(f"a label of type {label.type} cannot be learnt; use text or numbers") from None


def _in_order(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
