"""One model in service: from decoded events to encoded predictions, and what the drift monitor learns of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.contracts import Clock, Model, Summariser
from pipeline.measures.calibrators import Calibrator
from pipeline.records import BatchSummary, Decoded, Floats, Longs, ModelRole, Reason, RecordBatch, Reject, Stage
from pipeline.scoring.fields import FIRST_TIME_MS, LAST_TIME_MS, NO_TIME_MS
from pipeline.scoring.publish import PredictionColumns, Publisher, prediction_labels, without_slices
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.validate import Validated, Validator

#: Told how long a stage took: its name, seconds.
Timed = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """Record batches laid end to end: what one step works on."""

    batches: list[RecordBatch]
    values: list[bytes | None]
    keys: list[bytes | None]
    partitions: Longs
    offsets: Longs
    timestamps_ms: Longs

    @classmethod
    def of(cls, batches: list[RecordBatch]) -> "Rows":
        """All records of `batches`, in their order."""
        sizes = [len(b) for b in batches]
        return cls(
            batches,
            [v for b in batches for v in b.values] if len(batches) > 1 else batches[0].values,
            [k for b in batches for k in b.keys] if len(batches) > 1 else batches[0].keys,
            np.repeat(np.array([b.partition for b in batches], dtype=np.int64), sizes),
            np.concatenate([np.array(b.offsets, dtype=np.int64) for b in batches]),
            np.concatenate([np.array(b.timestamps_ms, dtype=np.int64) for b in batches]),
        )

    def __len__(self) -> int:
        return len(self.values)

    def keys_of(self, rows: Longs) -> list[bytes | None]:
        """Keys of some rows, which ascend."""
        return self.keys if len(rows) == len(self) else [self.keys[row] for row in rows.tolist()]

    def source(self, row: int) -> tuple[RecordBatch, int]:
        """The batch of a row and the row's index in it."""
        for batch in self.batches:
            if row < len(batch):
                return batch, row
            row -= len(batch)
        raise IndexError(row)

    def place(self, row: int) -> str:
        """Topic, partition and offset of a row, for a person."""
        batch, index = self.source(row)
        return f"{batch.topic}[{batch.partition}]@{batch.offsets[index]}"


@dataclass(frozen=True, slots=True)
class Scored:
    """What one model made of rows; nothing has been sent yet."""

    lane: "Lane"
    rows: Rows
    #: The rows that were this model's.
    decoded: Decoded
    checked: Validated
    #: Input row of each output, ascending; outputs (m, width) and class indices or None, both before a calibration.
    scored_rows: Longs
    outputs: Floats
    labels: Longs | None
    #: Rows refused here; what could not be decoded is not repeated.
    rejects: list[Reject]
    #: Encoded predictions, one per scored row.
    values: list[bytes]


class Lane:
    """A model, its feature contract, and where its drift is added up. One thread uses it.

    role: champion, canary or shadow, as the predictions will say. batch_max: most rows in one model call. summariser:
    None where drift is not watched. calibrator, calibration_id: what outputs go through before they are published, and
    what predictions name it by.
    """

    def __init__(
        self,
        model: Model,
        validator: Validator,
        publisher: Publisher,
        *,
        batch_max: int,
        role: ModelRole = "champion",
        clock: Clock = time.time,
        summariser: Summariser | None = None,
        calibrator: Calibrator | None = None,
        calibration_id: str | None = None,
    ) -> None:
        self.model = model
        self.calibration_id = calibration_id
        self.identity = replace(model.identity, role=role)
        self._validator, self._publisher, self._batch_max = validator, publisher, batch_max
        self._columns = PredictionColumns(model.contract, self.identity, clock, calibration_id)
        self._calibrator = calibrator
        self._summariser = summariser
        self._signals = SignalMatrix(summariser.signals, model.contract, validator.slice_fields) if summariser else None

    def score(self, rows: Rows, decoded: Decoded, timed: Timed) -> Scored:
        """Validate, score, encode. Everything that can fail on a bad model; has no effect outside. May be repeated.

        Raises ScoringError.
        """
        started = time.perf_counter()
        checked = self._validator.validate(decoded)
        validate_done = time.perf_counter()
        columns_scored, outputs = self._apply_model(checked)
        score_done = time.perf_counter()
        scored_rows = decoded.rows[columns_scored]
        finite = np.isfinite(outputs).all(axis=1)
        rejects = list(checked.rejects)
        if not finite.all():
            rejects += [
                Reject(int(row), Stage.SCORE, Reason.OUTPUT_NOT_FINITE, "the model returned NaN or infinity")
                for row in scored_rows[~finite]
            ]
            columns_scored, scored_rows, outputs = columns_scored[finite], scored_rows[finite], outputs[finite]
        # What is summarised is what the model itself says: the monitor's baseline is of that, and to it a calibration
        # that comes would be drift.
        labels = prediction_labels(outputs, self.model.contract)
        values: list[bytes] = []
        if len(outputs):
            ids, slices = checked.ids, checked.slices
            if len(outputs) < len(ids):
                ids = [ids[i] for i in columns_scored]
                slices = None if slices is None else slices.take(pa.array(columns_scored))
            published, published_labels, uncalibrated = self._calibrated(outputs, labels)
            columns = self._columns.build(
                ids,
                checked.event_times_ms[columns_scored],
                published,
                published_labels,
                rows.partitions[scored_rows],
                rows.offsets[scored_rows],
                slices,
                uncalibrated,
            )
            values, large = self._encode(columns, rows.keys_of(scored_rows))
            if large:
                rejects += [
                    Reject(int(scored_rows[i]), Stage.SCORE, Reason.OUTPUT_TOO_LARGE, told) for i, told in large.items()
                ]
                kept = [i for i in range(len(values)) if i not in large]
                scored_rows, outputs, values = scored_rows[kept], outputs[kept], [values[i] for i in kept]
                labels = None if labels is None else labels[kept]
        encode_done = time.perf_counter()
        timed("validate", validate_done - started)
        timed("score", score_done - validate_done)
        timed("encode", encode_done - score_done)
        return Scored(self, rows, decoded, checked, scored_rows, outputs, labels, rejects, values)

    def _calibrated(self, outputs: Floats, labels: Longs | None) -> tuple[Floats, Longs | None, Floats | None]:
        """Outputs and labels as they are published, and the outputs before, if that is not the same.

        Labels are decided anew: label and outputs of a prediction always agree.
        """
        if self._calibrator is None:
            return outputs, labels, None
        calibrated = self._calibrator.apply(outputs)
        return calibrated, prediction_labels(calibrated, self.model.contract), outputs

    def _encode(self, columns: pa.RecordBatch, keys: Sequence[bytes | None]) -> tuple[list[bytes], dict[int, str]]:
        """Kafka values of predictions, and what to say of each (by index) that its topic does not take.

        Slices are never the reason: a prediction that is too large with them goes without.
        """
        values = self._publisher.encode_predictions(columns)
        large = list(self._publisher.oversized(keys, values))
        if not large:
            return values, {}
        smaller = self._publisher.encode_predictions(without_slices(columns.take(pa.array(large))))
        for row, value in zip(large, smaller, strict=True):
            values[row] = value
        return values, self._publisher.oversized(keys, values)

    def _apply_model(self, checked: Validated) -> tuple[Longs, Floats]:
        """Column rows scored, ascending, and their outputs: model calls of one shape and ≤ batch_max rows each."""
        rows: list[Longs] = []
        outputs: list[Floats] = []
        step = self._batch_max
        for inputs in checked.inputs:
            for start in range(0, len(inputs), step):
                part = slice(start, start + step)
                outputs.append(self.model.score({name: array[part] for name, array in inputs.arrays.items()}))
                rows.append(inputs.rows[part])
        if not outputs:
            return np.empty(0, np.int64), np.empty((0, self.model.contract.output.width), np.float32)
        if len(outputs) == 1:
            return rows[0], outputs[0]
        all_rows, all_outputs = np.concatenate(rows), np.concatenate(outputs)
        if len(checked.inputs) == 1:
            return all_rows, all_outputs
        order = np.argsort(all_rows, kind="stable")
        return all_rows[order], all_outputs[order]

    def summarise(self, scored: Scored, others: npt.NDArray[np.bool_] | None = None) -> None:
        """Add what this model scored or refused to its summaries. others: (rows,) which rows are another model's."""
        if self._summariser is None or self._signals is None:
            return
        rows, checked, decoded_rows = scored.rows, scored.checked, scored.decoded.rows
        matrix = self._signals.fill(
            len(rows),
            decoded_rows,
            checked.numbers,
            checked.nulls,
            scored.scored_rows,
            scored.outputs,
            scored.labels,
            checked.categories,
            checked.slice_texts,
        )
        # A producer may write any number there, and a summary's times are read as dates.
        times = np.clip(rows.timestamps_ms, FIRST_TIME_MS, LAST_TIME_MS)
        known = checked.event_times_ms != NO_TIME_MS
        times[decoded_rows[known]] = checked.event_times_ms[known]
        start = 0
        for batch in rows.batches:
            part = slice(start, start + len(batch))
            start = part.stop
            columns = (rows.offsets[part], times[part], matrix[part])
            if others is not None:
                mine = ~others[part]
                columns = (columns[0][mine], columns[1][mine], columns[2][mine])
            self._summariser.add(batch.topic, batch.partition, *columns)

    def drain(self) -> list[BatchSummary]:
        """Summaries of all that was added since the last drain."""
        return self._summariser.drain() if self._summariser is not None else []
