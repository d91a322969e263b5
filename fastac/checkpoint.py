"""Checkpoints: written in the background, whole or not at all, and read without unpickling arbitrary objects.

Through torch.distributed.checkpoint (DCP): each rank writes one file, what all ranks hold is written once, and a run
on another number of ranks reads the parts it needs. `fastac.checkpoint_manifest` says what makes a checkpoint whole.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from fastac.checkpoint_files import (
    CheckpointError,
    LeftOverError,
    find_checkpoints,
    list_checkpoints,
    reason,
    remove,
    step_folder,
)
from fastac.checkpoint_manifest import Manifest, read_manifest, verify
from fastac.checkpoint_state import parse, tensor_names, unflatten
from fastac.checkpoint_writer import Stager, Writer, own_name

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Loaded",
    "list_checkpoints",
    "restore_rng",
    "rng_state",
]

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one folder. All ranks make it and call its methods together.

    keep: how many are kept. group: a process group of its own with a CPU backend (gloo), used from a background
    thread; None: a single process. The folder must be the same on all ranks, which see the same disk.
    """

    def __init__(self, folder: Path, *, keep: int, group: dist.ProcessGroup | None = None):
        if keep < 1:
            raise ValueError(f"keep was {keep}; it should be at least 1")
        self.folder, self.keep = Path(folder), keep
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world_size = 1 if group is None else dist.get_world_size(group)
        self._stager = Stager()
        self._saving: tuple[Future[Any], Writer] | None = None
        # DCP tells a single process at each save and load that it is one.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")

    def save(self, step: int, shared: dict[str, Any], own: dict[str, dict[str, Any]]) -> None:
        """Save the checkpoint of `step` in the background, then remove all but the `keep` newest, and those of later
        steps, which belong to a course given up. Returns when the tensors are copied to host memory.

        shared: equal on all ranks; own: this rank's states by name. Both of dicts (keys: str, int), lists, tuples
        (which come back as lists), tensors, None, bool, int, float and str. Waits for an earlier save first. Raises
        CheckpointError where that one failed; what fails in this one is raised by the next call of `wait` or `save`,
        on every rank, also a state that can't be saved. The older checkpoints are then as before.
        """
        self.wait()
        path = step_folder(self.folder, step)
        writer = Writer(
            path, step, keep=self.keep, rank=self.rank, world_size=self.world_size, stager=self._stager
        )
        future = async_save(
            {"shared": shared, "own": own},
            storage_writer=writer,
            planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(future, Future)
        self._saving = future, writer

    def wait(self) -> None:
        """Return when what was saved is on the disk. Raises CheckpointError, on every rank, where it failed."""
        if self._saving is None:
            return
        future, writer = self._saving
        try:
            future.result()
        except (Exception, CheckpointException) as error:
            self._saving = None
            raise self._failed(writer, error) from error.with_traceback(None)  # whose frames hold the group
        finally:
            if future.done() and writer.thread is not None:
                writer.thread.join()
        self._saving = None

    def _failed(self, writer: Writer, error: BaseException) -> CheckpointError:
        if self.rank == 0 and writer.temporary.exists():
            # On a disk that fails it stays, under a name that nothing reads, until the next save.
            with contextlib.suppress(OSError):
                remove(writer.temporary)
        rank, failure = _first_failure(error)
        if isinstance(failure, LeftOverError):
            return CheckpointError(str(failure))
        text = reason(failure) if rank is None or self.world_size == 1 else f"rank {rank}: {reason(failure)}"
        older = list_checkpoints(self.folder)
        left = f"{older[-1]} is left as it was" if older else "there is no older one"
        return CheckpointError(f"cannot save the checkpoint {writer.final}: {text}; {left}")

    def load_newest(self) -> Loaded | None:
        """The newest whole checkpoint of the folder, with what was wrong with each newer one; None where there is none
        at all. Raises CheckpointError, on every rank, where there are some and none is whole."""
        self.wait()
        problems: list[str] = []
        for path in self._together(lambda: find_checkpoints(self.folder))[0]:
            try:
                loaded = self.load(path)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                loaded.problems = problems
                return loaded
        if problems:
            raise CheckpointError("no checkpoint is whole: " + "; ".join(problems))
        return None

    def load(self, path: Path) -> Loaded:
        """Check all files of a checkpoint, a share on each rank, and read what it has for all ranks, on the CPU.

        Raises CheckpointError, the same on every rank, for what is not whole or not a checkpoint of this package.
        """
        self.wait()

        def check() -> Manifest:
            manifest = read_manifest(path)
            verify(path, manifest, self.rank, self.world_size)
            return manifest

        manifests = self._together(check)
        if any(manifest != manifests[0] for manifest in manifests):
            raise CheckpointError(f"{path} can't be read: the ranks don't see the same folder")
        reader = _Reader(path, manifests[0])
        loaded: list[Loaded] = []
        self._together(lambda: loaded.append(reader.read()))
        return loaded[0]

    def _together(self, action: Callable[[], T]) -> list[T]:
        """Every rank's result, or CheckpointError on every rank where one failed."""
        try:
            mine: tuple[T | None, str | None] = action(), None
        except Exception as error:
            mine = None, reason(error)
        every: list[Any] = [mine]
        if self._group is not None:
            every = [None] * self.world_size
            dist.all_gather_object(every, mine, group=self._group)
        for _, problem in every:
            if problem is not None:
                raise CheckpointError(problem)
        return [result for result, _ in every]

    def close(self) -> None:
        """Wait, and let go of threads, memory and the process group. Raises CheckpointError as `wait` does."""
        try:
            self.wait()
        finally:
            if self._saving is None:
                self._stager.close()
                self._group = None


def _first_failure(error: BaseException) -> tuple[int | None, BaseException]:
    """DCP's error has those of the ranks: one of them, and its rank."""
    if not isinstance(error, CheckpointException) or not error.failures:
        return None, error
    rank, (failure, _) = min(error.failures.items(), key=lambda item: item[0])
    return rank, failure


@dataclass
class Loaded:
    """A checkpoint. step, world_size: of the run that saved it. problems: what was wrong with each newer one.
    shared: as it was given to `Checkpoints.save`, tensors on the CPU."""

    path: Path
    step: int
    world_size: int
    problems: list[str]
    shared: dict[str, Any]
    _reader: _Reader
    _own: dict[str, Any]

    def own(
        self, name: str, wanted: Callable[[dict[str, Any]], bool] = lambda plain: True
    ) -> list[dict[str, Any]]:
        """The states that the ranks saved under own[name], by rank; none where no rank did.

        wanted: sees each one without its tensors, and says whether it is to be read; one refused is not in the list,
        and its tensors are not touched. No communication: each rank asks for what it needs.
        Raises CheckpointError where a file can't be read any more.
        """
        states = []
        for rank in range(self.world_size):
            plain = self._own.get(own_name(name, rank))
            if plain is not None and wanted(unflatten(plain, None)):
                states.append(unflatten(plain, self._reader.tensors(tensor_names(plain))))
        return states


class _Reader(FileSystemReader):
    """Reads tensors of a checkpoint. It knows from the manifest what lies where, so DCP's own index, a pickle, stays
    unread; the tensors are read with torch.load(weights_only=True)."""

    def __init__(self, path: Path, manifest: Manifest):
        super().__init__(path)
        self.manifest = manifest

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        entries: dict[str, Any] = {}
        places = {}
        for name, stored in self.manifest.tensors.items():
            size = torch.Size(stored.size)
            whole = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
            entries[name] = TensorStorageMetadata(TensorProperties(stored.dtype), size, [whole])
            places[MetadataIndex(name, whole.offsets)] = _StorageInfo(
                stored.file, stored.offset, stored.length
            )
        return Metadata(entries, storage_data=places)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors by name. Raises CheckpointError."""
        state = {}
        for name in names:
            stored = self.manifest.tensors.get(name) if isinstance(name, str) else None
            if stored is None:
                raise CheckpointError(
                    f"{self.path} is no checkpoint that fastac wrote: it has no tensor {name!r}"
                )
            state[name] = torch.empty(stored.size, dtype=stored.dtype)
        if not state:
            return {}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            load(state, storage_reader=self, planner=planner, no_dist=True)
        except (Exception, CheckpointException) as error:
            cause = error.with_traceback(None)
            raise CheckpointError(f"{self.path} can't be read: {reason(_first_failure(error)[1])}") from cause
        return state

    def read(self) -> Loaded:
        """What the checkpoint has for all ranks, and the plain part of each rank's own."""
        names = [name for name in self.manifest.tensors if name.startswith("own/") and name.count("/") == 2]
        try:
            plain = {name: parse(text) for name, text in self.tensors(["shared", *names]).items()}
            root = plain.pop("shared")
            for name, state in {"shared": root, **plain}.items():
                if not isinstance(unflatten(state, None), dict):
                    raise TypeError(f"{name} is no dict")
            shared = unflatten(root, self.tensors(tensor_names(root)))
            manifest = self.manifest
            return Loaded(Path(self.path), manifest.step, manifest.world_size, [], shared, self, plain)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is no checkpoint that fastac wrote: {error}") from error


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
