"""`scoring.precision`: outputs differ little, rows do not disturb each other, what does not go is one clear line."""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.architectures import SequenceGRU, TabularMLP
from pipeline.models.manifest import Architecture
from pipeline.models.precisions import at_precision
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.sections.serving import Precision
from pipeline.settings import Settings, load
from pipeline.topology.serving import load_model

CPU = torch.device("cpu")
NUMBERS = FeatureContract(tuple(Feature(f"f{i}", "number") for i in range(8)), OutputContract("regression", 1))
SEQUENCE = FeatureContract((Feature("s", "sequence", shape=(6,)),), OutputContract("regression", 1))


class NoLayers(nn.Module):
    """Nothing that int8 could hold."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["numbers"].sum(dim=1, keepdim=True)


class ReachesIn(nn.Module):
    """Takes the weights of its layer into its own hands."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["numbers"] @ self.layer.weight.t()


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(8, 8, bias=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.second(self.first(inputs["numbers"]))[:, :1]  # type: ignore[no-any-return]


def bundle(module: nn.Module, contract: FeatureContract = NUMBERS, **arguments: Any) -> bundles.Bundle:
    kind = type(module)
    architecture = Architecture(module=f"{kind.__module__}:{kind.__qualname__}", arguments=arguments)
    weights = loading.weights_of(module)
    return bundles.make(model_id="m", architecture=architecture, contract=contract, weights=weights)


def settings(precision: Precision) -> Settings:
    return load(overrides={"scoring.precision": precision, "model.device": "cpu"}, environment={})


def mlp(precision: Precision, rows: int = 200) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = load_model(settings(precision), bundle(TabularMLP(8), numbers=8))
    return model, {"numbers": np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)}


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_outputs_differ_little(precision: Precision) -> None:
    """The worker's model is at the precision of the settings: not the same outputs, float32, near those of float32."""
    plain, inputs = mlp("float32")
    lower, _ = mlp(precision)
    expected, outputs = plain.score(inputs), lower.score(inputs)
    assert outputs.dtype == np.float32
    assert 0 < np.abs(outputs - expected).max() < 0.02


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_recurrent_model_goes_too(precision: Precision) -> None:
    """A GRU on sequences of several lengths."""
    torch.manual_seed(0)
    packed = bundle(SequenceGRU("s"), SEQUENCE, feature="s")
    values = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    inputs = {"s": values, "s_lengths": np.random.default_rng(1).integers(3, 5, 50)}
    expected, outputs = (load_model(settings(p), packed).score(inputs) for p in ("float32", precision))
    assert 0 < np.abs(outputs - expected).max() < 0.03


def test_float32_is_the_module_itself() -> None:
    """The default changes nothing."""
    module = TabularMLP(8)
    assert at_precision(module, "float32", CPU) is module


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_a_row_does_not_spoil_its_batch_in_int8(value: float) -> None:
    """NaN and infinity stay to be seen in their own row; neither they nor a large value change the others much."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    lower = at_precision(copy.deepcopy(plain), "int8", CPU)
    x = torch.randn(20, 8)
    x[3, 2] = value
    with torch.inference_mode():
        expected, outputs = plain(x), lower(x)
    others = torch.arange(20) != 3
    assert float((outputs - expected)[others].abs().max()) < 0.02
    assert bool(outputs[3].isfinite()) == bool(np.isfinite(value))


def test_a_layer_in_two_places_is_one_layer() -> None:
    """Both places get the same; one without bias goes too."""
    module = at_precision(Twice(), "int8", CPU)
    assert isinstance(module, Twice)
    assert module.first is module.second
    assert module({"numbers": torch.ones(3, 8)}).shape == (3, 1)


# --------------------------------------------------------------------------- what does not go


def test_int8_without_a_layer_for_it_is_refused() -> None:
    """In one line that names the setting and what to set instead."""
    with pytest.raises(SettingsError, match=r"^scoring\.precision: int8 needs a layer of Linear, GRU, LSTM.*bfloat16"):
        load_model(settings("int8"), bundle(NoLayers()))
    load_model(settings("bfloat16"), bundle(NoLayers()))


def test_int8_with_a_module_that_reaches_into_its_layers_is_refused() -> None:
    """At start-up, as a setting, not at the first event as a fault of the model."""
    with pytest.raises(SettingsError, match=r"^scoring\.precision: int8 does not go with this model: .*weight"):
        load_model(settings("int8"), bundle(ReachesIn()))


def test_int8_on_cuda_is_refused() -> None:
    """By the settings where they name the device, else once it is known."""
    with pytest.raises(SettingsError, match=r"scoring\.precision: int8 is for the CPU, and model\.device is cuda:0"):
        load(overrides={"scoring.precision": "int8", "model.device": "cuda:0"}, environment={})
    with pytest.raises(SettingsError, match=r"^scoring\.precision: int8 is for the CPU, and the model runs on cuda"):
        at_precision(TabularMLP(8), "int8", torch.device("cuda"))


def test_a_torch_without_int8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls this part of it deprecated; a release without it is told as what it is."""
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(SettingsError, match=r"^scoring\.precision: torch .* has no int8 any more"):
        at_precision(TabularMLP(8), "int8", CPU)
