"""A warm start on data that has moved: preprocessing set anew, and the layer after it so that the model stays the same.

With x standardised as (x - m) / s, a linear layer W, b on it gives the same for statistics m', s' with

    W' = W s' / s        b' = b + W (m' - m) / s

so training goes on from what the model knows, with inputs near 0 and 1 again where the optimiser works best.
Beyond CLIP_SD of its old deviations a model has never seen a feature move, and its weight there means nothing: such a
feature keeps its weight in units of the new deviation.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: As architectures.CLIP_SD: what lay beyond was clipped.
CLIP_SD = 8.0


def restandardise(
    module: nn.Module, tensors: Mapping[str, Tensor], goal: Tensor, rows_fit: int, *, regression: bool
) -> None:
    """Set the buffers of a multilayer perceptron (`standardise`, `rescale`) by the first `rows_fit` rows.

    Any other module stays as it is: convolutions pad with zeros, which mean the mean, so no such change is exact.
    """
    layers: Any = getattr(module, "layers", None)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)] if isinstance(layers, nn.Sequential) else []
    if not linear:
        return
    with torch.no_grad():
        standardise: Any = getattr(module, "standardise", None)
        if standardise is not None and "numbers" in tensors and standardise.mean.dim() == 1:
            _inputs(standardise, linear[0], tensors["numbers"][:rows_fit].double())
        rescale: Any = getattr(module, "rescale", None)
        if regression and hasattr(rescale, "scale"):
            _outputs(rescale, linear[-1], goal[:rows_fit].double())


def _inputs(standardise: Any, first: nn.Linear, numbers: Tensor) -> None:
    mean, scale = standardise.mean.double(), standardise.scale.double()
    deviation = numbers.std(0, correction=0)
    varies = deviation > 0  # a feature that stands still now says nothing of how it moves
    new_mean, new_scale = torch.where(varies, numbers.mean(0), mean), torch.where(varies, deviation, scale)
    standardise.set(new_mean.float(), new_scale.float())
    shift, ratio = (new_mean - mean) / scale, new_scale / scale
    known = (shift.abs() <= CLIP_SD) & (ratio <= CLIP_SD)
    shift, ratio = torch.where(known, shift, 0.0), torch.where(known, ratio, 1.0)
    weights = first.weight[:, : len(mean)].double()
    if first.bias is not None:
        first.bias.add_((weights @ shift).float())
    first.weight[:, : len(mean)] = (weights * ratio).float()


def _outputs(rescale: Any, last: nn.Linear, goal: Tensor) -> None:
    mean, scale = rescale.mean.double().clone(), rescale.scale.double().clone()
    new_scale = float(goal.std(correction=0)) or 1.0
    rescale.mean.fill_(float(goal.mean()))
    rescale.scale.fill_(new_scale)
    last.weight.copy_((last.weight.double() * (scale / new_scale).unsqueeze(1)).float())
    if last.bias is not None:
        last.bias.copy_(((last.bias.double() * scale + mean - rescale.mean.double()) / new_scale).float())
