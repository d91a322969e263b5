"""AutoCleansing in plain PyTorch: the truth that the table and every backend are tested against.

α is one dense parameter here, with a dense optimizer: O(N·K) a step, and nothing to get wrong. The paper is
"AutoCleansing: Unbiased Estimation of Deep Learning with Mislabeled Data" (ICLR 2021 submission), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FORMS", "DenseAlpha", "ac_cross_entropy", "training_logits"]

FORMS = ("ac1", "ac2")


def training_logits(logits: Tensor, target: Tensor, rows: Tensor, form: str) -> Tensor:
    """C(x, θ, α) = M(x, θ) + α[d] (equation 2).

    logits: (B, K). target: (B,) int64. rows: α[d], (B, K) for AC1 with α[:, 0] = 0, (B,) for AC2, where all
    categories but the observed one are zero.
    """
    if form == "ac1":
        return logits + rows
    inside = (target >= 0) & (target < logits.shape[1])  # an ignored target has no category
    column = torch.where(inside, target, 0)[:, None]
    return logits.scatter_add(1, column, torch.where(inside, rows, 0).to(logits.dtype)[:, None])


def ac_cross_entropy(
    logits: Tensor, target: Tensor, index: Tensor, alpha: Tensor, *, form: str = "ac1", **options: Any
) -> Tensor:
    """The training loss with a dense α; options are those of F.cross_entropy.

    alpha: (N, K) for AC1, (N,) for AC2. AC1's first category is not identified: its column is held at zero.
    """
    rows = alpha[index]
    if form == "ac1":
        rows = rows * (torch.arange(alpha.shape[1], device=alpha.device) > 0)
    return F.cross_entropy(training_logits(logits, target, rows, form), target, **options)


class DenseAlpha(torch.nn.Module):
    """α as the paper has it: one more zero-initialised parameter of the same SGD, with its own weight decay.

    Give it to the optimizer as a parameter group of its own:
    `torch.optim.SGD([{"params": net.parameters()}, {"params": dense.parameters(), "weight_decay": 5e-5}], ...)`.
    """

    def __init__(
        self, num_samples: int, num_classes: int, form: str = "ac1", dtype: torch.dtype | None = None
    ):
        super().__init__()
        shape = (num_samples, num_classes) if form == "ac1" else (num_samples,)
        self.form = form
        self.alpha = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor, **options: Any) -> Tensor:
        return ac_cross_entropy(logits, target, index, self.alpha, form=self.form, **options)
