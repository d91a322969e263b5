"""Wide residual networks of Zagoruyko & Komodakis 2016, basic blocks in pre-activation order."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastac.models.init import init_weights

__all__ = ["WideResNet"]


class WideResNet(nn.Module):
    """WRN-depth-widen, depth 6n+4, three stages of 16w, 32w and 64w channels: (B, C, H, W) to (B, K) logits.

    Without dropout, as in the paper's WRN-40-2 and in AutoCleansing's.
    """

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth is {depth}; it should be 6n+4, such as 16, 28 or 40")
        if widen < 1:
            raise ValueError(f"widen is {widen}; it should be at least 1")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for number in range((depth - 4) // 6):
                blocks.append(_Block(channels, width, stride=2 if stage and not number else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.classifier(features.mean((2, 3)))


class _Block(nn.Module):
    """Norm, relu, convolution, twice. A shortcut between shapes is a 1x1 convolution of the first relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))
