"""Rows that ranks own, put together: on every rank, or on one rank's host."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from fastac.collectives import named
from fastac.partition import shard_bounds

__all__ = ["gather_on_all", "gather_on_one"]

_NUMBERS = 1 << 24  # sent at once, so that what goes through a device stays small


def gather_on_all(
    own: Tensor, num_samples: int, group: dist.ProcessGroup | None, device: torch.device, what: str
) -> Tensor:
    """All rows (N, ...) on every rank, where `own` (n, ...), this rank's, is. All ranks call it. device: what the group
    sends from. what: for the error of a rank that does not come."""
    if group is None or dist.get_world_size(group) == 1:
        return own
    whole = own.new_empty((num_samples, *own.shape[1:]))
    for rank, first, stop in _pieces(own, num_samples, dist.get_world_size(group)):
        part = whole[first:stop]
        if rank == dist.get_rank(group):
            start = shard_bounds(num_samples, rank, dist.get_world_size(group))[0]
            part.copy_(own[first - start : stop - start])
        here = part.to(device)  # the same memory, where the rows are there
        with named(f"broadcast of {what}"):
            dist.broadcast(here, group=group, group_src=rank)
        if here.device != part.device:
            part.copy_(here)
    return whole


def gather_on_one(
    own: Tensor,
    num_samples: int,
    group: dist.ProcessGroup | None,
    device: torch.device,
    what: str,
    dst: int = 0,
) -> Tensor | None:
    """All rows (N, ...) in the host memory of the rank `dst`, None on the others. Otherwise as gather_on_all."""
    if group is None or dist.get_world_size(group) == 1:
        return own.cpu()
    me, world = dist.get_rank(group), dist.get_world_size(group)
    whole = own.new_empty((num_samples, *own.shape[1:]), device="cpu") if me == dst else None
    for rank, first, stop in _pieces(own, num_samples, world):
        start = shard_bounds(num_samples, rank, world)[0]
        with named(f"send of {what} to rank {dst}"):
            if rank == me:
                part = own[first - start : stop - start]
                if whole is not None:
                    whole[first:stop].copy_(part)
                else:
                    dist.send(part.to(device).contiguous(), group=group, group_dst=dst)
            elif whole is not None:
                here = torch.empty((stop - first, *own.shape[1:]), dtype=own.dtype, device=device)
                dist.recv(here, group=group, group_src=rank)
                whole[first:stop].copy_(here)
    return whole


def _pieces(own: Tensor, num_samples: int, world_size: int) -> list[tuple[int, int, int]]:
    """(rank, first row, the first after it) of every message."""
    step = max(1, _NUMBERS // math.prod(own.shape[1:]))
    bounds = [shard_bounds(num_samples, rank, world_size) for rank in range(world_size)]
    return [
        (rank, start, min(start + step, stop))
        for rank, (first, stop) in enumerate(bounds)
        for start in range(first, stop, step)
    ]
