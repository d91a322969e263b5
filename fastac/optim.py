"""The network's optimizer and its learning rate: SGD by step, no weight decay on batch norm and biases."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

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


def create_optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """SGD with the config's settings: torch's, fused on CUDA, or apex's FusedSGD.

    The model is on the device. Raises ImportError where apex is asked for and missing, ValueError where it is asked for
    and the device is not CUDA.
    """
    settings: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "nesterov": config.nesterov}
    groups = parameter_groups(model, config.weight_decay)
    if config.opt == "fusedsgd":
        if device.type != "cuda":
            raise ValueError(
                f"opt was 'fusedsgd' on {device.type}; it should be 'sgd' there: apex's needs CUDA"
            )
        optimizer: torch.optim.Optimizer = _fused_sgd()(groups, **settings)
        return optimizer
    return torch.optim.SGD(groups, **settings, fused=device.type == "cuda")


def _fused_sgd() -> Any:
    """apex.optimizers.FusedSGD. PyPI's package of the name apex is another project, and has none."""
    try:
        return importlib.import_module("apex.optimizers").FusedSGD
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"opt was 'fusedsgd', which needs NVIDIA's apex ({error}). It is built from source, and PyPI's apex is "
            "another project: git clone https://github.com/NVIDIA/apex && cd apex && "
            "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation ."
        ) from error


def lr_factor(config: OptimizerConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a step as a multiple of `lr`, for LambdaLR.

    Warm-up: the first W = warmup_epochs · steps_per_epoch steps rise linearly, step s at (s + 1) / (W + 1).
    cosine: from 1 at step W to 0 after the last epoch. multistep: gamma to the number of milestones (epochs)
    reached, counted from the start of training. constant: 1. All of it is scaled by `short`.
    """
    total = config.trained_epochs * steps_per_epoch
    warmup = round(config.trained_warmup_epochs * steps_per_epoch)
    milestones = [round(epoch * steps_per_epoch) for epoch in config.trained_milestones]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "cosine":
            progress = min((step - warmup) / max(total - warmup, 1), 1.0)
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        if config.schedule == "multistep":
            return config.gamma ** sum(step >= milestone for milestone in milestones)
        return 1.0

    return factor
