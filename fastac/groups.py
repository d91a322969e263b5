"""Grouping of a batch's repeated ids, with static shapes: no atomics, no race, no host synchronisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Groups", "group_ids"]


class Groups(NamedTuple):
    """n positions grouped by id, in n slots; a slot that no group needs repeats the group of the largest id.

    So a row that is written through `ids` gets one value however often it is written. ids: (n,) int64, the id of
    each slot, negative only where no position has an id. order: (n,) the positions by id, ties in their own order.
    first: (n,) bool, where in that order a group begins.
    """

    ids: Tensor
    order: Tensor
    first: Tensor
    lengths: Tensor
    slots: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """Sum of values (n, ...) over each slot's group, always in the order of the positions."""
        flat = values.index_select(0, self.order).reshape(len(values), -1)
        total = torch.segment_reduce(flat, "sum", lengths=self.lengths, axis=0, unsafe=True)
        return total.index_select(0, self.slots).view(values.shape)

    def last(self, values: Tensor) -> Tensor:
        """The value (n, ...) of each slot's last position."""
        ends = (self.lengths.cumsum(0) - 1).index_select(0, self.slots)
        return values.index_select(0, self.order.index_select(0, ends))


def group_ids(index: Tensor) -> Groups:
    """index: (n,) int64, n ≥ 1; a negative id leaves its position out."""
    ids, order = torch.sort(index, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    group = first.cumsum(0) - 1
    lengths = torch.zeros_like(ids).scatter_add_(0, group, torch.ones_like(ids))
    unique = torch.full_like(ids, -1).scatter_(0, group, ids)
    slots = torch.where(unique >= 0, torch.arange(len(ids), device=ids.device), group[-1])
    return Groups(unique.index_select(0, slots), order, first, lengths, slots)
