"""What WebDataset's tar files and TFRecord files have in common: many samples in a file, found by offset and length."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastac.data.samples import Dataset, EncodedImages, Samples

__all__ = ["Format", "Record", "find_shards", "index_places", "load_shards", "read_lines"]

_LOGGER = logging.getLogger("fastac")
_THREADS = 8  # shards that are looked through at once; it is mostly waiting for the disk


class Record(NamedTuple):
    """One sample of a shard."""

    key: str
    """What it is called in its shard."""
    offset: int
    length: int
    """Of the encoded image, in bytes."""
    label: int
    """As the shard has it."""
    class_name: str | None


@dataclass(frozen=True)
class Format:
    """A kind of shard."""

    name: str
    is_shard: Callable[[str], bool]
    """Told by the file's name."""
    read: Callable[[Path], tuple[list[Record], bool]]
    """All records of a shard, and whether there was an index file."""
    from_one: bool
    """Labels may count from 1: they do where no training sample has the label 0."""


def load_shards(kind: Format, data_dir: Path, *, image_size: int, on_bad_image: str) -> Dataset:
    """Read data_dir/train/* and, where there is one, data_dir/val (or test). A sample's id is its place among its
    split's samples, the shards sorted by name.

    Class names: the lines of data_dir/classes.txt, else what the training records say, else the labels' numbers. No
    image is decoded here. Raises FileNotFoundError without data_dir/train, ValueError for content.
    """
    train_dir = data_dir / "train"
    if not train_dir.is_dir():
        raise FileNotFoundError(
            f"{train_dir} is not a folder: --data-dir should hold train/, and val/ or test/, with {kind.name} shards"
        )
    paths, records = _records(kind, train_dir)
    labels = np.array([record.label for record in records], dtype=np.int64)
    base = 0
    if kind.from_one and labels.min() == 1 and not _names_from_zero(data_dir, labels):
        base = 1
        _LOGGER.warning(
            "labels of %s count from 1 (none is 0): taken as 0 to %d", train_dir, labels.max() - 1
        )
    names = _class_names(data_dir, records, labels - base)
    train = _samples(train_dir, paths, records, base, names, image_size, on_bad_image)
    for test_dir in (data_dir / "val", data_dir / "test"):
        if test_dir.is_dir():
            paths, records = _records(kind, test_dir)
            test = _samples(test_dir, paths, records, base, names, image_size, on_bad_image)
            return Dataset(kind.name, train, test)
    return Dataset(kind.name, train, None)


def find_shards(kind: Format, folder: Path) -> list[str]:
    """The shards in a folder, by name, sorted."""
    return sorted(e.name for e in os.scandir(folder) if kind.is_shard(e.name) and not e.name.startswith("."))


def index_places(shard: Path) -> tuple[Path, Path]:
    """Where the index of a shard is looked for: NAME.idx for NAME.tar, and for any name, that with .idx behind it."""
    return shard.with_suffix(".idx"), shard.with_name(shard.name + ".idx")


def read_lines(path: Path) -> list[str]:
    """Of a text file. Raises ValueError for what is no text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file: {error}") from error


def _records(kind: Format, folder: Path) -> tuple[list[str], list[Record]]:
    """One path and one record a sample."""
    shards = find_shards(kind, folder)
    if not shards:
        raise ValueError(f"{folder} has no {kind.name} shards")
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda shard: kind.read(folder / shard), shards))
    scanned = sum(not indexed for _, indexed in found)
    if scanned:
        _LOGGER.warning(
            "%d of %d shards in %s have no index file and were looked through; to write them: "
            "python -m fastac.data.index %s",
            scanned,
            len(shards),
            folder,
            folder,
        )
    records = [record for shard, _ in found for record in shard]
    paths = [shard for shard, (part, _) in zip(shards, found, strict=True) for _ in part]
    if not records:
        raise ValueError(f"{folder}: its {kind.name} shards hold no samples")
    return paths, records


def _listed_names(data_dir: Path) -> tuple[str, ...] | None:
    """The lines of classes.txt; None where there is no such file."""
    path = data_dir / "classes.txt"
    return tuple(line.strip() for line in read_lines(path) if line.strip()) if path.is_file() else None


def _names_from_zero(data_dir: Path, labels: np.ndarray) -> bool:
    """Whether classes.txt has a name for the label 0, which no sample has: the background among the 1,001 classes of
    TensorFlow's networks."""
    names = _listed_names(data_dir)
    return names is not None and len(names) == labels.max() + 1


def _class_names(data_dir: Path, records: Sequence[Record], labels: np.ndarray) -> tuple[str, ...]:
    """labels: (N,), from 0 on."""
    listed = _listed_names(data_dir)
    if listed is not None:
        return listed
    count = max(0, int(labels.max())) + 1
    by_label = {
        int(k): record.class_name for k, record in zip(labels, records, strict=True) if record.class_name
    }
    names = tuple(by_label.get(k, str(k)) for k in range(count))
    return names if len(set(names)) == count else tuple(map(str, range(count)))


def _samples(
    folder: Path,
    paths: list[str],
    records: list[Record],
    base: int,
    names: tuple[str, ...],
    image_size: int,
    on_bad_image: str,
) -> Samples:
    spans = np.array([(record.offset, record.length) for record in records], dtype=np.int64)
    keys = tuple(record.key for record in records)
    images = EncodedImages(folder, tuple(paths), image_size, on_bad_image, spans, keys)
    labels = np.array([record.label - base for record in records], dtype=np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if outside.size:
        first = int(outside[0])
        raise ValueError(
            f"{folder / images.name(first)} has the label {records[first].label} ({outside.size} such); labels should "
            f"be {base} to {base + len(names) - 1}, by {folder.parent / 'classes.txt'} or else the largest of train"
        )
    try:
        return Samples(images, labels, names)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
