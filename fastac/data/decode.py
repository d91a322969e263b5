"""Image files to pixels: Pillow decode to 8-bit RGB, and the two crops of ImageNet's protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastac.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CROP_DRAWS", "UnreadableImageError", "centre_crop", "open_rgb", "random_resized_crop"]

_ATTEMPTS = 10
CROP_DRAWS = 2 * _ATTEMPTS + 3  # area and aspect an attempt, then top, left and flip
_AREA = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))


class UnreadableImageError(ValueError):
    """A file that is there but does not hold an image that Pillow can decode."""


def open_rgb(path: Path) -> Image:
    """Decode `path` to an 8-bit RGB image, turned upright by its EXIF orientation.

    Grayscale, palette, CMYK and 16-bit images are converted (16 bits by their high byte), transparency is
    dropped. Raises UnreadableImageError, which names the file, for content that cannot be decoded; a
    failure of the file system (OSError with an errno, a missing file among them) goes through as it is,
    because it says nothing about the image.
    """
    image_module, ops = require("PIL.Image", "train"), require("PIL.ImageOps", "train")
    try:
        with image_module.open(path) as image:
            upright = ops.exif_transpose(image)
            return _to_rgb(upright)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on broken files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableImageError(f"cannot decode the image {path}: {error}") from error


def _to_rgb(image: Image) -> Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith(
        "I"
    ):  # 16-bit gray, as I or I;16 by Pillow's version; convert() would clip at 255
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 0xFFFF:
            raise ValueError("pixels of more than 16 bits")
        image = require("PIL.Image", "train").fromarray((gray >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def centre_crop(image: Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the shorter side scaled, the centre kept.

    From 128 pixels on the shorter side is scaled to size·256/224, as ImageNet is evaluated; smaller sizes are
    those of data sets whose images are all subject, and are scaled to `size` itself.
    """
    width, height = image.size
    side = min(width, height) * (224 / 256 if size >= 128 else 1.0)
    left, top = (width - side) / 2, (height - side) / 2
    return _resized(image, size, (left, top, left + side, top + side))


def random_resized_crop(image: Image, size: int, draws: Sequence[float]) -> np.ndarray:
    """(size, size, 3) uint8: a random part, of 8 to 100 % of the area and aspect 3/4 to 4/3, half mirrored.

    draws: `CROP_DRAWS` numbers in [0, 1). After 10 areas that don't fit, the centre at the nearest allowed
    aspect (Szegedy et al. 2015, as torchvision's RandomResizedCrop has it).
    """
    left, top, width, height = _random_box(*image.size, draws)
    pixels = _resized(image, size, (left, top, left + width, top + height))
    return np.ascontiguousarray(pixels[:, ::-1]) if draws[-1] < 0.5 else pixels


def _random_box(width: int, height: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
    for attempt in range(_ATTEMPTS):
        area = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[2 * attempt])
        aspect = math.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (width - w + 1)), int(draws[-3] * (height - h + 1)), w, h
    lowest, highest = math.exp(_LOG_ASPECT[0]), math.exp(_LOG_ASPECT[1])
    w = min(width, max(1, round(height * highest)))
    h = min(height, max(1, round(width / lowest)))
    return (width - w) // 2, (height - h) // 2, w, h


def _resized(image: Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    bilinear = require("PIL.Image", "train").Resampling.BILINEAR
    return np.array(image.resize((size, size), bilinear, box=box))
