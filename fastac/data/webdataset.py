"""WebDataset shards: tar files in which a sample is the members of one name, with index files as DALI's wds2idx has."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastac.data.samples import Dataset
from fastac.data.shards import Format, Record, index_places, load_shards, read_lines

__all__ = ["WEBDATASET", "Component", "index_text", "load_webdataset", "scan_tar"]

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "gif")
_BLOCK = 512


class Component(NamedTuple):
    """One member of a tar file."""

    extension: str
    """What follows the first dot of its name, past the folders."""
    offset: int
    size: int
    name: str


def load_webdataset(data_dir: Path, *, image_size: int, on_bad_image: str = "stop") -> Dataset:
    """Read data_dir/train/*.tar and, where there is one, data_dir/val (or test).

    A sample has one image (by its extension) and its label as a text member .cls, from 0 on.
    """
    return load_shards(WEBDATASET, data_dir, image_size=image_size, on_bad_image=on_bad_image)


def scan_tar(path: Path) -> list[list[Component]]:
    """The samples of a tar file, each its members, in the file's order. Raises ValueError for what is no tar file."""
    wrong = f"{path} is no whole, uncompressed tar file"
    try:
        with tarfile.open(path, "r:") as tar:
            samples = _grouped(
                Component(_extension(m.name), m.offset_data, m.size, m.name) for m in tar if m.isreg()
            )
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{wrong}: {error}") from error
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(
            _BLOCK
        ):  # tarfile takes a file that was cut off at a header for a whole one
            raise ValueError(f"{wrong}: it has no end")
    return samples


def index_text(samples: list[list[Component]]) -> str:
    """An index file's content, version 1.2: of each sample a line with extension, offset, size and name of its members.

    Raises ValueError for a name with white space, which the format cannot hold.
    """
    for sample in samples:
        for component in sample:
            if component.name.split() != [component.name]:
                raise ValueError(
                    f"the member {component.name!r} has white space in its name, which an index file can't hold"
                )
    lines = (" ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in sample) for sample in samples)
    return "\n".join([f"v1.2 {len(samples)}", *lines]) + "\n"


def _extension(name: str) -> str:
    return name[name.rfind("/") + 1 :].partition(".")[2]


def _base(name: str) -> str:
    """The name without its extension: that of the sample."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _grouped(components: Iterable[Component]) -> list[list[Component]]:
    """Members that follow each other and differ in the extension alone; those that begin with a dot are left out."""
    samples: list[list[Component]] = []
    last = None
    for component in components:
        base = _base(component.name)
        if not base or base.endswith("/"):
            continue
        if base != last:
            samples.append([])
            last = base
        samples[-1].append(component)
    return samples


def _read_index(index: Path, shard: Path) -> list[list[Component]]:
    """Raises ValueError for an index that is not of this shard."""
    wrong = f"{index} is no index of {shard.name}, or of an older one (python -m fastac.data.index writes it again)"
    head, *lines = read_lines(index) or [""]
    version, _, count = head.partition(" ")
    width = {"v1.1": 3, "v1.2": 4}.get(version)
    if width is None or count.strip() != str(len(lines)):
        raise ValueError(f"{wrong}: it begins with {head[:40]!r} and has {len(lines)} lines more")
    samples = []
    for number, line in enumerate(lines):
        words = line.split()
        try:
            if not words or len(words) % width:
                raise ValueError(f"{len(words)} words")
            sample = [
                Component(words[i], int(words[i + 1]), int(words[i + 2]), words[i + 3] if width == 4 else "")
                for i in range(0, len(words), width)
            ]
        except ValueError as error:
            raise ValueError(f"{wrong}: line {number + 2} is {line[:60]!r}") from error
        samples.append(sample)
    _check_members(samples, shard, wrong)
    return samples


def _check_members(samples: list[list[Component]], shard: Path, wrong: str) -> None:
    """ValueError unless each member lies in the shard, behind a header of its own that says its size."""
    end = shard.stat().st_size
    with open(shard, "rb") as file:
        for component in itertools.chain.from_iterable(samples):
            first, size = component.offset, component.size
            header = b""
            if first >= _BLOCK and size >= 0 and first + size <= end:
                file.seek(first - _BLOCK)
                header = file.read(_BLOCK)
            if header[257:262] != b"ustar" or _size(header) not in (size, None):
                raise ValueError(f"{wrong}: there is no member of {size} bytes at byte {first}")


def _size(header: bytes) -> int | None:
    """The size that a tar header says; None where it is not in octal digits (of 8 GB and more)."""
    digits = header[124:136].strip(b" \0")
    return int(digits, 8) if digits.isdigit() else None


def _read(shard: Path) -> tuple[list[Record], bool]:
    index = next((place for place in index_places(shard) if place.is_file()), None)
    samples = scan_tar(shard) if index is None else _read_index(index, shard)
    with open(shard, "rb") as file:
        records = []
        for number, sample in enumerate(samples):
            key = _base(sample[0].name) or str(number)
            image = _component(shard, key, sample, _IMAGES)
            label = _component(shard, key, sample, ("cls",))
            file.seek(label.offset)
            text = file.read(min(label.size, 64))
            try:
                records.append(Record(key, image.offset, image.size, int(text), None))
            except ValueError as error:
                raise ValueError(
                    f"{shard}: the label (.cls) of {key!r} is {text!r}; it should be a number"
                ) from error
    return records, index is not None


def _component(shard: Path, key: str, sample: list[Component], extensions: tuple[str, ...]) -> Component:
    found = [c for c in sample if c.extension.rpartition(".")[2].lower() in extensions]
    if len(found) != 1:
        have = ", ".join(c.extension for c in sample)
        raise ValueError(
            f"{shard}: the sample {key!r} has the members {have}; it should have one of {', '.join(extensions)}"
        )
    return found[0]


WEBDATASET = Format("webdataset", lambda name: name.endswith(".tar"), _read, from_one=False)
