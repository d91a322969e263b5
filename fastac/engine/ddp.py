"""DistributedDataParallel under torchrun, and the same surface for one process without a process group."""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fastac.config import Config

__all__ = ["DataParallelEngine"]

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DataParallelEngine:
    """See `fastac.engine.Engine`. Two ranks give what one rank gives with their batches put together, except
    for what batch norm does: its statistics are those of a rank's own rows."""

    def __init__(self, config: Config):
        self.distributed = "RANK" in os.environ
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = _pick_device(config.run.device, local_rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = not config.run.deterministic
        if config.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.rank, self.world_size = _join(self.device) if self.distributed else (0, 1)
        amp = config.optimizer.amp_dtype
        self.amp_dtype = _AMP.get(amp)
        self.scaler: torch.amp.GradScaler | None = None
        if amp == "fp16":
            self.scaler = torch.amp.GradScaler(self.device.type)
            # The first steps overflow until the scale has come down; the schedule counts them all the same.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.clip_grad = config.optimizer.clip_grad
        self.model: nn.Module | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        model.to(self.device)
        if self.world_size == 1:
            self.model = model
        elif self.device.type == "cuda":
            self.model = DistributedDataParallel(model, device_ids=[self.device.index])
        else:
            self.model = DistributedDataParallel(model)
        return self.model

    def autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip_grad is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def sync_buffers(self) -> None:
        if self.world_size > 1 and self.model is not None:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        # On the CPU, where the group has gloo: no wait for the GPU's queue.
        return bool(self.sum(torch.tensor(int(flag))))

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        self.any(False)

    def close(self) -> None:
        """Leave the process group, and end its threads.

        They end with the last reference to the group, which the wrapped model and the α table hold. One that still
        ran at the interpreter's end could ask for the GIL then, and Python would abort the process.
        """
        self.model = None
        if self.distributed and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()


def _pick_device(name: str, local_rank: int) -> torch.device:
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


def _join(device: torch.device) -> tuple[int, int]:
    """Join the process group that torchrun's environment describes. Returns (rank, world size)."""
    # Before there is a group: this module's functions take the default group of the time of its import as their
    # own default, and so would keep the group and its threads alive for ever (see close).
    importlib.import_module("torch.distributed.nn.functional")
    # Workers that torchrun restarts would find their dead predecessors' addresses in its store and hang,
    # so each attempt has a prefix of its own.
    store, rank, world_size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"attempt{attempt}", store),
        rank=rank,
        world_size=world_size,
    )
    return rank, world_size
