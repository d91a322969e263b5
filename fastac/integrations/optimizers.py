"""α beside any optimizer of the network."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch

from fastac.table import AlphaTable

__all__ = ["follow"]


def follow(
    table: AlphaTable,
    optimizer: torch.optim.Optimizer,
    *,
    group: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    lr: float | None = None,
    momentum: float = 0.9,
) -> None:
    """Have the table step whenever the network's optimizer does.

    optimizer: a torch.optim.SGD: `table.follow`, α has its learning rate, momentum and nesterov. Any other one (Adam's
    step is not linear in a row, and its learning rates are of another size): α has a torch.optim.SGD of its own, with
    `momentum` and the learning rate lr · r, where r is the optimizer's learning rate over its first one, so that α has
    the network's warm-up and decay. A wrapper with the optimizer in `.optimizer`, as Accelerate's, is looked into.
    group: the parameter group whose learning rate counts. scaler: the GradScaler of the loop; its scale is divided out,
    and a step that it skips leaves α alone.

    ValueError for an optimizer that is not SGD without lr, and for SGD with it (see AlphaTable's lr_scale).
    """
    optimizer = _unwrap(optimizer)
    if isinstance(optimizer, torch.optim.SGD):
        if lr is not None:
            raise ValueError(
                f"lr was {lr}, but α follows SGD's learning rate; lr_scale of the table multiplies it"
            )
        table.follow(optimizer, group=group, scaler=scaler)
        return
    if lr is None or not (math.isfinite(lr) and lr > 0):
        raise ValueError(
            "lr must be α's own learning rate, a positive number, where the optimizer is not torch.optim.SGD but "
            f"{type(optimizer).__name__}; it was {lr}"
        )
    if not 0 <= group < len(optimizer.param_groups):
        raise ValueError(f"group must be in [0, {len(optimizer.param_groups)}), got {group}")
    own = _AlphaSGD(optimizer, group, lr, momentum, table.device)
    table.follow(own, scaler=scaler)
    alive = weakref.ref(own)  # the table keeps it; the network's optimizer must not

    def after_step(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (followed := alive()) is not None:
            followed.step_with(stepped)

    optimizer.register_step_post_hook(torch.compiler.disable(after_step))


def _unwrap(optimizer: Any) -> torch.optim.Optimizer:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


class _AlphaSGD(torch.optim.SGD):
    """α's optimizer beside one of another kind. It holds no parameter that has a gradient: the table does the work."""

    def __init__(
        self, other: torch.optim.Optimizer, group: int, lr: float, momentum: float, device: torch.device
    ):
        # fused: the kind that is told of a skipped step by attributes, see step_with
        super().__init__([torch.zeros(1, device=device)], lr=lr, momentum=momentum, fused=True)
        options = other.param_groups[group]
        self._base, self._group = lr, group
        self._first = float(options.get("initial_lr", options["lr"]))  # schedulers note where they started
        if not self._first > 0:
            raise ValueError(f"the optimizer's first learning rate must be positive, got {self._first}")

    def step_with(self, other: torch.optim.Optimizer) -> None:
        """One step of α with the learning rate that `other` has just stepped with, skipped where that was."""
        self.param_groups[0]["lr"] = other.param_groups[self._group]["lr"] * (self._base / self._first)
        for name in ("grad_scale", "found_inf"):  # from GradScaler, to an optimizer that unscales by itself
            setattr(self, name, getattr(other, name, None))
        self.step()
