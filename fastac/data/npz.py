"""A user's own arrays from an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastac.data.samples import Dataset, Samples

__all__ = ["load_npz"]

_KNOWN = ("images", "labels", "test_images", "test_labels", "class_names")
_MAX_UNNAMED = 1_000_000  # more than that is no class number


def load_npz(path: Path) -> Dataset:
    """Read `path`, as numpy.savez writes it, without unpickling.

    images: uint8 (N, H, W) or (N, H, W, C) with C 1 or 3. labels: (N,) of any integer type. Optional:
    test_images and test_labels, both or none; class_names: (K,) str, else K is the largest label + 1 and
    the names are the numbers. Raises ValueError, which names the file and the array, for anything else.
    """
    arrays = _read(path)
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise ValueError(f"{path} has one of test_images and test_labels; it should have both or none")
    labels = {key: _labels(path, key, arrays[key]) for key in ("labels", "test_labels") if key in arrays}
    if "class_names" in arrays:
        names = _class_names(path, arrays["class_names"])
    else:
        highest = max(int(values.max()) for values in labels.values())
        if highest >= _MAX_UNNAMED:
            raise ValueError(f"{path} has the label {highest}; without class_names, labels count from 0")
        if highest < 1:
            raise ValueError(
                f"{path}: labels are all {highest}; there should be at least 2 classes, from 0 on"
            )
        names = tuple(str(k) for k in range(1 + highest))
    train = _samples(path, "images", arrays["images"], labels["labels"], names)
    if "test_images" not in arrays:
        return Dataset("npz", train, None)
    test = _samples(path, "test_images", arrays["test_images"], labels["test_labels"], names)
    try:
        return Dataset("npz", train, test)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: --data-dir should be the .npz file itself")
    should = f"{path} should be an .npz file with the arrays images and labels"
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle, and advise to load it unsafely
        raise ValueError(f"{should}: it is no .npz file")
    key = ""
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = [key for key in _KNOWN[:2] if key not in content]
            if missing:
                raise ValueError(f"it has no {' and no '.join(missing)}; it has {', '.join(content)}")
            arrays = {}
            for key in _KNOWN:
                if key in content:
                    arrays[key] = content[key]
            return arrays
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        where = f"{key}: " if key else ""
        raise ValueError(f"{should}: {where}{error}") from error


def _samples(path: Path, key: str, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Samples:
    right_rank = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not right_rank:
        raise ValueError(
            f"{path}: {key} is {images.dtype} {images.shape}; "
            "it should be uint8 (N, H, W) or (N, H, W, C) with C 1 or 3, channels last"
        )
    try:
        return Samples(images if images.ndim == 4 else images[..., None], labels, names)
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from error


def _labels(path: Path, key: str, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not labels.size:
        raise ValueError(f"{path}: {key} is {labels.dtype} {labels.shape}; it should be integers (N,)")
    return labels.astype(np.int64)


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError(f"{path}: class_names is {names.dtype} {names.shape}; it should be str (K,)")
    return tuple(names.tolist())
