"""Columns of a table to the features of a model.

Ranges are left open: a value never seen in training is for the drift monitor to notice, not for a dead letter,
and the built-in architectures clip what is far out.
"""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Feature, NullPolicy

#: Column -> (Avro field, Avro type, whether null may occur).
Fields = Mapping[str, tuple[str, str, bool]]

#: Categories a vocabulary holds, the most frequent; rarer ones are "unknown" in training as in production.
VOCABULARY_MAX = 1000


def infer(rows: pa.Table, columns: Iterable[str], fields: Fields) -> tuple[Feature, ...]:
    """The features of `columns`, in their order, judged by `rows`: the part of the data that is trained on.

    Text is a category, everything else a number. Where null may occur it is replaced by the median or the
    most frequent category of `rows`; elsewhere it is refused.
    """
    return tuple(_feature(rows.column(column), *fields[column]) for column in columns)


def _feature(column: pa.ChunkedArray, name: str, avro_type: str, nullable: bool) -> Feature:
    on_null: NullPolicy = "impute" if nullable else "reject"
    if avro_type == "string":
        vocabulary = _vocabulary(column)
        return Feature(
            name,
            "category",
            vocabulary=vocabulary,
            on_null=on_null,
            impute=vocabulary[0] if nullable and vocabulary else None,
        )
    return Feature(name, "number", on_null=on_null, impute=_median(column) if nullable else None)


def _vocabulary(column: pa.ChunkedArray) -> tuple[str, ...]:
    """Distinct texts, the most frequent first, equally frequent ones by name."""
    counts = pc.value_counts(column.cast(pa.string()).drop_null().combine_chunks())
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:VOCABULARY_MAX]
    # A category needs one word at least; a column that is empty so far gets one that never comes.
    return tuple(text for text, _ in ranked) or ("",)


def _median(column: pa.ChunkedArray) -> float:
    """The middle of the finite values; 0 if there are none."""
    values = column.cast(pa.float64(), safe=False)
    finite = values.filter(pc.is_finite(values))
    found = pc.quantile(finite, 0.5, interpolation="lower")[0].as_py()
    return 0.0 if found is None else float(found)
