"""Slices: fields of the event whose values travel with its prediction, so that quality can be told per value.

A slice never costs an event its prediction: a null is left out, a long value is cut.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.scoring import fields

#: Longest value, in characters. It becomes a label of metrics, for which the names of categories are meant; free text
#: that got here by mistake must not swell every prediction: 128 characters are at most 512 bytes.
TEXT_MAX = 128


def schema_faults(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """One line per slice field that `schema` lacks or has with a type that makes no slices."""
    faults = []
    for name in names:
        try:
            _, found = fields.locate(schema, name)
        except KeyError as error:
            missing = f"the event schema has no field {error.args[0]!r} there; it has {', '.join(schema.names)}"
            faults.append(f"events.slice_fields {name}: {missing}")
            continue
        if not fields.has_text(found):
            mend = "name a string, enum, boolean, int or long, such as the band that the value is in"
            faults.append(f"events.slice_fields {name}: a field of type {found} makes no slices; {mend}")
    return faults


def no_slices(n: int) -> pa.MapArray:
    """N empty maps."""
    nothing = pa.array([], pa.string())
    return pa.MapArray.from_arrays(np.zeros(n + 1, dtype=np.int32), nothing, nothing)


def fitting(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Those of `names` that are fields of `schema` and make slices."""
    return [name for name in names if not schema_faults(schema, [name])]


def slice_maps(names: Sequence[str], texts: Sequence[pa.Array]) -> pa.MapArray:
    """N maps of name -> value, in the order of `names`, from the values as `short_text` gives them, n a name."""
    n = len(texts[0])
    # Of texts laid end to end, that of field f and row r is at f * n + r. Row by row:
    places = np.arange(len(texts) * n).reshape(len(texts), n).T
    known = np.stack([~fields.null_mask(text) for text in texts])
    offsets = np.zeros(n + 1, dtype=np.int32)
    np.cumsum(known.sum(axis=0), out=offsets[1:])
    places = places.ravel() if known.all() else places[known.T]
    keys = pa.array(names, pa.string()).take(pa.array(places // n))
    return pa.MapArray.from_arrays(offsets, keys, pa.concat_arrays(texts).take(pa.array(places)))


def short_text(column: pa.Array) -> pa.Array:
    """A field's values as text, each cut to TEXT_MAX characters; null where they are."""
    text = fields.text_column(column)
    # A character has a byte or more: where no value has more bytes than that, none is too long.
    longest = pc.max(pc.binary_length(text)).as_py() or 0
    return text if longest <= TEXT_MAX else pc.utf8_slice_codeunits(text, 0, TEXT_MAX)
