"""Cutout and random erasing of normalised images, which zero, their mean colour, takes the place of."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastac.data.draws import ERASE
from fastac.data.policies import ops
from fastac.data.policies.geometry import square
from fastac.data.policies.parcel import Parcel
from fastac.rng import hash_bits

__all__ = ["check_erasing", "erase", "erased_boxes"]

_AREA = (0.02, 1 / 3)  # share of the image
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10
_DRAWS = 5 + 2 * _ATTEMPTS  # Cutout's centre; whether to erase, top, left; area and aspect an attempt


def check_erasing(cutout: int, reprob: float) -> None:
    """Raise ValueError unless they are a side in pixels and a probability."""
    if cutout < 0:
        raise ValueError(f"cutout is {cutout}; it should be a side in pixels, or 0 for none")
    if not 0 <= reprob <= 1:
        raise ValueError(f"reprob is {reprob}; it should be a probability")


def erase(images: Tensor, host_index: Tensor, *, cutout: int, reprob: float, seed: int, epoch: int) -> Tensor:
    """Put zero in a part of each image, in place; what becomes of a sample depends on (seed, epoch, its id).

    images: (B, C, H, W) float, normalised. host_index: (B,) int64, the samples' ids, in host memory. cutout: side in
    pixels of a square whose centre is drawn from the image's pixels, cut off at the border (DeVries & Taylor 2017); 0:
    none. reprob: share of the images in which a rectangle of 2 to 33 % of the area and aspect 0.3 to 3.3 is erased
    (Zhong et al. 2020, with timm's ranges and its mode const).
    """
    if (cutout == 0 and reprob == 0) or not len(images):
        return images
    height, width = images.shape[2], images.shape[3]
    parcel = Parcel()
    for rectangles in _drawn(host_index, height, width, cutout=cutout, reprob=reprob, seed=seed, epoch=epoch):
        parcel.add(rectangles)
    for sent in parcel.send(images.device):
        images.masked_fill_(ops.inside(sent, height, width), 0)
    return images


def erased_boxes(
    ids: np.ndarray, size: int, *, cutout: int, reprob: float, seed: int, epoch: int
) -> np.ndarray:
    """(b, R, 4) int32: top, left, height and width of what `erase` puts zero in of size×size images with the ids `ids`,
    (b,) int64. R is the number of kinds asked for; where nothing is blanked, all four are 0."""
    host_index = torch.from_numpy(ids)
    corners = _drawn(host_index, size, size, cutout=cutout, reprob=reprob, seed=seed, epoch=epoch)
    boxes = [
        np.stack([top, left, bottom - top, right - left], axis=1) * (bottom > top)[:, None]
        for left, top, right, bottom in (c.T for c in corners)
    ]
    return np.stack(boxes, axis=1).astype(np.int32) if boxes else np.empty((len(ids), 0, 4), dtype=np.int32)


def _drawn(
    host_index: Tensor, height: int, width: int, *, cutout: int, reprob: float, seed: int, epoch: int
) -> list[np.ndarray]:
    """The rectangles of each kind that is asked for, (B, 4) int64 each: left, top, right, bottom."""
    bits = hash_bits(seed, ERASE, epoch, torch.arange(_DRAWS).view(-1, 1), host_index)
    drawn = bits.numpy() / 2.0**32
    kinds = []
    if cutout:
        kinds.append(square(drawn[:2], np.full(drawn.shape[1], cutout), height, width))
    if reprob:
        kinds.append(random_rectangles(drawn[2:], reprob, height, width))
    return kinds


def random_rectangles(drawn: np.ndarray, probability: float, height: int, width: int) -> np.ndarray:
    """(n, 4) int64, left, top, right, bottom; empty where nothing is erased. drawn: (3 + 2 · attempts, n) in [0, 1)."""
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * drawn[3::2])
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * drawn[4::2])
    high, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (high < height) & (wide < width)
    first, column = fits.argmax(axis=0), np.arange(drawn.shape[1])
    happens = (drawn[0] < probability) & fits.any(axis=0)
    high, wide = (np.where(happens, side[first, column], 0).astype(np.int64) for side in (high, wide))
    top = (drawn[1] * (height - high + 1)).astype(np.int64)
    left = (drawn[2] * (width - wide + 1)).astype(np.int64)
    return np.stack([left, top, left + wide, top + high], axis=1)
