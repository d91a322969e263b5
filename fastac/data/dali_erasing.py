"""Where Cutout and random erasing blank an image, for DALI to do it: functions of (seed, epoch, id)."""

from __future__ import annotations

import math

import numpy as np
import torch

from fastac.data.draws import ERASE
from fastac.rng import hash_bits

__all__ = ["erased_boxes"]

_AREA = (0.02, 1 / 3)  # share of the image
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10
_DRAWS = 5 + 2 * _ATTEMPTS  # Cutout's centre; whether to erase, top, left; area and aspect an attempt


def erased_boxes(
    ids: np.ndarray, size: int, *, cutout: int, reprob: float, seed: int, epoch: int
) -> np.ndarray:
    """(b, R, 4) int32: top, left, height and width of what is blanked in the size×size images `ids`, (b,) int64; R is
    the number of kinds asked for, a height and width of 0 blank nothing.

    cutout: side in pixels of a square whose centre is drawn from the image's pixels, cut off at the border (DeVries &
    Taylor 2017); 0: none. reprob: share of the images in which a rectangle of 2 to 33 % of the area and aspect 0.3 to
    3.3 is erased (Zhong et al. 2020, with timm's ranges; up to ten attempts to fit one).
    """
    bits = hash_bits(seed, ERASE, epoch, torch.arange(_DRAWS).view(-1, 1), torch.from_numpy(ids))
    drawn = bits.numpy() / 2.0**32  # (draws, b)
    kinds = []
    if cutout:
        kinds.append(_square(drawn[:2], size, cutout))
    if reprob:
        kinds.append(_rectangle(drawn[2:], size, reprob))
    return np.stack(kinds, axis=1) if kinds else np.empty((len(ids), 0, 4), dtype=np.int32)


def _square(drawn: np.ndarray, size: int, side: int) -> np.ndarray:
    """(b, 4) from draws (2, b)."""
    first = (drawn * size).astype(np.int64) - side // 2
    last = np.minimum(first + side, size)
    first = np.maximum(first, 0)
    return np.concatenate([first, last - first]).T.astype(np.int32)


def _rectangle(drawn: np.ndarray, size: int, probability: float) -> np.ndarray:
    """(b, 4) from draws (3 + 2 an attempt, b)."""
    area = size * size * (_AREA[0] + (_AREA[1] - _AREA[0]) * drawn[3::2])
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * drawn[4::2])
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < size) & (widths < size)
    first, column = fits.argmax(axis=0), np.arange(drawn.shape[1])  # of the attempts, the first that fits
    height, width = heights[first, column], widths[first, column]
    top, left = np.floor(drawn[1] * (size - height + 1)), np.floor(drawn[2] * (size - width + 1))
    blank = (drawn[0] < probability) & fits.any(axis=0)
    return np.where(blank, np.stack([top, left, height, width]), 0).T.astype(np.int32)
