"""A torch module of one's own: each category its own bias, and numbers that interact with each other.

Nothing here knows the pipeline: it finds this class by its name, `own_model:OrderNet`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class OrderNet(nn.Module):
    """Second-order factorisation machine (Rendle 2010, https://doi.org/10.1109/ICDM.2010.127), and a bias a category.

    numbers: count of number features. categories: size of each vocabulary; index 0, "unknown", comes on top.
    Input "numbers" float32 (n, numbers), "categories" int64 (n, len(categories)); output logits float32 (n, 1).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, numbers: int, categories: Sequence[int] = (), rank: int = 4) -> None:
        super().__init__()
        # Scaling belongs to the model: buffers are saved with the weights.
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.linear = nn.Linear(numbers, 1)
        self.factors = nn.Parameter(0.05 * torch.randn(numbers, rank))
        self.biases = nn.ModuleList(nn.Embedding(size + 1, 1) for size in categories)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = ((inputs["numbers"] - self.mean) / self.scale).clamp(-8.0, 8.0)
        logit = self.linear(x)
        # Sum over all pairs i < j of <v_i, v_j> x_i x_j, in linear time.
        pairs = (x @ self.factors).square() - x.square() @ self.factors.square()
        logit = logit + 0.5 * pairs.sum(dim=1, keepdim=True)
        for i, bias in enumerate(self.biases):
            logit = logit + bias(inputs["categories"][:, i])
        return logit
