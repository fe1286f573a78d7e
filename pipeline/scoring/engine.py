"""Model inputs to outputs: one torch module on the CPU or a CUDA device.

On the CPU the arrays are handed to torch as they are, without a copy. On CUDA they go through pinned
memory, which the device reads by itself, on a stream of the model's own.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import ScoringError
from pipeline.records import Baseline, Feature, FeatureContract, Floats, ModelIdentity

Arrays = Mapping[str, npt.NDArray[Any]]


class TorchModel:
    """Scores batches with one module; implements contracts.Model.

    module: takes and returns what `contract` says. device: where it runs. threads: torch threads of this
    process, on the CPU. batch_max: most rows in one call.
    """

    def __init__(
        self,
        module: nn.Module,
        contract: FeatureContract,
        identity: ModelIdentity,
        baseline: Baseline,
        *,
        device: torch.device | str = "cpu",
        threads: int = 1,
        batch_max: int = 1024,
    ) -> None:
        self.contract = contract
        self.identity = identity
        self.baseline = baseline
        self.device = torch.device(device)
        self._batch_max = batch_max
        self._width = contract.output.width
        self._activation = contract.output.activation
        set_threads(threads)
        self._module = module.to(self.device).eval().requires_grad_(False)
        self._cuda = _Transfers(self.device) if self.device.type == "cuda" else None

    def score(self, inputs: Arrays) -> Floats:
        """Outputs (n, width) float32, activation applied, NaN left in place, in memory of their own.

        A row's output does not depend on the other rows of the batch, up to 1e-6; at a lower precision (see
        models/precisions.py) up to its rounding. Raises ScoringError, naming model and cause, when the module raises
        (memory running out included) or returns anything else than float32 (n, width). Not thread-safe.
        """
        n = len(next(iter(inputs.values())))
        try:
            with torch.inference_mode():
                if self._cuda is not None:
                    return self._cuda.run(inputs, n, self._forward)
                tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
                outputs: Floats = self._forward(tensors, n).numpy()
                return outputs
        except ScoringError:
            raise
        except Exception as error:
            raise ScoringError(f"{self._named()} failed on {n} rows: {_told(error)}") from error

    def warm_up(self) -> None:
        """Run the smallest and the largest batch of every shape, so that the first event waits for nothing.

        What does not fit (module and contract, or the largest batch and the memory) shows here.
        Raises ScoringError as `score` does.
        """
        for rows in sorted({1, self._batch_max}):
            for inputs in example_inputs(self.contract, rows):
                self.score(inputs)

    def _forward(self, tensors: Mapping[str, Tensor], n: int) -> Tensor:
        outputs: Any = self._module(tensors)
        if not isinstance(outputs, Tensor):
            raise ScoringError(f"{self._named()} returned {type(outputs).__name__}, not a tensor")
        if outputs.shape != (n, self._width) or outputs.dtype != torch.float32:
            have = f"{str(outputs.dtype).removeprefix('torch.')} {tuple(outputs.shape)}"
            raise ScoringError(f"{self._named()} returned {have} for {n} rows; it must be float32 {(n, self._width)}")
        if self._activation == "softmax":
            return outputs.softmax(dim=1)
        # A module may return memory that it will use again.
        return outputs.sigmoid() if self._activation == "sigmoid" else outputs.clone()

    def _named(self) -> str:
        return f"model {self.identity.model_id} {self.identity.model_version}"


class _Transfers:
    """Memory and stream of one CUDA device. Pinned buffers grow to the largest batch seen and stay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}
        # TF32 keeps 10 bits of a float32's 23: convolutions would differ from the CPU's in the third digit.
        torch.backends.cudnn.allow_tf32 = False

    def run(self, inputs: Arrays, n: int, forward: Any) -> Floats:
        """Copy in, run, copy out, all queued on the stream; wait once, at the end."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                tensors = {}
                for name, array in inputs.items():
                    staged = self._pinned(name, torch.from_numpy(array))
                    tensors[name] = staged.to(self._device, non_blocking=True)
                outputs: Tensor = forward(tensors, n)
                result = self._pinned("", outputs)
            finally:
                # Also when the module raised: the next batch must not overwrite what is still being copied.
                self._stream.synchronize()
        copied: Floats = result.numpy().copy()
        return copied

    def _pinned(self, name: str, source: Tensor) -> Tensor:
        """`source` copied into the pinned buffer of this name (queued, if it lies on the device)."""
        size = source.numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != source.dtype:
            buffer = self._buffers[name] = torch.empty(size, dtype=source.dtype, pin_memory=True)
        return buffer[:size].view(source.shape).copy_(source, non_blocking=True)


def set_threads(threads: int) -> None:
    """Set torch's threads for this process, unless they are so already."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def example_inputs(contract: FeatureContract, rows: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Inputs of zeros, one mapping for each combination of padded sequence lengths that batches can have."""
    dense: dict[str, npt.NDArray[Any]] = {}
    if numbers := contract.of_kind("number"):
        dense["numbers"] = np.zeros((rows, len(numbers)), np.float32)
    if categories := contract.of_kind("category"):
        dense["categories"] = np.zeros((rows, len(categories)), np.int64)
    for feature in contract.of_kind("bytes"):
        dense[feature.name] = np.zeros((rows, *feature.shape), feature.dtype)
    sequences = contract.of_kind("sequence")
    for widths in _combinations(sequences):
        inputs = dict(dense)
        for feature, width in zip(sequences, widths, strict=True):
            inputs[feature.name] = np.zeros((rows, width), np.float32)
            inputs[f"{feature.name}_lengths"] = np.full(rows, width, np.int64)
        yield inputs


def _combinations(sequences: tuple[Feature, ...]) -> Iterable[tuple[int, ...]]:
    """Of the padded lengths of each sequence; only equally long ones where all of them were too many."""
    widths = [padded_lengths(feature.shape[0]) for feature in sequences]
    # 32 shapes of two batches each: a second or so of warm-up with an everyday model.
    if prod(map(len, widths)) <= 32:
        return product(*widths)
    most = max(map(len, widths))
    return [tuple(w[min(i, len(w) - 1)] for w in widths) for i in range(most)]


def padded_lengths(longest: int) -> list[int]:
    """The lengths that scoring/validate.py pads to: powers of two below `longest`, and `longest`."""
    return [1 << i for i in range(longest.bit_length()) if 1 << i < longest] + [longest]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
