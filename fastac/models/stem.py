"""CIFAR's networks for larger images."""

from __future__ import annotations

from torch import nn

from fastac.models.init import init_weights

__all__ = ["put_imagenet_stem"]


def put_imagenet_stem(network: nn.Module, in_channels: int) -> None:
    """Put ImageNet's first layers in place of `network.stem`, which makes 16 channels: convolution of 7x7 with stride
    2, batch norm, relu, and 3x3 maxima with stride 2 (He et al. 2016, Table 1).

    The blocks then see a quarter of the height and width: images of 64x64 cost about what 16x16 do without it, and
    128x128 what CIFAR's do.
    """
    stem = nn.Sequential(
        nn.Conv2d(in_channels, 16, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    init_weights(stem)
    network.stem = stem
