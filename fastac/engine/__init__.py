"""Engines: how the network's gradients get from one or many devices into one optimizer step.

The trainer knows the protocol below and no engine. The α table stays outside what an engine wraps.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastac.config import Config
from fastac.engine.state import Names
from fastac.table import AlphaTable

__all__ = ["Engine", "create_engine"]


class Engine(Protocol):
    """One process of a run: rank in [0, world_size), and its device.

    Where a rank is gone or does not come within the config's dist_timeout, methods that wait for it raise
    fastac.collectives.CollectiveError on gloo; on NCCL, its watchdog ends the process.
    """

    rank: int
    world_size: int
    device: torch.device
    names: Names
    """What a state has to be of, after `prepare`."""

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Take the network, which is on the device, and its optimizer. Returns the module that the training step calls;
        the gradients of its parameters become the mean over the ranks."""

    def follow(self, table: AlphaTable) -> None:
        """Move α exactly when the network moves, with its learning rate and momentum. After `prepare`."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Where the forward pass runs: in the config's amp_dtype, or unchanged."""

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one batch; last: of the step."""

    def backward(self, loss: Tensor) -> None:
        """Backward of the local loss."""

    def step(self) -> None:
        """Clip the network's gradient, step the optimizer and α (unless fp16 overflowed), clear the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """The network and its momentum, the same from every engine, number of ranks and rank; all ranks call it.

        model: {name: tensor}, parameters in float32, and buffers; momentum: {parameter's name: float32 tensor},
        without those that have none yet; scaler: the GradScaler's state, or None. Tensors may be the engine's own.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what any engine saved; all ranks call it, after `prepare`. ValueError, and nothing changed, where
        names or shapes are not this network's."""

    def wait(self) -> None:
        """Return when the device has done what it was given."""

    def new_group(self, patience: float = 1.0) -> dist.ProcessGroup | None:
        """Another process group of all ranks; None for one process. All ranks call it. patience: its time-out as a
        multiple of the config's dist_timeout."""

    def sync_buffers(self) -> None:
        """Give every rank the batch norm statistics of rank 0."""

    def sum(self, values: Tensor, what: str = "figures") -> Tensor:
        """`values` summed over the ranks, the same on all of them. what: named where a rank does not come."""

    def any(self, flag: bool, what: str = "a flag") -> bool:
        """Whether a rank said True. All ranks call it at the same step."""

    def gather(self, value: Any, what: str = "values") -> list[Any]:
        """Each rank's value, by rank. Plain data and CPU tensors."""

    def broadcast(self, value: Any, what: str = "values") -> Any:
        """Rank 0's value. Plain data and CPU tensors."""

    def barrier(self, what: str = "a barrier") -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Leave the process group. The engine is not used after that."""


def create_engine(config: Config) -> Engine:
    """The engine that the config asks for, with a process group where torchrun started this process."""
    if config.run.engine == "deepspeed":
        from fastac.engine.deepspeed import ZeroEngine

        return ZeroEngine(config)
    from fastac.engine.ddp import DataParallelEngine

    return DataParallelEngine(config)
