"""The engine: outputs by the contract, faults with a cause, memory of its own."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.contracts import Model
from pipeline.errors import ScoringError
from pipeline.records import Baseline, Feature, FeatureContract, ModelIdentity, OutputContract
from pipeline.scoring.engine import TorchModel, example_inputs, padded_lengths
from pipeline.scoring.validate import Validator

IDENTITY = ModelIdentity("shop", "7")
NUMBERS = (Feature("a", "number"), Feature("b", "number"))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


class Calls(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[[Mapping[str, Tensor]], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        return self.function(inputs)


def model(
    function: Callable[[Mapping[str, Tensor]], Any] | nn.Module,
    output: OutputContract = OutputContract("regression", 2),  # noqa: B008
    features: tuple[Feature, ...] = NUMBERS,
    **options: Any,
) -> TorchModel:
    module = function if isinstance(function, nn.Module) else Calls(function)
    return TorchModel(module, FeatureContract(features, output), IDENTITY, Baseline((), 1), **options)


def numbers(n: int = 5, columns: int = 2) -> dict[str, Any]:
    return {"numbers": np.random.default_rng(0).standard_normal((n, columns)).astype(np.float32)}


@pytest.mark.parametrize(
    ("output", "activation"),
    [
        (OutputContract("regression", 2), lambda x: x),
        (OutputContract("classification", 2, ("n", "y"), "softmax"), lambda x: torch.softmax(x, 1)),
        (OutputContract("classification", 2, ("n", "y"), "sigmoid"), torch.sigmoid),
        (OutputContract("classification", 2, ("n", "y")), lambda x: x),
    ],
)
def test_the_activation_of_the_contract_is_applied(output: OutputContract, activation: Any) -> None:
    """Logits become what the contract says: nothing, softmax or sigmoid."""
    inputs = numbers()
    outputs = model(lambda i: i["numbers"], output).score(inputs)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, activation(torch.from_numpy(inputs["numbers"])).numpy(), atol=1e-7)


def test_nan_is_left_for_the_flow_to_see() -> None:
    """One row of NaN is one row of NaN, not an error and not a number."""
    inputs = numbers()
    inputs["numbers"][2] = np.nan
    outputs = model(lambda i: i["numbers"], OutputContract("classification", 2, ("n", "y"), "softmax")).score(inputs)
    assert np.isnan(outputs).any(axis=1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (lambda i: i["numbers"][:-1], r"returned float32 \(4, 2\) for 5 rows; it must be float32 \(5, 2\)"),
        (lambda i: i["numbers"][:, :1], r"returned float32 \(5, 1\)"),
        (lambda i: i["numbers"].sum(1), r"returned float32 \(5,\)"),
        (lambda i: i["numbers"].double(), r"returned float64 \(5, 2\)"),
        (lambda i: i["numbers"].half(), r"returned float16 \(5, 2\)"),
        (lambda i: (i["numbers"], None), "returned tuple, not a tensor"),
        (lambda _: None, "returned NoneType, not a tensor"),
    ],
)
def test_another_output_than_agreed_is_a_fault(returned: Callable[[Any], Any], expected: str) -> None:
    """Fewer rows, another width, another type: never a silent prediction."""
    with pytest.raises(ScoringError, match="^model shop 7 " + expected):
        model(returned).score(numbers())


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad batch\nwith details"), "ValueError: bad batch$"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB"), "OutOfMemoryError: CUDA out of memory"),
        (MemoryError(), "MemoryError: $"),
        (KeyError("numbers"), "KeyError: 'numbers'$"),
    ],
)
def test_what_a_module_raises_is_a_fault_with_its_cause(error: Exception, told: str) -> None:
    """Model, number of rows, type and first line of the error; the error itself is the cause."""
    with pytest.raises(ScoringError, match="^model shop 7 failed on 5 rows: " + told) as caught:
        model(lambda _: _raise(error)).score(numbers())
    assert caught.value.__cause__ is error


def test_a_model_that_failed_can_score_again() -> None:
    """Nothing is left behind by a batch that raised."""
    failing = [True]
    scorer = model(lambda i: _raise(ValueError()) if failing.pop() else i["numbers"])
    with pytest.raises(ScoringError):
        scorer.score(numbers())
    failing[:] = [False]
    np.testing.assert_array_equal(scorer.score(numbers()), numbers()["numbers"])


def test_outputs_are_memory_of_their_own() -> None:
    """Neither the inputs nor a buffer that the module uses again show through earlier outputs."""
    buffer = torch.zeros(5, 2)
    scorer = model(lambda i: buffer.copy_(i["numbers"]))
    inputs = numbers()
    first = scorer.score(inputs)
    before = first.copy()
    scorer.score({"numbers": np.full((5, 2), 9, np.float32)})
    inputs["numbers"][:] = 7
    np.testing.assert_array_equal(first, before)


def test_it_is_a_model_by_the_contract_between_rooms() -> None:
    """What the flow asks of a Model is there, with evaluation mode set and gradients off."""
    layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))
    typed: Model = model(Calls(lambda i: layer(i["numbers"])))
    assert typed.identity == IDENTITY
    scorer = model(layer_model := _Wrapped(layer))
    assert not layer_model.training
    assert not layer[1].training
    np.testing.assert_array_equal(scorer.score(numbers()), scorer.score(numbers()))
    assert not any(p.requires_grad for p in layer.parameters())


class _Wrapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = self.layer(inputs["numbers"])
        return result


# --------------------------------------------------------------------------- warm-up

EVERYTHING = (
    *NUMBERS,
    Feature("c", "category", vocabulary=("x", "y")),
    Feature("image", "bytes", shape=(3, 4), dtype="uint8"),
    Feature("s", "sequence", shape=(5,)),
    Feature("t", "sequence", shape=(2,)),
)


def test_warm_up_runs_every_shape() -> None:
    """One row and a full batch of each combination of padded lengths, with the types of real inputs."""
    seen: set[tuple[int, int, int]] = set()

    def record(inputs: Mapping[str, Tensor]) -> Tensor:
        assert {name: (str(t.dtype), tuple(t.shape[1:])) for name, t in inputs.items() if name not in "st"} == {
            "numbers": ("torch.float32", (2,)),
            "categories": ("torch.int64", (1,)),
            "image": ("torch.uint8", (3, 4)),
            "s_lengths": ("torch.int64", ()),
            "t_lengths": ("torch.int64", ()),
        }
        assert int(inputs["s_lengths"].max()) == inputs["s"].shape[1]
        seen.add((len(inputs["numbers"]), inputs["s"].shape[1], inputs["t"].shape[1]))
        return inputs["numbers"]

    model(record, features=EVERYTHING, batch_max=16).warm_up()
    assert seen == {(n, s, t) for n in (1, 16) for s in (1, 2, 4, 5) for t in (1, 2)}


def test_warm_up_shows_what_does_not_fit() -> None:
    """A module made for other features fails before the worker joins its group."""
    with pytest.raises(ScoringError, match="failed on 1 rows: RuntimeError"):
        model(_Wrapped(nn.Linear(3, 2))).warm_up()


@pytest.mark.parametrize("longest", [1, 2, 3, 8, 100])
def test_warm_up_knows_the_lengths_of_the_hot_path(longest: int) -> None:
    """The padded lengths are those that the validator makes of every length there can be."""
    import pyarrow as pa

    from pipeline.records import Decoded

    contract = FeatureContract((Feature("s", "sequence", shape=(longest,)),), OutputContract("regression", 1))
    rows = [[0.0] * length for length in range(1, longest + 1)]
    columns = pa.RecordBatch.from_pydict({"id": [str(i) for i in range(longest)], "s": rows})
    checked = Validator(contract, id_field="id", time_field=None).validate(Decoded(columns, np.arange(longest), []))
    assert sorted({part.arrays["s"].shape[1] for part in checked.inputs}) == padded_lengths(longest)


def test_many_sequences_do_not_make_an_endless_warm_up() -> None:
    """Of a thousand combinations the equally long ones are run."""
    features = tuple(Feature(f"s{i}", "sequence", shape=(1000,)) for i in range(3))
    contract = FeatureContract(features, OutputContract("regression", 1))
    widths = [tuple(i[f.name].shape[1] for f in features) for i in example_inputs(contract, 1)]
    assert widths[0] == (1, 1, 1)
    assert widths[-1] == (1000, 1000, 1000)
    assert len(widths) == 11


# --------------------------------------------------------------------------- process and devices


def test_threads_hold_for_the_thread_that_scores() -> None:
    """Set by whoever loads the model, in force where the flow runs it; in a process of its own."""
    code = """
import threading, torch
from tests_engine import model, numbers
seen = []
scorer = model(lambda i: seen.append(torch.get_num_threads()) or i["numbers"], threads=3)
thread = threading.Thread(target=lambda: scorer.score(numbers()))
thread.start(); thread.join()
assert seen == [3], seen
"""
    alias = "import importlib.util, sys; spec = importlib.util.spec_from_file_location('tests_engine', %r);"
    alias += "m = importlib.util.module_from_spec(spec); sys.modules['tests_engine'] = m; spec.loader.exec_module(m)\n"
    done = subprocess.run([sys.executable, "-c", alias % __file__ + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_scoring_runs_in_inference_mode_in_any_thread() -> None:
    """Also in a thread that never heard of it."""
    seen: list[bool] = []
    scorer = model(lambda i: seen.append(torch.is_inference_mode_enabled()) or i["numbers"])
    thread = threading.Thread(target=lambda: scorer.score(numbers()))
    thread.start()
    thread.join()
    assert seen == [True]
    assert not torch.is_inference_mode_enabled()


@needs_cuda
def test_cuda_and_cpu_agree() -> None:
    """The same outputs to 1e-5 from pinned buffers that grow, shrink and change type between batches."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    output = OutputContract("classification", 2, ("n", "y"), "softmax")
    import copy

    on_cpu = model(_Wrapped(copy.deepcopy(layer)), output)
    on_cuda = model(_Wrapped(layer), output, device="cuda:0", batch_max=64)
    on_cuda.warm_up()
    for n in (1, 64, 7, 300, 300, 2):
        np.testing.assert_allclose(on_cuda.score(numbers(n)), on_cpu.score(numbers(n)), atol=1e-5)


@needs_cuda
def test_cuda_out_of_memory_is_a_fault() -> None:
    """Told as the cause; the next batch is scored."""

    def greedy(inputs: Mapping[str, Tensor]) -> Tensor:
        if len(inputs["numbers"]) == 2:
            torch.empty(1 << 50, device="cuda")
        return inputs["numbers"]

    scorer = model(greedy, device="cuda:0")
    with pytest.raises(ScoringError, match="OutOfMemoryError"):
        scorer.score(numbers(2))
    np.testing.assert_array_equal(scorer.score(numbers(3)), numbers(3)["numbers"])
