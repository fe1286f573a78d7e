"""Models that answer wrongly or run out of something on the events a test names: the job's MLP otherwise."""

import torch

from benchmarks.ours import Mlp


class AnswersNan(Mlp):
    """NaN for every event whose first feature is above `above`."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self._above = above

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        scores = super().forward(inputs)
        scores[inputs["numbers"][:, 0] > self._above] = float("nan")
        return scores


class Breaks(Mlp):
    """On every batch that holds the event whose first feature is `value`, in one of several ways."""

    def __init__(self, value: float, way: str) -> None:
        super().__init__()
        self._value, self._way = value, way

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        scores = super().forward(inputs)
        if not bool((inputs["numbers"][:, 0] == self._value).any()):
            return scores
        match self._way:
            case "shape":
                return scores[:-1]
            case "memory":
                raise MemoryError("no memory for this batch")
            case _:  # for real: nobody has 2^60 bytes
                return torch.empty(1 << 58)
