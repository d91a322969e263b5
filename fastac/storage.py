"""What is kept for each sample, as a config asks for it: the table of α, and the training dynamics."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from fastac.config import Config
from fastac.dynamics import TrainingDynamics
from fastac.engine import Engine
from fastac.sharded import ShardedAlphaTable
from fastac.sharded_dynamics import ShardedTrainingDynamics
from fastac.table import AlphaTable

__all__ = ["create_dynamics", "create_table"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def create_table(
    config: Config, num_samples: int, num_classes: int, engine: Engine, group: dist.ProcessGroup | None
) -> AlphaTable | None:
    """The α table that the config asks for, sharded over several ranks. group: its own, of all ranks."""
    c = config.loss
    if c.loss == "ce":
        return None
    options: dict[str, Any] = dict(
        form=c.loss,
        weight_decay=c.alpha_weight_decay,
        lr_scale=c.alpha_lr_scale,
        history=c.alpha_history,
        dtype=_DTYPES[c.alpha_dtype],
        device=engine.device,
        seed=config.run.seed,
        process_group=group,
    )
    if engine.world_size == 1 and c.alpha_storage == "device":
        return AlphaTable(num_samples, num_classes, **options)
    return ShardedAlphaTable(
        num_samples,
        num_classes,
        placement=c.alpha_placement if engine.world_size > 1 else "aligned",
        storage=c.alpha_storage,
        wire_dtype=_DTYPES[c.alpha_wire_dtype],
        **options,
    )


def create_dynamics(
    config: Config, num_samples: int, num_classes: int, engine: Engine, group: dist.ProcessGroup | None
) -> TrainingDynamics | None:
    """Training dynamics, sharded as the table is. group: of all ranks."""
    if not config.loss.dynamics:
        return None
    if engine.world_size == 1:
        return TrainingDynamics(num_samples, num_classes, device=engine.device)
    return ShardedTrainingDynamics(
        num_samples,
        num_classes,
        placement=config.loss.alpha_placement,
        device=engine.device,
        process_group=group,
    )
