"""The order of an epoch: every id exactly once, over all ranks together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastac.data.draws import SHUFFLE, permutation
from fastac.partition import shard_bounds

__all__ = ["EpochSampler"]


class EpochSampler:
    """Cuts each epoch's order of the ids into global batches and gives each rank its part of each.

    The order is one permutation, a function of (seed, epoch). The global batch of step s is its rows
    [s·B·W, (s+1)·B·W) and rank r takes the r-th of W contiguous parts whose sizes differ by at most one, so
    which samples meet at a step depends on B·W and not on how it is split. A last global batch with fewer
    than two rows a rank (one where batch_size is 1) joins the one before it, because batch norm needs two
    rows and no rank may have none; that bound is the one thing that depends on W.

    aligned=True: each rank draws only from the ids that it owns (fastac.partition), in an order that is a function
    of (seed, epoch, rank), for a ShardedAlphaTable with placement="aligned". Steps an epoch and the sizes of the
    global batches are as without it; which samples meet at a step then depends on W.

    exclude: (n,) int64 ids to leave out of every epoch; the others keep theirs.
    batch_size: rows a rank and step, B. rank, world_size: this process among W. shuffle=False: the order is
    0, 1, … in every epoch. drop_last: leave out an incomplete last global batch instead.

    Raises ValueError for arguments that leave no batch that every rank has a part of.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        aligned: bool = False,
        exclude: np.ndarray | None = None,
    ) -> None:
        for name, value in (
            ("num_samples", num_samples),
            ("batch_size", batch_size),
            ("world_size", world_size),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it should be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it should be in [0, {world_size})")
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle, self.drop_last, self.aligned = seed, shuffle, drop_last, aligned
        self._kept = None  # ids to draw from, None for all
        if exclude is not None and exclude.size:
            if aligned:  # shards of unlike sizes have unlike numbers of steps
                raise ValueError(f"exclude has {exclude.size} ids; it should be empty with aligned=True")
            self._kept = np.delete(np.arange(num_samples), exclude)
        self._steps = self._count_steps()

    def _count_steps(self) -> int:
        rows = self.batch_size * self.world_size
        smallest = rows if self.drop_last else min(2, self.batch_size) * self.world_size
        drawn = self._drawn
        if drawn < smallest:
            left_out = f" less {self.num_samples - drawn} excluded" if drawn < self.num_samples else ""
            raise ValueError(
                f"num_samples is {self.num_samples}{left_out}; with batch_size {self.batch_size} a rank, world_size "
                f"{self.world_size} and drop_last={self.drop_last} it should be at least {smallest}"
            )
        full, rest = divmod(drawn, rows)
        return full + (rest >= smallest)

    @property
    def _drawn(self) -> int:
        """Samples an epoch has, an incomplete batch included."""
        return self.num_samples if self._kept is None else len(self._kept)

    def __len__(self) -> int:
        """Steps an epoch, the same on every rank."""
        return self._steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, int]]:
        """This rank's ids ((b,) int64) and the rows of the global batch, for the steps from `start` on."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it should be at least 0")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; it should be in [0, {len(self)}]")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[np.ndarray, int]]:
        n, rows = self._drawn, self.batch_size * self.world_size
        order = self._own_order(epoch) if self.aligned else self._order(n, epoch)
        order = order if self._kept is None else self._kept[order]
        for step in range(start, len(self)):
            joins_rest = step == len(self) - 1 and not self.drop_last
            size = n - step * rows if joins_rest else rows
            if self.aligned:
                first = step * self.batch_size
                yield order[first : None if joins_rest else first + self.batch_size], size
                continue
            first, last = (step * rows + size * r // self.world_size for r in (self.rank, self.rank + 1))
            yield order[first:last], size

    def _order(self, n: int, *counters: int) -> np.ndarray:
        return permutation(n, self.seed, SHUFFLE, *counters) if self.shuffle else np.arange(n)

    def _own_order(self, epoch: int) -> np.ndarray:
        # A shard has ⌊N/W⌋ ids or one more, so every step but the last takes B from each.
        first, last = shard_bounds(self.num_samples, self.rank, self.world_size)
        return first + self._order(last - first, epoch, self.rank)
