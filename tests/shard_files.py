"""Shards as their writers make them, small."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np


def jpegs(count: int, size: tuple[int, int] = (40, 30)) -> list[bytes]:
    """Encoded pictures, all different, smooth so that decoders agree to a grey level or two."""
    from PIL import Image

    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    found = []
    for number in range(count):
        channels = [x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 5 + number) * np.cos(y / 4)]
        buffer = io.BytesIO()
        Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(buffer, "JPEG", quality=92)
        found.append(buffer.getvalue())
    return found


def write_tar(path: Path, samples: list[dict[str, bytes]], first: int = 0) -> None:
    """A sample: extension -> content; its name is its number, six digits, in a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples, start=first):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"part/{number:06d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def part(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, bytes | int | float]) -> bytes:
    """A serialised tf.train.Example."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = part(1, part(1, value))
        elif isinstance(value, float):
            feature = part(2, part(1, struct.pack("<f", value)))
        else:
            feature = part(3, part(1, varint(value)))
        entries += part(1, part(1, name.encode()) + part(2, feature))
    return part(1, entries)


def write_tfrecord(path: Path, records: list[bytes]) -> None:
    """Without checksums, which nobody looks at here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(struct.pack("<Q", len(r)) + b"\0" * 4 + r + b"\0" * 4 for r in records))
