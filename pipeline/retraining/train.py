"""The built-in recipe: one multilayer perceptron on numbers and categories.

Rows are in order of time and stay so:

    |------------ fitted ------------|-- stopping --|------ validation ------|
    0                              70 %           80 %                     100 %

The newest fifth is never looked at before the end. The slice before it says when to stop: under drift a model
is worth what it is worth on the newest rows. Only the fitted part is shuffled.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import DataError
from pipeline.records import FeatureContract
from pipeline.retraining.targets import Target
from pipeline.retraining.warm import restandardise

#: The class of the environment that `fit` makes; it is handed in, so that this room needs no other.
MakeModule = Callable[..., nn.Module]
#: Epoch (from 1), most epochs, loss on the stopping slice.
Progress = Callable[[int, int, float], None]

#: Rows it takes to say anything at all: ten for validation, five to stop on.
ROWS_MIN = 50
#: Steps an epoch, about: with it, effort does not grow with the data. 60 epochs are 15,000 steps of ~0.5 ms.
STEPS_PER_EPOCH = 256
BATCH_MIN, BATCH_MAX = 32, 8192
#: A batch (inputs, goal, a generator of its own) as it is to be learnt instead: the same keys and dtypes.
Augment = Callable[[dict[str, Tensor], Tensor, torch.Generator], tuple[dict[str, Tensor], Tensor]]
#: Share of categories shown as "unknown" in training, so that this embedding learns what is usual.
UNKNOWN_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the outcome, beside the rows."""

    validation_share: float = 0.2
    #: Of the rows before validation.
    stopping_share: float = 0.125
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    epochs_max: int = 60
    #: Epochs without a better stopping loss before it ends.
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A module with the best weights seen, and what it was made with."""

    module: nn.Module
    arguments: dict[str, Any]
    epochs: int


def split(rows: int, recipe: Recipe) -> tuple[int, int]:
    """(rows to fit, rows before validation). Raises DataError for too few rows."""
    if rows < ROWS_MIN:
        raise DataError(f"{rows} rows with a label; it takes at least {ROWS_MIN} to train and measure a model")
    train = rows - max(1, round(rows * recipe.validation_share))
    return train - max(1, round(train * recipe.stopping_share)), train


def fit(
    make_module: MakeModule,
    inputs: Mapping[str, npt.NDArray[Any]],
    target: Target,
    contract: FeatureContract,
    rows_fit: int,
    recipe: Recipe,
    progress: Progress = lambda _epoch, _most, _loss: None,
    augment: Augment | None = None,
) -> Fitted:
    """Fit on the first `rows_fit` rows of `inputs`, stop by the rest.

    inputs: "numbers" and "categories" as a module takes them, in order of time, validation left out; `target`
    likewise. make_module: a class with the arguments of models.architectures.TabularMLP. The same rows and
    recipe give the same weights on the same machine; torch runs on one thread meanwhile.
    """
    arguments = {
        "numbers": len(contract.of_kind("number")),
        "categories": [len(f.vocabulary) for f in contract.of_kind("category")],
        "hidden": list(recipe.hidden),
        "outputs": contract.output.width,
        "rescale": target.task == "regression",
    }
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = make_module(**arguments)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        goal = torch.from_numpy(target.values)
        _standardise(module, tensors, goal, rows_fit, target)
        loss = _Loss(target, rows_fit)
        return Fitted(module, arguments, _descend(module, tensors, goal, rows_fit, loss, recipe, progress, augment))


def fine_tune(
    module: nn.Module,
    inputs: Mapping[str, npt.NDArray[Any]],
    target: Target,
    rows_fit: int,
    recipe: Recipe,
    progress: Progress = lambda _epoch, _most, _loss: None,
    augment: Augment | None = None,
    *,
    keep_first: bool = True,
) -> int:
    """Train a module that is there already, on the first `rows_fit` rows, stop by the rest; epochs to its best.

    module: of any architecture, changed in place. inputs: as it takes them; sequences padded to one length.
    keep_first: 0 epochs and the weights as they were, if none did better on the stopping slice; else the weights are
    new ones, and the first epoch is better than none. What standardises numbers is set anew (warm.py).
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        goal = torch.from_numpy(target.values)
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        restandardise(module, tensors, goal, rows_fit, regression=target.task == "regression")
        loss = _Loss(target, rows_fit)
        return _descend(module, tensors, goal, rows_fit, loss, recipe, progress, augment, keep_first=keep_first)


def _descend(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    goal: Tensor,
    rows_fit: int,
    loss: "_Loss",
    recipe: Recipe,
    progress: Progress,
    augment: Augment | None = None,
    *,
    keep_first: bool = False,
) -> int:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) until the stopping loss gets no better."""
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    batch = int(np.clip(2 ** round(np.log2(max(rows_fit / STEPS_PER_EPOCH, 1))), BATCH_MIN, BATCH_MAX))
    stopping = {name: tensor[rows_fit:] for name, tensor in tensors.items()}
    best, best_epoch, best_state, epoch = float("inf"), 0, _state(module), 0
    if keep_first:
        first = _stopping_loss(module, stopping, goal[rows_fit:], loss)
        best = first if np.isfinite(first) else best
    for epoch in range(1, recipe.epochs_max + 1):
        module.train()
        for rows in torch.split(torch.randperm(rows_fit), batch):
            part = {name: tensor[rows] for name, tensor in tensors.items()}
            if "categories" in part:
                codes = part["categories"]
                part["categories"] = codes.masked_fill(torch.rand(codes.shape) < UNKNOWN_SHARE, 0)
            part, wanted = (part, goal[rows]) if augment is None else augment(part, goal[rows], generator)
            optimiser.zero_grad()
            torch.autograd.backward(loss.weighted(module(part), wanted))
            optimiser.step()
        now = _stopping_loss(module, stopping, goal[rows_fit:], loss)
        progress(epoch, recipe.epochs_max, now)
        if now < best:
            best, best_epoch, best_state = now, epoch, _state(module)
        elif epoch - best_epoch >= recipe.patience:
            break
    if best_epoch == 0 and not np.isfinite(best):
        raise DataError("training came to no finite loss; look for huge values among the features or the label")
    module.load_state_dict(best_state)
    module.eval()
    return best_epoch


def _stopping_loss(module: nn.Module, stopping: Mapping[str, Tensor], goal: Tensor, loss: "_Loss") -> float:
    module.eval()
    with torch.inference_mode():
        return loss.plain(module(stopping), goal)


class _Loss:
    """Cross-entropy, or the squared error in units of the target's variance.

    Classes weigh the square root of how much rarer they are than the mean: enough not to be ignored, and not so
    much that their probabilities mean nothing. On NASA's Shuttle data (7 % anomalies, two seeds) the log loss is
    0.0030 without weights, 0.0023 so, 0.0030 with classes made equal; balanced accuracy 0.994, 0.996, 0.997.
    """

    def __init__(self, target: Target, rows_fit: int) -> None:
        values = target.values[:rows_fit]
        self._regression = target.task == "regression"
        self._binary = len(target.classes) == 2
        if self._regression:
            self._deviation = float(values.std()) or 1.0
        else:
            counts = np.bincount(values[values >= 0], minlength=len(target.classes))
            weights = np.sqrt(counts.sum() / len(counts) / np.maximum(counts, 1))
            self._weights = torch.from_numpy(weights.astype(np.float32))

    def weighted(self, outputs: Tensor, goal: Tensor) -> Tensor:
        """What training makes small."""
        if self._regression:
            return self._squared_error(outputs, goal)
        if self._binary:
            weights = self._weights[goal]
            return functional.binary_cross_entropy_with_logits(outputs[:, 0], goal.float(), weights)
        return functional.cross_entropy(outputs, goal, self._weights)

    def plain(self, outputs: Tensor, goal: Tensor) -> float:
        """What stopping goes by: every row counts the same."""
        if self._regression:
            return float(self._squared_error(outputs, goal))
        if self._binary:
            return float(functional.binary_cross_entropy_with_logits(outputs[:, 0], goal.float()))
        return float(functional.cross_entropy(outputs, goal))

    def _squared_error(self, outputs: Tensor, goal: Tensor) -> Tensor:
        # Divided before it is squared: the square of a large target is no float32.
        return ((outputs[:, 0] - goal.float()) / self._deviation).square().mean()


def _standardise(module: nn.Module, tensors: Mapping[str, Tensor], goal: Tensor, rows_fit: int, target: Target) -> None:
    """Set the buffers of the preprocessing by the fitted part; sums in float64, which float32 would lose."""
    standardise: Any = getattr(module, "standardise", None)
    if standardise is not None:
        numbers = tensors["numbers"][:rows_fit].double()
        standardise.set(numbers.mean(0).float(), numbers.std(0, correction=0).float())
    if target.task == "regression":
        rescale: Any = module.rescale
        fitted = goal[:rows_fit].double()
        rescale.mean.fill_(float(fitted.mean()))
        rescale.scale.fill_(float(fitted.std(correction=0)) or 1.0)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """For small layers more threads cost more than they give, and sums must come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
