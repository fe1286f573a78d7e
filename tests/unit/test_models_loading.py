"""From a bundle to a module: only modules are made, and weights fit exactly or not at all."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from pipeline.errors import BundleError, ContractError
from pipeline.models import bundle as bundles
from pipeline.models import devices, loading
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract

CONTRACT = FeatureContract((Feature("x", "number"),), OutputContract("regression", 1))
MLP = "pipeline.models.architectures:TabularMLP"


def bundle(weights: bytes, module: str = MLP, **arguments: Any) -> bundles.Bundle:
    return bundles.make(
        model_id="m",
        architecture=Architecture(module=module, arguments=arguments or {"numbers": 1, "hidden": []}),
        contract=CONTRACT,
        weights=weights,
    )


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        ("os:system", {"command": "true"}, "system is no subclass of torch.nn.Module"),
        ("subprocess:Popen", {"args": "true"}, "Popen is no subclass of torch.nn.Module"),
        ("pipeline.models.architectures:CLIP_SD", {}, "CLIP_SD is no subclass"),
        ("pipeline.models.architectures:Nothing", {}, "pipeline.models.architectures has no Nothing"),
        ("no_such_module:Net", {}, "cannot be imported: ModuleNotFoundError"),
        (MLP, {"nombers": 3}, "cannot be made with {'nombers': 3}: TypeError"),
        (MLP, {"numbers": -1}, "cannot be made with"),
    ],
)
def test_only_modules_are_made(module: str, arguments: dict[str, Any], expected: str) -> None:
    """A manifest cannot call anything but a torch module; what cannot be made is one line."""
    with pytest.raises(BundleError) as caught:
        loading.build(Architecture(module=module, arguments=arguments))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_module_that_breaks_on_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the user's own code is told with its type, in one line."""
    (tmp_path / "broken_net.py").write_text("raise ValueError('first\\nsecond')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BundleError, match=r"broken_net:Net: cannot be imported: ValueError: first$"):
        loading.build(Architecture(module="broken_net:Net"))
    assert "broken_net" not in sys.modules


def test_weights_fit_exactly_or_not_at_all() -> None:
    """Missing, unknown, of another shape or type: refused, naming the tensor."""
    good = loading.build(Architecture(module=MLP, arguments={"numbers": 1, "hidden": []})).state_dict()
    assert torch.equal(loading.load_module(bundle(save(good))).state_dict()["layers.0.weight"], good["layers.0.weight"])
    without = {name: tensor for name, tensor in good.items() if name != "layers.0.bias"}
    for weights, expected in (
        (without, "no layers.0.bias"),
        ({}, "no standardise.mean, standardise.scale, layers.0.weight and 1 more"),
        ({**good, "extra": torch.zeros(1)}, "extra not in the module"),
        (
            {**good, "layers.0.bias": torch.zeros(2)},
            r"layers.0.bias is float32 \(2,\), but the module has float32 \(1,\)",
        ),
        ({**good, "layers.0.bias": torch.zeros(1).double()}, "layers.0.bias is float64"),
    ):
        with pytest.raises(BundleError, match=expected):
            loading.load_module(bundle(save(weights)))


def test_weights_with_a_broken_header_are_refused() -> None:
    """A digest that is right does not make a file of tensors that overlap or lie outside."""
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,999]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(16)
    with pytest.raises(BundleError, match=r"weights.safetensors: is damaged"):
        loading.load_module(bundle(weights))


def test_devices_are_real() -> None:
    """The CPU is always there; CUDA by name only where it is, and told so where it is not."""
    assert devices.resolve("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert devices.resolve("auto") == devices.resolve("cuda") == torch.device("cuda", 0)
        with pytest.raises(ContractError, match="there is only cuda:0"):
            devices.resolve("cuda:99")
    else:
        assert devices.resolve("auto") == torch.device("cpu")
        with pytest.raises(ContractError, match=r"model.device: cuda:1 asked for, but .*; use"):
            devices.resolve("cuda:1")
