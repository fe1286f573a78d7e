"""The matrix of signals that the drift monitor watches, one row per input record."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.records import FeatureContract, Floats, Longs
from pipeline.scoring.parts import PartColumns, output_columns


class SignalMatrix:
    """Fills (n, signals) float32 from what the hot path has at hand; NaN where a record has no value.

    signals: names as in records.SignalBaseline. slice_fields: those whose texts `fill` will be given, in this order.
    A name that this contract, or these fields, cannot provide stays NaN.
    """

    def __init__(self, signals: Sequence[str], contract: FeatureContract, slice_fields: Sequence[str] = ()) -> None:
        numbers = {f.name: i for i, f in enumerate(contract.of_kind("number"))}
        features = {f.name: i for i, f in enumerate(contract.features)}
        classes = {name: i for i, name in enumerate(contract.output.classes)}
        outputs = output_columns(contract)
        self._parts = PartColumns(signals, contract, slice_fields)
        self._width = len(signals)
        self._feature_to: list[tuple[int, int]] = []
        self._null_to: list[tuple[int, int]] = []
        self._score_to: list[tuple[int, int]] = []
        self._class_to: list[tuple[int, int]] = []
        self._rejected_to: int | None = None
        for column, signal in enumerate(signals):
            kind, _, name = signal.partition(":")
            for prefix, known, pairs in (
                ("feature", numbers, self._feature_to),
                ("null", features, self._null_to),
                ("score", outputs, self._score_to),
                ("class", classes, self._class_to),
            ):
                if kind == prefix and name in known:
                    pairs.append((known[name], column))
            if signal == "rejected":
                self._rejected_to = column

    def fill(
        self,
        n: int,
        decoded_rows: Longs,
        numbers: Floats,
        nulls: npt.NDArray[np.bool_],
        scored_rows: Longs,
        outputs: Floats,
        labels: Longs | None,
        categories: Sequence[Longs] = (),
        slices: Sequence[pa.Array] = (),
    ) -> Floats:
        """Signals of n input records, each signal's values side by side in memory: that is how they are added up.

        decoded_rows: input row of each row of `numbers` (d, number features) and `nulls` (d, features).
        scored_rows: input row of each row of `outputs` (m, width) and `labels` (m,) class indices.
        categories, slices: of the decoded rows, as Validated has them; () where there are none.
        """
        matrix = np.full((self._width, n), np.nan, dtype=np.float32).T
        _copy(matrix, decoded_rows, numbers, self._feature_to)
        _copy(matrix, decoded_rows, nulls, self._null_to)
        _copy(matrix, scored_rows, outputs, self._score_to)
        if labels is not None:
            for index, column in self._class_to:
                matrix[scored_rows, column] = labels == index
        if self._rejected_to is not None:
            matrix[:, self._rejected_to] = 1.0
            matrix[scored_rows, self._rejected_to] = 0.0
        self._parts.fill(matrix, decoded_rows, categories, slices, scored_rows, outputs)
        return matrix


def _copy(matrix: Floats, rows: Longs, values: npt.NDArray[np.generic], pairs: list[tuple[int, int]]) -> None:
    if not pairs or len(rows) == 0:
        return
    source, target = (np.array(side) for side in zip(*pairs, strict=True))
    if len(rows) == len(matrix):  # the usual case: every record decoded, in order
        for column, signal in pairs:
            matrix[:, signal] = values[:, column]
    else:
        matrix[np.ix_(rows, target)] = values[:, source]
