"""Models that fail on purpose, for the fault tests: the job's MLP with a fault before it."""

import time
from pathlib import Path

import torch

from benchmarks.ours import Mlp


class FailsOn(Mlp):
    """Raises on every batch that holds the event whose first feature is `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if bool((inputs["numbers"][:, 0] == self._value).any()):
            raise RuntimeError("this event is poison")
        return super().forward(inputs)


class FailsTwice(Mlp):
    """Raises on the first two real batches of all processes together; `marks` is a folder they share."""

    def __init__(self, marks: str) -> None:
        super().__init__()
        self._marks = Path(marks)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        warming_up = not bool(inputs["numbers"].any())
        if not warming_up and (n := len(list(self._marks.iterdir()))) < 2:
            (self._marks / str(n)).touch()
            raise RuntimeError("out of memory, say")
        return super().forward(inputs)


class Hangs(Mlp):
    """Never returns from a real batch."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if bool(inputs["numbers"].any()):
            time.sleep(3600)
        return super().forward(inputs)


class Slow(Mlp):
    """Takes `seconds` for each batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(self._seconds)
        return super().forward(inputs)


class SlowAtFirst(Mlp):
    """Takes `seconds` for each of its first `calls` real batches."""

    def __init__(self, seconds: float, calls: int) -> None:
        super().__init__()
        self._seconds, self._left = seconds, calls

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self._left and bool(inputs["numbers"].any()):
            self._left -= 1
            time.sleep(self._seconds)
        return super().forward(inputs)
