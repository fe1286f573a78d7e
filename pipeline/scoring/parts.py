"""Signals of parts of the stream: which categories come, which slices, and what the model says within a slice.

    category:NAME=VALUE      1 where the category feature NAME is VALUE, 0 where it is another, NaN where it is null
    category:NAME=(other)    the same for every value that has no signal, those that no vocabulary knows among them
    slice:FIELD=VALUE        1 where the slice field FIELD is VALUE, 0 where it is another or null
    score:OUTPUT@FIELD=VALUE what the model returned where FIELD is VALUE, NaN elsewhere

Names are chosen once, by the rows that a baseline is made of, and travel in it. A worker fills what they ask for; a
slice field that the settings do not name any more has no values. A field of an Avro record has no "=" in its name, so
the first one ends it; a value may have whatever it likes, and one longer than slices.TEXT_MAX is cut.

Each signal is one more comparison for the monitor, and its limit grows with their logarithm: of a model of 16 numbers
and 3 categories, 71 comparisons at |z| = 5.91, with 64 + 32 more at 6.06. A change of the same size is told 5 % later.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import OTHER, Feature, FeatureContract, Floats, Longs
from pipeline.scoring.slices import TEXT_MAX

NOTHING = np.float32(np.nan)
#: Values of one category feature. The ninth most frequent has 1/9 of the events at most; a shift among rarer ones that
#: is as large as that shows in (other).
VALUES_MAX = 8
#: Share that a value needs for a signal of its own: of 2,000 rows 20 have it, so that it is known to 22 %.
VALUE_SHARE_MIN = 0.01
#: Signals of categories in all: seven features with all of their nine. At 0.009 us each (23 of three features: 0.2)
#: they cost a worker 0.6 us an event, and a summary of 64 blocks 64 x 64 x 8 bytes = 33 kB. With more features each
#: gets fewer; of more than 32, the first 32 get two.
CATEGORY_SIGNALS_MAX = 64
#: Slices of one field, and the share that makes one: of 5 % each block of 8 values takes 160 events, and the 128 that
#: the monitor wants before it compares take 20,480.
SLICES_MAX = 4
SLICE_SHARE_MIN = 0.05
#: With more than this a slice is the whole but for what would make none: what it scores says nothing that is new.
SLICE_SHARE_MAX = 1 - SLICE_SHARE_MIN
#: Outputs watched within a slice, of many classes those that score highest: of ten classes those four have two fifths
#: of the probability at least.
SLICE_OUTPUTS_MAX = 4
#: Signals of slices in all: four fields of four slices with a share and one score each, or two of three classes. At
#: 0.026 us each (14 of two fields: 0.36), since scores within have gaps, they cost a worker 0.8 us an event.
SLICE_SIGNALS_MAX = 32

#: Names that are taken together or not at all.
Step = tuple[str, ...]


def output_columns(contract: FeatureContract) -> dict[str, int]:
    """Output as "score:" signals name it -> its column; of one column and two classes the second class's."""
    output = contract.output
    if output.width == 1 and len(output.classes) == 2:
        return {output.classes[1]: 0}
    return {name: i for i, name in enumerate(output.classes or [f"output{i}" for i in range(output.width)])}


# --------------------------------------------------------------------------- which


def part_names(
    contract: FeatureContract,
    known: Sequence[str],
    categories: Sequence[Longs],
    slices: Mapping[str, pa.Array],
    outputs: Floats,
) -> tuple[str, ...]:
    """The signals of parts for a baseline of n rows.

    known: names that it has already: what they have of scores is watched within slices. categories: of each category
    feature (n,) places in its vocabulary, as Validated has them. slices: slice field -> n texts. outputs: (m, width).
    """
    features = contract.of_kind("category")
    by_category = _rank_by_rank(
        [_category_steps(feature, codes) for feature, codes in zip(features, categories, strict=True)],
        CATEGORY_SIGNALS_MAX,
    )
    taken = {*known, *by_category}
    shared = {feature.name for feature in features if f"category:{feature.name}={OTHER}" in taken}
    scores = _scores(contract, known, outputs)
    steps = [_slice_steps(field, texts, scores, share=field not in shared) for field, texts in slices.items()]
    by_slice = _rank_by_rank(steps, SLICE_SIGNALS_MAX)
    return (*by_category, *(name for name in by_slice if name not in taken))


def _category_steps(feature: Feature, codes: Longs) -> list[Step]:
    """What one feature has to offer: its most frequent value with (other), then the next one, and so on."""
    size = len(feature.vocabulary)
    counts = np.bincount(codes[codes >= 0], minlength=size + 1)
    total = int(counts.sum())
    if not total:
        return []
    rows: Counter[str] = Counter()  # equally frequent ones stay in the order of the vocabulary
    for value, count in zip(feature.vocabulary, counts[1:].tolist(), strict=True):
        if value[:TEXT_MAX] != OTHER:
            rows[value[:TEXT_MAX]] += count
    # Of two, or of one, the last is what the others leave: (other) is then what the vocabulary does not know.
    most, least = (size - 1, 0.0) if size <= 2 else (VALUES_MAX, VALUE_SHARE_MIN * total)
    ranked = [value for value, count in rows.most_common(most) if count >= least]
    names = [f"category:{feature.name}={value}" for value in ranked]
    return [(*names[:1], f"category:{feature.name}={OTHER}"), *((name,) for name in names[1:])]


def _scores(contract: FeatureContract, known: Iterable[str], outputs: Floats) -> list[str]:
    """The scores to watch within slices, in the order of the outputs."""
    watched = {name: i for name, i in output_columns(contract).items() if f"score:{name}" in known}
    if len(watched) > SLICE_OUTPUTS_MAX and contract.output.classes and len(outputs):
        means = outputs.mean(axis=0)
        chosen = sorted(watched, key=lambda name: -float(means[watched[name]]))[:SLICE_OUTPUTS_MAX]
        return [f"score:{name}" for name in watched if name in chosen]
    return [f"score:{name}" for name in watched][:SLICE_OUTPUTS_MAX]


def _slice_steps(field: str, texts: pa.Array, scores: Sequence[str], *, share: bool) -> list[Step]:
    """What one field has to offer: its most frequent values, each with its scores, and its share if that is wanted."""
    counts = pc.value_counts(texts.drop_null())
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    ranked = sorted(((value, count / len(texts)) for value, count in pairs), key=lambda pair: (-pair[1], pair[0]))
    steps = []
    for value, part in ranked[:SLICES_MAX]:
        if part >= SLICE_SHARE_MIN:
            within = [f"{score}@{field}={value}" for score in scores] if part <= SLICE_SHARE_MAX else []
            steps.append((*([f"slice:{field}={value}"] if share else []), *within))
    return steps


def _rank_by_rank(offers: Sequence[Sequence[Step]], most: int) -> list[str]:
    """Names, `most` of them at most, by field: of each field the first step, then of each the second, and so on.

    A field of which a step is too many ends there.
    """
    taken: list[list[str]] = [[] for _ in offers]
    ended: set[int] = set()
    for rank in range(max(map(len, offers), default=0)):
        for field, steps in enumerate(offers):
            if rank >= len(steps) or field in ended:
                continue
            if sum(map(len, taken)) + len(steps[rank]) > most:
                ended.add(field)
            else:
                taken[field] += steps[rank]
    return [name for names in taken for name in names]


# --------------------------------------------------------------------------- what they are


class PartColumns:
    """Fills the columns of a matrix of signals that are of parts of the stream."""

    def __init__(self, signals: Sequence[str], contract: FeatureContract, slice_fields: Sequence[str] = ()) -> None:
        """signals: names of all columns. slice_fields: as the validator has them."""
        self._categories = [
            (index, _Category(feature, columns))
            for index, feature in enumerate(contract.of_kind("category"))
            if (columns := _named(signals, f"category:{feature.name}="))
        ]
        outputs = output_columns(contract)
        whole = {f"score:{name}" for name in outputs}
        self._slices = []
        for index, field in enumerate(slice_fields):
            shares = _named(signals, f"slice:{field}=")
            scores = [
                (value, output, column)
                for name, output in outputs.items()
                for value, column in _named(signals, f"score:{name}@{field}=").items()
                if signals[column] not in whole
            ]
            if shares or scores:
                self._slices.append((index, _Slices(shares, scores)))

    def fill(
        self,
        matrix: Floats,
        decoded_rows: Longs,
        categories: Sequence[Longs],
        slices: Sequence[pa.Array],
        scored_rows: Longs,
        outputs: Floats,
    ) -> None:
        """Write into `matrix`, (n, signals); rows and outputs as for SignalMatrix.fill.

        categories, slices: of the d decoded rows, as Validated has them; without any, nothing is known of them.
        """
        rows = None if len(decoded_rows) == len(matrix) else decoded_rows
        if categories:
            for index, category in self._categories:
                category.fill(matrix, rows, categories[index])
        if slices:
            for index, chosen in self._slices:
                chosen.fill(matrix, rows, slices[index], scored_rows, outputs)


def _named(signals: Sequence[str], prefix: str) -> dict[str, int]:
    """What follows the prefix -> its column."""
    return {name.removeprefix(prefix): i for i, name in enumerate(signals) if name.startswith(prefix)}


class _Category:
    """The signals of one category feature."""

    def __init__(self, feature: Feature, columns: Mapping[str, int]) -> None:
        values = [value for value in columns if value != OTHER]
        self._columns = np.array([columns[value] for value in (*values, *([OTHER] if OTHER in columns else []))])
        self._numbers = np.arange(len(self._columns), dtype=np.int32)[:, None]
        places = {value: place for place, value in enumerate(values)}
        # Of two values one has no signal, and is what remains when the other's and (other)'s are taken away.
        rest = len(values) if len(feature.vocabulary) > 2 else -1
        known = [places.get(value[:TEXT_MAX], rest) for value in feature.vocabulary]
        #: Code -> which of the signals is 1, -1 for none. The last is of code -1, a null.
        self._place = np.array([len(values), *known, -1], dtype=np.int32)

    def fill(self, matrix: Floats, rows: Longs | None, codes: Longs) -> None:
        found = (self._place[codes] == self._numbers).astype(np.float32)
        if codes.min(initial=0) < 0:
            found[:, codes < 0] = NOTHING
        _write(matrix, self._columns, rows, found)


class _Slices:
    """The signals of one slice field: shares (value -> column), and scores (value, output, column)."""

    def __init__(self, shares: Mapping[str, int], scores: Sequence[tuple[str, int, int]]) -> None:
        values = list(dict.fromkeys([*shares, *(value for value, _, _ in scores)]))
        self._values = pa.array(values, pa.string())
        self._columns = np.array([*shares.values()], dtype=np.int64)
        self._numbers = np.array([values.index(value) for value in shares], dtype=np.int32)[:, None]
        self._score_columns = np.array([column for _, _, column in scores], dtype=np.int64)
        self._score_outputs = np.array([output for _, output, _ in scores], dtype=np.int64)
        self._score_numbers = np.array([values.index(value) for value, _, _ in scores], dtype=np.int32)[:, None]

    def fill(self, matrix: Floats, rows: Longs | None, texts: pa.Array, scored_rows: Longs, outputs: Floats) -> None:
        places: npt.NDArray[np.int32] = pc.index_in(texts, value_set=self._values).fill_null(-1).to_numpy()
        if len(self._columns):
            _write(matrix, self._columns, rows, (places == self._numbers).astype(np.float32))
        if rows is not None:
            spread = np.full(len(matrix), -1, dtype=np.int32)
            spread[rows] = places
            places = spread
        if len(self._score_columns):
            scored = None if len(scored_rows) == len(matrix) else scored_rows
            inside = (places if scored is None else places[scored]) == self._score_numbers
            # All slices of the field at once: of 64 rows, as a slow stream has them, a call costs more than its work.
            _write(matrix, self._score_columns, scored, np.where(inside, outputs.T[self._score_outputs], NOTHING))


def _write(matrix: Floats, columns: Longs, rows: Longs | None, values: Floats) -> None:
    """Put values (columns, rows) in their place; rows: None for all of them."""
    if rows is None:
        matrix.T[columns] = values
    else:
        matrix.T[np.ix_(columns, rows)] = values
