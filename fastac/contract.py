"""What a backend is handed, what it returns, and which functions it has.

fastac/eager.py is the first backend and the specification of every other: the same functions with the same
arguments and, to rounding, the same results.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastac.clock import StepClock

__all__ = ["STATISTICS", "SUMS", "Accumulators", "Backend", "Forward", "Objective", "Rows", "Sgd"]

STATISTICS = ("margin", "p", "correct", "el2n", "loss")
"""The columns of Forward.statistics."""

SUMS = ("margin", "p", "p_squared", "correct", "el2n", "loss")
"""The columns of Accumulators.sums."""


class Rows(NamedTuple):
    """The table's storage. alpha: (N, K), AC2 (N,), float32, bfloat16 or float64. momentum: like alpha, or None.
    last: (N,) int32, the step that a row's state is that of."""

    alpha: Tensor
    momentum: Tensor | None
    last: Tensor
    clock: StepClock


class Sgd(NamedTuple):
    """The linear optimizer of the step to come; its learning rate is clock.lr, on the device. seed: of bfloat16's
    stochastic rounding."""

    momentum: float
    weight_decay: float
    nesterov: bool
    folded: bool
    seed: int


class Objective(NamedTuple):
    """The loss: F.cross_entropy's options, and the form of α. weight: (K,) or None."""

    weight: Tensor | None
    form: str
    ignore_index: int
    reduction: str
    label_smoothing: float


class Accumulators(NamedTuple):
    """TrainingDynamics' storage. visits, forgetting: (N,) int64. sums: (N, 6) float64. was_correct: (N,) bool."""

    visits: Tensor
    sums: Tensor
    forgetting: Tensor
    was_correct: Tensor


class Forward(NamedTuple):
    """loss: () or (B,) for reduction "none"; float32, float64 for float64 logits. grad: (B, K), the loss's gradient
    by the training logits, with weights and normaliser in it, in the loss's dtype from `forward`, which leaves it to
    be staged, and in that of the logits from `forward_update`. ids: (B,) int64, the row that a sample's gradient
    goes to, −1 for none; (0,) without ids. statistics: (B, 5) float32 if asked for, else (0, 5)."""

    loss: Tensor
    grad: Tensor
    ids: Tensor
    statistics: Tensor


class Backend(Protocol):
    """The operations. None waits for the device; what is written is written in place."""

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor | None,
        rows: Rows | None,
        objective: Objective,
        flags: Tensor,
        num_samples: int,
        statistics: bool,
    ) -> Forward: ...

    def forward_update(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        rows: Rows,
        objective: Objective,
        flags: Tensor,
        num_samples: int,
        accumulators: Accumulators | None,
        sgd: Sgd,
        grad_output: float,
    ) -> Forward: ...

    def row_gradient(self, grad: Tensor, target: Tensor, form: str) -> Tensor: ...

    def backward(self, grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor: ...

    def scale_gradient(self, grad: Tensor, scale: Tensor) -> None: ...

    def update_rows(
        self, rows: Rows, ids: Tensor, grad: Tensor, scale: Tensor | None, sgd: Sgd, skip: Tensor | None
    ) -> None: ...

    def record(self, accumulators: Accumulators, ids: Tensor, statistics: Tensor) -> None: ...

    def read_rows(self, rows: Rows, ids: Tensor) -> Tensor: ...

    def sweep(self, rows: Rows, ids: Tensor, seed: int) -> None: ...

    def advance(self, clock: StepClock, sgd: Sgd, skip: Tensor | None) -> None: ...
