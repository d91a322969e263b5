"""One save through torch.distributed.checkpoint: staging, the ranks' files, and the folder's name at the end.

What runs on several ranks runs inside DCP's own steps (plan, write, finish), which gather each rank's failure and
raise it on all of them. So no rank waits for another that has given up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from fastac.checkpoint_files import (
    CheckpointError,
    ChecksumFileSystem,
    clean,
    prune,
    publish,
    reason,
    sibling,
    sync_folder,
)
from fastac.checkpoint_manifest import MANIFEST, Manifest, Stored
from fastac.checkpoint_state import child, flatten

__all__ = ["Stager", "Writer", "own_name"]


def own_name(name: str, rank: int) -> str:
    """What the state is called that a rank saved under `name`."""
    return f"{child('own', name)}/{rank:05d}"


_MOST_PINNED = 1 << 30  # bytes of one tensor: PyTorch rounds pinned memory up to the next power of two


class Stager:
    """Copies tensors to host memory, which it keeps and fills again at the next save. torch's own stager does that by
    the tensors' identity, which gathered ones don't keep, and fails at its second use in torch 2.11."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def stage(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns when the copies hold the values. They are filled again at the next call."""
        self._held = {name: self._room(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._held[name].copy_(tensor, non_blocking=tensor.is_cuda)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return dict(self._held)

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is not None and held.shape == tensor.shape and held.dtype == tensor.dtype:
            return held
        pinned = tensor.is_cuda and tensor.nbytes <= _MOST_PINNED
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)

    def close(self) -> None:
        self._held = {}


@contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    """Other ranks get the failure as a pickle, which not every exception survives, so only its text travels."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # torch's writer can fail a second time while it closes, and hide the disk's error behind its own.
        hidden = error.__context__
        first = hidden if isinstance(hidden, OSError) and not isinstance(error, OSError) else error
        raise CheckpointError(reason(first)) from error


class _Written(list[WriteResult]):
    """What one rank wrote; files: (size, CRC-32) by name."""

    files: dict[str, tuple[int, int]]


class Writer(FileSystemWriter):
    """The storage, and the stager, of one `async_save` of {"shared": state, "own": {name: state}}."""

    def __init__(self, path: Path, step: int, *, keep: int, rank: int, world_size: int, stager: Stager):
        # No copying ahead: it asks for the thread's CUDA device, which in a new thread is GPU 0 on every rank.
        super().__init__(
            sibling(path, "tmp"),
            single_file_per_rank=True,
            sync_files=True,
            thread_count=1,
            per_thread_copy_ahead=0,
        )
        self.fs: ChecksumFileSystem = ChecksumFileSystem()
        self.final, self.step, self.keep = path, step, keep
        self.temporary = sibling(path, "tmp")
        self.thread: threading.Thread | None = None
        self._rank, self._world_size, self._stager = rank, world_size, stager
        self._failure: Exception | None = None

    def stage(self, state: dict[str, Any]) -> dict[str, Any]:
        # A rank that raised here would leave the others waiting for its plan: it tells them there.
        try:
            tensors = flatten("shared", state["shared"])
            for name, own in state["own"].items():
                tensors |= flatten(own_name(name, self._rank), own)
            return self._stager.stage(tensors)
        except Exception as error:
            self._failure = error
            return {}

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)  # without the path, which is about to change

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.thread = threading.current_thread()
        if self._failure is not None:
            with _as_checkpoint_error():
                raise self._failure
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan  # the folder is made by the coordinator, which empties it first

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        with _as_checkpoint_error():
            self.final.parent.mkdir(parents=True, exist_ok=True)
            clean(self.final.parent)
            self.temporary.mkdir()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _as_checkpoint_error():
            self.temporary.mkdir(parents=True, exist_ok=True)  # where a network's disk shows it late
            written = _Written(super().write_data(plan, planner).value())
            written.files = dict(self.fs.sums)
        future: Future[list[WriteResult]] = Future()
        future.set_result(written)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with _as_checkpoint_error():
            super().finish(metadata, results)
            manifest = self._manifest(metadata, results)
            for name, (size, _) in manifest.files.items():
                self._check_visible(name, size)
            with self.fs.create_stream(self.temporary / MANIFEST, "wb") as file:
                file.write(manifest.text().encode())
            sync_folder(self.temporary)
            publish(self.temporary, self.final)
        prune(self.final, self.keep)

    def _manifest(self, metadata: Metadata, results: list[list[WriteResult]]) -> Manifest:
        files = {".metadata": self.fs.sums[".metadata"]}
        tensors = {}
        for written in results:
            assert isinstance(written, _Written)
            files |= written.files
            for result in written:
                name, place = result.index.fqn, result.storage_data
                stored: Any = metadata.state_dict_metadata[name]
                tensors[name] = Stored(
                    stored.properties.dtype,
                    tuple(stored.size),
                    place.relative_path,
                    place.offset,
                    place.length,
                )
        return Manifest(self.step, self._world_size, files, tensors)

    def _check_visible(self, name: str, size: int) -> None:
        try:
            found = os.stat(self.temporary / name).st_size
        except FileNotFoundError:
            found = -1
        if found != size:
            raise CheckpointError(
                f"rank 0 doesn't see {name}, which another rank wrote: the folder must be the same on all nodes"
            )
