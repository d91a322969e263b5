"""The network's optimizer and its learning rate: SGD by step, no weight decay on batch norm and biases."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from fastac.config import OptimizerConfig

__all__ = ["create_optimizer", "lr_factor", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Group 0: weights, decayed. Group 1: parameters of one dimension (batch norm, biases), not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def create_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.SGD:
    """SGD with the config's settings; fused on CUDA."""
    return torch.optim.SGD(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=device.type == "cuda",
    )


def lr_factor(config: OptimizerConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a step as a multiple of `lr`, for LambdaLR.

    Warm-up: the first W = warmup_epochs · steps_per_epoch steps rise linearly, step s at (s + 1) / (W + 1).
    cosine: from 1 at step W to 0 after the last epoch. multistep: gamma to the number of milestones (epochs)
    reached, counted from the start of training. constant: 1.
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    milestones = [epoch * steps_per_epoch for epoch in config.milestones]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "cosine":
            progress = min((step - warmup) / (total - warmup), 1.0)
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        if config.schedule == "multistep":
            return config.gamma ** sum(step >= milestone for milestone in milestones)
        return 1.0

    return factor
