"""Random scaling of residual branches, another one forward than backward: Shake-Shake and ShakeDrop.

The random numbers come from torch's default generator of the branches' device, so torch.manual_seed decides them and
its state, as a checkpoint keeps it, goes on with them. They are drawn in the forward pass, in float32, and rounded to
the branches' dtype: a backward pass that is repeated (retained graph, recomputed activations) has the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ShakeDrop", "mix", "scale", "shake_shake"]


def mix(first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """α·first + (1 − α)·second, whose gradients are β and 1 − β times the incoming one, whatever α was.

    first, second: (B, C, H, W), floating; alpha, beta: of their dtype, (B, 1, 1, 1) or anything that broadcasts.
    """
    mixed: Tensor = _Mix.apply(first, second, alpha, beta)
    return mixed


def scale(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """forward·x, whose gradient is `backward` times the incoming one. Shapes and dtypes as in `mix`."""
    scaled: Tensor = _Scale.apply(x, forward, backward)
    return scaled


def shake_shake(first: Tensor, second: Tensor, *, training: bool) -> Tensor:
    """Shake-Shake-Image (Gastaldi 2017, "Shake-Shake regularization", sections 1.2 and 2.2).

    In training `mix` with α and β uniform in [0, 1), an own one for each image, independent of each other. Else their
    expectation: the mean of both branches, for the gradient too.
    """
    if not training:
        return torch.lerp(second, first, 0.5)
    alpha, beta = torch.rand(2, len(first), 1, 1, 1, device=first.device).to(first.dtype)
    return mix(first, second, alpha, beta)


class ShakeDrop(nn.Module):
    """Yamada et al. 2019, "ShakeDrop Regularization for Deep Residual Learning", equation 6.

    In training a branch is multiplied by b + α − bα forward and by b + β − bβ backward: b is 1 with probability `keep`
    and 0 else, α is uniform in [−1, 1), β in [0, 1), all of them for each image, as in AutoAugment's code. Else it is
    multiplied by the expectation of the forward factor, which is `keep`.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        if not 0 <= keep <= 1:
            raise ValueError(f"keep is {keep}; it should be a probability")
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * self.keep
        gate, alpha, beta = torch.rand(3, len(x), 1, 1, 1, device=x.device)
        kept = gate < self.keep
        forward, backward = torch.where(kept, 1.0, 2 * alpha - 1), torch.where(kept, 1.0, beta)
        return scale(x, forward.to(x.dtype), backward.to(x.dtype))

    def extra_repr(self) -> str:
        return f"keep={self.keep:g}"


class _Mix(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.lerp(second, first, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])  # neither branch: the factors don't depend on them

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (beta,) = ctx.saved_tensors
        return grad * beta, grad * (1 - beta), None, None


class _Scale(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        return x * forward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return grad * factor, None, None
