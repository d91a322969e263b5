"""Step clock: what the optimizer's steps did to a row that no batch held.

SGD's step is linear in a row's state (α, b), b the momentum buffer. Without a gradient, at learning rate η,
momentum μ and weight decay λ, it is the 2×2 matrix

    heavy ball  M = [[1 − ηλ, −ημ], [λ, μ]]        Nesterov  M = [[1 − ηλ(1 + μ), −ημ²], [λ, μ]]

so a row whose state is that of step s is brought to step T by C(s) = M_T ⋯ M_{s+1}: four numbers, whatever K is.
C(s) is kept for a window of past steps and extended from the left. (Dividing cumulative products would not do:
det M = μ, so the inverse is useless after a few hundred steps.)

The window is stored in blocks of S steps: `within[s]` is the product from s to its block's end (or to now), and
`tail[k]` the product of all later blocks, C(s) = tail[s // S] · within[s]. A step touches one block and the tails,
about 2·√window matrices, in float64 on the table's device. Everything that decides about a step is device memory,
so that a skipped step and a replayed CUDA graph need no host.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["StepClock", "step_matrix"]


def step_matrix(
    lr: Tensor, momentum: float, weight_decay: float, nesterov: bool, folded: bool = False
) -> Tensor:
    """M of one step, (2, 2) float64; lr: () float64.

    As in torch.optim.SGD, momentum 0 leaves the buffer alone. Folded history has no buffer: a gradient's whole
    momentum tail is applied at once, and what is left is the decay at the effective rate η / (1 − μ).
    """
    if folded or momentum == 0:
        effective = weight_decay / (1 - momentum) if folded else weight_decay
        entries = [1 - lr * effective, lr * 0, lr * 0, lr * 0 + 1]
    elif nesterov:
        entries = [
            1 - lr * (weight_decay * (1 + momentum)),
            -lr * momentum**2,
            lr * 0 + weight_decay,
            lr * 0 + momentum,
        ]
    else:
        entries = [1 - lr * weight_decay, -lr * momentum, lr * 0 + weight_decay, lr * 0 + momentum]
    return torch.stack(entries).view(2, 2)


class StepClock:
    """Counts steps and keeps the catch-up products of the last `window` of them.

    window: at least 16 steps, rounded up to a power of two. A row older than it can't be caught up, so the table
    looks at every row each `sweep_every` steps.
    """

    def __init__(self, device: torch.device, window: int = 1 << 18):
        if window < 16:
            raise ValueError(f"window must be at least 16 steps, got {window}")
        exponent = math.ceil(math.log2(window))
        self.window = 1 << exponent
        self.block = 1 << ((exponent + 1) // 2)
        blocks = self.window // self.block
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.lr = torch.zeros((), dtype=torch.float64, device=device)
        self._set: float | None = None  # what lr was filled with
        self.within = torch.eye(2, dtype=torch.float64, device=device).repeat(self.window, 1, 1)
        self.tail = torch.eye(2, dtype=torch.float64, device=device).repeat(blocks, 1, 1)
        self._identity = torch.eye(2, dtype=torch.float64, device=device)
        self._lane = torch.arange(self.block, device=device)

    @property
    def sweep_every(self) -> int:
        """Steps between two sweeps, which bring rows that are as old as this to now: no row gets half as old as
        the window."""
        return self.window // 4

    def set_lr(self, lr: float | Tensor) -> None:
        """The learning rate of the step to come, copied to the device without waiting for it.

        A CUDA graph that is captured meanwhile reads what the device holds at its replay: a tensor's copy is part of
        the graph, a number is not and is set before the replay."""
        if isinstance(lr, Tensor):
            self.lr.copy_(lr.detach(), non_blocking=True)
            self._set = None
        elif lr != self._set and not (self.lr.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.lr.fill_(lr)
            self._set = lr

    def advance(self, matrix: Tensor, skip: Tensor | None = None) -> None:
        """One step with `matrix` (2, 2) from `step_matrix`. skip: () bool on the device; True leaves all as it is."""
        if skip is not None:
            matrix = torch.where(skip, self._identity, matrix)
        block = self.steps // self.block
        lanes = (block * self.block + self._lane) % self.window
        self.within.index_copy_(0, lanes, matrix @ self.within.index_select(0, lanes))
        self.tail.copy_(matrix @ self.tail)
        self.steps += 1 if skip is None else (~skip).to(torch.int64)
        now = torch.stack([self.steps % self.window])
        self.within.index_copy_(0, now, self._identity[None])
        # The block that was extended has no later block yet, nor has the one that the next step begins in.
        current = torch.stack([block, self.steps // self.block]) % self.tail.shape[0]
        self.tail.index_copy_(0, current, self._identity.expand(2, 2, 2))

    def coefficients(self, last: Tensor) -> Tensor:
        """C(s) for s = last, (...,) int → (..., 2, 2) float64. A row ahead of the clock keeps its state."""
        last = last.to(torch.int64)
        product = self.tail[(last // self.block) % self.tail.shape[0]] @ self.within[last % self.window]
        return torch.where((last < self.steps)[..., None, None], product, self._identity)

    def state_dict(self) -> dict[str, Any]:
        """The products that are in use; a copy."""
        used = min(int(self.steps) + 1, self.window)
        blocks = min(used // self.block + 1, self.tail.shape[0])
        return {
            "window": self.window,
            "steps": int(self.steps),
            "within": self.within[:used].clone(),
            "tail": self.tail[:blocks].clone(),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """ValueError unless `load_state_dict` can take it."""
        if not isinstance(state, dict) or {"window", "steps", "within", "tail"} - state.keys():
            raise ValueError("the step clock's state is incomplete")
        if state["window"] != self.window:
            raise ValueError(f"the step clock's window is {state['window']} in the state, not {self.window}")
        for key, own in (("within", self.within), ("tail", self.tail)):
            value = state[key]
            if not isinstance(value, Tensor) or value.shape[1:] != (2, 2) or len(value) > len(own):
                raise ValueError(f"the step clock's {key} has another shape in the state")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a clock with the same window."""
        self.steps.fill_(state["steps"])
        self.within[: len(state["within"])].copy_(state["within"])
        self.tail[: len(state["tail"])].copy_(state["tail"])
