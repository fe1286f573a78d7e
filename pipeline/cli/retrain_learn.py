"""From the data of a retraining to a trained module: rows through the validator, then the recipe of the settings."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.cli.retrain_data import Data, Show
from pipeline.cli.retrain_log import SENDER
from pipeline.cli.training import ARCHITECTURE
from pipeline.errors import ContractError, DataError
from pipeline.models import loading
from pipeline.models.bundle import Bundle
from pipeline.models.manifest import Architecture
from pipeline.records import Decoded, FeatureContract
from pipeline.retraining import recipes, split, window
from pipeline.retraining.recipes import Job, Trained
from pipeline.retraining.targets import Target
from pipeline.retraining.train import Recipe
from pipeline.scoring.slices import fitting
from pipeline.scoring.validate import Validated, Validator
from pipeline.settings import Settings


class Learner:
    """Validates the rows under one contract after another, and trains."""

    def __init__(self, settings: Settings, parent: Bundle, data: Data, seed: int, show: Show) -> None:
        self._settings, self._parent, self._data, self._show = settings, parent, data, show
        chosen = settings.retraining
        self._recipe = Recipe(
            validation_share=chosen.newest_share,
            stopping_share=chosen.stopping_share,
            learning_rate=chosen.learning_rate,
            epochs_max=chosen.epochs_max,
            patience=chosen.patience,
            seed=seed,
        )
        events = [name for name in data.rows.column_names if name not in window.FACTS.names and name != SENDER]
        self._events = data.rows.select(events).combine_chunks()
        #: Of the settings' those that the events have; a worker says what is wrong with others.
        self.slice_fields = fitting(self._events.schema, settings.events.slice_fields)
        #: Rows to learn from whose label is of a class that the model does not know.
        self.rows_unknown = 0
        #: Rows that the validator refused.
        self.rows_refused = 0

    def train(self) -> tuple[Trained, dict[str, Any]]:
        """A successor's module, and the recipe as plain data. Raises DataError, ContractError."""
        chosen = self._settings.retraining
        tabular = self._parent.architecture.module == ARCHITECTURE
        anew = chosen.start == "fresh" and tabular and chosen.train is None
        contract = self._parent.contract
        if anew:
            learnt = self._data.rows.take(pa.array(self._data.learnt))
            contract = recipes.renewed(contract, learnt, learnt.column(window.LABEL))
        job = self._job(contract)
        augment = None if chosen.augment is None else recipes.own(chosen.augment)
        if chosen.train is not None:
            name, trained = chosen.train, recipes.by_own(chosen.train, recipes.own(chosen.train), job)
        elif anew:
            name, trained = "fresh", recipes.fresh_tabular(job, _maker(self._parent), augment)
        elif chosen.start == "fresh":
            name, trained = "fresh", recipes.fresh(job, _maker(self._parent), augment)
        else:
            name, trained = "fine-tune", recipes.warm(job, augment)
        trained = replace(trained, contract=trained.contract or contract)
        told = {**asdict(self._recipe), "augment": chosen.augment, "replay_share": chosen.replay_share}
        return trained, {"name": name, **told, "hidden": list(self._recipe.hidden), "epochs": trained.epochs}

    def _job(self, contract: FeatureContract) -> Job:
        """What there is to learn from under a contract: rows that are valid and have a label it knows."""
        checked = self.validated(contract)
        arrays, kept = recipes.merged(checked.inputs)
        self.rows_refused = self._data.rows.num_rows - len(kept)
        truth = recipes.truth(self._data.rows, contract.output, window.LABEL, window.VALUE)
        known = kept[truth[kept] >= 0] if contract.output.kind == "classification" else kept
        fit, stopping = (np.intersect1d(part, known) for part in (self._data.learnt, self._data.stopping))
        of_parts = len(np.intersect1d(np.concatenate([self._data.learnt, self._data.stopping]), kept))
        self.rows_unknown = of_parts - len(fit) - len(stopping)
        if len(fit) < split.ROWS_MIN // 2 or not len(stopping):
            raise DataError(
                f"{len(fit):,} events to learn from and {len(stopping):,} to stop by are left: of "
                f"{self._data.rows.num_rows:,}, {self.rows_refused:,} break the feature contract and "
                f"{self.rows_unknown:,} have a label that the model does not know"
            )
        rows = np.concatenate([fit, stopping])
        recipes.check_learnable(truth[fit], contract.output)
        at = np.searchsorted(kept, rows)
        return Job(
            rows=self._data.rows.take(pa.array(rows)),
            rows_fit=len(fit),
            inputs={name: array[at] for name, array in arrays.items()},
            target=Target(contract.output.kind, contract.output.classes, truth[rows]),
            contract=contract,
            module=loading.load_module(self._parent),
            arguments=self._parent.architecture.arguments,
            recipe=self._recipe,
            progress=lambda epoch, most, loss: self._show(f"training (loss {loss:.4g})", epoch, most),
        )

    def validated(self, contract: FeatureContract) -> Validated:
        """What the validator says of all rows. Raises DataError if it refuses every one."""
        columns = self._events.to_batches()[0]
        id_field = self._settings.events.id_field
        validator = Validator(contract, id_field=id_field, time_field=None, slice_fields=self.slice_fields)
        checked = validator.validate(Decoded(columns, np.arange(columns.num_rows, dtype=np.int64), []))
        if not checked.inputs:
            raise DataError(f"none of the {columns.num_rows:,} labelled events fits the feature contract")
        return checked


def _maker(parent: Bundle) -> Callable[..., Any]:
    """Makes modules of the parent's architecture with other arguments, untrained."""
    return lambda **arguments: loading.build(parent.architecture.model_copy(update={"arguments": arguments}))


def architecture_of(trained: Trained, name: str) -> Architecture:
    """How the module is made again. Raises ContractError where it cannot be: a class inside a function, no JSON."""
    kind = type(trained.module)
    path = f"{kind.__module__}:{kind.__qualname__}"
    try:
        return Architecture(module=path, arguments=dict(trained.arguments))
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        raise ContractError(f"{name}: {path} with {dict(trained.arguments)} cannot be made again: {told}") from None
