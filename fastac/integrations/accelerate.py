"""Accelerate: a loop of one's own on `accelerator.prepare`.

    cleansing = Cleansing(N, K, device=accelerator.device)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    attach(cleansing, accelerator, optimizer)

and `cleansing.criterion(model(inputs), target, index)` as the loss. `accelerator.accumulate`, mixed precision and
`save_state`/`load_state` need nothing else.
"""

from __future__ import annotations

from typing import Any

import torch

from fastac.integrations.cleansing import Cleansing

__all__ = ["attach"]


def attach(
    cleansing: Cleansing,
    accelerator: Any,
    optimizer: torch.optim.Optimizer,
    *,
    group: int = 0,
    lr: float | None = None,
    momentum: float = 0.9,
) -> None:
    """Have α step with an optimizer, as accelerator.prepare returned it or before, and be in the accelerator's
    checkpoints.

    group, lr, momentum: see fastac.integrations.follow. ValueError where the accelerator is on another device or has
    another number of processes; make the Cleansing after the Accelerator, which initialises torch.distributed.
    """
    part = cleansing.table if cleansing.table is not None else cleansing.dynamics
    device = torch.empty(0, device=accelerator.device).device  # "cuda" with its number
    if part is not None and part.device != device:
        raise ValueError(
            f"cleansing is on {part.device}, the accelerator on {device}: give it device=accelerator.device"
        )
    ranks = accelerator.num_processes if cleansing.table is None else cleansing.table.world_size
    if ranks != accelerator.num_processes:
        raise ValueError(
            f"the accelerator has {accelerator.num_processes} processes, the α table {ranks}: make the Cleansing after "
            "the Accelerator, and on CPUs start several processes with `accelerate launch --cpu`"
        )
    cleansing.follow(optimizer, group=group, scaler=accelerator.scaler, lr=lr, momentum=momentum)
    accelerator.register_for_checkpointing(cleansing)
