"""JPEG headers: which files any decoder reads as Pillow does, told without decoding them."""

from __future__ import annotations

import re
import struct

__all__ = ["plain_jpeg_size"]

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOF_HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_SOF = (
    0xC3,
    0xC5,
    0xC6,
    0xC7,
    0xC9,
    0xCA,
    0xCB,
    0xCD,
    0xCE,
    0xCF,
)  # lossless, arithmetic, hierarchical
_SOS, _DHT, _DRI, _COM, _APP1, _APP14 = 0xDA, 0xC4, 0xDD, 0xFE, 0xE1, 0xEE
_MARKER = re.compile(rb"\xff[^\x00]")  # in a scan, 0xFF is followed by 0
_MARKER_BUT_RESTART = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_ORIENTATION, _SHORT = 0x0112, 3


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a plain JPEG, None for everything else.

    Plain: 8-bit grayscale or YCbCr, Huffman-coded, upright by its EXIF data, with an end and no stray marker before it:
    where a file was cut off or overwritten, decoders differ in whether they fill the rest with gray or refuse. Of other
    content Pillow should be asked.
    """
    if not (content.startswith(_SOI) and content.endswith(_EOI)):
        return None
    size, restarts = None, False
    orientation: int | None = None
    position = 2
    while True:
        if content[position : position + 1] != b"\xff" or position + 4 > len(content):
            return None  # also fill bytes between segments, which are allowed and rare
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        body = content[position + 4 : position + 2 + length]
        if len(body) != length - 2 or marker in _OTHER_SOF:
            return None
        if marker == _SOS:
            return size if _whole_scans(content, position, restarts) else None
        if marker == _DRI:
            restarts = any(body)
        elif marker in _SOF_HUFFMAN:
            size = _frame_size(body)
            if size is None:
                return None
        elif marker == _APP1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
            if orientation not in (None, 1):
                return None
        elif (
            marker == _APP1 and orientation is None and b"Orientation" in body
        ):  # in XMP data, Pillow looks there
            return None
        elif marker == _APP14 and body.startswith(b"Adobe") and body[-1:] == b"\0":  # RGB, not YCbCr
            return None
        position += 2 + length


def _whole_scans(content: bytes, position: int, restarts: bool) -> bool:
    """Whether nothing but scans and their headers comes from the SOS marker at `position` to the end. restarts: scans
    have restart markers in them."""
    find = (_MARKER_BUT_RESTART if restarts else _MARKER).search
    end = len(content) - len(_EOI)
    while True:
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        found = find(content, position)
        if found is None or found.start() >= end:
            return found is not None and found.start() == end
        position = found.start()
        if content[position + 1] not in (_SOS, _DHT, _COM):
            return False


def _frame_size(body: bytes) -> tuple[int, int] | None:
    """Of a frame header, SOF without its length."""
    if len(body) < 6:
        return None
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    names = body[6::3]
    if precision != 8 or components not in (1, 3) or len(body) != 6 + 3 * components or names == b"RGB":
        return None
    return (width, height) if width > 0 and height > 0 else None  # a height of 0: given after the first scan


def _orientation(tiff: bytes) -> int | None:
    """The orientation in EXIF data: 1 to 8, None where there is none, 0 where the data are broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 0
    try:
        (place,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _ORIENTATION:
                value = struct.unpack_from(order + "H", tiff, entry + 8)[0]
                return value if (kind, number) == (_SHORT, 1) else 0
    except struct.error:
        return 0
    return None
