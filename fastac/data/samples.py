"""Samples with ids: what every loader of this package returns and every consumer takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.data.decode import decode_rgb, open_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Dataset", "EncodedImages", "Samples", "check_labels"]


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Encoded images (JPEG, PNG, …) that are decoded when they are asked for: a file each, or many in a shard."""

    root: Path
    """The folder that `paths` are relative to."""
    paths: tuple[str, ...] = field(repr=False)
    """One path a sample, in the order of the ids: its file, or the shard that it lies in."""
    image_size: int
    """Side in pixels of the square that the network sees."""
    on_bad_image: str = "stop"
    """`stop`: an unreadable image raises, with its path. `skip`: it is left out of its batch and listed."""
    spans: np.ndarray | None = field(default=None, repr=False)
    """Shards: (N, 2) int64, offset and length in bytes of the encoded image in its shard. None: whole files."""
    keys: tuple[str, ...] | None = field(default=None, repr=False)
    """Shards: what the sample is called in its shard, one a sample."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it should be at least 1 pixel")
        if self.on_bad_image not in ("stop", "skip"):
            raise ValueError(f"on_bad_image is {self.on_bad_image!r}; it should be 'stop' or 'skip'")
        if (self.spans is None) != (self.keys is None):
            raise ValueError("one of spans and keys is given; give both (images in shards) or none (files)")
        if self.spans is not None and self.keys is not None:
            n = len(self.paths)
            if self.spans.shape != (n, 2) or self.spans.dtype != np.int64 or len(self.keys) != n:
                raise ValueError(
                    f"spans is {self.spans.dtype} {self.spans.shape} with {len(self.keys)} keys; "
                    f"it should be int64 ({n}, 2) with {n}"
                )

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file that the image is, or that it lies in."""
        return self.root / self.paths[index]

    def name(self, index: int) -> str:
        """The image's path below `root`; in a shard, the shard's with the image's key behind a #."""
        return self.paths[index] if self.keys is None else f"{self.paths[index]}#{self.keys[index]}"

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError where its file cannot be read."""
        with open(self.path(index), "rb", buffering=0) as file:
            if self.spans is None:
                return file.read()
            offset, length = self.spans[index].tolist()
            file.seek(offset)
            return file.read(length)

    def decode(self, index: int) -> Image:
        """8-bit RGB, upright, as `open_rgb`. Raises UnreadableImageError with the image's path."""
        if self.spans is None:
            return open_rgb(self.path(index))
        return decode_rgb(self.read(index), str(self.root / self.name(index)))

    def take(self, ids: np.ndarray) -> EncodedImages:
        return replace(
            self,
            paths=tuple(self.paths[i] for i in ids.tolist()),
            spans=None if self.spans is None else self.spans[ids],
            keys=None if self.keys is None else tuple(self.keys[i] for i in ids.tolist()),
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """One split of a data set. A sample's id is its position, and stays it."""

    images: np.ndarray | EncodedImages
    """(N, H, W, C) uint8 with C 1 or 3, or files and shards."""
    labels: np.ndarray
    """(N,) int64 in [0, K)."""
    class_names: tuple[str, ...]
    """K names, K at least 2."""
    class_groups: np.ndarray | None = None
    """(K,) int64: each class's superclass (CIFAR-100's coarse labels)."""

    def __post_init__(self) -> None:
        if not isinstance(self.images, EncodedImages):
            _check_pixels(self.images)
        if len(self.images) == 0:
            raise ValueError("images holds no samples; it should hold at least one")
        if not isinstance(self.class_names, tuple) or not all(isinstance(n, str) for n in self.class_names):
            raise ValueError(f"class_names is {self.class_names!r}; it should be a tuple of str")
        if self.num_classes < 2:
            raise ValueError(f"class_names has {self.num_classes} name; it should have at least 2")
        check_labels(self.labels, "labels", len(self.images), self.num_classes)
        groups = self.class_groups
        if groups is not None and (groups.shape != (self.num_classes,) or groups.dtype != np.int64):
            raise ValueError(
                f"class_groups is {groups.dtype} {groups.shape}; it should be int64 ({self.num_classes},)"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return 3 if isinstance(self.images, EncodedImages) else int(self.images.shape[3])

    def image(self, index: int) -> np.ndarray:
        """The original pixels of one sample, (H, W, C) uint8, before any resize or augmentation."""
        if isinstance(self.images, EncodedImages):
            return np.array(self.images.decode(index))
        return self.images[index]

    def take(self, ids: np.ndarray) -> Samples:
        """The samples `ids` ((n,) int64) as a split of their own, in which they are numbered from 0."""
        images = self.images.take(ids) if isinstance(self.images, EncodedImages) else self.images[ids]
        return replace(self, images=images, labels=self.labels[ids])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set by name, with its test split where there is one."""

    name: str
    train: Samples
    test: Samples | None

    def __post_init__(self) -> None:
        test = self.test
        if test is not None and test.class_names != self.train.class_names:
            raise ValueError("test and train have different class_names; they should be the same")
        if test is not None and test.channels != self.train.channels:
            raise ValueError(f"test has {test.channels} channels and train {self.train.channels}")


def _check_pixels(images: np.ndarray) -> None:
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
        or 0 in images.shape[1:3]
    ):
        raise ValueError(
            f"images is {images.dtype} {images.shape}; it should be uint8 (N, H, W, C) with C 1 or 3"
        )


def check_labels(labels: Any, name: str, num_samples: int, num_classes: int) -> None:
    """Raise ValueError unless `labels` is (num_samples,) int64 in [0, num_classes). name: for the message."""
    if not isinstance(labels, np.ndarray):
        raise ValueError(f"{name} is a {type(labels).__name__}; it should be a NumPy array")
    if labels.dtype != np.int64 or labels.shape != (num_samples,):
        raise ValueError(f"{name} is {labels.dtype} {labels.shape}; it should be int64 ({num_samples},)")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise ValueError(
            f"{name}[{outside[0]}] is {labels[outside[0]]} ({outside.size} such); "
            f"labels should be in [0, {num_classes})"
        )
