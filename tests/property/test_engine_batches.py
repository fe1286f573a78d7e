"""However rows are put into batches, each has the output that plain torch gives it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.models.architectures import SequenceGRU, SignalCNN, TabularMLP
from pipeline.records import Baseline, Feature, FeatureContract, ModelIdentity, OutputContract
from pipeline.scoring.engine import TorchModel

ROWS = 64
RANDOM = np.random.default_rng(5)
FEATURES = (
    Feature("a", "number"),
    Feature("b", "number"),
    Feature("c", "category", vocabulary=("x", "y", "z")),
    Feature("w", "bytes", shape=(32,), dtype="int16"),
    Feature("s", "sequence", shape=(16,)),
)
INPUTS = {
    "numbers": RANDOM.normal(3, 5, (ROWS, 2)).astype(np.float32),
    "categories": RANDOM.integers(0, 4, (ROWS, 1)),
    "w": RANDOM.integers(-3, 4, (ROWS, 32)).astype(np.int16),
    "s": RANDOM.normal(0, 1, (ROWS, 16)).astype(np.float32),
    "s_lengths": RANDOM.integers(1, 17, ROWS),
}


class Everything(torch.nn.Module):
    """All kinds of features at once: the mean of one built-in module for each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.parts = torch.nn.ModuleList(
            [TabularMLP(2, [3], outputs=3), SignalCNN("w", outputs=3), SequenceGRU("s", outputs=3)]
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([part(inputs) for part in self.parts]).mean(0)


MODULE = Everything()
MODEL = TorchModel(
    MODULE,
    FeatureContract(FEATURES, OutputContract("classification", 3, ("p", "q", "r"), "softmax")),
    ModelIdentity("m", "1"),
    Baseline((), 1),
)


def plain_torch(row: int) -> Any:
    """The textbook call, one row at a time."""
    with torch.no_grad():
        logits = MODULE({name: torch.as_tensor(array[row : row + 1]) for name, array in INPUTS.items()})
        return torch.softmax(logits, dim=1)[0].numpy()


EXPECTED = np.stack([plain_torch(row) for row in range(ROWS)])


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1), max_size=12))
def test_a_row_scores_the_same_in_any_batch(order: list[int], cuts: set[int]) -> None:
    """Rows in any order, cut into batches anywhere: each equals plain torch on that row alone, to 1e-6."""
    rows = np.array(order)
    for batch in np.split(rows, sorted(cuts)):
        outputs = MODEL.score({name: array[batch] for name, array in INPUTS.items()})
        assert np.abs(outputs - EXPECTED[batch]).max() <= 1e-6
