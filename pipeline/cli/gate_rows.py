"""Labelled events of a window (retraining/window.py) through champion and challenger: the gate without a file."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cli.gate_scoring import batches_of
from pipeline.contracts import Model
from pipeline.errors import DataError
from pipeline.measures import Scored
from pipeline.measures.calibrators import Calibrator
from pipeline.records import Decoded, Floats, Longs
from pipeline.retraining import window
from pipeline.retraining.findings import Finding
from pipeline.retraining.gate import Contestant, Verdict, judge, refusals
from pipeline.retraining.latency import measure_latency
from pipeline.retraining.recipes import truth
from pipeline.scoring.validate import Validated, Validator
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a model says of the rows it takes: their numbers, ascending, (m,) and (m, width)."""

    checked: Validated
    rows: Longs
    outputs: Floats


def judge_rows(
    rows: pa.Table,
    champion: Model,
    challenger: Model,
    settings: Settings,
    *,
    calibrator: Calibrator | None = None,
    guards: tuple[Finding, ...] = (),
    seed: int = 0,
) -> Verdict:
    """The verdict on labelled events, in order of time: fields of the event schema, and the columns of window.FACTS.

    Both score them as a worker would, the champion's outputs through its calibration; what either refuses is left out
    for both and is a finding of its own. The slices are those of settings.events.slice_fields. Raises DataError if
    there is no row that both take.
    """
    models = (champion, challenger)
    events = rows.select([name for name in rows.column_names if name not in window.FACTS.names]).combine_chunks()
    columns = events.to_batches()[0] if events.num_rows else pa.RecordBatch.from_pylist([], events.schema)
    answers = [_answers(model, columns, settings) for model in models]
    if calibrator is not None:
        answers[0] = replace(answers[0], outputs=calibrator.apply(answers[0].outputs))
    common = np.intersect1d(answers[0].rows, answers[1].rows, assume_unique=True)
    if not len(common):
        why = "; ".join(a.checked.rejects[0].message for a in answers if a.checked.rejects)
        raise DataError(f"none of the {rows.num_rows:,} labelled events could be scored by both models ({why})")
    first, second = (
        _contestant(model, answer, rows, common, settings) for model, answer in zip(models, answers, strict=True)
    )
    lost = refusals(len(answers[0].rows) - len(common), len(common), settings.gate)
    numbers = np.arange(rows.num_rows, dtype=np.int64)
    checked = (answers[0].checked, answers[1].checked)
    batches = list(batches_of(checked, (numbers, numbers), common, settings.scoring.batch_max))
    latency = measure_latency(champion, challenger, batches)
    return judge(first, second, settings.gate, guards=(lost, *guards), latency=latency, seed=seed)


def _answers(model: Model, columns: pa.RecordBatch, settings: Settings) -> _Answers:
    decoded = Decoded(columns, np.arange(columns.num_rows, dtype=np.int64), [])
    checked = Validator(model.contract, id_field=settings.events.id_field, time_field=None).validate(decoded)
    size = settings.scoring.batch_max
    rows, outputs = [np.empty(0, np.int64)], [np.empty((0, model.contract.output.width), np.float32)]
    for inputs in checked.inputs:
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            outputs.append(model.score({name: array[part] for name, array in inputs.arrays.items()}))
            rows.append(inputs.rows[part])
    numbers, found = np.concatenate(rows), np.concatenate(outputs)
    order = np.argsort(numbers)
    order = order[np.isfinite(found[order]).all(axis=1)]
    return _Answers(checked, numbers[order], found[order])


def _contestant(model: Model, answers: _Answers, rows: pa.Table, common: Longs, settings: Settings) -> Contestant:
    labelled = rows.take(pa.array(common))
    output = model.contract.output
    outputs = answers.outputs[np.searchsorted(answers.rows, common)].astype(np.float64)
    told = [dict(pairs) for pairs in labelled.column(window.SLICES).to_pylist()]
    slices: dict[str, npt.NDArray[Any]] = {
        name: np.array([values.get(name, "") for values in told], dtype=np.str_)
        for name in settings.events.slice_fields
    }
    times_ms: Longs = labelled.column(window.TIME_MS).to_numpy()
    known = truth(labelled, output, window.LABEL, window.VALUE)
    return Contestant(model.identity.model_version, output, Scored(outputs, known, times_ms, slices))
