"""Image folders: one folder a class, as ImageNet and its relatives are laid out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastac.data.samples import Dataset, EncodedImages, Samples

__all__ = ["load_folder", "with_removed"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def load_folder(data_dir: Path, *, image_size: int, on_bad_image: str = "stop") -> Dataset:
    """Read data_dir/train/CLASS/**/*.jpg and, where there is one, data_dir/val (or test) in the same layout.

    Classes are train's folders by name, a sample's id is its position among its split's files sorted by
    class and path; files are told by their suffix (jpg, jpeg, png, webp, bmp, ppm, pgm, tif, tiff, gif). No
    image is decoded here.
    """
    train_dir = data_dir / "train"
    if not train_dir.is_dir():
        raise FileNotFoundError(
            f"{train_dir} is not a folder: --data-dir should hold train/, and val/ or test/, a folder a class"
        )
    names = _class_names(train_dir)
    train = _split(train_dir, names, image_size, on_bad_image)
    for test_dir in (data_dir / "val", data_dir / "test"):
        if test_dir.is_dir():
            strange = [name for name in _class_names(test_dir) if name not in set(names)]
            if strange:
                raise ValueError(f"{test_dir} has the class {strange[0]!r}, which {train_dir} lacks")
            return Dataset("folder", train, _split(test_dir, names, image_size, on_bad_image))
    return Dataset("folder", train, None)


def with_removed(dataset: Dataset, paths: Sequence[str]) -> Dataset:
    """A folder's data set as it was when its training split had the files `paths`, in the ids' order, some of which
    are gone since. As it is where it has other files than those, or where a class has lost all of its."""
    images, names = dataset.train.images, dataset.train.class_names
    assert isinstance(images, EncodedImages)
    classes = [Path(path).parts[0] if path else "" for path in paths]
    if not set(images.paths) < set(paths) or not set(classes) <= set(names):
        return dataset
    labels = np.array([names.index(name) for name in classes], dtype=np.int64)
    train = replace(dataset.train, images=replace(images, paths=tuple(paths)), labels=labels)
    return replace(dataset, train=train)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    return tuple(names)


def _split(folder: Path, names: tuple[str, ...], image_size: int, on_bad_image: str) -> Samples:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = _image_paths(folder, name)
        if not found and (folder / name).is_dir():
            raise ValueError(f"{folder / name} has no image files ({', '.join(_SUFFIXES)})")
        paths += found
        labels += [label] * len(found)
    images = EncodedImages(folder, tuple(paths), image_size, on_bad_image)
    try:
        return Samples(images, np.array(labels, dtype=np.int64), names)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _image_paths(folder: Path, name: str) -> list[str]:
    """The image files under folder/name, relative to `folder`, sorted."""
    found = []
    for parent, _, files in os.walk(folder / name, followlinks=True):
        relative = os.path.relpath(parent, folder)
        found += [
            os.path.join(relative, file)
            for file in files
            if file.lower().endswith(_SUFFIXES) and not file.startswith(".")
        ]
    return sorted(found)
