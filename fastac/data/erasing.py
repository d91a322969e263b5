"""Where Cutout and random erasing blank an image: functions of (seed, epoch, id)."""

from __future__ import annotations

import math

import numpy as np

from fastac.data.draws import ERASE, sample_draws

__all__ = ["erased_boxes"]

_ATTEMPTS = 10
_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_CUTOUT = 2  # numbers that Cutout draws; random erasing draws the others
_DRAWS = _CUTOUT + 1 + 2 * _ATTEMPTS + 2


def erased_boxes(
    ids: np.ndarray, size: int, *, cutout: int, reprob: float, seed: int, epoch: int
) -> np.ndarray:
    """(b, R, 4) int32: top, left, height and width of what is blanked in the size×size images `ids`, (b,) int64; R is
    the number of kinds asked for, a height and width of 0 blank nothing.

    cutout: side in pixels of a square whose centre is anywhere in the image, cut at the borders (DeVries & Taylor
    2017). reprob: probability of a rectangle of 2 to 33 % of the area and aspect 0.3 to 3.3 that lies in the image
    (Zhong et al. 2017, as timm has it: up to ten attempts to fit one).
    """
    draws = sample_draws(_DRAWS, ids, seed, ERASE, epoch).numpy().astype(np.float64)
    kinds = []
    if cutout:
        kinds.append(_cutout(draws[:, :_CUTOUT], size, cutout))
    if reprob:
        kinds.append(_erasing(draws[:, _CUTOUT:], size, reprob))
    return np.stack(kinds, axis=1) if kinds else np.empty((len(ids), 0, 4), dtype=np.int32)


def _cutout(draws: np.ndarray, size: int, side: int) -> np.ndarray:
    """(b, 4) from draws (b, 2)."""
    first = np.floor(draws * size).astype(np.int32) - side // 2
    last = np.minimum(first + side, size)
    first = np.maximum(first, 0)
    return np.concatenate([first, np.maximum(last - first, 0)], axis=1)


def _erasing(draws: np.ndarray, size: int, probability: float) -> np.ndarray:
    """(b, 4) from draws (b, 1 + 2 an attempt + 2)."""
    areas, aspects = draws[:, 1:-2:2], draws[:, 2:-2:2]
    area = size * size * (_AREA[0] + (_AREA[1] - _AREA[0]) * areas)
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * aspects)
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < size) & (widths < size)
    first = fits.argmax(axis=1)[:, None]  # of the attempts, the first that fits
    height = np.take_along_axis(heights, first, axis=1)[:, 0]
    width = np.take_along_axis(widths, first, axis=1)[:, 0]
    top = np.floor(draws[:, -2] * (size - height + 1))
    left = np.floor(draws[:, -1] * (size - width + 1))
    blank = (draws[:, 0] < probability) & fits.any(axis=1)
    return np.where(blank[:, None], np.stack([top, left, height, width], axis=1), 0).astype(np.int32)
