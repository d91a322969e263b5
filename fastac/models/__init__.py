"""Networks by name."""

from __future__ import annotations

import difflib
import re

from torch import nn

from fastac.models.cnn import SmallCNN
from fastac.models.external import LIBRARIES, create_external
from fastac.models.pyramidnet import PyramidNet
from fastac.models.resnet import CifarResNet
from fastac.models.resnet50 import ResNet50
from fastac.models.shake_shake import ShakeShakeNet
from fastac.models.stem import put_imagenet_stem
from fastac.models.wide_resnet import WideResNet

__all__ = [
    "MODELS",
    "CifarResNet",
    "PyramidNet",
    "ResNet50",
    "ShakeShakeNet",
    "SmallCNN",
    "WideResNet",
    "create_model",
]

MODELS = (
    "cnn",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "wrn-40-2",
    "wrn-28-10",
    "shake-shake-26-2x32d",
    "shake-shake-26-2x96d",
    "shake-shake-26-2x112d",
    "pyramidnet-272-200-shakedrop",
    "resnet50",
    "resnet50-zero-init",
)
"""Names to choose from.

`wrn-D-W` is known for every depth D = 6n+4 and width W, `shake-shake-D-2xWd` for D = 6n+2 and even W,
`pyramidnet-D-A` and `pyramidnet-D-A-shakedrop` for D = 9n+2. These and resnet20 to resnet56 are CIFAR's; with
`-imagenet` at the name's end they have ImageNet's stem, for images of 64x64 and more. Besides, all image classifiers of
timm and torchvision: `timm:NAME`, `torchvision:NAME`.
"""

_PATTERNS = "wrn-D-W, shake-shake-D-2xWd, pyramidnet-D-A[-shakedrop], [CIFAR's network]-imagenet"


def create_model(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """A network from (B, in_channels, H, W) images, 8x8 to 64x64 and more, to (B, num_classes) logits.

    Weights are drawn from torch's global random state. Raises ValueError for an unknown name or a wrong size,
    ImportError for a network of a package that is not installed.
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; it should be at least 1")
    if name.partition(":")[0] in LIBRARIES and ":" in name:
        return create_external(name, num_classes=num_classes, in_channels=in_channels)
    if name == "cnn":
        return SmallCNN(num_classes, in_channels)
    if name in ("resnet50", "resnet50-zero-init"):
        return ResNet50(num_classes, in_channels, zero_init_residual=name.endswith("-zero-init"))
    try:
        network = _create_cifar(name.removesuffix("-imagenet"), num_classes, in_channels)
    except ValueError as error:
        raise ValueError(f"unknown model {name!r}: {error}") from error
    if network is None:
        nearest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
        known = ", ".join((*MODELS, _PATTERNS, *(f"{library}:NAME" for library in LIBRARIES)))
        raise ValueError(f"unknown model {name!r}; did you mean {nearest!r}? Known: {known}")
    if name.endswith("-imagenet"):
        put_imagenet_stem(network, in_channels)
    return network


def _create_cifar(name: str, num_classes: int, in_channels: int) -> nn.Module | None:
    """One of CIFAR's networks, None for a name of no such shape. Raises ValueError for wrong numbers in it."""
    if match := re.fullmatch(r"resnet(20|32|44|56)", name):
        return CifarResNet(int(match[1]), num_classes, in_channels)
    if match := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,3})", name):
        return WideResNet(int(match[1]), int(match[2]), num_classes, in_channels)
    if match := re.fullmatch(r"shake-shake-(\d{1,3})-2x(\d{1,3})d", name):
        return ShakeShakeNet(int(match[1]), int(match[2]), num_classes, in_channels)
    if match := re.fullmatch(r"pyramidnet-(\d{1,3})-(\d{1,3})(-shakedrop)?", name):
        shakedrop = match[3] is not None
        return PyramidNet(int(match[1]), int(match[2]), num_classes, in_channels, shakedrop=shakedrop)
    return None
