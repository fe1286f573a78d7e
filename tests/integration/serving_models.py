"""Models that worker processes of test_serving.py load."""

import torch

from benchmarks import ours


class Shifted(ours.Mlp):
    """The job's scores plus one."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(n, 16) float32 under "numbers" -> (n, 1)."""
        return super().forward(inputs) + 1.0


class Failing(ours.Mlp):
    """Warms up, then fails on more than one row that is not all zeros."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(n, 16) float32 under "numbers" -> (n, 1). Raises RuntimeError."""
        if bool(inputs["numbers"].any()):
            raise RuntimeError("made to fail")
        return super().forward(inputs)
