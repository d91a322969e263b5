"""DistributedDataParallel under torchrun, and the same surface for one process without a process group."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastac.collectives import named
from fastac.config import Config
from fastac.engine.process import Process
from fastac.engine.state import Names
from fastac.table import AlphaTable

__all__ = ["DataParallelEngine"]


class DataParallelEngine(Process):
    """See `fastac.engine.Engine`. Two ranks give what one rank gives with their batches put together, except
    for what batch norm does: its statistics are those of a rank's own rows."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.scaler: torch.amp.GradScaler | None = None
        if self.amp_dtype == torch.float16:
            self.scaler = torch.amp.GradScaler(self.device.type)
            # The first steps overflow until the scale has come down; the schedule counts them all the same.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.model: nn.Module | None = None

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        self.network, self.optimizer, self.names = network, optimizer, Names(network)
        self.model = network
        if self.world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            with named("broadcast of the network's first state (DDP)"):
                self.model = DistributedDataParallel(network, device_ids=ids)
        return self.model

    def follow(self, table: AlphaTable) -> None:
        table.follow(self.optimizer, scaler=self.scaler)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        apart: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.model, DistributedDataParallel) and not last:
            apart = self.model.no_sync()
        with named("broadcast of the network's buffers and buckets (DDP)"), apart:
            yield

    def backward(self, loss: Tensor) -> None:
        with named("all_reduce of the network's gradients (DDP)"):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> None:
        optimizer = self.optimizer
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
        optimizer.zero_grad()  # to None: a captured network's gradients lie where its next replay writes

    def state_dict(self) -> dict[str, Any]:
        self.sync_buffers()
        model = {
            name: value.detach().float() if isinstance(value, nn.Parameter) else value
            for name, value in self.names.model.items()
        }
        momentum = {}
        for name, parameter in self.names.parameters.items():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                momentum[name] = buffer.float()
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"model": model, "momentum": momentum, "scaler": scaler}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names.check(state)
        for name, value in self.names.model.items():
            value.copy_(state["model"][name])
        for name, parameter in self.names.parameters.items():
            own = self.optimizer.state[parameter]
            own.pop("momentum_buffer", None)
            if name in state["momentum"]:
                own["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum"][name])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        self.model = None
        super().close()
