"""What makes a checkpoint whole: `manifest.json`, which is written last, and the files that it vouches for.

They are the `.distcp` files of torch.distributed.checkpoint, one a rank, and DCP's index `.metadata`. The manifest has
the size and CRC-32 of each, and says where in them each tensor lies. The index is a pickle, for torch's own tools:
here it is checked like any other file and never unpickled.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.utils import _create_file_view

from fastac.checkpoint_files import CheckpointError, reason, sibling, step_folder

__all__ = ["MANIFEST", "Manifest", "Stored", "read_manifest", "verify"]

FORMAT = "fastac checkpoint 2"
MANIFEST = "manifest.json"
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `length` bytes from `offset` on in `file`, as torch.save wrote it."""

    dtype: torch.dtype
    size: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Manifest:
    """files: (size, CRC-32) by name. tensors: by name."""

    step: int
    world_size: int
    files: dict[str, tuple[int, int]]
    tensors: dict[str, Stored]

    def text(self) -> str:
        content = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "files": {name: list(sums) for name, sums in self.files.items()},
            "tensors": {
                name: [str(t.dtype).removeprefix("torch."), list(t.size), t.file, t.offset, t.length]
                for name, t in self.tensors.items()
            },
        }
        return json.dumps(content | {"crc32": _content_crc(content)}, indent=1) + "\n"


def _content_crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read_manifest(path: Path) -> Manifest:
    """Raises CheckpointError for what is no whole checkpoint that this version of the package wrote."""
    if not os.path.lexists(path):
        raise CheckpointError(f"there is no checkpoint {path}")
    if not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint of this version: it is a file and not a folder")
    try:
        if not stat.S_ISREG(os.stat(path / MANIFEST).st_mode):
            raise CheckpointError(f"{path} is no checkpoint: its {MANIFEST} is no file")
        content = json.loads((path / MANIFEST).read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is no whole checkpoint: it has no {MANIFEST}") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {MANIFEST}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} is no JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint that this fastac wrote: its format was {found!r}")
    crc = content.pop("crc32", None)
    if crc != _content_crc(content):
        raise CheckpointError(f"{path} is damaged: the checksum of {MANIFEST} is wrong")
    try:
        return _parse_manifest(path, content)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no checkpoint that fastac wrote: in {MANIFEST}, {error}") from error


def _parse_manifest(path: Path, content: dict[str, Any]) -> Manifest:
    if content.keys() != {"format", "step", "world_size", "files", "tensors"}:
        raise ValueError(f"the fields were {sorted(content)}")
    step, world_size = _count(content["step"]), _count(content["world_size"])
    name = step_folder(path.parent, step).name
    if path.name not in (name, sibling(Path(name), "old").name):
        raise ValueError(f"the step was {step}, which is not the folder's")
    files = {}
    for file, (size, crc) in content["files"].items():
        if file != ".metadata" and _DATA_FILE.fullmatch(file) is None:
            raise ValueError(f"a file was {file!r}; a checkpoint has no such file")
        files[file] = (_count(size), _count(crc))
    tensors = {}
    for tensor, (dtype, size, file, offset, length) in content["tensors"].items():
        shape = tuple(_count(extent) for extent in size)
        stored = Stored(_dtype(dtype), shape, file, _count(offset), _count(length))
        if file == ".metadata" or file not in files:
            raise ValueError(f"the file of {tensor!r} was {file!r}, which is none of the checkpoint's")
        if stored.offset + stored.length > files[file][0] or _bytes(stored) > stored.length:
            raise ValueError(f"{tensor!r} was to lie outside its place in {file!r}")
        tensors[tensor] = stored
    return Manifest(step, world_size, files, tensors)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a number was {value!r}")
    return value


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a dtype was {name!r}")
    return dtype


def _bytes(stored: Stored) -> int:
    size = stored.dtype.itemsize
    for extent in stored.size:
        size *= extent
    return size


def verify(path: Path, manifest: Manifest, rank: int, world_size: int) -> None:
    """Check this rank's share of the files, each file by one rank: that it has its size and CRC-32, and that each of
    its tensors is one, of its dtype and size. Raises CheckpointError."""
    by_size = sorted(manifest.files, key=lambda name: (manifest.files[name][0], name))
    for name in by_size[rank::world_size]:
        try:
            _verify_file(path, name, manifest)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is no whole checkpoint: {name} is missing") from error
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {name}: {reason(error)}") from error


def _verify_file(path: Path, name: str, manifest: Manifest) -> None:
    size, expected = manifest.files[name]
    found = os.stat(path / name)
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no checkpoint: its {name} is no file")
    if found.st_size != size:
        raise CheckpointError(
            f"{path} is no whole checkpoint: {name} has {found.st_size} bytes; it should have {size}"
        )
    with open(path / name, "rb", buffering=0) as file:
        crc, buffer = 0, memoryview(bytearray(min(_CHUNK, size) or 1))
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
        if crc != expected:
            raise CheckpointError(f"{path} is damaged: the checksum of {name} is wrong")
        for tensor, stored in manifest.tensors.items():
            if stored.file == name:
                _verify_tensor(path, tensor, stored, file)


def _verify_tensor(path: Path, name: str, stored: Stored, file: io.FileIO) -> None:
    """A file may have the right checksum and still not be ours."""
    view = _create_file_view(file, stored.offset, stored.length)
    try:
        with torch.serialization.skip_data():  # the values were read for the checksum
            tensor = torch.load(cast(Any, view), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes torch.load raise
        raise CheckpointError(
            f"{path} is no checkpoint that fastac wrote: {name} in {stored.file} is no tensor: {error}"
        ) from error
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
    if shape != stored.size or tensor.dtype != stored.dtype:
        raise CheckpointError(
            f"{path} is no checkpoint that fastac wrote: {name} in {stored.file} is not the {stored.dtype} tensor of "
            f"size {stored.size} that {MANIFEST} has"
        )
