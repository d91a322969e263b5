"""A small convolutional network that trains in seconds an epoch on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from fastac.models.init import init_weights

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm, three poolings, global average: (B, C, H, W) to (B, K) logits.

    H and W at least 8. 241,898 parameters for one channel and ten classes. On a CPU it is a third faster in
    memory_format=torch.channels_last.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(in_channels, 32, nn.MaxPool2d(2)),
            *_block(32, 64, nn.MaxPool2d(2)),
            *_block(64, 128, nn.MaxPool2d(2)),
            *_block(128, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(128, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _block(inputs: int, outputs: int, *pooling: nn.Module) -> tuple[nn.Module, ...]:
    # The pooling comes before norm and relu, which then have a quarter of the pixels to work on.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
