"""Geometry on the host: from a target pixel to the pixel that it shows, and the squares of Cutout."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = ["GEOMETRIC", "fixed_point", "inverse_maps", "square"]

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_ONE = 1 << 16


def inverse_maps(name: str, values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, 6) float64: a target pixel (x, y) shows the source (a x + b y + c, d x + e y + f), as Image.transform has it.

    values: (n,) float64. ShearX, ShearY: slope. TranslateX, TranslateY: pixels that the image moves left or up.
    Rotate: degrees, counter-clockwise, about the centre.
    """
    maps = np.tile(np.array([1.0, 0, 0, 0, 1, 0]), (len(values), 1))
    if name == "Rotate":
        for row, degrees in zip(maps, values.tolist(), strict=True):
            row[:] = _rotation(degrees, height, width)
    else:
        maps[:, {"ShearX": 1, "TranslateX": 2, "ShearY": 3, "TranslateY": 5}[name]] = values
    return maps


@lru_cache(maxsize=4096)
def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


def fixed_point(maps: np.ndarray) -> np.ndarray:
    """(n, 6) int32: the maps at pixel centres in 1/65536 of a pixel, as Pillow rounds them.

    Translations are not computed in fixed point by Pillow, but to the nearest whole pixel: so they are here.
    """
    a, b, c, d, e, f = maps.T
    fixed = np.stack([a, b, c + 0.5 * (a + b), d, e, f + 0.5 * (d + e)], axis=1)
    fixed = np.floor(fixed * _ONE + 0.5).astype(np.int32)
    moved = (a == 1) & (b == 0) & (d == 0)
    for column in (2, 5):
        fixed[moved, column] = np.floor(maps[moved, column] + 0.5).astype(np.int32) * _ONE
    return fixed


def square(place: np.ndarray, side: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, 4) int64, left, top, right, bottom: squares with their centre anywhere in the image, cut off at its border
    (DeVries & Taylor 2017). place: (2, n) in [0, 1), down and across. side: (n,) int64 in pixels."""
    top = (place[0] * height).astype(np.int64) - side // 2
    left = (place[1] * width).astype(np.int64) - side // 2
    box = np.stack([left, top, left + side, top + side], axis=1)
    return box.clip(0, [width, height, width, height])
