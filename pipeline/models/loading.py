"""From a verified bundle to a torch module that is ready to score, and back to the bytes of its weights."""

import importlib
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipeline.errors import BundleError
from pipeline.models.bundle import WEIGHTS, Bundle
from pipeline.models.manifest import Architecture

#: Names shown of tensors that do not match; the first ones tell what is wrong.
NAMES_SHOWN = 3


def load_module(bundle: Bundle) -> nn.Module:
    """The module of a bundle on the CPU, its weights in place, in evaluation mode, without gradients.

    Raises BundleError in one line when the architecture cannot be made or the weights do not fit it exactly.
    """
    module = build(bundle.architecture)
    try:
        tensors = safetensors.torch.load(bundle.weights)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{WEIGHTS}: is damaged: {error}") from None
    _check_tensors(bundle.architecture, module.state_dict(), tensors)
    module.load_state_dict(tensors, strict=True)
    return module.eval().requires_grad_(False)


def build(architecture: Architecture) -> nn.Module:
    """A module with fresh weights. Raises BundleError naming the class and what is wrong with it."""
    where = f"architecture {architecture.module}"
    path, _, name = architecture.module.partition(":")
    try:
        found: Any = getattr(importlib.import_module(path), name, None)
    except Exception as error:
        raise BundleError(f"{where}: cannot be imported: {_told(error)}") from error
    # Only modules are ever called: a manifest must not be a way to call anything else.
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        what = f"{path} has no {name}" if found is None else f"{name} is no subclass of torch.nn.Module"
        raise BundleError(f"{where}: {what}")
    try:
        return found(**architecture.arguments)
    except Exception as error:
        raise BundleError(f"{where}: cannot be made with {architecture.arguments}: {_told(error)}") from error


def weights_of(module: nn.Module) -> bytes:
    """Parameters and buffers as the bytes of a safetensors file; the same bytes for the same values."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    content: bytes = safetensors.torch.save(state)
    return content


def _check_tensors(architecture: Architecture, wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    where = f"{WEIGHTS} do not fit {architecture.module}"
    if missing := [name for name in wanted if name not in found]:
        raise BundleError(f"{where}: no {_some(missing)}")
    if unknown := [name for name in found if name not in wanted]:
        raise BundleError(f"{where}: {_some(unknown)} not in the module")
    for name, tensor in found.items():
        have, want = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (tensor, wanted[name]))
        if have != want:
            raise BundleError(f"{where}: {name} is {have}, but the module has {want}")


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + rest


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
