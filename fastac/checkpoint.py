"""Checkpoints: written whole or not at all, and read without unpickling arbitrary objects.

A checkpoint is a file `step-00001234.pt` that torch.save wrote. It comes into being under a temporary name in
the same folder, reaches the disk, and is then renamed; so a file with a checkpoint's name is whole, unless a
disk lied or someone cut it. Reading checks every record's CRC-32, which torch.load does not.
"""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "CheckpointError",
    "list_checkpoints",
    "load_checkpoint",
    "load_newest",
    "restore_rng",
    "rng_state",
    "save_checkpoint",
]

FORMAT = "fastac checkpoint 1"


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message names the file and what is left."""


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    return sorted(folder.glob("step-*.pt"), key=lambda path: (len(path.name), path.name))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` (tensors, numbers, texts, lists, dicts) as the checkpoint of `step`, then remove all but
    the `keep` newest, and those of later steps, which belong to a course that was given up.

    Raises CheckpointError where the disk is full or refuses; the older checkpoints are then as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = folder / f".{path.name}.tmp"
    for stale in folder.glob(".step-*.pt.tmp"):  # of a process that was killed while it wrote
        stale.unlink()
    try:
        _write(temporary, {"format": FORMAT, **state})
        os.replace(temporary, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        # torch's writer can fail a second time while it closes, and hide the disk's error behind its own.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        older = list_checkpoints(folder)
        left = f"{older[-1]} is left as it was" if older else "there is no older one"
        raise CheckpointError(
            f"cannot save the checkpoint {path}: {reason.strerror or reason}; {left}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    present = list_checkpoints(folder)
    kept = present[: present.index(path) + 1][-keep:]
    for other in present:
        if other not in kept:
            other.unlink()
    return path


def _write(path: Path, state: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU. Raises FileNotFoundError where there is none, CheckpointError
    for a file that is cut, damaged, or no checkpoint of this package."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign archive makes torch.load raise
        raise CheckpointError(f"{path} is no checkpoint that fastac wrote: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is no checkpoint that fastac wrote: its format was {found!r}")
    return state


def load_newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest whole checkpoint of a folder, with what was wrong with each newer one; None where there is
    no checkpoint file at all. Raises CheckpointError where there are some and none is whole."""
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("no checkpoint is whole: " + "; ".join(problems))
    return None


def rng_state(device: torch.device) -> dict[str, Any]:
    """This process's random number generators (Python, NumPy, PyTorch, its CUDA device) as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": [*random.getstate()[1:]],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators as `rng_state` found them. A CUDA state is used on CUDA only."""
    words, gauss = state["python"]
    random.setstate((3, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
