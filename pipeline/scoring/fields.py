"""Arrow columns as NumPy arrays, and which columns fit which features: what validate.py builds on.

All functions respect slices (`offset`) and validity of the arrays given to them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Feature, FeatureContract, FeatureKind, Floats, Longs

Mask = npt.NDArray[np.bool_]
#: Index of a column, then of fields inside it.
Path = tuple[int, ...]

#: Among milliseconds since 1970: there is no time.
NO_TIME_MS = -(1 << 63)
#: The years 1 to 9999: what Python, Java's ISO form and most databases have a date for.
FIRST_TIME_MS, LAST_TIME_MS = -62_135_596_800_000, 253_402_300_799_999

_MILLISECONDS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


# --------------------------------------------------------------------------- what fits


def contract_faults(contract: FeatureContract) -> list[str]:
    """One line per contradiction in a feature contract."""
    names = [f.name for f in contract.features]
    faults = [f"feature {name}: named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    inputs = {"numbers", "categories"} | {f"{f.name}_lengths" for f in contract.of_kind("sequence")}
    for feature in contract.features:
        faults += [f"feature {feature.name}: {fault}" for fault in _feature_faults(feature)]
        if feature.kind in {"bytes", "sequence"} and feature.name in inputs:
            faults.append(f"feature {feature.name}: the name is taken by another input of the model")
    return faults if contract.features else ["the contract has no features"]


def _feature_faults(feature: Feature) -> list[str]:
    kind, shape = feature.kind, feature.shape
    imputes = feature.on_null == "impute" or (feature.range is not None and feature.on_range == "impute")
    faults = _category_faults(feature) if kind == "category" else []
    if kind != "category" and imputes and not _is_storable(feature):
        faults.append(f"impute = {feature.impute!r} is not a finite {feature.dtype}, but a policy needs it")
    if feature.range is not None:
        if kind not in {"number", "sequence"}:
            faults.append(f"range is for numbers and sequences, not for {kind}")
        elif not feature.range[0] <= feature.range[1]:
            faults.append(f"range {feature.range} is empty")
    if kind == "sequence" and (len(shape) != 1 or shape[0] < 1):
        faults.append(f"shape of a sequence is (longest,), not {shape}")
    if kind == "bytes" and (not shape or min(shape) < 1):
        faults.append(f"shape {shape} holds nothing")
    return faults


def _category_faults(feature: Feature) -> list[str]:
    faults = []
    if not feature.vocabulary:
        faults.append("a category needs a vocabulary")
    if len(set(feature.vocabulary)) != len(feature.vocabulary):
        faults.append("the vocabulary names a category twice")
    if feature.impute is not None and feature.impute not in feature.vocabulary:
        faults.append(f"impute = {feature.impute!r} is not in the vocabulary")
    return faults


def _is_storable(feature: Feature) -> bool:
    """Whether `impute` is a number that the feature's dtype can hold."""
    value = feature.impute
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if feature.kind == "bytes" and feature.dtype != "float32":
        limits = np.iinfo(feature.dtype)
        return float(value).is_integer() and limits.min <= value <= limits.max
    return abs(value) <= float(np.finfo(np.float32).max)


def schema_faults(contract: FeatureContract, schema: pa.Schema, id_field: str, time_field: str | None) -> list[str]:
    """One line per feature or event field that `schema` lacks or has with a type of no use."""
    faults = []
    wanted: list[tuple[str, str, FeatureKind | str]] = [("events.id_field", id_field, "id")]
    if time_field is not None:
        wanted.append(("events.time_field", time_field, "time"))
    wanted += [("feature", feature.name, feature.kind) for feature in contract.features]
    for role, name, use in wanted:
        try:
            _, found = locate(schema, name)
        except KeyError as error:
            faults.append(f"{role} {name}: the event schema has no field {error.args[0]!r} there")
            continue
        if not _fits(found, use):
            faults.append(f"{role} {name}: a field of type {found} cannot be used as {use}")
    return faults


def locate(schema: pa.Schema, name: str) -> tuple[Path, pa.DataType]:
    """Path and type of a field, "a.b" being field b of record a. Raises KeyError with the part not found."""
    at = schema.get_field_index(name)
    if at >= 0:
        return (at,), schema.field(at).type
    head, *rest = name.split(".")
    at = schema.get_field_index(head)
    if at < 0:
        raise KeyError(head)
    path, found = [at], schema.field(at).type
    for part in rest:
        at = found.get_field_index(part) if pa.types.is_struct(found) else -1
        if at < 0:
            raise KeyError(part)
        path.append(at)
        found = found.field(at).type
    return tuple(path), found


def _fits(found: pa.DataType, use: str) -> bool:
    if pa.types.is_dictionary(found):
        return use in {"category", "id"} and _is_text(found.value_type)
    if use == "sequence":
        return _any(found, "list", "large_list", "fixed_size_list") and _is_number(found.value_type)
    if use == "number":
        return _is_number(found)
    if use == "category":
        return has_text(found)
    if use == "id":
        return not _any(found, "nested")
    return _any(
        found, *{"bytes": ("binary", "large_binary", "fixed_size_binary"), "time": ("timestamp", "integer")}[use]
    )


def has_text(found: pa.DataType) -> bool:
    """Whether values of a type are categories: whether `text_column` gives each a short, obvious text."""
    return _is_text(found) or _any(found, "boolean", "integer", "null")


def _is_text(found: pa.DataType) -> bool:
    return _any(found, "string", "large_string", "string_view")


def _is_number(found: pa.DataType) -> bool:
    return _is_tensor(found) or _any(found, "null", "boolean", "decimal")


def _is_tensor(found: pa.DataType) -> bool:
    """What `RecordBatch.to_tensor` takes in any mixture."""
    return _any(found, "integer", "float32", "float64")


def _any(found: pa.DataType, *names: str) -> bool:
    """Whether one of `pyarrow.types.is_<name>` holds."""
    return any(getattr(pa.types, f"is_{name}")(found) for name in names)


# --------------------------------------------------------------------------- columns to arrays


def column(columns: pa.RecordBatch, path: Path) -> pa.Array:
    """The column at `path`; null where a record around it is null."""
    found = columns.column(path[0])
    return pc.struct_field(found, list(path[1:])) if len(path) > 1 else found


def plain_numbers(schema: pa.Schema, paths: Sequence[Path]) -> list[int] | None:
    """Column indices at `paths` if `to_tensor` takes them as they are, else None."""
    plain = all(len(path) == 1 and _is_tensor(schema.field(path[0]).type) for path in paths)
    return [path[0] for path in paths] if plain else None


def number_columns(columns: pa.RecordBatch, paths: Sequence[Path]) -> pa.RecordBatch:
    """The columns at `paths` as a batch that `to_tensor` takes: Booleans, decimals and nulls as doubles."""
    arrays = [column(columns, path) for path in paths]
    arrays = [a if _is_tensor(a.type) else a.cast(pa.float64(), safe=False) for a in arrays]
    return pa.RecordBatch.from_arrays(arrays, names=[str(i) for i in range(len(arrays))])


def as_float32(array: npt.NDArray[Any]) -> Floats:
    """`array`, rounded by way of float64; what float32 cannot hold becomes infinite."""
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def float32_values(values: pa.Array) -> Floats:
    """(n,) float32 of memory of its own; NaN for null."""
    if not pa.types.is_float32(values.type):
        values = values.cast(pa.float64(), safe=False)
    return as_float32(np.array(values.to_numpy(zero_copy_only=False)))


def null_mask(values: pa.Array) -> Mask:
    """(n,) where `values` is null."""
    if values.null_count == 0:
        return np.zeros(len(values), dtype=np.bool_)
    mask: Mask = values.is_null().to_numpy(zero_copy_only=False)
    return mask


def list_lengths(lists: pa.Array) -> Longs:
    """(n,) lengths; 0 for null."""
    lengths: Longs = pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)
    return lengths


def byte_lengths(values: pa.Array) -> Longs:
    """(n,) lengths; 0 for null."""
    lengths: Longs = pc.binary_length(values).fill_null(0).to_numpy().astype(np.int64)
    return lengths


def content(values: pa.Array) -> memoryview | bytes:
    """The bytes of all values end to end, uncopied; `values` has no nulls."""
    if pa.types.is_fixed_size_binary(values.type):
        values = values.cast(pa.binary())
    _, offsets_buffer, data = values.buffers()
    if len(values) == 0 or data is None:
        return b""
    dtype = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, dtype)[values.offset : values.offset + len(values) + 1]
    return memoryview(data)[int(offsets[0]) : int(offsets[-1])]


def text_column(values: pa.Array) -> pa.Array:
    """Strings, dictionaries, Booleans ("true", "false") and integers as one string column."""
    return values if pa.types.is_string(values.type) else values.cast(pa.string())


def texts(values: pa.Array) -> list[str]:
    """Any primitive column as Python text, "" for null; bytes as UTF-8 (else escaped), bytes of fixed size as hex."""
    if pa.types.is_fixed_size_binary(values.type):
        return ["" if v is None else v.hex() for v in values.to_pylist()]
    if _any(values.type, "binary", "large_binary"):
        return ["" if v is None else v.decode("utf-8", "backslashreplace") for v in values.to_pylist()]
    text = text_column(values)
    found: list[str] = (text.fill_null("") if text.null_count else text).to_pylist()
    return found


def milliseconds(times: pa.Array) -> Longs:
    """(n,) int64 milliseconds since the epoch, rounded down. Integers are milliseconds already.

    NO_TIME_MS for null, and for what is no date: whoever reads it later could not.
    """
    factor, divisor = 1, 1
    if pa.types.is_timestamp(times.type):
        factor, divisor = _MILLISECONDS[times.type.unit]
        times = times.view(pa.int64())
    missing = null_mask(times) if times.null_count else None
    values: Longs = (times if missing is None else times.fill_null(0)).to_numpy().astype(np.int64)
    if factor != divisor:
        values = values * factor // divisor
    values[(values < FIRST_TIME_MS) | (values > LAST_TIME_MS)] = NO_TIME_MS
    if missing is not None:
        values[missing] = NO_TIME_MS
    return values
