"""Built-in architectures: what they take and return, and that a row stands for itself."""

from typing import Any

import pytest
import torch

from pipeline.models import architectures, loading
from pipeline.models.architectures import CLIP_SD, Standardise, embedding_width
from pipeline.models.bundle import make
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract

N, WIDTH = 6, 3
CASES: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = {}


def _generated(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_generated())


def _bytes(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=_generated()).to(dtype)


CASES = {
    "numbers": ("TabularMLP", {"numbers": 4}, {"numbers": _numbers(N, 4)}),
    "categories": ("TabularMLP", {"numbers": 0, "categories": [5]}, {"categories": torch.arange(N)[:, None]}),
    "both": (
        "TabularMLP",
        {"numbers": 2, "categories": [5, 9], "hidden": []},
        {"numbers": _numbers(N, 2), "categories": torch.arange(2 * N).reshape(N, 2) % 6},
    ),
    "signal": ("SignalCNN", {"feature": "s"}, {"s": _bytes(N, 100, dtype=torch.int16)}),
    "channels": ("SignalCNN", {"feature": "s", "channels": 2, "kernel": 3}, {"s": _numbers(N, 2, 33)}),
    "grey": ("ImageCNN", {"feature": "i"}, {"i": _bytes(N, 28, 20)}),
    "colour": ("ImageCNN", {"feature": "i", "channels": 3, "filters": [4]}, {"i": _bytes(N, 3, 9, 9)}),
    "sequence": (
        "SequenceGRU",
        {"feature": "q", "layers": 2, "hidden": 8},
        {"q": _numbers(N, 7), "q_lengths": torch.tensor([1, 2, 3, 5, 7, 7])},
    ),
}


def build(case: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    name, arguments, inputs = CASES[case]
    torch.manual_seed(1)
    module = loading.build(
        Architecture(
            module=f"pipeline.models.architectures:{name}", arguments={**arguments, "outputs": WIDTH, "rescale": True}
        )
    )
    return module.eval(), inputs


@pytest.mark.parametrize("case", CASES)
def test_a_mapping_of_tensors_becomes_rows_of_outputs(case: str) -> None:
    """float32 (n, outputs), for one row as for many."""
    module, inputs = build(case)
    outputs = module(inputs)
    assert outputs.shape == (N, WIDTH)
    assert outputs.dtype == torch.float32
    assert module({name: tensor[:1] for name, tensor in inputs.items()}).shape == (1, WIDTH)


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_its_batch(case: str) -> None:
    """Alone, turned round or among others, a row has the same output."""
    module, inputs = build(case)
    whole = module(inputs)
    for row in range(N):
        alone = module({name: tensor[row : row + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=0)
    turned = module({name: tensor.flip(0) for name, tensor in inputs.items()})
    torch.testing.assert_close(turned.flip(0), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_module_comes_back_from_its_bundle(case: str) -> None:
    """Packed and loaded again, the outputs are the same bits; its buffers are among its weights."""
    module, inputs = build(case)
    for buffer in module.buffers():
        buffer.mul_(1.5)
    name, arguments, _ = CASES[case]
    bundle = make(
        model_id="m",
        architecture=Architecture(
            module=f"pipeline.models.architectures:{name}", arguments={**arguments, "outputs": WIDTH, "rescale": True}
        ),
        contract=FeatureContract((Feature("x", "number"),), OutputContract("regression", WIDTH)),
        weights=loading.weights_of(module),
    )
    loaded = loading.load_module(bundle)
    assert torch.equal(loaded(inputs), module(inputs))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loading.weights_of(loaded) == bundle.weights


def test_padding_changes_nothing() -> None:
    """What stands behind a sequence's end does not reach its output, however long the padding."""
    module, inputs = build("sequence")
    wider = torch.cat([inputs["q"], torch.full((N, 9), 1e6)], dim=1)
    spoilt = torch.where(torch.arange(7) < inputs["q_lengths"][:, None], inputs["q"], torch.tensor(-1e6))
    for values in (wider, spoilt):
        outputs = module({"q": values, "q_lengths": inputs["q_lengths"]})
        torch.testing.assert_close(outputs, module(inputs), atol=1e-6, rtol=0)


def test_numbers_are_standardised_and_clipped() -> None:
    """By the statistics set; a constant column is only shifted; NaN stays NaN, for the hot path to see."""
    standardise = Standardise((3,))
    standardise.set(torch.tensor([10.0, 5.0, 0.0]), torch.tensor([2.0, 0.0, 1.0]))
    x = torch.tensor([[12.0, 5.0, 1e30], [10.0, 5.5, -torch.inf], [torch.nan, 4.0, 0.5]])
    expected = torch.tensor([[1.0, 0.0, CLIP_SD], [0.0, 0.5, -CLIP_SD], [torch.nan, -1.0, 0.5]])
    torch.testing.assert_close(standardise(x), expected, equal_nan=True)


def test_embeddings_grow_slowly() -> None:
    """From two dimensions to thirty-two."""
    assert [embedding_width(n) for n in (1, 10, 100, 1000)] == [2, 6, 21, 32]
    assert architectures.TabularMLP(0, [1000]).layers[0].in_features == 32
