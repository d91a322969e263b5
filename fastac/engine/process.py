"""One process of a run, whatever engine trains its network: the device, the process group, small collectives."""

from __future__ import annotations

import gc
import importlib
import os
import time
import uuid
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastac.collectives import CollectiveError, forget, named, watch
from fastac.config import Config

__all__ = ["Process", "backend", "pick_device"]

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Process:
    """What the engines have in common; see `fastac.engine.Engine`. An engine sets `network` in its prepare."""

    def __init__(self, config: Config):
        self.distributed = "RANK" in os.environ
        self.device = pick_device(config.run.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = not config.run.deterministic
        if config.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.timeout = config.run.dist_timeout
        # Newer names, which the older torch versions that we support don't have.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        self.rank, self.world_size = _join(self.device, self.timeout) if self.distributed else (0, 1)
        self.amp_dtype = _AMP.get(config.optimizer.amp_dtype)
        self.clip_grad = config.optimizer.clip_grad
        self.network: nn.Module | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def new_group(self, patience: float = 1.0) -> dist.ProcessGroup | None:
        if self.world_size == 1:
            return None
        timeout = timedelta(seconds=self.timeout * patience)
        with named("the start of a process group"):
            group: dist.ProcessGroup | None = dist.new_group(timeout=timeout)
        return group

    def sync_buffers(self) -> None:
        if self.world_size > 1 and self.network is not None:
            with named("broadcast of the network's buffers"):
                for buffer in self.network.buffers():
                    dist.broadcast(buffer, src=0)

    def sum(self, values: Tensor, what: str = "figures") -> Tensor:
        if self.world_size > 1:
            values = values.clone()
            with named(f"all_reduce of {what}"):
                dist.all_reduce(values)
        return values

    def any(self, flag: bool, what: str = "a flag") -> bool:
        # On the CPU, where the group has gloo: no wait for the GPU's queue.
        return bool(self.sum(torch.tensor(int(flag)), what))

    def gather(self, value: Any, what: str = "values") -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with named(f"all_gather of {what}"):
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any, what: str = "values") -> Any:
        if self.world_size == 1:
            return value
        box = [value]
        with named(f"broadcast of {what}"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self, what: str = "a barrier") -> None:
        self.any(False, what)

    def close(self) -> None:
        """Leave the process group, and end its threads.

        They end with the last reference to the group, which the wrapped model and the α table hold. One that still
        ran at the interpreter's end could ask for the GIL then, and Python would abort the process.
        """
        self.network = None
        forget()
        if self.distributed and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()


def pick_device(name: str) -> torch.device:
    """The device of this process, by the config's key and torchrun's local rank."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device was 'cuda'; it should be 'cpu' or 'auto' here: PyTorch sees no CUDA device")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank was {local_rank}; it should be below {torch.cuda.device_count()}, the number of "
            "CUDA devices here: start at most so many processes a node"
        )
    return torch.device("cuda", local_rank)


def backend(device: torch.device) -> str:
    """torch.distributed's backends of a run: gloo for what is on the CPU, NCCL for what is on the GPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _join(device: torch.device, timeout: float) -> tuple[int, int]:
    """Join the process group that torchrun's environment describes. Returns (rank, world size)."""
    # Before there is a group: this module's functions take the default group of the time of its import as their
    # own default, and so would keep the group and its threads alive for ever (see close).
    importlib.import_module("torch.distributed.nn.functional")
    if (
        device.type == "cuda"
    ):  # the watchdog's message then has the last operations, and the ranks that lag behind
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
        os.environ.setdefault("TORCH_NCCL_DESYNC_DEBUG", "1")
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(_agree(PrefixStore("starts", store), rank, world_size, timeout), store)
    watch(PrefixStore("fastac", store), rank, world_size, timeout)
    with named("the start of the process group"):
        dist.init_process_group(
            backend(device),
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
    return rank, world_size


def _agree(store: Store, rank: int, world_size: int, timeout: float) -> str:
    """A name for this start, the same on all ranks, that no other start has. CollectiveError after `timeout` seconds.

    torchrun keeps its store over restarts: under the same keys, ranks would find their dead predecessors' addresses.
    Its count of restarts is no such name, because each node counts its own. So each rank leaves a word, and rank 0
    answers every word that it finds, a predecessor's too, with its own, until all of its own start have read that.
    """
    word, others = uuid.uuid4().hex, range(1, world_size)
    deadline = time.monotonic() + timeout
    failure = f"rank {rank} waited {timeout:g} s in the start of the process group (dist_timeout): "
    if rank != 0:
        store.set(f"word/{rank}", word)
        try:
            store.wait([f"answer/{word}"], timedelta(seconds=timeout))
        except dist.DistError as error:
            raise CollectiveError(f"{failure}rank 0 does not answer") from error
        name = store.get(f"answer/{word}").decode()
        store.set(f"{name}/{rank}", "read")
        return name
    answered: dict[int, str] = {}
    while missing := [other for other in others if not store.check([f"{word}/{other}"])]:
        if time.monotonic() > deadline:
            raise CollectiveError(f"{failure}ranks that do not answer: {', '.join(map(str, missing))}")
        for other in missing:
            if store.check([f"word/{other}"]):
                found = store.get(f"word/{other}").decode()
                if answered.get(other) != found:
                    store.set(f"answer/{found}", word)
                    answered[other] = found
        time.sleep(0.01)
    return word
