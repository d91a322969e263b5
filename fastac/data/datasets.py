"""Data sets by name."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from fastac.data.cifar import load_cifar10, load_cifar100
from fastac.data.digits import load_digits
from fastac.data.folder import load_folder
from fastac.data.idx import load_fashion_mnist
from fastac.data.npz import load_npz
from fastac.data.samples import Dataset
from fastac.data.svhn import load_svhn, load_svhn_extra
from fastac.data.tfrecord import load_tfrecord
from fastac.data.webdataset import load_webdataset

__all__ = ["DATASETS", "load_dataset"]

DATASETS = (
    "digits",
    "fashion-mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "svhn-extra",
    "folder",
    "webdataset",
    "tfrecord",
    "npz",
)
_FROM_DIR = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "svhn-extra": load_svhn_extra,
    "npz": load_npz,
}
_ENCODED = {"folder": load_folder, "webdataset": load_webdataset, "tfrecord": load_tfrecord}


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    train_limit: int | None = None,
    on_bad_image: str = "stop",
) -> Dataset:
    """Load a data set.

    name: one of `DATASETS`. data_dir: the folder that the set's files are in (npz: the file); digits needs
    none, fashion-mnist none where Debian's package is installed. image_size: the side in pixels that encoded
    images (folder, webdataset, tfrecord) are brought to, required there and for them only. train_limit: keep the
    first so many training samples. on_bad_image: what an unreadable image does there, `stop` (raise with its
    path) or `skip` (leave it out of its batch, see `Batch.bad`).

    Raises ValueError for a wrong argument or content, FileNotFoundError where files are missing.
    """
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown dataset {name!r}; did you mean {nearest!r}? Known: {', '.join(DATASETS)}")
    if train_limit is not None and train_limit < 1:
        raise ValueError(f"train_limit is {train_limit}; it should be at least 1")
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image is {on_bad_image!r}; it should be 'stop' or 'skip'")
    dataset = _load(name, None if data_dir is None else Path(data_dir).expanduser(), image_size, on_bad_image)
    if train_limit is None or train_limit >= len(dataset.train):
        return dataset
    return Dataset(dataset.name, dataset.train.take(np.arange(train_limit)), dataset.test)


def _load(name: str, data_dir: Path | None, image_size: int | None, on_bad_image: str) -> Dataset:
    if name not in _ENCODED and image_size is not None:
        raise ValueError(
            f"image_size is {image_size}; it is for {', '.join(_ENCODED)} only, {name} has images of one size"
        )
    if name == "digits":
        return load_digits()
    if name == "fashion-mnist":
        return load_fashion_mnist(data_dir)
    if data_dir is None:
        raise ValueError(f"{name} needs data_dir (--data-dir): where its files are")
    if name in _ENCODED:
        if image_size is None:
            raise ValueError(f"{name} needs image_size (--image-size): the side in pixels, such as 64 or 224")
        return _ENCODED[name](data_dir, image_size=image_size, on_bad_image=on_bad_image)
    return _FROM_DIR[name](data_dir)
