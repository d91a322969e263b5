"""Image files to pixels: Pillow decode to 8-bit RGB, and the two crops of ImageNet's protocol."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "CROP_DRAWS",
    "MAX_PIXELS",
    "UnreadableImageError",
    "centre_box",
    "centre_crop",
    "decode_rgb",
    "mirrored",
    "open_rgb",
    "random_box",
    "random_resized_crop",
    "resized",
]

MAX_PIXELS = 178_956_970
"""Larger images are refused: Pillow's default guard, which holds here also where a program has lifted Pillow's. An
image of this size takes 0.7 GB of memory while it is decoded, 1.4 GB where it has to be turned or converted."""

_ATTEMPTS = 10
CROP_DRAWS = 2 * _ATTEMPTS + 3  # area and aspect an attempt, then top, left and flip
_AREA = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))


class UnreadableImageError(ValueError):
    """A file that is there but does not hold an image that Pillow can decode."""


def open_rgb(path: Path) -> Image:
    """Decode `path` to an 8-bit RGB image, turned upright by its EXIF orientation.

    Grayscale, palette, CMYK and 16-bit images are converted (16 bits by their high byte), transparency is
    dropped, of several frames the first is taken. Broken EXIF data counts as none. Raises UnreadableImageError,
    which names the file, for content that cannot be decoded and for images of more than `MAX_PIXELS`; a failure of
    the file system (OSError with an errno, a missing file among them) goes through as it is, because it says nothing
    about the image, and so does MemoryError, with the file's name as a note.
    """
    return _decoded(path, str(path), lambda: path.stat().st_size == 0)


def decode_rgb(content: bytes, name: str) -> Image:
    """As open_rgb, of an encoded image in memory. name: for the messages."""
    return _decoded(io.BytesIO(content), name, lambda: not content)


def _decoded(source: Path | io.BytesIO, name: str, is_empty: Callable[[], bool]) -> Image:
    image_module = require("PIL.Image", "train")
    try:
        with image_module.open(source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} is more than the {MAX_PIXELS} pixels that are decoded")
            image.load()
            return _to_rgb(_upright(image))
    except MemoryError as error:
        error.add_note(f"while the image {name} was decoded")
        raise
    except Exception as error:  # Pillow's decoders raise many types on broken files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = "the file is empty" if is_empty() else error
        raise UnreadableImageError(f"cannot decode the image {name}: {reason}") from error


def _upright(image: Image) -> Image:
    """The image turned by its EXIF orientation.

    Pillow's exif_transpose copies what needs no turn, and fails where another tag cannot be written back.
    """
    turns = require("PIL.Image", "train").Transpose
    try:
        orientation: Any = image.getexif().get(0x0112)
    except Exception:  # as many types as on broken pixels, but the pixels are there
        return image
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image) -> Image:
    if image.mode == "RGB":
        return image  # convert() would copy it
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith(
        "I"
    ):  # 16-bit gray, as I or I;16 by Pillow's version; convert() would clip at 255
        gray = np.asarray(image)
        if gray.min() < 0 or gray.max() > 0xFFFF:
            raise ValueError("pixels of more than 16 bits")
        image = require("PIL.Image", "train").fromarray((gray >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, from the image's left top."""


def centre_crop(image: Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the shorter side scaled, the centre kept, see `centre_box`."""
    return resized(image, size, centre_box(*image.size, size))


def centre_box(width: int, height: int, size: int) -> Box:
    """What centre_crop cuts out of an image.

    From 128 pixels on the shorter side is scaled to size·256/224, as ImageNet is evaluated; smaller sizes are
    those of data sets whose images are all subject, and are scaled to `size` itself.
    """
    side = min(width, height) * (224 / 256 if size >= 128 else 1.0)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_resized_crop(image: Image, size: int, draws: Sequence[float]) -> np.ndarray:
    """(size, size, 3) uint8: a random part, see `random_box`, half mirrored. draws: `CROP_DRAWS` numbers in [0, 1)."""
    pixels = resized(image, size, random_box(*image.size, draws))
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored(draws) else pixels


def mirrored(draws: Sequence[float]) -> bool:
    """Whether a random crop is mirrored left to right."""
    return draws[-1] < 0.5


def random_box(width: int, height: int, draws: Sequence[float]) -> Box:
    """A random part of an image, of 8 to 100 % of the area and aspect 3/4 to 4/3; whole pixels.

    draws: `CROP_DRAWS` numbers in [0, 1). After 10 areas that don't fit, the centre at the nearest allowed
    aspect (Szegedy et al. 2015, as torchvision's RandomResizedCrop has it).
    """
    left, top, w, h = _random_box(width, height, draws)
    return left, top, left + w, top + h


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


def resized(image: Image, size: int, box: Box) -> np.ndarray:
    """(size, size, 3) uint8: the box, brought to that size."""
    bilinear = require("PIL.Image", "train").Resampling.BILINEAR
    return np.array(image.resize((size, size), bilinear, box=box))
