"""A checkpoint's folder: its name, and the order in which things reach the disk.

Beside `step-00001234` there are names with a dot: `.step-N.tmp` is being written, `.step-N.old` is what a new step-N
replaces, `.step-N.gone` is being removed. Everything changes its name in one rename, so a process can be killed
between any two calls.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem

__all__ = [
    "CheckpointError",
    "ChecksumFileSystem",
    "LeftOverError",
    "clean",
    "find_checkpoints",
    "list_checkpoints",
    "prune",
    "publish",
    "reason",
    "remove",
    "sibling",
    "step_folder",
    "sync_folder",
]


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message names the folder and what is left."""


class LeftOverError(CheckpointError):
    """A checkpoint was written, and what it made superfluous could not be removed."""


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
    that was given up. Raises LeftOverError."""
    try:
        _prune(path, keep)
    except OSError as error:
        raise LeftOverError(
            f"the checkpoint {path} is saved, but older ones can't be removed: {reason(error)}"
        ) from error


def _prune(path: Path, keep: int) -> None:
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
