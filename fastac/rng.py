"""Counter-based random bits: the same on every device, backend and number of ranks.

A stateless hash of (seed, counters) instead of a generator's stream: the bits of one element don't depend on
which others are drawn beside it, so stochastic rounding and augmentation repeat exactly after a resume.
"""

from __future__ import annotations

from functools import cache, reduce

import torch
from torch import Tensor

__all__ = ["hash_bits", "seed_state", "uniform"]

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """lowbias32 (C. Wellons), a 32-bit finaliser. int64 wraps, and wrapping keeps the low 32 bits right."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


@cache
def seed_state(seed: int) -> int:
    """The hash's state after the seed alone, in [0, 2^32): what a kernel is handed."""
    state = _mix(torch.tensor(seed & _MASK))
    return int(_mix(state ^ ((seed >> 32) & _MASK)))


def hash_bits(seed: int, *counters: Tensor | int, device: torch.device | str | None = None) -> Tensor:
    """32 random bits an element, as int64 in [0, 2^32).

    seed: any int; its low 64 bits count. counters: int64 tensors or ints, non-negative, broadcast together; two
    calls agree in an element where, and only where, they agree in the seed and all counters (up to collisions of
    a 32-bit hash).
    """
    if device is None:
        device = next((c.device for c in counters if isinstance(c, Tensor)), torch.device("cpu"))

    def scalar(value: int) -> Tensor:  # a fill, not a copy from the host: no synchronisation
        return torch.full((), value, dtype=torch.int64, device=device)

    def absorb(state: Tensor, counter: Tensor | int) -> Tensor:
        value = counter.to(torch.int64) if isinstance(counter, Tensor) else scalar(counter)
        state = _mix((state ^ (value & _MASK)) + 0x9E3779B9 & _MASK)
        return _mix((state ^ (value >> 32)) + 0x85EBCA6B & _MASK)

    return reduce(absorb, counters, scalar(seed_state(seed)))


def uniform(seed: int, *counters: Tensor | int, device: torch.device | str | None = None) -> Tensor:
    """Uniform float32 in [0, 1), 24 bits, from the same counters as `hash_bits`."""
    return (hash_bits(seed, *counters, device=device) >> 8).to(torch.float32) * (1.0 / (1 << 24))
