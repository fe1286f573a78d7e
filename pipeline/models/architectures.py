"""Built-in torch modules. Each takes the one mapping of tensors that records.FeatureContract describes.

Preprocessing is part of the module, as buffers among its weights: what standardises a feature in training
standardises it in production, bit for bit. Every row is computed on its own (no batch statistics), so its
output does not depend on which rows share its batch. `rescale` is for regressions: see Rescale.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

#: Standard deviations from the mean beyond which a number is clipped: one wild value cannot saturate the net,
#: and in 8 deviations there is room for the tails of everyday data (a normal value lies outside once in 1e15).
CLIP_SD = 8.0


class Standardise(nn.Module):
    """(x - mean) / scale, clipped to ±`clip_sd`; a scale of 0 (a constant column) leaves the value unscaled.

    mean and scale are buffers of shape `shape`, broadcast against x; 0 and 1 until they are set.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], clip_sd: float = CLIP_SD) -> None:
        super().__init__()
        self.clip_sd = clip_sd
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("scale", torch.ones(tuple(shape)))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Take over the statistics of the training data."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.scale).clamp(-self.clip_sd, self.clip_sd)


class Rescale(nn.Module):
    """Outputs of a regression in the unit of its target: x * scale + mean."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.mean


class TabularMLP(nn.Module):
    """Numbers and categories through fully connected layers.

    numbers: count of number features. categories: size of each vocabulary (index 0, "unknown", comes on top).
    hidden: widths of the hidden layers. outputs: width of the output.
    Input "numbers" float32 (n, numbers), "categories" int64 (n, len(categories)); output float32 (n, outputs).
    """

    def __init__(
        self,
        numbers: int,
        categories: Sequence[int] = (),
        hidden: Sequence[int] = (64, 64),
        outputs: int = 1,
        rescale: bool = False,
        clip_sd: float = CLIP_SD,
    ) -> None:
        super().__init__()
        self.standardise = Standardise((numbers,), clip_sd) if numbers else None
        self.embeddings = nn.ModuleList(nn.Embedding(size + 1, embedding_width(size)) for size in categories)
        width = numbers + sum(embedding_width(size) for size in categories)
        self.layers = _fully_connected(width, hidden, outputs)
        self.rescale = Rescale(outputs) if rescale else nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.standardise is not None:
            parts.append(self.standardise(inputs["numbers"]))
        if len(self.embeddings):
            codes = inputs["categories"]
            parts += [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        result: Tensor = self.rescale(self.layers(x))
        return result


class SignalCNN(nn.Module):
    """A window of a signal (a bytes feature) through one-dimensional convolutions and a mean over time.

    feature: its name. channels: 1 for shape (length,), else of shape (channels, length).
    filters: of each layer, which halves the length. Output float32 (n, outputs).
    """

    def __init__(
        self,
        feature: str,
        channels: int = 1,
        filters: Sequence[int] = (16, 32, 64),
        kernel: int = 7,
        outputs: int = 1,
        rescale: bool = False,
        clip_sd: float = CLIP_SD,
    ) -> None:
        super().__init__()
        self.feature, self.channels = feature, channels
        self.standardise = Standardise((channels, 1), clip_sd)
        layers: list[nn.Module] = []
        width = channels
        for count in filters:
            layers += [nn.Conv1d(width, count, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
            width = count
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs)
        self.rescale = Rescale(outputs) if rescale else nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        window = inputs[self.feature]
        x = self.standardise(window.float().reshape(window.shape[0], self.channels, -1))
        result: Tensor = self.rescale(self.head(self.layers(x).mean(dim=2)))
        return result


class ImageCNN(nn.Module):
    """A small image (a bytes feature) through two-dimensional convolutions and a mean over the picture.

    feature: its name. channels: 1 for shape (height, width), else of shape (channels, height, width).
    filters: of each layer, which halves height and width. Output float32 (n, outputs).
    """

    def __init__(
        self,
        feature: str,
        channels: int = 1,
        filters: Sequence[int] = (16, 32, 64),
        outputs: int = 1,
        rescale: bool = False,
        clip_sd: float = CLIP_SD,
    ) -> None:
        super().__init__()
        self.feature = feature
        self.grey = channels == 1
        self.standardise = Standardise((channels, 1, 1), clip_sd)
        layers: list[nn.Module] = []
        width = channels
        for count in filters:
            layers += [nn.Conv2d(width, count, 3, stride=2, padding=1), nn.ReLU()]
            width = count
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs)
        self.rescale = Rescale(outputs) if rescale else nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        image = inputs[self.feature].float()
        x = self.standardise(image.unsqueeze(1) if self.grey and image.dim() == 3 else image)
        result: Tensor = self.rescale(self.head(self.layers(x).mean(dim=(2, 3))))
        return result


class SequenceGRU(nn.Module):
    """A sequence feature through a gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

    feature: its name. hidden: width of the state. layers: how many units are stacked.
    The state after the last true value counts: a GRU looks only back, so padding behind it changes nothing.
    Input `feature` float32 (n, longest), `feature`_lengths int64 (n,); output float32 (n, outputs).
    """

    def __init__(
        self,
        feature: str,
        hidden: int = 32,
        layers: int = 1,
        outputs: int = 1,
        rescale: bool = False,
        clip_sd: float = CLIP_SD,
    ) -> None:
        super().__init__()
        self.feature = feature
        self.standardise = Standardise((1,), clip_sd)
        self.gru = nn.GRU(1, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)
        self.rescale = Rescale(outputs) if rescale else nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        values, lengths = inputs[self.feature], inputs[f"{self.feature}_lengths"]
        states, _ = self.gru(self.standardise(values.unsqueeze(2)))
        last = states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        result: Tensor = self.rescale(self.head(last))
        return result


def embedding_width(vocabulary: int) -> int:
    """Width of the embedding of `vocabulary` categories: about 1.6 n^0.56, as fastai's, but no more than 32."""
    return min(32, max(2, round(1.6 * math.pow(vocabulary, 0.56))))


def _fully_connected(width: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))
