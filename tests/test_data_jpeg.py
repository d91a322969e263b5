"""JPEG headers: what is plain enough for any decoder, and what Pillow is asked about."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from fastac.data.jpeg import plain_jpeg_size

Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)


def jpeg(mode: str = "RGB", size: tuple[int, int] = (48, 36), **options) -> bytes:
    """Noisy, so that all byte values come up in the scan."""
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_segment(marker: int, body: bytes, content: bytes | None = None) -> bytes:
    """A JPEG with one more segment behind its first one."""
    content = jpeg() if content is None else content
    place = 4 + int.from_bytes(content[4:6], "big")
    return content[:place] + segment(marker, body) + content[place:]


def exif(orientation: int | None = None, order: str = ">", kind: int = 3, count: int = 1) -> bytes:
    entries = [(0x0100, 4, 1, 48)] + ([] if orientation is None else [(0x0112, kind, count, orientation)])
    out = b"Exif\0\0" + (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "IH", 8, len(entries))
    for tag, what, number, value in entries:
        out += struct.pack(order + "HHI", tag, what, number)
        out += struct.pack(order + ("HH" if what == 3 else "I"), *((value, 0) if what == 3 else (value,)))
    return out + b"\0" * 4


PLAIN = {
    "baseline": jpeg(),
    "4:4:4": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "grayscale": jpeg("L"),
    "progressive": jpeg(progressive=True),
    "optimised tables": jpeg(optimize=True),
    "restart markers": jpeg(restart_marker_rows=1),
    "progressive with restarts": jpeg(progressive=True, restart_marker_blocks=2),
    "comment": jpeg(comment=b"hello\xff\xd9"),
    "upright": with_segment(0xE1, exif(1)),
    "upright, the other byte order": with_segment(0xE1, exif(1, "<")),
    "EXIF data without an orientation": with_segment(0xE1, exif()),
    "XMP data": with_segment(0xE1, b"xap\0 no word of it"),
    # A segment goes in before those that were put in earlier.
    "XMP data behind an upright orientation": with_segment(
        0xE1, exif(1), with_segment(0xE1, b"xap\0 tiff:Orientation")
    ),
    "Adobe's YCbCr": with_segment(0xEE, b"Adobe" + bytes(6) + b"\1"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name):
    content = PLAIN[name]
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    assert plain_jpeg_size(content) == (48, 36)


def changed(old: bytes, new: bytes) -> bytes:
    content = jpeg()
    assert content.count(old) == 1
    return content.replace(old, new)


def frame() -> bytes:
    """The first 12 bytes of a JPEG's frame header."""
    content = jpeg()
    place = content.index(b"\xff\xc0\x00\x11")
    return content[place : place + 12]


def in_the_scan(content: bytes, what: bytes) -> bytes:
    middle = (content.rindex(b"\xff\xda") + len(content)) // 2
    return content[:middle] + what + content[middle:]


FOR_PILLOW = {
    "nothing": b"",
    "text": b"this is text",
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "two bytes": b"\xff\xd8",
    "start and end": b"\xff\xd8\xff\xd9",
    "header only": jpeg()[:100] + b"\xff\xd9",
    "half": jpeg()[: len(jpeg()) // 2],
    "half with an end": in_the_scan(jpeg(), b"\xff\xd9"),
    "garbage behind": jpeg() + b"\0",
    "a marker in the scan": in_the_scan(jpeg(), b"\xff\xc0"),
    "a restart marker that nothing announces": in_the_scan(jpeg(), b"\xff\xd3"),
    "a second image's start": in_the_scan(jpeg(), b"\xff\xd8"),
    "CMYK": jpeg("CMYK"),
    "12 bits": changed(frame(), frame()[:4] + b"\x0c" + frame()[5:]),
    "no height": changed(frame(), frame()[:5] + b"\0\0" + frame()[7:]),
    "no width": changed(frame(), frame()[:7] + b"\0\0" + frame()[9:]),
    "two components": changed(frame(), frame()[:9] + b"\2" + frame()[10:]),
    "arithmetic coding": changed(frame(), b"\xff\xc9" + frame()[2:]),
    "lossless": changed(frame(), b"\xff\xc3" + frame()[2:]),
    "RGB by its components": jpeg(keep_rgb=True),
    "RGB by Adobe's word": with_segment(0xEE, b"Adobe" + bytes(7)),
    "orientation as text": with_segment(0xE1, exif(1, kind=2)),
    "two orientations": with_segment(0xE1, exif(1, count=2)),
    "EXIF data of another order": with_segment(0xE1, b"Exif\0\0XX\0*\0\0\0\x08"),
    "EXIF data cut off": with_segment(0xE1, exif(1)[:20]),
    "XMP data": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0 tiff:Orientation='6'"),
    "a fill byte between segments": jpeg()[:2] + b"\xff" + jpeg()[2:],
    **{f"orientation {k}": with_segment(0xE1, exif(k)) for k in (0, 2, 3, 4, 5, 6, 7, 8, 9)},
}


@pytest.mark.parametrize("name", FOR_PILLOW)
def test_not_plain(name):
    assert plain_jpeg_size(FOR_PILLOW[name]) is None


def test_cut_anywhere_it_is_not_plain():
    content = jpeg(size=(16, 16))
    assert plain_jpeg_size(content) == (16, 16)
    for end in range(len(content)):
        assert plain_jpeg_size(content[:end]) is None
        assert plain_jpeg_size(content[:end] + b"\xff\xd9") in (None, (16, 16))


def test_any_bytes_are_taken_without_an_error():
    content = bytearray(PLAIN["progressive with restarts"])
    for _ in range(3000):
        place = int(RNG.integers(2, len(content)))
        kept, content[place] = content[place], int(RNG.integers(256))
        plain_jpeg_size(bytes(content))
        content[place] = kept
    for _ in range(1000):
        plain_jpeg_size(b"\xff\xd8" + RNG.bytes(60) + b"\xff\xd9")
