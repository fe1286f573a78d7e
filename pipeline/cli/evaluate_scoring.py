"""Events to scored rows with their truth, by the decoder, the validator and the engine of a worker."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cli.evaluate_source import Chunk, Source
from pipeline.cli.training import truth
from pipeline.codec import ColumnarDecoder, arrow_schema
from pipeline.contracts import Model
from pipeline.errors import DataError
from pipeline.measures import Scored
from pipeline.records import Decoded, Floats, Longs, Reason, Reject, Stage
from pipeline.scoring import fields
from pipeline.scoring.fields import NO_TIME_MS
from pipeline.scoring.publish import prediction_labels
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.slices import TEXT_MAX, fitting
from pipeline.scoring.validate import Validated, Validator
from pipeline.settings import Settings

#: More different numbers than these are a quantity; the half hours of a day are still classes of their own.
SLICE_NUMBERS_MAX = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker would have made of n values."""

    decoded: Decoded
    checked: Validated
    #: Value of each output, ascending; (m,) and (m, width) float32.
    scored_rows: Longs
    outputs: Floats
    rejects: list[Reject]


class Scorer:
    """Decodes, validates and scores as scoring/flow.py does (tests/unit/test_cli_evaluate.py holds it to that)."""

    def __init__(self, source: Source, model: Model, settings: Settings) -> None:
        events = settings.events
        self.model = model
        self._batch_max = settings.scoring.batch_max
        self._decoder = ColumnarDecoder(source.registry, source.schema)
        slice_fields = fitting(arrow_schema(source.schema), events.slice_fields)
        self._validator = Validator(
            model.contract, id_field=events.id_field, time_field=events.time_field, slice_fields=slice_fields
        )

    def matrix(self, signals: tuple[str, ...]) -> SignalMatrix:
        """What fills these signals from outcomes."""
        return SignalMatrix(signals, self.model.contract, self._validator.slice_fields)

    def score(self, values: list[bytes | None]) -> Outcome:
        """Raises ScoringError when the model fails, UnreachableError when a schema cannot be had."""
        decoded = self._decoder.decode(values)
        checked = self._validator.validate(decoded)
        rows = [np.empty(0, np.int64)]
        outputs = [np.empty((0, self.model.contract.output.width), np.float32)]
        for inputs in checked.inputs:
            for start in range(0, len(inputs), self._batch_max):
                part = slice(start, start + self._batch_max)
                outputs.append(self.model.score({name: array[part] for name, array in inputs.arrays.items()}))
                rows.append(inputs.rows[part])
        columns_scored = np.concatenate(rows)
        order = np.argsort(columns_scored, kind="stable")
        scored_rows, found = decoded.rows[columns_scored[order]], np.concatenate(outputs)[order]
        finite = np.isfinite(found).all(axis=1)
        broken = [
            Reject(int(row), Stage.SCORE, Reason.OUTPUT_NOT_FINITE, "the model returned NaN or infinity")
            for row in scored_rows[~finite]
        ]
        return Outcome(decoded, checked, scored_rows[finite], found[finite], decoded.rejects + checked.rejects + broken)


@dataclass
class Rows:
    """All n events read, in order of time; what of them could be scored (m), and what has a truth (k)."""

    read: int
    #: (n,) milliseconds since the epoch; the number of the row where rows have no time.
    times_ms: Longs
    #: (n, signals) float32, what the drift monitor would have seen.
    signals: Floats
    #: The k rows that have output and truth.
    scored: Scored
    scored_count: int
    unlabelled: int
    unknown_labels: int
    rejected: dict[str, int]
    #: The first message for each reason.
    examples: dict[str, str]
    imputed: dict[str, int]


def score_all(
    source: Source,
    scorer: Scorer,
    label: str,
    slices: list[str],
    signals: tuple[str, ...],
    on_read: Callable[[int], None] = lambda _rows: None,
) -> Rows:
    """Read everything, score it, put it in order of time.

    Raises DataError when nothing can be measured: no event could be scored, or none of those has a truth the
    model knows.
    """
    parts = _Parts(scorer.model, label, slices, scorer.matrix(signals))
    read = 0
    for chunk in source.chunks():
        parts.add(chunk, scorer.score(chunk.values), timed=source.timed)
        read += len(chunk.values)
        on_read(read)
    return parts.joined()


@dataclass
class _Parts:
    """What each chunk leaves behind."""

    model: Model
    label: str
    slices: list[str]
    signals: SignalMatrix
    read: int = 0
    times_ms: list[Longs] = field(default_factory=list)
    matrices: list[Floats] = field(default_factory=list)
    scored_rows: list[Longs] = field(default_factory=list)
    outputs: list[Floats] = field(default_factory=list)
    labels: list[pa.Array] = field(default_factory=list)
    slice_values: dict[str, list[pa.Array]] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    imputed: Counter[str] = field(default_factory=Counter)

    def add(self, chunk: Chunk, outcome: Outcome, *, timed: bool) -> None:
        """Keep what is needed of one chunk; labels and slices of the scored rows only."""
        n, contract = len(chunk.values), self.model.contract
        scored_rows, outputs = outcome.scored_rows, outcome.outputs
        labels = prediction_labels(outputs, contract)
        checked, decoded = outcome.checked, outcome.decoded
        filled = self.signals.fill(
            n,
            decoded.rows,
            checked.numbers,
            checked.nulls,
            scored_rows,
            outputs,
            labels,
            checked.categories,
            checked.slice_texts,
        )
        self.matrices.append(filled)
        self.times_ms.append(_times_ms(chunk, outcome) if timed else chunk.times_ms)
        self.scored_rows.append(scored_rows + self.read)
        self.outputs.append(outputs)
        self.labels.append(_column(self.label, chunk, outcome))
        for name in self.slices:
            self.slice_values.setdefault(name, []).append(_column(name, chunk, outcome))
        self.rejected.update(str(reject.reason) for reject in outcome.rejects)
        for reject in outcome.rejects:
            self.examples.setdefault(str(reject.reason), reject.message)
        self.imputed.update(checked.imputed)
        self.read += n

    def joined(self) -> Rows:
        """All chunks as one, in order of time."""
        output = self.model.contract.output
        times_ms = _without_gaps(np.concatenate(self.times_ms))
        order = np.argsort(times_ms, kind="stable")
        rows, outputs = np.concatenate(self.scored_rows), np.concatenate(self.outputs).astype(np.float64)
        if not len(rows):
            reasons = "; ".join(f"{reason}: {message}" for reason, message in self.examples.items())
            raise DataError(f"none of the {self.read:,} events could be scored ({reasons})")
        labels = _without_nan(pa.chunked_array(self.labels))
        labelled = pc.is_valid(labels).to_numpy()
        if not labelled.any():
            raise DataError(f"label {self.label!r}: none of the {len(rows):,} scored events has one")
        known: npt.NDArray[Any] = np.zeros(len(rows), np.float64 if output.kind == "regression" else np.int64)
        known[labelled] = truth(labels.drop_null(), output, self.label)

        # The rows with a truth, by their place in the order of time.
        place = np.empty(self.read, np.int64)
        place[order] = np.arange(self.read)
        chosen = np.flatnonzero(labelled)
        chosen = chosen[np.argsort(place[rows[chosen]], kind="stable")]
        scored = Scored(
            outputs[chosen],
            known[chosen],
            times_ms[rows[chosen]],
            {name: _slice(name, pa.chunked_array(values))[chosen] for name, values in self.slice_values.items()},
        )
        return Rows(
            read=self.read,
            times_ms=times_ms[order],
            signals=np.concatenate(self.matrices)[order],
            scored=scored,
            scored_count=len(rows),
            unlabelled=len(rows) - len(chosen),
            unknown_labels=int((scored.truth < 0).sum()) if output.kind == "classification" else 0,
            rejected=dict(self.rejected.most_common()),
            examples=self.examples,
            imputed=dict(self.imputed),
        )


# --------------------------------------------------------------------------- columns


def _column(name: str, chunk: Chunk, outcome: Outcome) -> pa.Array:
    """(m,) values of a column of the file, else of a field of the event, of the scored rows."""
    if chunk.table is not None and name in chunk.table.column_names:
        found = chunk.table.column(name).take(pa.array(outcome.scored_rows))
        array = found.combine_chunks()
        array = array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
    else:
        columns = outcome.decoded.columns
        path, _ = fields.locate(columns.schema, name)
        at = np.searchsorted(outcome.decoded.rows, outcome.scored_rows)
        array = fields.column(columns, path).take(pa.array(at))
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _slice(name: str, values: pa.ChunkedArray) -> npt.NDArray[np.str_]:
    """(m,) text of a field's values, "" for null; of many different numbers the quarter that each is in."""
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return _numbers(values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy())
    try:
        text = values.cast(pa.string()).fill_null("")
    except pa.ArrowException:
        raise DataError(f"--slice {name}: values of type {values.type} make no slices") from None
    cut: npt.NDArray[np.str_] = pc.utf8_slice_codeunits(text, 0, TEXT_MAX).to_numpy().astype(np.str_)
    return cut


def _numbers(values: npt.NDArray[np.float64]) -> npt.NDArray[np.str_]:
    """(m,) each number with six digits, or the quarter that it is in; "" for NaN."""
    distinct, inverse = np.unique(values, return_inverse=True)  # of NaN there is one, the last
    if len(distinct) > SLICE_NUMBERS_MAX:
        edges = np.nanquantile(values, (0, 0.25, 0.5, 0.75, 1))
        quarter = np.clip(np.searchsorted(edges, distinct, side="left") - 1, 0, 3)
        names = [f"{edges[q]:.6g} to {edges[q + 1]:.6g}" for q in quarter.tolist()]
    else:
        names = [f"{value:.6g}" for value in distinct.tolist()]
    found: npt.NDArray[np.str_] = np.where(np.isnan(distinct), "", np.array(names))[inverse]
    return found


def _without_nan(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """NaN is how many tools write that there is no value."""
    if not pa.types.is_floating(labels.type):
        return labels
    return pc.if_else(pc.is_nan(labels), None, labels)


def _times_ms(chunk: Chunk, outcome: Outcome) -> Longs:
    """(n,) event times; the broker's where an event has none; NO_TIME_MS where a row of a file has none."""
    times_ms = np.full(len(chunk.values), NO_TIME_MS, np.int64) if chunk.table is not None else chunk.times_ms.copy()
    of_events = outcome.checked.event_times_ms
    has = of_events != NO_TIME_MS
    times_ms[outcome.decoded.rows[has]] = of_events[has]
    return times_ms


def _without_gaps(times_ms: Longs) -> Longs:
    """A row of a file without a time has that of the row before it."""
    has = times_ms != NO_TIME_MS
    if has.all() or not has.any():
        return times_ms
    last = np.maximum.accumulate(np.where(has, np.arange(len(times_ms)), -1))
    filled: Longs = times_ms[np.where(last >= 0, last, int(has.argmax()))]
    return filled
