"""Normalisation, crops and mirroring of whole batches, on the device that they are on."""

from __future__ import annotations

import difflib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastac.data.draws import AUGMENT, integers_below
from fastac.data.samples import EncodedImages, Samples
from fastac.rng import hash_bits

__all__ = ["AUGMENTATIONS", "augment_batch", "channel_stats", "check_augmentation", "normalise"]

AUGMENTATIONS = ("none", "crop", "crop-flip", "imagenet")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CHUNK = 4096


def check_augmentation(name: str, images: np.ndarray | EncodedImages) -> None:
    """Raise ValueError unless `name` is known and can be applied to these images."""
    if name not in AUGMENTATIONS:
        nearest = difflib.get_close_matches(name, AUGMENTATIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown augment {name!r}; did you mean {nearest!r}? Known: {', '.join(AUGMENTATIONS)}"
        )
    if name == "imagenet" and not isinstance(images, EncodedImages):
        raise ValueError(
            "augment is 'imagenet', which is for image folders; use crop-flip or crop for arrays"
        )


def channel_stats(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1].

    Arrays: over all pixels, exactly (from counts of the 256 values); a constant channel gets the deviation 1.
    Folders: ImageNet's constants.
    """
    images = samples.images
    if isinstance(images, EncodedImages):
        return _IMAGENET_MEAN, _IMAGENET_STD
    counts = np.zeros((samples.channels, 256), dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        for channel, row in enumerate(counts):
            row += np.bincount(images[start : start + _CHUNK, ..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, H, W, C) uint8 to (B, C, H, W) float32: (pixel/255 - mean) / std; mean and std: (C,) float32."""
    scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return scaled.mul_((1 / (255 * std)).view(-1, 1, 1)).sub_((mean / std).view(-1, 1, 1))


def augment_batch(
    images: Tensor, index: Tensor, *, name: str, seed: int, epoch: int, border: Tensor | None = None
) -> Tensor:
    """Augment (B, C, H, W) images of any type. What a sample undergoes depends on (seed, epoch, its id) alone.

    name:
        none, imagenet: as they are (imagenet's crop is made when the file is decoded).
        crop: pad by an eighth of each side (1 pixel at 8x8, 4 at 32x32) and crop back at a random place.
        crop-flip: the same, and half of them mirrored left to right: the CIFAR baseline of He et al. 2016.
    index: (B,) int64 ids, on the images' device. border: (C,) of the images' type, the colour to pad with; without
    it zero, the mean colour of normalised images.
    """
    if name in ("none", "imagenet"):
        return images
    batch, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    draw = torch.arange(3, device=images.device).view(3, 1)
    top, left, mirror = hash_bits(seed, AUGMENT, epoch, draw, index)
    if border is None:
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    else:
        padded = border.view(-1, 1, 1).repeat(batch, 1, height + 2 * pad_y, width + 2 * pad_x)
        padded[:, :, pad_y:-pad_y, pad_x:-pad_x] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, places, places, H, W)
    row = torch.arange(batch, device=images.device)
    crops = windows[row, :, integers_below(2 * pad_y + 1, top), integers_below(2 * pad_x + 1, left)]
    if name == "crop":
        return crops
    return torch.where((integers_below(2, mirror) == 1).view(batch, 1, 1, 1), crops.flip(3), crops)
