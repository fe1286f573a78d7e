"""The same rows through two models: what either cannot score is left out for both, and counted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.cli.evaluate_scoring import Outcome, Rows, Scorer, _Parts
from pipeline.cli.evaluate_source import Source
from pipeline.errors import DataError
from pipeline.records import Longs
from pipeline.retraining.latency import Arrays
from pipeline.scoring.validate import Validated

#: Batches kept to time the models on: a few thousand rows that neither has in its cache by heart.
BATCHES_MAX = 4

Batch = tuple[list[Arrays], list[Arrays]]


@dataclass
class Both:
    """What two models made of the same events."""

    champion: Rows
    challenger: Rows
    #: Events that only one of them could score.
    champion_only: int
    challenger_only: int
    #: Inputs of both for the same events, as `retraining.latency.measure_latency` takes them.
    batches: list[Batch] = field(default_factory=list)


def score_both(
    source: Source,
    scorers: tuple[Scorer, Scorer],
    label: str,
    slices: list[str],
    batch_max: int,
    on_read: Callable[[int], None] = lambda _rows: None,
) -> Both:
    """Read everything once, score it with champion and challenger, put it in order of time.

    Raises DataError when there is no event that both can score, or none of those has a truth.
    """
    parts = tuple(_Parts(scorer.model, label, slices, scorer.matrix(())) for scorer in scorers)
    alone, batches = [0, 0], list[Batch]()
    for chunk in source.chunks():
        outcomes = [scorer.score(chunk.values) for scorer in scorers]
        common = np.intersect1d(outcomes[0].scored_rows, outcomes[1].scored_rows, assume_unique=True)
        for which, (part, outcome) in enumerate(zip(parts, outcomes, strict=True)):
            alone[which] += len(outcome.scored_rows) - len(common)
            part.add(chunk, _restricted(outcome, common), timed=source.timed)
        if not batches:
            left, right = outcomes
            numbers = left.decoded.rows, right.decoded.rows
            batches = list(batches_of((left.checked, right.checked), numbers, common, batch_max))
        on_read(parts[0].read)
    if not batches:
        told = "; ".join(f"{reason}: {message}" for part in parts for reason, message in part.examples.items())
        raise DataError(f"none of the {parts[0].read:,} events could be scored by both models ({told})")
    champion, challenger = (part.joined() for part in parts)
    return Both(champion, challenger, alone[0], alone[1], batches)


def _restricted(outcome: Outcome, rows: Longs) -> Outcome:
    """The same with the outputs of some rows only."""
    return replace(outcome, scored_rows=rows, outputs=outcome.outputs[np.searchsorted(outcome.scored_rows, rows)])


def batches_of(
    checked: tuple[Validated, Validated], numbers: tuple[Longs, Longs], rows: Longs, batch_max: int
) -> Iterator[Batch]:
    """Full batches of the events that both score, BATCHES_MAX at most; one that is not full if there is no other.

    numbers: of each of the two, the number of each of its column rows. rows: the events, by these numbers.
    """
    full = len(rows) // batch_max * batch_max or len(rows)
    for start in range(0, min(full, BATCHES_MAX * batch_max), batch_max):
        part = rows[start : start + batch_max]
        yield _inputs(checked[0], numbers[0], part), _inputs(checked[1], numbers[1], part)


def _inputs(checked: Validated, numbers: Longs, rows: Longs) -> list[Arrays]:
    """What the model is called with for some rows, one mapping for each shape they have."""
    found = list[Arrays]()
    for inputs in checked.inputs:
        chosen = np.isin(numbers[inputs.rows], rows)
        if chosen.any():
            found.append({name: array[chosen] for name, array in inputs.arrays.items()})
    return found
