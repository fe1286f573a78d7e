"""How fast models score: every combination of model, torch threads and batch size, in turns.

Machines are noisy for seconds at a time. So each combination gets a short turn in every round, in an order that
changes, and what is told is the median of its rounds: a busy minute hurts all alike.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.contracts import Model
from pipeline.records import Baseline, Feature, FeatureContract
from pipeline.scoring.validate import padded

Arrays = dict[str, npt.NDArray[Any]]

#: Turns that each combination gets, and at the least where single calls take long.
ROUNDS, ROUNDS_MIN = 5, 3


class Setup(NamedTuple):
    """What is measured together: which model, by its precision or name; torch threads; most rows in one call."""

    model: str
    threads: int
    batch: int


@dataclass(frozen=True, slots=True)
class Timing:
    """What a setup did in each of its turns."""

    setup: Setup
    rows_per_s: tuple[float, ...]
    #: Seconds of all threads of this process.
    cpu_s_per_million: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Rows a second, the median."""
        return float(np.median(self.rows_per_s))

    @property
    def cpu_s(self) -> float:
        """CPU seconds per million rows, the median."""
        return float(np.median(self.cpu_s_per_million))


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds: of the wall, and of this process on all cores."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


def measure(
    models: Mapping[str, Model],
    step: Sequence[Arrays],
    setups: Sequence[Setup],
    *,
    seconds: float,
    set_threads: Callable[[int], None],
    on_turn: Callable[[int, int], None] = lambda _done, _all: None,
    clocks: Clocks = Clocks(),
    seed: int = 0,
) -> list[Timing]:
    """Time all setups for about so many seconds together, one timing each, in their order.

    step: inputs of some thousand rows, one mapping for each shape: a batch is of one shape. seconds: those of the
    turns; `affordable` says which batches keep to it. on_turn: told how many turns are over, of how many; may raise.
    """
    random = np.random.default_rng(seed)
    turn_s = seconds / (ROUNDS * len(setups))
    calls = {setup: _calls(step, setup.batch, random) for setup in setups}
    first = {name: next(_calls(step, min(s.batch for s in setups), random)) for name in models}
    found: dict[Setup, list[tuple[float, float]]] = {setup: [] for setup in setups}
    deadline = clocks.wall() + seconds
    for turn in range(ROUNDS):
        if turn >= ROUNDS_MIN and clocks.wall() >= deadline:
            break
        for place, index in enumerate(random.permutation(len(setups)).tolist()):
            setup = setups[index]
            set_threads(setup.threads)
            models[setup.model].score(first[setup.model])  # another model's weights are in the caches
            found[setup].append(_turn(models[setup.model], calls[setup], turn_s, clocks))
            on_turn(turn * len(setups) + place + 1, ROUNDS * len(setups))
    return [Timing(setup, *(tuple(values) for values in zip(*found[setup], strict=True))) for setup in setups]


def _turn(model: Model, calls: Iterator[Arrays], turn_s: float, clocks: Clocks) -> tuple[float, float]:
    """Rows a second, and CPU seconds per million rows, of one call or as many as fit in."""
    rows, cpu, start = 0, clocks.cpu(), clocks.wall()
    elapsed = 0.0
    while not rows or elapsed < turn_s:
        inputs = next(calls)
        model.score(inputs)
        rows += rows_of(inputs)
        elapsed = clocks.wall() - start
    return rows / max(elapsed, 1e-9), (clocks.cpu() - cpu) / rows * 1e6


def _calls(step: Sequence[Arrays], batch: int, random: np.random.Generator) -> Iterator[Arrays]:
    """What the model is called with for the rows of a step, again and again; in any order, for shapes differ."""
    parts = list(parts_of(step, batch))
    return cycle([parts[i] for i in random.permutation(len(parts)).tolist()])


def parts_of(step: Sequence[Arrays], batch: int) -> Iterator[Arrays]:
    """The calls that a worker makes of a step: batches of one shape, the last of each shape smaller."""
    for inputs in step:
        for start in range(0, rows_of(inputs), batch):
            yield {name: array[start : start + batch] for name, array in inputs.items()}


def rows_of(inputs: Arrays) -> int:
    """How many rows the inputs of one call have."""
    return len(next(iter(inputs.values())))


def affordable(
    batches: Sequence[int], threads: Sequence[int], rates: Mapping[str, float], seconds: float
) -> tuple[int, ...]:
    """The batch sizes, ascending, of which ROUNDS_MIN rounds take no longer than `seconds`; one at the least.

    rates: rows a second of each model; for small batches, so that larger ones are not slower.
    """
    batches = sorted(batches)
    for end in range(len(batches), 1, -1):
        turn_s = seconds / (ROUNDS * end * len(threads) * len(rates))
        calls = (max(turn_s, batch / rate) for rate in rates.values() for batch in batches[:end])
        if sum(calls) * len(threads) * ROUNDS_MIN <= seconds:
            return tuple(batches[:end])
    return tuple(batches[:1])


def probe(model: Model, step: Sequence[Arrays], batch: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Rows a second in the second of two calls."""
    inputs = next(parts_of(step, batch))
    model.score(inputs)
    start = clock()
    model.score(inputs)
    return rows_of(inputs) / max(clock() - start, 1e-9)


# --------------------------------------------------------------------------- rows out of nothing


def made_up(contract: FeatureContract, baseline: Baseline, rows: int, seed: int = 0) -> list[Arrays]:
    """Inputs as the validator makes them of `rows` events, one mapping for each shape.

    Numbers are drawn from the baseline's histograms, each on its own; without one from the feature's range, else
    normal. Categories, bytes and the lengths of sequences are uniform.
    """
    random = np.random.default_rng(seed)
    dense: Arrays = {}
    if numbers := contract.of_kind("number"):
        dense["numbers"] = np.stack([_numbers(f, baseline, rows, random) for f in numbers], axis=1)
    if categories := contract.of_kind("category"):
        dense["categories"] = np.stack([random.integers(1, len(f.vocabulary) + 1, rows) for f in categories], axis=1)
    for feature in contract.of_kind("bytes"):
        dense[feature.name] = _bytes(feature, rows, random)
    sequences = contract.of_kind("sequence")
    if not sequences:
        return [dense]
    lengths = [random.integers(1, feature.shape[0] + 1, rows) for feature in sequences]
    shapes = np.stack([padded(n, f.shape[0]) for n, f in zip(lengths, sequences, strict=True)], axis=1)
    step = []
    for widths in np.unique(shapes, axis=0).tolist():
        chosen = np.flatnonzero((shapes == widths).all(axis=1))
        inputs = {name: array[chosen] for name, array in dense.items()}
        for feature, width, length in zip(sequences, widths, lengths, strict=True):
            values = _numbers(feature, baseline, len(chosen) * width, random).reshape(len(chosen), width)
            inputs[feature.name] = values * (np.arange(width) < length[chosen, None])
            inputs[f"{feature.name}_lengths"] = length[chosen]
        step.append(inputs)
    return step


def _numbers(feature: Feature, baseline: Baseline, count: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    signal = next((s for s in baseline.signals if s.name == f"feature:{feature.name}" and s.count), None)
    if signal is not None:
        shares = np.array(signal.histogram) / sum(signal.histogram)
        bins = random.choice(len(shares), count, p=shares)
        edges = np.clip(signal.edges, signal.minimum, signal.maximum)
        drawn = random.uniform(edges[bins], edges[bins + 1])
    elif feature.range is not None:
        drawn = random.uniform(*feature.range, count)
    else:
        drawn = random.standard_normal(count)
    return drawn.astype(np.float32)


def _bytes(feature: Feature, rows: int, random: np.random.Generator) -> npt.NDArray[Any]:
    shape = (rows, *feature.shape)
    if feature.dtype == "float32":
        return random.standard_normal(shape, dtype=np.float32)
    limits = np.iinfo(feature.dtype)
    return random.integers(limits.min, limits.max, shape, dtype=feature.dtype, endpoint=True)
