"""Models that worker processes of test_serving.py and test_calibrate.py load."""

from typing import Any

import numpy as np
import torch

from benchmarks import ours

CONTRACT = ours.CONTRACT
#: What the logits of `Sure` are too large by.
TOO_SURE = 3.0
#: The job's scores deviate by 0.09 from 0: what they should be multiplied by makes logits that deviate by 1.4.
GAIN = 16.0


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


class Sure(ours.Mlp):
    """A class from the job's score, with a certainty that nothing justifies."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(n, 16) float32 under "numbers" -> (n, 1): logits."""
        return TOO_SURE * GAIN * super().forward(inputs)


def sure(scores: Any) -> Any:
    """(n,) float32: what becomes of the logits of `Sure` where the job's score is that."""
    return (1 / (1 + np.exp(-TOO_SURE * GAIN * scores.astype(np.float64)))).astype(np.float32)
