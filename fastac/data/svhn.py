"""SVHN's cropped digits (Netzer et al. 2011) from their MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastac.data.samples import Dataset, Samples
from fastac.extras import require

__all__ = ["load_svhn", "load_svhn_extra"]

_CLASSES = tuple(str(digit) for digit in range(10))


def load_svhn(data_dir: Path) -> Dataset:
    """73,257 training and 26,032 test images, (N, 32, 32, 3) uint8.

    data_dir: the folder of train_32x32.mat and test_32x32.mat.
    """
    return _load("svhn", data_dir, ["train"])


def load_svhn_extra(data_dir: Path) -> Dataset:
    """SVHN with its 531,131 extra training images, whose ids follow those of the others.

    data_dir: the folder of train_32x32.mat, extra_32x32.mat and test_32x32.mat.
    """
    return _load("svhn-extra", data_dir, ["train", "extra"])


def _load(name: str, data_dir: Path, parts: list[str]) -> Dataset:
    read = [_read(data_dir / f"{part}_32x32.mat") for part in parts]
    images, labels = read[0] if len(read) == 1 else (np.concatenate(a) for a in zip(*read, strict=True))
    test_images, test_labels = _read(data_dir / "test_32x32.mat")
    return Dataset(name, Samples(images, labels, _CLASSES), Samples(test_images, test_labels, _CLASSES))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: --data-dir should be the folder of train_32x32.mat, test_32x32.mat and, for "
            "svhn-extra, extra_32x32.mat"
        )
    io = require("scipy.io", "train")
    try:
        content = io.loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"]
    except Exception as error:  # scipy raises many types on broken files
        raise ValueError(f"{path} is not a MATLAB file with X and y: {error!r}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: X is {images.dtype} {images.shape}; it should be uint8 (32, 32, 3, N)")
    if labels.size != images.shape[3]:
        raise ValueError(f"{path}: y has {labels.size} labels; it should have {images.shape[3]}")
    labels = labels.reshape(-1).astype(np.int64)
    if labels.min() < 1 or labels.max() > 10:
        raise ValueError(
            f"{path}: y spans {labels.min()} to {labels.max()}; it should be 1 to 10 (10 is zero)"
        )
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10
