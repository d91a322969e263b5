"""Random draws of the data pipeline: functions of (seed, purpose, counters), without a generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastac.rng import hash_bits, uniform

__all__ = [
    "AUGMENT",
    "ERASE",
    "NOISE",
    "POLICY",
    "SHUFFLE",
    "SPLIT",
    "integers_below",
    "permutation",
    "sample_draws",
]

# A number a purpose, so that two uses of one seed never see the same bits.
SHUFFLE, AUGMENT, NOISE, SPLIT, POLICY, ERASE = range(6)


def permutation(n: int, seed: int, *counters: int) -> np.ndarray:
    """A permutation of range(n), (n,) int64, fixed by `seed` and the counters."""
    # The id is the last counter: for a fixed prefix the hash is one-to-one in it, so no two keys tie.
    keys = hash_bits(seed, *counters, torch.arange(n))
    return torch.argsort(keys, stable=True).numpy()


def integers_below(n: int, bits: Tensor) -> Tensor:
    """Uniform int64 in [0, n), n <= 2^31, from the bits of `fastac.rng.hash_bits`."""
    return (bits * n) >> 32


def sample_draws(count: int, ids: np.ndarray, seed: int, purpose: int, epoch: int) -> Tensor:
    """(b, count) float32 in [0, 1): the draws of the samples `ids`, (b,) int64, in this epoch, a row a sample."""
    return uniform(seed, purpose, epoch, torch.arange(count), torch.from_numpy(ids).view(-1, 1))
