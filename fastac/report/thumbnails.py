"""Small pictures as data URIs, for pages that carry their images with them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from fastac.extras import require

__all__ = ["thumbnail_side", "thumbnail_uri"]

_LOSSLESS_SIDE = 40  # PNG up to here: a CIFAR image takes 2 kB, and its pixels stay what they are
_QUALITY = 82


def thumbnail_side(count: int) -> int:
    """The longer side in pixels at which `count` photographs take at most about 30 MB."""
    return 256 if count <= 500 else 192 if count <= 1500 else 128 if count <= 3000 else 112


def thumbnail_uri(image: Any, side: int) -> str:
    """A data URI of an image, its longer side at most `side` pixels: PNG if it is small, else JPEG.

    image: a PIL image, or pixels (H, W), (H, W, 1) or (H, W, 3) uint8. Raises ValueError for anything else.
    """
    pillow = require("PIL.Image", "report")
    if not isinstance(image, pillow.Image):
        image = pillow.fromarray(_pixels(image))
    image = image.convert("L" if image.mode in ("L", "1") else "RGB")
    lossless = max(image.size) <= _LOSSLESS_SIDE
    if max(image.size) > side:
        image.thumbnail((side, side), pillow.Resampling.LANCZOS)
    content = io.BytesIO()
    if lossless:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=_QUALITY, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or colour) or pixels.size == 0:
        raise ValueError(
            f"images gave {pixels.dtype} {pixels.shape}; it should be a PIL image, or uint8 (H, W), (H, W, 1) or "
            "(H, W, 3)"
        )
    return np.ascontiguousarray(pixels)
