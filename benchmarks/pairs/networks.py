"""Small residual networks for images [N, 1, 16, 16], with the stages of a ResNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class ResNet(nn.Module):
    """A stem, three stages of one residual block each, and a linear head over pooled features.

    Args:
        norm: Function of the number of channels that returns a normalization layer.
    """

    def __init__(self, num_classes: int, norm: Norm, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), norm(width), nn.ReLU())
        self.layer1 = _Block(width, 2 * width, norm)
        self.layer2 = _Block(2 * width, 4 * width, norm)
        self.layer3 = _Block(4 * width, 8 * width, norm)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        logits: Tensor = self.head(self.layer3(self.layer2(self.layer1(self.stem(images)))).mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, 2, padding=1, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + self.skip(x))


# Fine-tuning updates the running statistics of the first; the second has none.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "batchnorm": partial(ResNet, norm=nn.BatchNorm2d),
    "groupnorm": partial(ResNet, norm=partial(nn.GroupNorm, 4)),
}
