"""The signals of categories and slices against a reference that goes through events one by one."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import Decoded, Feature, FeatureContract, OutputContract, Reject
from pipeline.scoring.parts import OTHER
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.slices import TEXT_MAX
from pipeline.scoring.validate import Validator

WORDS = ("a", "b", "a=b", "@s=a", OTHER, "", "é\n", "x" * (TEXT_MAX + 1), "x" * (TEXT_MAX + 2))
OUTPUT = OutputContract("classification", 2, ("no", "yes@s=a"))
TEXTS = st.one_of(st.none(), st.sampled_from(WORDS))


@st.composite
def streams(draw: st.DrawFn) -> tuple[FeatureContract, list[dict[str, Any]]]:
    """A contract of two categories, and events: what could be read of them, what of that could be scored."""
    features = tuple(
        Feature(
            name,
            "category",
            vocabulary=(words := tuple(draw(st.lists(st.sampled_from(WORDS), min_size=1, unique=True)))),
            on_null=draw(st.sampled_from(["reject", "impute"])),
            impute=draw(st.sampled_from([None, words[0]])),
            on_unknown=draw(st.sampled_from(["reject", "unknown"])),
        )
        for name in ("c", "d")
    )
    event = st.fixed_dictionaries(
        {"c": TEXTS, "d": TEXTS, "s": TEXTS, "read": st.booleans(), "finite": st.booleans(), "yes": st.integers(0, 9)}
    )
    return FeatureContract(features, OUTPUT), draw(st.lists(event, min_size=1, max_size=12))


def names_of(words: tuple[str, ...]) -> list[str]:
    values = dict.fromkeys(word[:TEXT_MAX] for word in words)
    return [
        *(f"category:{name}={value}" for name in "cd" for value in values if value != OTHER),
        *(f"category:{name}={OTHER}" for name in "cd"),
        *(f"slice:s={value}" for value in values),
        *(f"score:{name}@s={value}" for name in OUTPUT.classes for value in values),
    ]


def expected(name: str, names: list[str], contract: FeatureContract, event: dict[str, Any], scored: bool) -> float:
    """One signal of one event."""
    if name.startswith("score:"):
        whole = {f"score:{one}": i for i, one in enumerate(OUTPUT.classes)}
        column, inside = next(
            (i, name == f"{score}@s={event['s'][:TEXT_MAX]}" if event["s"] is not None else False)
            for score, i in whole.items()
            if name.startswith(f"{score}@s=")
        )
        return (event["yes"] / 16, event["yes"] / 32)[column] if scored and inside else np.nan
    if not event["read"]:
        return np.nan
    if name.startswith("slice:"):
        return float(event["s"] is not None and name == f"slice:s={event['s'][:TEXT_MAX]}")
    field = name[len("category:")]
    value, vocabulary = event[field], next(f.vocabulary for f in contract.features if f.name == field)
    if value is None:
        return np.nan
    own = f"category:{field}={value[:TEXT_MAX]}"
    known = value in vocabulary
    has_own = known and own in names and value[:TEXT_MAX] != OTHER
    if name.endswith(f"={OTHER}"):
        return float(not known or (not has_own and len(vocabulary) > 2))
    return float(has_own and name == own)


@settings(max_examples=300, deadline=None)
@given(streams(), st.sets(st.integers(0, 60)))
def test_a_batch_is_filled_as_its_events_one_by_one(
    stream: tuple[FeatureContract, list[dict[str, Any]]], left_out: set[int]
) -> None:
    """Whatever values are called, whichever signals are asked for, whatever could not be read, used or scored."""
    contract, events = stream
    names = [name for i, name in enumerate(names_of(WORDS)) if i not in left_out]
    n, decoded = len(events), np.array([i for i, e in enumerate(events) if e["read"]], dtype=np.int64)
    read = [events[i] for i in decoded.tolist()]
    columns = {name: pa.array([e[name] for e in read], pa.string()) for name in "cds"}
    batch = pa.RecordBatch.from_pydict({"id": pa.array(["1"] * len(read), pa.string()), **columns})
    nothing = list[Reject]()
    checked = Validator(contract, id_field="id", time_field=None, slice_fields=("s",)).validate(
        Decoded(batch, decoded, nothing)
    )
    refused = {reject.row for reject in checked.rejects}
    scored = np.array([i for i in decoded.tolist() if i not in refused and events[i]["finite"]], dtype=np.int64)
    yes = np.array([events[i]["yes"] for i in scored.tolist()], dtype=np.float32)
    outputs = np.stack([yes / 16, yes / 32], axis=1)
    matrix = SignalMatrix(names, contract, ("s",)).fill(
        n, decoded, checked.numbers, checked.nulls, scored, outputs, None, checked.categories, checked.slice_texts
    )
    reference = [[expected(name, names, contract, e, i in scored) for name in names] for i, e in enumerate(events)]
    np.testing.assert_array_equal(matrix, np.array(reference, dtype=np.float32).reshape(n, len(names)))
