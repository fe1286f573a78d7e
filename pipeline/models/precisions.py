"""A module at another precision than that of its weights: `scoring.precision`.

bfloat16 runs what torch.autocast thinks safe in 8 bits of mantissa. int8 holds weights in 8 bits and rounds each row's
values to 8 bits on their way into a layer. Inputs and outputs are float32 as ever.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.sections.serving import Precision

#: Of exactly these classes: a class derived from one of them may compute something else.
QUANTISED = (nn.Linear, nn.GRU, nn.LSTM)
#: A row of zeros is divided by this instead of 0.
SCALE_MIN = 1e-30


def at_precision(module: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """The module as it is to run on `device`, where it is not yet; the module itself is used up.

    Raises SettingsError, in one line, for a precision that the device, the module or this torch does not have.
    """
    if precision == "float32":
        return module
    if precision == "bfloat16":
        return _Bfloat16(module, device.type)
    if device.type != "cpu":
        raise SettingsError(
            f'scoring.precision: int8 is for the CPU, and the model runs on {device}; use "bfloat16", '
            'or model.device = "cpu"'
        )
    return _in_int8(module)


class _Bfloat16(nn.Module):
    """Runs a module under autocast."""

    def __init__(self, module: nn.Module, device_type: str) -> None:
        super().__init__()
        self.module, self.device_type = module, device_type

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            outputs = self.module(inputs)
        # Anything else is the module's own doing, which the engine looks at.
        return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype == torch.bfloat16 else outputs


class _Int8Linear(nn.Module):
    """A Linear with weights in 8 bits; each row of its input is scaled to [-1, 1] before it is rounded.

    torch rounds with one scale for the whole batch, so that one row of large values would wipe out the others, and NaN
    would become a number. With a scale for each row neither happens; it costs 8 % of a layer 512 wide.
    """

    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach())
        layer.bias = None  # type: ignore[assignment]
        self.layer = _dynamic(layer)

    def forward(self, x: Tensor) -> Tensor:
        # The largest of |x|, without a copy of x; torch.linalg.vector_norm takes 16 times as long.
        largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
        scale = largest.clamp_min(SCALE_MIN)
        return torch.addcmul(self.bias, self.layer(x / scale), scale)


def _in_int8(module: nn.Module) -> nn.Module:
    layers = [found for found in module.named_modules(remove_duplicate=False) if type(found[1]) in QUANTISED]
    if not layers:
        names = ", ".join(kind.__name__ for kind in QUANTISED)
        raise SettingsError(
            f'scoring.precision: int8 needs a layer of {names}, and the model has none; use "float32" or "bfloat16"'
        )
    made: dict[nn.Module, nn.Module] = {}  # a layer may be in two places
    try:
        for path, layer in layers:
            if layer not in made:
                made[layer] = _Int8Linear(layer) if isinstance(layer, nn.Linear) else _dynamic(layer)
            module.set_submodule(path, made[layer])
    except SettingsError:
        raise
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        raise SettingsError(f"scoring.precision: int8 does not go with this model: {told}") from error
    return module


def _dynamic(layer: nn.Module) -> nn.Module:
    """The layer by torch's own dynamic quantisation, which torch calls deprecated and may drop."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import quantize_dynamic  # noqa: PLC0415

            quantise: Any = quantize_dynamic
            made: nn.Module = quantise(nn.Sequential(layer), {type(layer)}, dtype=torch.qint8)[0]
    except ImportError:
        raise SettingsError(
            f'scoring.precision: torch {torch.__version__} has no int8 any more; use "float32" or "bfloat16"'
        ) from None
    return made
