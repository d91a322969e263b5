"""The loss as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastac.dynamics import TrainingDynamics
from fastac.functional import ac_cross_entropy, check_options
from fastac.table import AlphaTable

__all__ = ["AutoCleansingLoss"]


class AutoCleansingLoss(torch.nn.Module):
    """Cross entropy whose training logits carry α: `criterion(logits, target, index)`.

    table: AlphaTable or ShardedAlphaTable; None is plain cross entropy, for `dynamics` alone. weight: (K,) class
    weights, a buffer.
    ignore_index, reduction, label_smoothing: as in torch.nn.CrossEntropyLoss.
    update: "step" moves α when the optimizer steps, by the summed gradient of all backward passes since its last
    step, as autograd and a dense parameter would. "forward" writes α in the forward pass, one read of logits and α,
    for loops where each forward pass in training mode and grad mode is followed by one backward pass and one step,
    and the loss is final: the gradient that will come into it is the constant `grad_output`, as 1 does from
    `loss.backward()`.
    dynamics: TrainingDynamics that this loss records.

    In eval mode nothing is recorded, update="forward" only reads, and index may be left out: plain cross entropy of
    the network without α, as at test time. The table is no parameter or buffer of this module: wrappers that
    broadcast or shard a module's state leave it alone. zero_grad() does not reach it (`AlphaTable.discard` does).
    """

    weight: Tensor | None

    def __init__(
        self,
        table: AlphaTable | None,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        update: str = "step",
        grad_output: float = 1.0,
        dynamics: TrainingDynamics | None = None,
    ):
        super().__init__()
        if table is not None and not isinstance(table, AlphaTable):
            raise TypeError(f"table must be an AlphaTable or None, got {type(table).__name__}")
        check_options(reduction, label_smoothing, update)
        if not math.isfinite(grad_output):
            raise ValueError(f"grad_output must be finite, got {grad_output}")
        self.table, self.dynamics = table, dynamics
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        self.update, self.grad_output = update, grad_output
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        """logits (B, K), target (B,) int64, index (B,) int64 sample ids → loss, () or (B,); see ac_cross_entropy."""
        table, dynamics, update = self.table, self.dynamics, self.update
        if not self.training:
            dynamics = None
            if index is None:
                table = None
            if update == "forward":
                update = "never"
        return ac_cross_entropy(
            logits,
            target,
            index,
            table,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            update=update,
            grad_output=self.grad_output,
            dynamics=dynamics,
        )

    def extra_repr(self) -> str:
        return f"{self.table}, update={self.update!r}, reduction={self.reduction!r}"
