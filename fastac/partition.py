"""Which rank owns which sample: one rule for the rows of a table and for the ids of a sampler.

Rank r of W owns the ids [⌊N·r/W⌋, ⌊N·(r+1)/W⌋): contiguous, so that a shard is a slice, and of sizes that differ by at
most one, so that no rank runs out of samples long before the others.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["shard_bounds", "shard_owner"]


def shard_bounds(num_samples: int, rank: int, world_size: int) -> tuple[int, int]:
    """The first id that `rank` owns, and the first after it that it does not."""
    return num_samples * rank // world_size, num_samples * (rank + 1) // world_size


def shard_owner(index: Tensor, num_samples: int, world_size: int) -> Tensor:
    """The ranks that own the ids `index`, int64 in [0, N); int64 of the same shape."""
    return ((index + 1) * world_size - 1) // num_samples
