"""Records of schemas/outcome.avsc, decoded -> rows with their truth."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.measures.scored import Numbers
from pipeline.records import Longs, ModelIdentity, OutputContract
from pipeline.settings import SLICE_FIELDS_MAX

#: Why an outcome is left out: of a model with other outputs, not finite, without a truth of the model's kind, or of a
#: role that this version does not know.
OTHER_OUTPUT, NOT_FINITE, NO_TRUTH, UNKNOWN_ROLE = "other_output", "not_finite", "no_truth", "unknown_role"
#: What a model may be to the pipeline, in the order in which a person is told of them.
ROLES = get_args(ModelIdentity.__annotations__["role"])


@dataclass(frozen=True, slots=True)
class Outcomes:
    """n predictions with their truth, of one kind of model output."""

    #: The distinct models, and (n,) which of them made each prediction.
    models: tuple[ModelIdentity, ...]
    model: Longs
    #: (n, width) float64 and (n,) truth, as in measures.Scored.
    outputs: Numbers
    truth: npt.NDArray[Any]
    #: (n,) ms since the epoch: of the event (of the prediction, where the event has no time), of the prediction, and
    #: when the label became known.
    event_times_ms: Longs
    predicted_at_ms: Longs
    label_times_ms: Longs
    #: Field -> (n,) strings, null where the prediction has no value for it.
    slices: dict[str, pa.StringArray] = field(default_factory=dict)
    #: n Kafka keys, if the no-change baseline is to go by them.
    keys: npt.NDArray[np.object_] | None = None
    #: (n,) ascending, of the records in their partition, if whoever read them told.
    offsets: Longs | None = None
    #: Why records of the same source are not among the rows, and how many.
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: Longs) -> "Outcomes":
        """Some of the rows, in that order."""
        return Outcomes(
            self.models,
            self.model[rows],
            self.outputs[rows],
            self.truth[rows],
            self.event_times_ms[rows],
            self.predicted_at_ms[rows],
            self.label_times_ms[rows],
            {name: values.take(pa.array(rows)) for name, values in self.slices.items()},
            None if self.keys is None else self.keys[rows],
            None if self.offsets is None else self.offsets[rows],
            self.left_out,
        )

    def by_label_time(self) -> "Outcomes":
        """The rows in the order in which their labels became known."""
        return self.take(np.argsort(self.label_times_ms, kind="stable"))


def of_model(columns: pa.RecordBatch, identity: ModelIdentity, *, any_role: bool = False) -> pa.RecordBatch:
    """The decoded records that are of one model, in one role or in any."""
    names = ("model_id", "model_version") if any_role else ("model_id", "model_version", "role")
    same = (pc.equal(columns.column(name), getattr(identity, name)) for name in names)
    return columns.filter(functools.reduce(pc.and_, same))


def joined(parts: Sequence[Outcomes], output: OutputContract) -> Outcomes:
    """All rows of the parts, one part after the other; no parts give no rows."""
    if not parts:
        return _empty(output)
    models = tuple(dict.fromkeys(model for part in parts for model in part.models))
    places = {model: place for place, model in enumerate(models)}
    fields = list(dict.fromkeys(name for part in parts for name in part.slices))
    keys = [part.keys for part in parts if part.keys is not None]
    return Outcomes(
        models,
        np.concatenate([np.array([places[m] for m in p.models], dtype=np.int64)[p.model] for p in parts]),
        np.concatenate([part.outputs for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.event_times_ms for part in parts]),
        np.concatenate([part.predicted_at_ms for part in parts]),
        np.concatenate([part.label_times_ms for part in parts]),
        {name: pa.concat_arrays([_slice_of(part, name) for part in parts]) for name in fields},
        np.concatenate(keys) if len(keys) == len(parts) else None,
        left_out=sum((part.left_out for part in parts), Counter()),
    )


def _slice_of(part: Outcomes, name: str) -> pa.StringArray:
    return part.slices[name] if name in part.slices else pa.nulls(len(part), pa.string())


def _empty(output: OutputContract) -> Outcomes:
    nothing = np.empty(0, np.int64)
    truth: npt.NDArray[Any] = np.empty(0, np.float64 if output.kind == "regression" else np.int64)
    return Outcomes((), nothing, np.empty((0, output.width)), truth, nothing, nothing, nothing)


def outcomes_of(
    columns: pa.RecordBatch,
    output: OutputContract,
    keys: Sequence[bytes | None] | None = None,
    offsets: Longs | None = None,
) -> Outcomes:
    """The rows of decoded outcomes that models of such an output made; the others are counted in `left_out`.

    columns: as ColumnarDecoder gives them for schemas/outcome.avsc. keys: one a row, see known.py. offsets: likewise.
    """
    lengths = pc.list_value_length(columns.column("outputs")).to_numpy(zero_copy_only=False)
    fitting = lengths == output.width
    outputs = np.full((len(lengths), output.width), np.nan)
    outputs[fitting] = (
        columns.column("outputs").filter(pa.array(fitting)).flatten().to_numpy().reshape(-1, output.width)
    )
    truth, told = _truth(columns, output)
    roles = columns.column("role")
    known = pc.is_in(roles, pa.array(ROLES)).to_numpy(zero_copy_only=False)
    good, left_out = np.ones(len(fitting), np.bool_), Counter[str]()
    finite = np.isfinite(outputs).all(axis=1)
    for reason, holds in ((UNKNOWN_ROLE, known), (OTHER_OUTPUT, fitting), (NOT_FINITE, finite), (NO_TRUTH, told)):
        if n := int((good & ~holds).sum()):
            left_out[reason] = n
        good &= holds
    rows = np.flatnonzero(good)
    chosen = columns.take(pa.array(rows))
    models, model = _models(chosen)
    predicted_at, label_times = chosen.column("predicted_at"), chosen.column("label_time")
    return Outcomes(
        models,
        model,
        outputs[rows],
        truth[rows],
        _ms(pc.coalesce(chosen.column("event_time"), predicted_at)),
        _ms(predicted_at),
        _ms(label_times),
        _slices(chosen.column("slices")),
        None if keys is None else np.array([*keys, None], dtype=object)[:-1][rows],
        None if offsets is None else offsets[rows],
        left_out,
    )


def _truth(columns: pa.RecordBatch, output: OutputContract) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """(n,) truth as in measures.Scored, and (n,) whether there is one."""
    if output.kind == "regression":
        values = columns.column("value").fill_null(np.nan).to_numpy(zero_copy_only=False)
        return values, np.isfinite(values)
    labels = columns.column("label")
    classes = output.classes or tuple(map(str, range(max(2, output.width))))
    found = pc.index_in(labels, value_set=pa.array(classes, pa.string())).fill_null(-1)
    told = pc.is_valid(labels).to_numpy(zero_copy_only=False)
    return found.to_numpy(zero_copy_only=False).astype(np.int64), told


def _models(columns: pa.RecordBatch) -> tuple[tuple[ModelIdentity, ...], Longs]:
    """The distinct models, and (n,) which one each row is of."""
    parts = [columns.column(name).dictionary_encode() for name in ("model_id", "model_version", "role")]
    together = np.zeros(len(columns), dtype=np.int64)
    for part in parts:
        together = together * max(1, len(part.dictionary)) + part.indices.to_numpy(zero_copy_only=False)
    _, first, which = np.unique(together, return_index=True, return_inverse=True)
    rows = zip(*(part.take(pa.array(first)).to_pylist() for part in parts), strict=True)
    return tuple(ModelIdentity(*row) for row in rows), which.astype(np.int64)


def _ms(times: pa.Array) -> Longs:
    found: Longs = times.cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _slices(maps: pa.MapArray) -> dict[str, pa.StringArray]:
    """Field -> (n,) values, null where a map has none; of more than SLICE_FIELDS_MAX fields the first."""
    n = len(maps)
    offsets = maps.offsets.to_numpy()
    parents = np.repeat(np.arange(n), np.diff(offsets))
    entries = slice(int(offsets[0]), int(offsets[n]))
    keys, items = maps.keys[entries], maps.items[entries]
    found = {}
    for name in pc.unique(keys).to_pylist()[:SLICE_FIELDS_MAX]:
        held = pc.equal(keys, name)
        values, rows = items.filter(held), parents[held.to_numpy(zero_copy_only=False)]
        places = np.full(n, -1)
        places[rows] = np.arange(len(rows))  # of a name that a map has twice, the last
        found[name] = values.take(pa.array(places, mask=places < 0)).cast(pa.string())
    return found
