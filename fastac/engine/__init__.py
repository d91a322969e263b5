"""Engines: how the network's gradients get from one or many devices into one optimizer step.

The trainer knows the protocol below and no engine. The α table stays outside what an engine wraps.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastac.config import Config

__all__ = ["Engine", "create_engine"]


class Engine(Protocol):
    """One process of a run: rank in [0, world_size), its device, its loss scaler (None without fp16)."""

    rank: int
    world_size: int
    device: torch.device
    scaler: torch.amp.GradScaler | None

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as the training step calls it: its gradients become the mean over the ranks."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Where the forward pass runs: in the config's amp_dtype, or unchanged."""

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one batch; gradients are exchanged at the last one of a step."""

    def backward(self, loss: Tensor) -> None:
        """Backward of the local loss."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the network's gradient, step the optimizer (unless fp16 overflowed), clear the gradients."""

    def sync_buffers(self) -> None:
        """Give every rank the batch norm statistics of rank 0."""

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, the same on all of them."""

    def any(self, flag: bool) -> bool:
        """Whether a rank said True. All ranks call it at the same step."""

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value, by rank. Plain data and CPU tensors."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value. Plain data and CPU tensors."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Leave the process group. The engine is not used after that."""


def create_engine(config: Config) -> Engine:
    """The engine that the config asks for, with a process group where torchrun started this process."""
    from fastac.engine.ddp import DataParallelEngine

    return DataParallelEngine(config)
