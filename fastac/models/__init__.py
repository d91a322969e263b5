"""Networks by name."""

from __future__ import annotations

import difflib
import re

from torch import nn

from fastac.models.cnn import SmallCNN
from fastac.models.resnet import CifarResNet
from fastac.models.wide_resnet import WideResNet

__all__ = ["MODELS", "CifarResNet", "SmallCNN", "WideResNet", "create_model"]

MODELS = ("cnn", "resnet20", "resnet32", "resnet44", "resnet56", "wrn-40-2")
"""Names to choose from; `wrn-D-W` is known for every depth D = 6n+4 and width W."""


def create_model(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """A network from (B, in_channels, H, W) images, 8x8 to 64x64 and more, to (B, num_classes) logits.

    Weights are drawn from torch's global random state. Raises ValueError for an unknown name or a wrong size.
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; it should be at least 1")
    if name == "cnn":
        return SmallCNN(num_classes, in_channels)
    if name in MODELS and name.startswith("resnet"):
        return CifarResNet(int(name.removeprefix("resnet")), num_classes, in_channels)
    if match := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,3})", name):
        try:
            return WideResNet(int(match[1]), int(match[2]), num_classes, in_channels)
        except ValueError as error:
            raise ValueError(f"unknown model {name!r}: {error}") from error
    nearest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown model {name!r}; did you mean {nearest!r}? Known: {', '.join(MODELS)}, wrn-D-W")
