"""A checkpoint's folder: its name, the manifest that makes it whole, and the order in which things reach the disk.

`step-00001234` holds the `.distcp` files of torch.distributed.checkpoint, a file a rank, its index `.metadata`, and
`manifest.json`, which has the size and CRC-32 of each file and says where in them each tensor lies. The index is a
pickle, for torch's own tools: here it is checked like any other file and never unpickled.

Beside it, names with a dot: `.step-N.tmp` is being written, `.step-N.old` is what a new step-N replaces, `.step-N.gone`
is being removed. Everything changes its name in one rename, so a process can be killed between any two calls.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.utils import _create_file_view

__all__ = [
    "CheckpointError",
    "ChecksumFileSystem",
    "Manifest",
    "Stored",
    "clean",
    "find_checkpoints",
    "list_checkpoints",
    "prune",
    "publish",
    "read_manifest",
    "reason",
    "remove",
    "sibling",
    "step_folder",
    "sync_folder",
    "verify",
]

FORMAT = "fastac checkpoint 2"
MANIFEST = "manifest.json"
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
_CHUNK = 1 << 22


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message names the folder and what is left."""


def reason(error: BaseException) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


# --- names -------------------------------------------------------------------------------------------------


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def sibling(path: Path, kind: str) -> Path:
    """kind: "tmp", "old" or "gone"."""
    return path.with_name(f".{path.name}.{kind}")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    return [path for _, path in sorted(_steps(folder).items()) if path.is_dir()]


def find_checkpoints(folder: Path) -> list[Path]:
    """All that may be a checkpoint, newest step first: what `list_checkpoints` has, a step that its successor was about
    to replace when the process was killed, and files, which can only be refused."""
    found = {step: sibling(path, "old") for step, path in _steps(folder, r"\.(step-\d+)\.old").items()}
    return [
        path for _, path in sorted((found | _steps(folder, r"(step-\d+)(?:\.pt)?")).items(), reverse=True)
    ]


def _steps(folder: Path, pattern: str = r"(step-\d+)") -> dict[int, Path]:
    """step-N for what in a folder has a name like that, by step; with .pt, the file itself."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else (), reverse=True):
        match = re.fullmatch(pattern, path.name)
        if match is None:
            continue
        step = int(match[1].removeprefix("step-"))
        if match[1] == step_folder(folder, step).name:
            found[step] = path if path.suffix == ".pt" else folder / match[1]
    return found


# --- writing -----------------------------------------------------------------------------------------------


class _ChecksumFile(io.BufferedWriter):
    """A file that is written from its start to its end. When it is closed it is on the disk, and its size and CRC-32
    are in `sums`. DCP itself flushes its index only after the sync."""

    def __init__(self, path: Path, sums: dict[str, tuple[int, int]]):
        super().__init__(io.FileIO(path, "w"))
        self._path, self._sums, self._crc = path, sums, 0

    def write(self, data: Any) -> int:
        self._crc = zlib.crc32(data, self._crc)
        return super().write(data)

    def close(self) -> None:
        try:
            if not self.closed:
                self.flush()
                os.fsync(self.fileno())
                self._sums[self._path.name] = (self.tell(), self._crc)
        finally:
            super().close()


class ChecksumFileSystem(FileSystem):
    """For DCP's writer; sums: (size, CRC-32) of each file written, by its name."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[int, int]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        if mode != "wb":
            raise ValueError(f"mode was {mode!r}; it should be 'wb'")
        with _ChecksumFile(Path(path), self.sums) as stream:
            yield stream

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.sums[Path(new_path).name] = self.sums.pop(Path(path).name)


def sync_folder(folder: Path) -> None:
    """A new name is on the disk when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean(folder: Path) -> None:
    """Remove what killed processes left, and give back its name to a checkpoint that was about to be replaced."""
    for path in list(folder.iterdir()):
        match = re.fullmatch(r"\.(step-\d+)\.(tmp|old|gone)", path.name)
        if match is None:
            continue
        if match[2] == "old" and not (folder / match[1]).exists():
            os.rename(path, folder / match[1])
        else:
            remove(path)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished folder its name, in place of what has it; `prune` removes that. OSError: all is as before."""
    replaced = os.path.lexists(path)
    if replaced:  # a rename puts no folder over one that isn't empty
        os.rename(path, sibling(path, "old"))
    try:
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError:
        if path.exists():
            os.rename(path, temporary)
        if replaced:
            os.rename(sibling(path, "old"), path)
        raise


def prune(path: Path, keep: int) -> None:
    """Remove what `path` replaced, all but the `keep` newest checkpoints up to it, and those of later steps: a course
    that was given up."""
    present = list_checkpoints(path.parent)
    kept = present[: present.index(path) + 1][-keep:]
    gone = []
    for other in present:
        if other not in kept:
            os.rename(other, sibling(other, "gone"))
            gone.append(sibling(other, "gone"))
    if gone:
        sync_folder(path.parent)
    if os.path.lexists(sibling(path, "old")):
        gone.append(sibling(path, "old"))
    for other in gone:
        remove(other)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# --- the manifest ------------------------------------------------------------------------------------------


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


# --- verification ------------------------------------------------------------------------------------------


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
