"""The bottleneck PyramidNets of Han et al. 2017, "Deep Pyramidal Residual Networks", with or without ShakeDrop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastac.models.init import init_weights
from fastac.models.shake import ShakeDrop

__all__ = ["PyramidNet"]

_LAST_KEEP = 0.5  # Yamada et al. 2019, section 4: p_L


class PyramidNet(nn.Module):
    """PyramidNet-depth (bottleneck, α = `alpha`), depth 9n+2: (B, C, H, W) to (B, K) logits.

    The l-th of L = (depth − 2)/3 blocks is 16 + αl/L wide, rounded as in the authors' code, and makes four times as
    many channels. Shortcuts have no parameters: zero channels are added, and 2x2 means taken where the stride is 2.
    shakedrop: block l is kept with probability 1 − l/2L (Yamada et al. 2019, equation 4 with p_L = 0.5);
    PyramidNet-272, α = 200, is AutoAugment's "PyramidNet+ShakeDrop".
    """

    def __init__(
        self, depth: int, alpha: int, num_classes: int, in_channels: int, *, shakedrop: bool = False
    ) -> None:
        super().__init__()
        if depth < 11 or depth % 9 != 2:
            raise ValueError(f"depth is {depth}; it should be 9n+2, such as 164 or 272")
        if alpha < 1:
            raise ValueError(f"alpha is {alpha}; it should be at least 1, such as 200")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        total = (depth - 2) // 3
        blocks: list[nn.Module] = []
        channels = 16
        for number in range(1, total + 1):
            width = 16 + (2 * alpha * number + total) // (2 * total)  # half rounded up
            stride = 2 if number in (total // 3 + 1, 2 * total // 3 + 1) else 1
            keep = 1 - number / total * (1 - _LAST_KEEP) if shakedrop else None
            blocks.append(_Bottleneck(channels, width, stride, keep))
            channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.classifier(features.mean((2, 3)))


class _Bottleneck(nn.Module):
    """Norm before and after every convolution, no relu before the first one nor after the last."""

    def __init__(self, inputs: int, width: int, stride: int, keep: float | None) -> None:
        super().__init__()
        self.stride, self.added = stride, 4 * width - inputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * width)
        self.shake = nn.Identity() if keep is None else ShakeDrop(keep)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(residual)))
        residual = self.bn4(self.conv3(F.relu(self.bn3(residual))))
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added))
        return x + self.shake(residual)
