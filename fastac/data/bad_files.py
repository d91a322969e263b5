"""Files as image folders of the world have them: unreadable ones, and readable ones of unusual kinds."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastac.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BAD_KINDS", "BadKind", "encode_bad"]

_HUGE = 20_000


@dataclass(frozen=True)
class BadKind:
    name: str
    suffix: str
    readable: bool
    """Whether `fastac.data.decode.open_rgb` makes an image of it."""


BAD_KINDS = (
    BadKind("zero-byte", ".JPEG", False),
    BadKind("truncated", ".JPEG", False),
    BadKind("text", ".jpg", False),
    BadKind("cmyk", ".JPEG", True),
    BadKind("grayscale", ".JPEG", True),
    BadKind("16-bit", ".png", True),
    BadKind("exif-rotated", ".JPEG", True),
    BadKind("huge", ".png", False),
)


def encode_bad(kind: str, image: Image) -> bytes:
    """The bytes of a file of that kind, where it shows anything with `image`, 8-bit RGB, in it."""
    if kind == "zero-byte":
        return b""
    if kind == "text":
        return b"This is a text file by the name of an image.\n"
    if kind == "truncated":
        whole = _saved(image, "JPEG")
        return whole[: len(whole) // 2]
    if kind == "cmyk":
        return _saved(image.convert("CMYK"), "JPEG")
    if kind == "grayscale":
        return _saved(image.convert("L"), "JPEG")
    if kind == "16-bit":
        gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return _saved(require("PIL.Image", "report").fromarray(gray), "PNG")
    if kind == "exif-rotated":
        return _rotated(image)
    if kind == "huge":
        return _flat_png(_HUGE, _HUGE)
    raise ValueError(f"kind is {kind!r}; it should be one of {', '.join(k.name for k in BAD_KINDS)}")


def _saved(image: Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _rotated(image: Image) -> bytes:
    """As a camera on its side stores it: the rows turned to the left, and the tag that says to turn them back."""
    image_module = require("PIL.Image", "report")
    exif = image_module.Exif()
    exif[0x0112] = 6
    return _saved(image.transpose(image_module.Transpose.ROTATE_90), "JPEG", exif=exif.tobytes())


def _flat_png(width: int, height: int) -> bytes:
    """A black 1-bit PNG, row by row: Pillow would take a byte of memory a pixel for it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    packer, row = zlib.compressobj(), bytes(1 + (width + 7) // 8)  # a filter byte, then 8 pixels a byte
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
