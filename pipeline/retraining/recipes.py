"""What makes a successor of a model out of labelled events: the built-in recipe, or a function of the user's own.

A function of your own, named by `retraining.train` as "my.module:function":

    def train(job: Job) -> Trained: ...

It is called once, in a process of its own. It may learn from all rows of the job, and is judged on newer ones that it
never sees. It returns a module that can be made again: `type(module)(**arguments)`, of an importable module, takes
its state_dict; what it takes and returns is the job's contract, or the one returned with it.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from pipeline.errors import ContractError, DataError, PipelineError
from pipeline.records import Feature, FeatureContract, ModelInputs, OutputContract
from pipeline.retraining import targets
from pipeline.retraining.features import VOCABULARY_MAX
from pipeline.retraining.targets import Target
from pipeline.retraining.train import Augment, MakeModule, Progress, Recipe, fine_tune, fit

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """What there is to learn from: n rows in order of event time, each used by the validator's leave."""

    #: The fields of the events, and what window.FACTS names beside them.
    rows: pa.Table
    #: The first rows are to be learnt from, the others say when to stop.
    rows_fit: int
    #: What the parent's module takes, row for row; sequences padded to one length.
    inputs: Arrays
    #: What is to be learnt, under the parent's contract: class indices or numbers, n of them.
    target: Target
    #: Features and output of the parent.
    contract: FeatureContract
    #: The parent, to go on from: a copy of its own, on the CPU, with gradients.
    module: nn.Module
    #: What the parent's class was made with.
    arguments: Mapping[str, Any]
    #: Seed, shares, steps. The same job and recipe should give the same weights.
    recipe: Recipe
    #: To be told epoch (from 1), most epochs, loss: shown to whoever waits.
    progress: Progress


@dataclass(frozen=True, slots=True)
class Trained:
    """A module in evaluation mode, and what it takes to make it again."""

    module: nn.Module
    arguments: Mapping[str, Any]
    #: None: the parent's.
    contract: FeatureContract | None = None
    epochs: int = 0


Train = Callable[[Job], Trained]


def warm(job: Job, augment: Augment | None = None) -> Trained:
    """Built in: go on from the parent's weights, whatever its architecture; they stay if nothing does better."""
    epochs = fine_tune(job.module, job.inputs, job.target, job.rows_fit, job.recipe, job.progress, augment)
    return Trained(job.module, job.arguments, epochs=epochs)


def fresh(job: Job, make_module: MakeModule, augment: Augment | None = None) -> Trained:
    """Built in: new weights of the parent's architecture under the job's contract (see `renewed`)."""
    module = make_module(**job.arguments)
    epochs = fine_tune(
        module, job.inputs, job.target, job.rows_fit, job.recipe, job.progress, augment, keep_first=False
    )
    return Trained(module, job.arguments, epochs=epochs)


def fresh_tabular(job: Job, make_module: MakeModule, augment: Augment | None = None) -> Trained:
    """Built in, for TabularMLP: new weights, and as many categories and outputs as the job's contract has."""
    hidden = tuple(job.arguments.get("hidden", job.recipe.hidden))
    recipe = replace(job.recipe, hidden=hidden)
    made = fit(make_module, job.inputs, job.target, job.contract, job.rows_fit, recipe, job.progress, augment)
    return Trained(made.module, made.arguments, epochs=made.epochs)


def own(name: str) -> Any:
    """The function that "my.module:function" names. Raises ContractError."""
    path, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(path), attribute, None)
    except Exception as error:
        raise ContractError(f"{name}: cannot be imported: {_told(error)}") from error
    if not callable(found):
        raise ContractError(f"{name}: {path} has no function {attribute}")
    return found


def by_own(name: str, train: Train, job: Job) -> Trained:
    """What a function of the user's own makes of a job. Raises ContractError for what it must not return or raise."""
    try:
        trained = train(job)
    except PipelineError:
        raise
    except Exception as error:
        raise ContractError(f"{name}: failed: {_told(error)}") from error
    if not isinstance(trained, Trained) or not isinstance(trained.module, nn.Module):
        raise ContractError(f"{name}: returned {type(trained).__name__}, not a Trained with a torch module")
    trained.module.eval()
    return trained


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# --------------------------------------------------------------------------- contract, truth, inputs


def truth(rows: pa.Table, output: OutputContract, label: str, value: str) -> npt.NDArray[Any]:
    """(n,) class indices, -1 for a class that the model does not know; or numbers. label, value: columns."""
    if output.kind == "regression":
        found: npt.NDArray[Any] = rows.column(value).to_numpy()
        return found
    classes = pa.array(output.classes, pa.string())
    indices: npt.NDArray[Any] = pc.index_in(rows.column(label), value_set=classes).fill_null(-1).to_numpy()
    return indices.astype(np.int64)


def check_learnable(truth: npt.NDArray[Any], output: OutputContract) -> None:
    """Raises DataError where the rows to fit have one class or one value only: nothing can be learnt of that."""
    distinct = np.unique(truth)
    if len(distinct) > 1:
        return
    what = f"class {output.classes[int(distinct[0])]!r}" if output.kind == "classification" else f"{distinct[0]:g}"
    raise DataError(f"the label of all {len(truth):,} events to train on is {what}; nothing can be learnt of that")


def renewed(contract: FeatureContract, rows: pa.Table, labels: pa.ChunkedArray) -> FeatureContract:
    """The contract of a model made anew: vocabularies, values for missing ones and classes by the rows to fit.

    Features, their order and their policies stay; a field of a record inside the event keeps all it has.
    """
    features = tuple(_renewed(f, rows.column(f.name)) if f.name in rows.column_names else f for f in contract.features)
    if contract.output.kind == "regression":
        return FeatureContract(features, contract.output)
    return FeatureContract(features, targets.infer(labels, len(labels), "outcomes", "classification").output())


def _renewed(feature: Feature, column: pa.ChunkedArray) -> Feature:
    if feature.kind == "category":
        counts = pc.value_counts(column.cast(pa.string()).drop_null().combine_chunks()).to_pylist()
        ranked = sorted(counts, key=lambda pair: (-pair["counts"], pair["values"]))[:VOCABULARY_MAX]
        vocabulary = tuple(pair["values"] for pair in ranked) or feature.vocabulary
        impute = feature.impute if feature.impute is None or feature.impute in vocabulary else vocabulary[0]
        return replace(feature, vocabulary=vocabulary, impute=impute)
    if feature.kind == "number" and feature.on_null == "impute":
        values = column.cast(pa.float64(), safe=False)
        median = pc.quantile(values.filter(pc.is_finite(values)), 0.5, interpolation="lower")[0].as_py()
        return feature if median is None else replace(feature, impute=float(median))
    return feature


def merged(inputs: Sequence[ModelInputs]) -> tuple[Arrays, npt.NDArray[np.int64]]:
    """Inputs of several shapes as one mapping in the order of their rows, and those rows' numbers.

    Sequences are padded with zeros to the longest; "<name>_lengths" says where each ends, as in a batch.
    """
    rows = np.concatenate([part.rows for part in inputs])
    order = np.argsort(rows, kind="stable")
    arrays = {}
    for name in inputs[0].arrays:
        parts = [part.arrays[name] for part in inputs]
        if parts[0].ndim == 2 and len({part.shape[1] for part in parts}) > 1:
            longest = max(part.shape[1] for part in parts)
            parts = [np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts]
        arrays[name] = np.concatenate(parts)[order]
    return arrays, rows[order]
