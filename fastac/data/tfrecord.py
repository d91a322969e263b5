"""TFRecord shards of tf.train.Example, with index files as DALI's tfrecord2idx has, read without TensorFlow."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from fastac.data.protobuf import Span, example_features, feature_bytes, feature_ints
from fastac.data.samples import Dataset
from fastac.data.shards import Format, Record, index_places, load_shards, read_lines

__all__ = ["TFRECORD", "load_tfrecord", "record_index_text", "scan_tfrecord"]

_NAME = re.compile(r"(\.tfrecords?|\.tfrec|-\d+-of-\d+)$")
_BEFORE, _AFTER = 12, 4  # bytes of a record around its data: length, its checksum; the data's checksum
_IMAGE, _LABEL = "image/encoded", "image/class/label"
_CLASS_NAMES = ("image/class/synset", "image/class/text")


def load_tfrecord(data_dir: Path, *, image_size: int, on_bad_image: str = "stop") -> Dataset:
    """Read the TFRecord files of data_dir/train and, where there is one, data_dir/val (or test): names that end in
    .tfrecord, .tfrecords, .tfrec or -00000-of-01024.

    Features: image/encoded, image/class/label, and for the class names image/class/synset or image/class/text. Labels
    count from 0, or, where no training sample has the label 0, from 1, as in ImageNet's TFRecords; those come out less
    1. Checksums are not looked at.
    """
    return load_shards(TFRECORD, data_dir, image_size=image_size, on_bad_image=on_bad_image)


def scan_tfrecord(path: Path) -> list[Span]:
    """Where each record begins and ends, its framing included. Raises ValueError for what is no TFRecord file."""
    size, position = path.stat().st_size, 0
    spans = []
    with open(path, "rb", buffering=0) as file:
        while position < size:
            file.seek(position)
            end = position + _framed(path, file.read(8), position, size)
            spans.append((position, end))
            position = end
    return spans


def record_index_text(spans: list[Span]) -> str:
    """An index file's content: of each record a line with offset and size."""
    return "".join(f"{first} {end - first}\n" for first, end in spans)


def _framed(path: Path, head: bytes, position: int, size: int) -> int:
    """Bytes of the record at `position`, by its first 8."""
    length = _BEFORE + struct.unpack("<Q", head)[0] + _AFTER if len(head) == 8 else size + 1
    if position + length > size:
        raise ValueError(f"{path} is no whole TFRecord file: the record at byte {position} goes past its end")
    return length


def _read_index(index: Path, shard: Path) -> list[Span]:
    wrong = f"{index} is no index of {shard.name}, or of an older one (python -m fastac.data.index writes it again)"
    spans, position = [], 0
    for number, line in enumerate(read_lines(index)):
        try:
            offset, length = map(int, line.split())
        except ValueError as error:
            raise ValueError(f"{wrong}: line {number + 1} is {line[:60]!r}") from error
        if offset != position or length < _BEFORE + _AFTER:
            raise ValueError(
                f"{wrong}: line {number + 1} is {line[:60]!r}, and a record begins at byte {position}"
            )
        position += length
        spans.append((offset, position))
    if position != shard.stat().st_size:
        raise ValueError(f"{wrong}: its records end at byte {position}, the file at {shard.stat().st_size}")
    return spans


def _read(shard: Path) -> tuple[list[Record], bool]:
    index = next((place for place in index_places(shard) if place.is_file()), None)
    spans = scan_tfrecord(shard) if index is None else _read_index(index, shard)
    return list(_records(shard, spans)), index is not None


def _records(shard: Path, spans: list[Span]) -> Iterator[Record]:
    if not spans:
        return
    with open(shard, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, (first, end) in enumerate(spans):
            where = f"{shard}: record {number}, at byte {first},"
            try:
                features = example_features(content, (first + _BEFORE, end - _AFTER))
                images = feature_bytes(content, features[_IMAGE]) if _IMAGE in features else []
                labels = feature_ints(content, features[_LABEL]) if _LABEL in features else []
            except ValueError as error:
                raise ValueError(f"{where} is no tf.train.Example: {error}") from error
            if len(images) != 1 or len(labels) != 1:
                raise ValueError(
                    f"{where} has {len(images)} {_IMAGE} and {len(labels)} {_LABEL}; it should have one of each. Its "
                    f"features: {', '.join(sorted(features))}"
                )
            names = [
                name
                for key in _CLASS_NAMES
                if key in features
                for name in feature_bytes(content, features[key])
            ]
            class_name = content[slice(*names[0])].decode("utf-8", "replace") if names else None
            yield Record(str(number), images[0][0], images[0][1] - images[0][0], labels[0], class_name)


TFRECORD = Format("tfrecord", lambda name: _NAME.search(name) is not None, _read, from_one=True)
