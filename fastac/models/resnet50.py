"""ResNet-50 for ImageNet, in the variant that is trained today."""

from __future__ import annotations

from torch import Tensor, nn

from fastac.models.init import init_weights

__all__ = ["ResNet50"]


class ResNet50(nn.Module):
    """ResNet-50 "v1.5": (B, C, H, W) to (B, K) logits, for images from 64x64 on, 224x224 as a rule.

    He et al. 2016, Table 1, with the stride of a stage's first block in its 3x3 convolution rather than in the 1x1
    before it. Parameters and buffers have the names that torchvision and timm give them, so weights can be exchanged.
    zero_init_residual: the last batch norm of every block starts at 0, so that blocks start as identities (Goyal et
    al. 2017, "Accurate, Large Minibatch SGD", section 5.1).
    """

    def __init__(self, num_classes: int, in_channels: int, *, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)
        init_weights(self)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, _Bottleneck):
                    nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(inputs, width, stride), *rest)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))
