"""What a step sends and keeps, counted from outside: collectives at torch's dispatcher, the kernel's count of what the
process wrote, the storages of all living tensors, and the process's peak."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Collectives", "Peak", "living_bytes", "nbytes", "written_bytes"]


class Collectives(TorchDispatchMode):
    """While it is entered: bytes that this rank sends to other ranks, by collective (`sent`).

    Every collective of torch.distributed passes torch's dispatcher, those that DDP starts in C++ too. What they are
    handed is counted; what a rank sends of it follows from the algorithm that gloo and NCCL use for long messages: a
    ring (an all-reduce of n bytes sends 2·(1 − 1/W)·n, an all-gather or reduce-scatter half of it), and for an
    all-to-all the parts for other ranks. A broadcast or reduce is counted as n bytes, a barrier as none. Any other
    collective is an error, so that none is left out. All groups are taken to be of all ranks.
    """

    def __init__(self, rank: int, ranks: int):
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.sent: Counter[str] = Counter()
        self._blind = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            self.sent[name] += self._bytes(name, args)
        elif (
            func.namespace == "fastac"
        ):  # a mode does not see inside an operator, and the tables send inside ours
            self._blind = True
            try:
                with patch.object(dist, "all_to_all_single", self._seen(dist.all_to_all_single)):
                    return func(*args, **(kwargs or {}))
            finally:
                self._blind = False
        return func(*args, **(kwargs or {}))

    def _seen(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*args: Any, **kwargs: Any) -> Any:
            with self if self._blind else nullcontext():
                return collective(*args, **kwargs)

        return seen

    def total(self) -> int:
        return sum(self.sent.values())

    def _bytes(self, name: str, args: Sequence[Any]) -> int:
        others = self.ranks - 1
        if name == "barrier" or not others:
            return 0
        match name:
            case "allreduce" | "allreduce_coalesced":
                return sum(2 * others * t.nbytes // self.ranks for t in _tensors(args[0]))
            case "allgather" | "allgather_base" | "allgather_into_tensor_coalesced" | "allgather_coalesced":
                return sum(others * t.nbytes for t in _tensors(args[1]))  # output, input
            case "reduce_scatter" | "reduce_scatter_base" | "reduce_scatter_tensor_coalesced":
                return sum(others * t.nbytes // self.ranks for t in _tensors(args[1]))
            case "broadcast" | "reduce":
                return sum(t.nbytes for t in _tensors(args[0]))
            case "alltoall_base":
                values, parts = args[1], args[4]
                own = parts[self.rank] if parts else len(values) // self.ranks
                return values.nbytes - values[:own].nbytes
        raise NotImplementedError(f"it is not known what the collective c10d::{name} sends")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from _tensors(part)


def written_bytes() -> int | None:
    """Bytes that this process has written so far, to sockets too, as Linux counts them: with gloo over TCP what really
    went over the wire, headers included. None where /proc does not tell."""
    path = Path("/proc/self/io")
    if not path.is_file():
        return None
    return int(path.read_text().split("wchar:")[1].split()[0])


def living_bytes(device: torch.device) -> int:
    """Bytes of the storages of all tensors on the device that Python can reach, gradients with them; each once."""
    gc.collect()
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are looked at
        for thing in gc.get_objects():
            if not issubclass(type(thing), Tensor):
                continue
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device == device and tensor.layout == torch.strided:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def nbytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages of these, each once."""
    storages = (t.untyped_storage() for t in tensors if t is not None)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Peak:
    """Memory of the process on the device: `now`, and its most since `reset`. On a CPU it is the resident memory, of
    Linux; None where /proc does not tell or does not reset."""

    def __init__(self, device: torch.device):
        self.device = device

    def now(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return self._status("VmRSS")

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.resets = True
        except OSError:
            self.resets = False

    def most(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._status("VmHWM") if self.resets else None

    def _status(self, key: str) -> int | None:
        path = Path("/proc/self/status")
        found = (
            [line for line in path.read_text().splitlines() if line.startswith(key)] if path.is_file() else []
        )
        return int(found[0].split()[1]) << 10 if found else None
