"""The Shake-Shake networks of Gastaldi 2017 for CIFAR-10: ResNets with two residual branches a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastac.models.init import init_weights
from fastac.models.shake import shake_shake

__all__ = ["ShakeShakeNet"]


class ShakeShakeNet(nn.Module):
    """Shake-Shake `depth` 2×`width`d, depth 6n+2, stages of w, 2w and 4w channels: (B, C, H, W) to (B, K) logits.

    With forward and backward noise for each image ("S-S-I"). Details are those of the author's code: batch norm after
    the first convolution, which has 16 channels, and shortcuts between shapes of two 1x1 convolutions, the second one
    of the image moved by a pixel to the right and down.
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth is {depth}; it should be 6n+2, such as 26")
        if width < 2 or width % 2:
            raise ValueError(f"width is {width}; it should be even, such as 32, 96 or 112")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        blocks: list[nn.Module] = []
        channels = 16
        for stage, outputs in enumerate((width, 2 * width, 4 * width)):
            for number in range((depth - 2) // 6):
                blocks.append(_Block(channels, outputs, stride=2 if stage and not number else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.blocks(self.stem(images)))
        return self.classifier(features.mean((2, 3)))


class _Block(nn.Module):
    """A shortcut, and two branches mixed at random; both branches begin with the same relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch1 = _branch(inputs, outputs, stride)
        self.branch2 = _branch(inputs, outputs, stride)
        self.shortcut = None if inputs == outputs else _Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        mixed = shake_shake(self.branch1(active), self.branch2(active), training=self.training)
        return mixed + (x if self.shortcut is None else self.shortcut(active))


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Shortcut(nn.Module):
    """Half of the channels from the even pixels, half from their upper left neighbours (zero outside)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs // 2, 1, stride=stride, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs // 2, 1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        moved = F.pad(x, (1, -1, 1, -1))
        return self.bn(torch.cat((self.conv1(x), self.conv2(moved)), dim=1))
