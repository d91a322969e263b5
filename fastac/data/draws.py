"""Random draws of the data pipeline: functions of (seed, purpose, counters), without a generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastac.rng import hash_bits

__all__ = ["AUGMENT", "ERASE", "NOISE", "POLICY", "SHUFFLE", "SPLIT", "integers_below", "permutation"]

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
