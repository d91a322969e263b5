"""The CIFAR ResNets of He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastac.models.init import init_weights

__all__ = ["CifarResNet"]


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 in three stages of 16, 32 and 64 channels: (B, C, H, W) to (B, K) logits.

    Shortcuts are option A: identity, subsampled and padded with zero channels, without parameters.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth is {depth}; it should be 6n+2, such as 20, 32, 44 or 56")
        self.stem = nn.Sequential(_conv3x3(in_channels, 16, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        blocks: list[nn.Module] = []
        channels = 16
        for width in (16, 32, 64):
            for _ in range((depth - 2) // 6):
                blocks.append(_Block(channels, width))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images))
        return self.classifier(features.mean((2, 3)))


class _Block(nn.Module):
    """Two convolutions around a shortcut; where the width grows the first has stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.added = outputs - inputs
        self.conv1 = _conv3x3(inputs, outputs, 2 if self.added else 1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(x + residual)


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
