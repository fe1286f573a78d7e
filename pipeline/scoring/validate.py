"""Columns to model inputs, by the bundle's feature contract.

A record that breaks the contract becomes a `Reject`, never an exception. The common case (numbers only,
nothing missing, all in range) is a handful of array operations per batch: one tensor, one comparison.
Only what is wrong costs more: each policy works on the columns that need it, messages on the rows refused.

All checks are made on the float32 value that the model would see, bounds rounded alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractError
from pipeline.records import Decoded, Feature, FeatureContract, Floats, Longs, ModelInputs, Reason, Reject
from pipeline.scoring import fields, slices
from pipeline.scoring.fields import Mask, Path
from pipeline.scoring.findings import Findings

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Validated:
    """What became of n decoded rows. NumPy arrays are writable, and share no memory with each other or the columns."""

    #: Rows without fault, one entry per shape; all rows of a contract without sequences are one entry.
    inputs: list[ModelInputs]
    #: Identifier of each of the n rows as text; "" where there is none.
    ids: list[str]
    #: (n,) event times; NO_TIME_MS where null or no date, or where no time field is set.
    event_times_ms: Longs
    #: n maps of what travels with the predictions (see slices.py); None where no slice field is set.
    slices: pa.MapArray | None
    #: (n, number features) values before any policy; NaN where null or not finite as float32.
    numbers: Floats
    #: (n, features) whether a value is missing: null, or (numbers, elements of sequences) not finite.
    nulls: Mask
    #: Of each category feature (n,) places in its vocabulary before any policy, from 1; 0 for unknown, -1 for null.
    categories: list[Longs]
    #: Of each slice field its n values as text, cut as in `slices`; null where there is none.
    slice_texts: list[pa.Array]
    #: Rows refused here, by source row, ascending; those that the decoder refused are not repeated.
    rejects: list[Reject]
    #: "<feature>:null", ":clip", ":range" or ":unknown" -> rows in `inputs` whose value was replaced so.
    imputed: dict[str, int]


def imputation_keys(contract: FeatureContract) -> tuple[str, ...]:
    """All keys that `Validated.imputed` can have."""
    return tuple(f"{f.name}:{kind}" for f in contract.features for kind in ("null", "clip", "range", "unknown"))


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A ragged column: row i is values[starts[i] : starts[i] + lengths[i]]."""

    feature: Feature
    values: Floats
    starts: Longs
    lengths: Longs

    def pad(self, rows: Longs, width: int) -> Floats:
        """(len(rows), width) float32, zeros after each row's end."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        padded = np.zeros((len(rows), width), dtype=np.float32)
        padded[np.arange(width) < lengths[:, None]] = self.values[np.repeat(self.starts[rows], lengths) + within]
        return padded


def padded(lengths: Longs, longest: int) -> Longs:
    """How long sequences are made: the next power of two of each length, but no more than the longest allowed."""
    exponents = np.frexp(np.maximum(lengths, 1) - 1)[1]
    powers: Longs = np.minimum(np.int64(1) << exponents.astype(np.int64), longest)
    return powers


class Validator:
    """Applies one feature contract to batch after batch.

    id_field, time_field: event fields with the identifier and the time (timestamp, or long of milliseconds).
    slice_fields: event fields whose values travel with the prediction.
    These and feature names may be paths into nested records: "sensor.temperature".

    Raises ContractError for a contract that contradicts itself.
    """

    def __init__(
        self, contract: FeatureContract, *, id_field: str, time_field: str | None, slice_fields: Sequence[str] = ()
    ) -> None:
        if faults := fields.contract_faults(contract):
            raise ContractError("; ".join(faults))
        self._contract = contract
        self._features = contract.features
        self._id_field, self._time_field = id_field, time_field
        self.slice_fields = tuple(slice_fields)
        self._numbers = [i for i, f in enumerate(self._features) if f.kind == "number"]
        self._bounds = [_bounds(f) for f in self._features]
        self._ranged = any(self._features[i].range for i in self._numbers)
        self._low = np.array([self._bounds[i][0] for i in self._numbers], dtype=np.float32)
        self._high = np.array([self._bounds[i][1] for i in self._numbers], dtype=np.float32)
        self._vocabularies = {
            i: pa.array(f.vocabulary, pa.string()) for i, f in enumerate(self._features) if f.kind == "category"
        }
        self._schema: pa.Schema | None = None
        self._paths: list[Path] = []
        #: Columns of the number features, where a tensor can be made of them as they are.
        self._plain: list[int] | None = None
        self._id_path: Path = ()
        self._time_path: Path | None = None
        self._slice_paths: list[Path] = []

    def check(self, schema: pa.Schema) -> list[str]:
        """One line per fault that makes events of this schema useless to the contract; empty if it fits."""
        faults = fields.schema_faults(self._contract, schema, self._id_field, self._time_field)
        return faults + slices.schema_faults(schema, self.slice_fields)

    def validate(self, decoded: Decoded) -> Validated:
        """Apply the contract to a batch; bad rows are values in the result.

        Raises ContractError when the columns themselves do not fit the contract (see `check`).
        """
        columns = decoded.columns
        self._fit(columns.schema)
        findings = Findings(columns.num_rows, self._features)
        ids = self._ids(columns, findings)
        numbers, for_model = self._read_numbers(columns, findings)
        dense: dict[str, npt.NDArray[Any]] = {"numbers": for_model} if self._numbers else {}
        categories: list[Longs] = []
        if self._vocabularies:
            found = [self._read_category(i, self._column(columns, i), findings) for i in self._vocabularies]
            dense["categories"] = np.stack([codes for codes, _ in found], axis=1)
            categories = [came for _, came in found]
        sequences: list[_Sequence] = []
        for index, feature in enumerate(self._features):
            if feature.kind == "bytes":
                dense[feature.name] = self._read_bytes(index, self._column(columns, index), findings)
            elif feature.kind == "sequence":
                sequences.append(self._read_sequence(index, self._column(columns, index), findings))
        good = findings.good()
        texts = [slices.short_text(fields.column(columns, path)) for path in self._slice_paths]
        return Validated(
            inputs=_bucketed(dense, sequences, good),
            ids=ids,
            event_times_ms=self._event_times_ms(columns),
            slices=slices.slice_maps(self.slice_fields, texts) if texts else None,
            numbers=numbers,
            nulls=findings.nulls,
            categories=categories,
            slice_texts=texts,
            rejects=findings.rejects(decoded.rows),
            imputed=findings.imputed(good),
        )

    def _fit(self, schema: pa.Schema) -> None:
        """Find the columns in `schema`; a worker sees one schema all its life."""
        if self._schema is not None and self._schema.equals(schema):
            return
        if faults := self.check(schema):
            raise ContractError("; ".join(faults))
        self._schema = schema
        self._paths = [fields.locate(schema, f.name)[0] for f in self._features]
        self._plain = fields.plain_numbers(schema, [self._paths[i] for i in self._numbers])
        self._id_path = fields.locate(schema, self._id_field)[0]
        self._time_path = fields.locate(schema, self._time_field)[0] if self._time_field else None
        self._slice_paths = [fields.locate(schema, name)[0] for name in self.slice_fields]

    def _column(self, columns: pa.RecordBatch, index: int) -> pa.Array:
        return fields.column(columns, self._paths[index])

    def _ids(self, columns: pa.RecordBatch, findings: Findings) -> list[str]:
        column = fields.column(columns, self._id_path)
        ids = fields.texts(column)
        if column.null_count == 0:
            return ids
        missing = fields.null_mask(column)
        findings.fault(-1, Reason.MISSING_ID, missing, lambda _: f"{self._id_field} is null: the event has no id")
        return ids

    def _event_times_ms(self, columns: pa.RecordBatch) -> Longs:
        if self._time_path is None:
            return np.full(columns.num_rows, fields.NO_TIME_MS, dtype=np.int64)
        return fields.milliseconds(fields.column(columns, self._time_path))

    # -- one reader a kind -------------------------------------------------------------------

    def _read_numbers(self, columns: pa.RecordBatch, findings: Findings) -> tuple[Floats, Floats]:
        """(n, number features) twice: before any policy with NaN for missing values, and for the model."""
        if not self._numbers:
            empty = np.empty((columns.num_rows, 0), dtype=np.float32)
            return empty, empty
        if self._plain is not None:
            batch = columns.select(self._plain)
        else:
            batch = fields.number_columns(columns, [self._paths[i] for i in self._numbers])
        raw = fields.as_float32(batch.to_tensor(null_to_nan=True).to_numpy())
        # A bound of FLOAT32_MAX also keeps infinity out, and a comparison with NaN is False.
        inside = (raw >= self._low) & (raw <= self._high) if self._ranged else np.isfinite(raw)
        model = raw.copy()
        if inside.all():
            return raw, model
        raw[~np.isfinite(raw)] = np.nan
        for place in np.flatnonzero(~inside.all(axis=0)).tolist():
            column = batch.column(place)
            self._mend(
                self._numbers[place],
                model[:, place],
                fields.null_mask(column),
                lambda mask: mask,
                findings,
            )
        return raw, model

    def _read_category(self, index: int, column: pa.Array, findings: Findings) -> tuple[Longs, Longs]:
        """(n,) places in the vocabulary, from 1, 0 for unknown; and the same before any policy, -1 for null."""
        feature, vocabulary = self._features[index], self._vocabularies[index]
        text = fields.text_column(column)
        codes: Longs = pc.index_in(text, value_set=vocabulary).fill_null(-1).to_numpy().astype(np.int64) + 1
        if codes.all():
            return codes, codes
        null = fields.null_mask(text)
        unknown = (codes == 0) & ~null
        came = np.where(null, -1, codes)
        findings.nulls[:, index] = null
        if feature.on_null == "impute":
            if feature.impute is not None:
                codes[null] = feature.vocabulary.index(str(feature.impute)) + 1
            findings.mended(index, "null", null)
        else:
            findings.fault(index, Reason.NULL_FEATURE, null, _tell_null)
        if feature.on_unknown == "unknown":
            findings.mended(index, "unknown", unknown)
        else:
            findings.fault(
                index,
                Reason.UNKNOWN_CATEGORY,
                unknown,
                lambda _: f"is none of the {len(vocabulary)} known categories",
            )
        return codes, came

    def _read_bytes(self, index: int, column: pa.Array, findings: Findings) -> npt.NDArray[Any]:
        """(n, *shape) of the feature's dtype; rows that are refused hold zeros."""
        feature = self._features[index]
        little = np.dtype(feature.dtype).newbyteorder("<")
        size = int(np.prod(feature.shape)) * little.itemsize
        null, lengths = fields.null_mask(column), fields.byte_lengths(column)
        wrong = ~null & (lengths != size)
        whole = ~(null | wrong)
        if whole.all():
            values = np.frombuffer(fields.content(column), little).astype(feature.dtype)
            values = values.reshape(len(column), *feature.shape)
        else:
            values = np.zeros((len(column), *feature.shape), dtype=feature.dtype)
            good = fields.content(column.filter(pa.array(whole)))
            values[whole] = np.frombuffer(good, little).reshape(-1, *feature.shape)
            shape = "x".join(map(str, feature.shape))
            expected = f"{size} bytes ({shape} of {feature.dtype})"
            findings.fault(
                index, Reason.WRONG_SHAPE, wrong, lambda row: f"{lengths[row]} bytes, but the model takes {expected}"
            )
            self._mend_null(index, null, findings)
            if feature.on_null == "impute":
                values[null] = feature.impute
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            axes = tuple(range(1, values.ndim))
            self._mend(
                index,
                values,
                np.zeros(values.shape, dtype=np.bool_),
                lambda mask: np.asarray(mask.any(axis=axes)),
                findings,
            )
        return values

    def _read_sequence(self, index: int, column: pa.Array, findings: Findings) -> _Sequence:
        feature = self._features[index]
        null, lengths = fields.null_mask(column), fields.list_lengths(column)
        starts = np.cumsum(lengths) - lengths
        longest = feature.shape[0]
        findings.fault(
            index,
            Reason.WRONG_SHAPE,
            ~null & ((lengths < 1) | (lengths > longest)),
            lambda row: f"{lengths[row]} values, but the model takes 1 to {longest}",
        )
        elements = column.flatten()
        values = fields.float32_values(elements)
        low, high = self._bounds[index]
        if not ((values >= low) & (values <= high)).all():
            owners = np.repeat(np.arange(len(column)), lengths)

            def rows_of(mask: Mask) -> Mask:
                hit: Mask = np.zeros(len(column), dtype=np.bool_)
                hit[owners[mask]] = True
                return hit

            self._mend(index, values, fields.null_mask(elements), rows_of, findings)
        if null.any():
            self._mend_null(index, null, findings)
            if feature.on_null == "impute":
                # One more value at the end, which every missing sequence consists of.
                values = np.append(values, np.float32(feature.impute))
                starts[null], lengths[null] = len(values) - 1, 1
        return _Sequence(feature, values, starts, lengths)

    # -- policies ----------------------------------------------------------------------------

    def _mend_null(self, index: int, null: Mask, findings: Findings) -> None:
        """Note rows without any value; the caller fills them in if the policy says so."""
        findings.nulls[:, index] |= null
        if self._features[index].on_null == "impute":
            findings.mended(index, "null", null)
        else:
            findings.fault(index, Reason.NULL_FEATURE, null, _tell_null)

    def _mend(
        self,
        index: int,
        values: Floats,
        null: Mask,
        rows_of: Callable[[Mask], Mask],
        findings: Findings,
    ) -> None:
        """Apply a feature's `on_null` and `on_range` to float32 `values`, in place.

        null: of the shape of `values`. rows_of: a mask of that shape -> (n,) rows with a hit.
        """
        feature, (low, high) = self._features[index], self._bounds[index]
        finite = np.isfinite(values)
        outside = finite & ((values < low) | (values > high))
        missing = rows_of(~finite)
        findings.nulls[:, index] |= missing
        if feature.on_null == "impute":
            values[~finite] = feature.impute
            findings.mended(index, "null", missing)
        else:
            # Of two faults of one row the first counts: a null is not finite either.
            findings.fault(index, Reason.NULL_FEATURE, rows_of(null), _tell_null)
            findings.fault(index, Reason.NOT_FINITE, missing, _tell_not_finite)
        if feature.on_range == "reject":
            findings.fault(
                index, Reason.OUT_OF_RANGE, rows_of(outside), lambda _: f"has a value outside {feature.range}"
            )
        elif feature.on_range == "clip":
            values[outside] = np.clip(values[outside], low, high)
            findings.mended(index, "clip", rows_of(outside))
        else:
            values[outside] = feature.impute
            findings.mended(index, "range", rows_of(outside))


def _tell_null(_: int) -> str:
    return "is null, or holds a null"


def _tell_not_finite(_: int) -> str:
    return "has a value that is no finite float32"


def _bounds(feature: Feature) -> tuple[np.float32, np.float32]:
    """A feature's range as the nearest float32; without one, all finite values."""
    low, high = np.clip(feature.range or (-FLOAT32_MAX, FLOAT32_MAX), -FLOAT32_MAX, FLOAT32_MAX)
    return np.float32(low), np.float32(high)


def _bucketed(dense: dict[str, npt.NDArray[Any]], sequences: list[_Sequence], good: Mask) -> list[ModelInputs]:
    """Good rows, split so that every sequence of a part has one padded length."""
    rows: Longs = np.flatnonzero(good).astype(np.int64)
    if len(rows) == 0:
        return []
    if not sequences:
        whole = len(rows) == len(good)
        return [ModelInputs(dense if whole else {name: array[rows] for name, array in dense.items()}, rows)]
    widths = np.stack([padded(s.lengths[rows], s.feature.shape[0]) for s in sequences], axis=1)
    shapes, bucket_of = np.unique(widths, axis=0, return_inverse=True)
    buckets = []
    for bucket, shape in enumerate(shapes.tolist()):
        members = rows[bucket_of.ravel() == bucket]
        arrays = {name: array[members] for name, array in dense.items()}
        for sequence, width in zip(sequences, shape, strict=True):
            arrays[sequence.feature.name] = sequence.pad(members, width)
            arrays[f"{sequence.feature.name}_lengths"] = sequence.lengths[members]
        buckets.append(ModelInputs(arrays, members))
    return buckets
