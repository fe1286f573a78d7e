"""From rows to a bundle: what `pipeline init`, `pipeline model train` and the demo have in common.

Everything goes the way it will go in production: rows become event columns, the validator applies the
contract, the engine scores the held-out part, and the drift monitor's baseline is made of what it would see.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import drift, measures
from pipeline.cli.events import to_timestamps
from pipeline.errors import BundleError, ContractError, DataError
from pipeline.models import bundle as bundles
from pipeline.models.manifest import Architecture, Training
from pipeline.records import (
    Baseline,
    Decoded,
    FeatureContract,
    Floats,
    Longs,
    ModelIdentity,
    ModelInputs,
    OutputContract,
    TrainingReport,
)
from pipeline.retraining import features as inference
from pipeline.retraining import targets
from pipeline.retraining.features import Fields
from pipeline.retraining.targets import Target, Task
from pipeline.scoring.parts import part_names
from pipeline.scoring.publish import prediction_labels
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.slices import fitting
from pipeline.scoring.validate import Validated, Validator
from pipeline.settings import Settings

ARCHITECTURE = "pipeline.models.architectures:TabularMLP"
#: Rows in one call of the engine when a whole file is scored.
SCORE_ROWS = 4096
#: Event column with the number of the row.
ID = "row"
_ARROW = {"double": pa.float64(), "float": pa.float32(), "long": pa.int64(), "int": pa.int32(), "boolean": pa.bool_()}


def train_bundle(
    rows: pa.Table,
    *,
    label: str,
    features: Sequence[str],
    fields: Fields,
    out: Path,
    model_id: str,
    time: str | None = None,
    task: Task | None = None,
    seed: int = 0,
    overwrite: bool = False,
    slices: Fields = MappingProxyType({}),
    season: Mapping[str, Any] = MappingProxyType({}),
    progress: Callable[[int, int, float], None] = lambda _epoch, _most, _loss: None,
) -> TrainingReport:
    """Train the built-in model on the earlier rows, measure it on the later ones, write the bundle to `out`.

    features: columns. fields: column -> (Avro field, Avro type, whether null may occur). time: column to order
    the rows by; without one they are taken as ordered. Rows without a label are left out. slices: columns whose values
    are watched as slices, given like `fields`. season: as `season_of` gives.
    Raises DataError when nothing can be learnt, BundleError when `out` cannot be written.

    1. Order the rows; set the newest aside; infer target and contract from the others alone.
    2. Bring all rows through the validator, as a worker would.
    3. Fit on the earlier rows.
    4. Score the newest with the engine: metrics, and the baseline of every signal.
    5. Pack.
    """
    # torch takes two seconds to import, which `pipeline init --help` need not wait for.
    from pipeline.models import architectures, loading  # noqa: PLC0415
    from pipeline.retraining import train  # noqa: PLC0415

    recipe = train.Recipe(seed=seed)
    rows = _ordered(rows, label, time)
    _, rows_train = train.split(rows.num_rows, recipe)
    target = targets.infer(rows.column(label), rows_train, label, task)
    contract = FeatureContract(inference.infer(rows.slice(0, rows_train), features, fields), target.output())

    columns = event_columns(rows, list(dict.fromkeys([*features, *slices])), {**slices, **fields})
    slice_fields = fitting(columns.schema, [name for name, *_ in slices.values()])
    checked = validated(contract, columns, slice_fields)
    arrays, kept = checked.inputs[0].arrays, checked.inputs[0].rows
    before = int(np.searchsorted(kept, rows_train))
    if before < train.ROWS_MIN or before == len(kept):
        raise DataError(f"only {len(kept):,} of {rows.num_rows:,} rows can be used: their numbers must be finite")
    early = {name: array[:before] for name, array in arrays.items()}
    known = Target(target.task, target.classes, target.values[kept[:before]])
    rows_fit = before - max(1, round(before * recipe.stopping_share))
    fitted = train.fit(architectures.TabularMLP, early, known, contract, rows_fit, recipe, progress)

    seasonal_ms = times_ms(rows, time) if season else None
    late = ModelInputs({name: array[before:] for name, array in arrays.items()}, kept[before:])
    scored_rows, outputs = score(fitted.module, contract, [late])
    measured, confusion = measure(outputs, contract, target.values[scored_rows], target.values[kept[:before]])
    report = TrainingReport(before, len(kept) - before, measured, confusion)
    made = bundles.make(
        model_id=model_id,
        architecture=Architecture(module=ARCHITECTURE, arguments=fitted.arguments),
        contract=contract,
        weights=loading.weights_of(fitted.module),
        baseline=baseline(
            contract, checked, rows_train, scored_rows, outputs, seasonal_ms, slice_fields=slice_fields, **season
        ),
        training=provenance(rows.select([*features, label]), report),
    )
    bundles.write(made, out, overwrite=overwrite)
    return report


def event_columns(rows: pa.Table, features: Sequence[str], fields: Fields) -> pa.RecordBatch:
    """Rows as the event columns a worker decodes, with their number as identifier."""
    arrays, names = [pa.array(np.arange(rows.num_rows))], [ID]
    for column in features:
        name, avro_type, _ = fields[column]
        array = rows.column(column).combine_chunks()
        try:
            arrays.append(array.cast(_ARROW.get(avro_type, pa.string())))
        except pa.ArrowException as error:
            what = str(error).splitlines()[0]
            raise DataError(f"column {column!r}: does not fit event field {name!r}, {avro_type}: {what}") from None
        names.append(name)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def validated(contract: FeatureContract, columns: pa.RecordBatch, slice_fields: Sequence[str] = ()) -> Validated:
    """What the validator says of all rows. Raises DataError if it refuses every one."""
    decoded = Decoded(columns, np.arange(columns.num_rows, dtype=np.int64), [])
    checked = Validator(contract, id_field=ID, time_field=None, slice_fields=slice_fields).validate(decoded)
    if not checked.inputs:
        first = f": {checked.rejects[0].message}" if checked.rejects else ""
        raise DataError(f"none of the {columns.num_rows:,} rows fits the feature contract{first}")
    return checked


def score(module: Any, contract: FeatureContract, inputs: Sequence[ModelInputs]) -> tuple[Longs, Floats]:
    """Numbers of the rows, ascending, and their outputs (n, width) by the engine on the CPU, activation applied."""
    from pipeline.scoring.engine import TorchModel  # noqa: PLC0415  imports torch

    model = TorchModel(module, contract, ModelIdentity("training", "0"), bundles.NO_BASELINE, batch_max=SCORE_ROWS)
    parts = [
        model.score({name: array[start : start + SCORE_ROWS] for name, array in part.arrays.items()})
        for part in inputs
        for start in range(0, len(part), SCORE_ROWS)
    ]
    rows = np.concatenate([part.rows for part in inputs])
    order = np.argsort(rows)
    return rows[order], np.concatenate(parts)[order]


def measure(
    outputs: Floats, contract: FeatureContract, truth: npt.NDArray[Any], before: npt.NDArray[Any]
) -> tuple[dict[str, float], list[list[int]]]:
    """Metrics and confusion matrix; `truth` of the rows scored, `before` of those trained on, as in Target.values."""
    rows = measures.Scored(outputs.astype(np.float64), truth, np.arange(len(truth), dtype=np.int64))
    measured = measures.measure(rows, contract.output, trained_on=before)
    return measured["metrics"], measured["confusion"]


def check_contract(contract: FeatureContract) -> None:
    """Raises BundleError, in one line, for a contract that contradicts itself."""
    try:
        Validator(contract, id_field=ID, time_field=None)
    except ContractError as error:
        raise BundleError(str(error)) from None


def truth(label: pa.ChunkedArray, output: OutputContract, name: str) -> npt.NDArray[Any]:
    """True values in a label column without nulls: indices of `output.classes`, -1 for others; or numbers."""
    if output.kind == "regression":
        return targets.numbers(label, name)
    indices = pc.index_in(targets.as_text(label), value_set=pa.array(output.classes, pa.string()))
    if indices.null_count == len(indices):
        raise DataError(f"label {name!r}: no row has one of the model's classes: {', '.join(output.classes)}")
    found: Longs = indices.fill_null(-1).to_numpy().astype(np.int64)
    return found


def season_of(settings: Settings) -> dict[str, Any]:
    """What `baseline` is told of the season that the settings name; {} for none."""
    chosen = settings.drift
    return {"season_s": chosen.season_s, "season_phases": chosen.season_phases} if chosen.season_s else {}


def times_ms(rows: pa.Table, column: str | None) -> Longs | None:
    """Event times of rows, milliseconds since the epoch; None without such a column. Raises DataError."""
    if column is None:
        return None
    found = to_timestamps(rows.column(column).combine_chunks(), column).cast(pa.int64())
    if found.null_count:
        raise DataError(f"column {column!r}: {found.null_count:,} rows have no time")
    times: Longs = found.to_numpy()
    return times


def baseline(
    contract: FeatureContract,
    checked: Validated,
    first_row: int,
    scored_rows: Longs,
    outputs: Floats,
    times_ms: Longs | None = None,
    *,
    slice_fields: Sequence[str] = (),
    **season: Any,
) -> Baseline:
    """The baseline of every watched signal on the rows from `first_row`, of which `scored_rows` have outputs.

    Its categories and slices (scoring/parts.py) are those that these rows have. times_ms: of all rows. slice_fields:
    those that `checked` has texts of. season: keyword arguments of drift.measure_baseline. Raises DataError as it does.
    """
    signals = drift.signal_names(contract)
    n = len(checked.ids) - first_row
    categories = [codes[first_row:] for codes in checked.categories]
    texts = [text.slice(first_row) for text in checked.slice_texts]
    slices = dict(zip(slice_fields, texts, strict=True))
    signals = (*signals, *part_names(contract, signals, categories, slices, outputs))
    matrix = SignalMatrix(signals, contract, slice_fields).fill(
        n,
        np.arange(n, dtype=np.int64),
        checked.numbers[first_row:],
        checked.nulls[first_row:],
        scored_rows - first_row,
        outputs,
        prediction_labels(outputs, contract),
        categories,
        texts,
    )
    times_ms = None if times_ms is None else times_ms[first_row:]
    found: Baseline = drift.measure_baseline(signals, matrix, times_ms, **season)
    return found


def provenance(rows: pa.Table, report: TrainingReport) -> Training:
    """What the manifest says of the training: report, and a fingerprint of columns and rows used."""
    return Training(
        data_sha256=fingerprint(rows),
        rows_train=report.rows_train,
        rows_validation=report.rows_validation,
        metrics=report.metrics,
        confusion=tuple(map(tuple, report.confusion)),
    )


def fingerprint(rows: pa.Table) -> str:
    """SHA-256, in hexadecimal, of the rows as an Arrow stream: of names, types, values and order."""
    digest = _Digest()
    with pa.ipc.new_stream(pa.PythonFile(digest, "w"), rows.schema.remove_metadata()) as stream:
        # In one chunk: how a file happened to be cut up must not matter.
        stream.write_table(rows.replace_schema_metadata(None).combine_chunks())
    return digest.sha256.hexdigest()


class _Digest:
    """A file that keeps nothing but the SHA-256 of what was written."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return len(content)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _ordered(rows: pa.Table, label: str, time: str | None) -> pa.Table:
    """Rows with a label, in order of time (rows of one moment as they were), dictionaries decoded."""
    rows = rows.filter(pc.is_valid(rows.column(label)))
    if time is not None and rows.num_rows:
        rows = rows.take(pc.sort_indices(to_timestamps(rows.column(time).combine_chunks(), time)))
    for index, column in enumerate(rows.columns):
        if pa.types.is_dictionary(column.type):
            rows = rows.set_column(index, rows.column_names[index], column.cast(column.type.value_type))
    return rows.combine_chunks()
