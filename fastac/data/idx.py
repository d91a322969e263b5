"""IDX files (LeCun's format of MNIST) and Fashion-MNIST, which comes in them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from fastac.data.samples import Dataset, Samples

__all__ = ["load_fashion_mnist", "read_idx"]

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_fashion_mnist(data_dir: Path | None) -> Dataset:
    """60,000 training and 10,000 test images, (N, 28, 28, 1) uint8 (Xiao et al. 2017).

    The four idx files, gzipped or not, are looked for in `data_dir` and its FashionMNIST/raw (torchvision's
    layout), or, where no folder is given, where Debian's package dataset-fashion-mnist puts them.
    """
    folders = (_DEBIAN,) if data_dir is None else (data_dir, data_dir / "FashionMNIST" / "raw")
    return Dataset("fashion-mnist", _split(folders, "train"), _split(folders, "t10k"))


def _split(folders: tuple[Path, ...], prefix: str) -> Samples:
    images_path, labels_path = (
        _find(folders, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1).astype(np.int64)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path} has {len(labels)} labels and {images_path} {len(images)} images; "
            "they should be as many"
        )
    try:
        return Samples(images[..., None], labels, _CLASSES)
    except ValueError as error:
        raise ValueError(f"{images_path} and {labels_path.name}: {error}") from error


def _find(folders: tuple[Path, ...], stem: str) -> Path:
    for folder in folders:
        for name in (stem, f"{stem}.gz"):
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"Fashion-MNIST's {stem}(.gz) is not in {' or '.join(map(str, folders))}: "
        "apt-get install dataset-fashion-mnist, or name the folder that has the idx files with --data-dir"
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes with that many dimensions, gzipped where the name ends in .gz.

    Format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each size as a big-endian
    int32, the values. Raises ValueError, which names the file, for any other content or length.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic or len(content) < header:
        raise ValueError(
            f"{path} starts with the bytes {content[:4].hex(' ')}; "
            f"{dimensions}-dimensional idx files of unsigned bytes start with {magic.hex(' ')} and the sizes"
        )
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes; its header {shape} makes it {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
