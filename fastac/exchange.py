"""Rows and their gradients between the ranks that use them and the ranks that own them: three all-to-alls a batch.

    ids        to the owners, after a word a rank that says how many come
    rows       from the owners
    gradients  to the owners, in the rows' own order, so that no ids travel again

Every rank takes part in every batch, if only with none of its own. What arrives is ordered by rank and then as in that
rank's batch: sums over it don't depend on how a global batch is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastac.collectives import named
from fastac.partition import shard_owner

__all__ = ["Exchange", "Request", "Traffic", "Transfer"]


@dataclass
class Traffic:
    """Bytes that this rank sent to other ranks. What stays on the rank, and what `dense()` gathers, is not in it.

    counts: 8 a batch and other rank. ids: 8 a row. rows, gradients: K numbers of the wire's dtype a row, AC2 one.
    """

    counts: int = 0
    ids: int = 0
    rows: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts + self.ids + self.rows + self.gradients


@dataclass
class Transfer:
    """An all-to-all under way: what it reads and writes must live until it is over."""

    kind: str
    source: Tensor
    result: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        """What arrived; on an accelerator the stream waits, not the host."""
        if self.work is not None:
            with named(f"all_to_all of α's {self.kind}"):
                self.work.wait()
            self.work = None
        return self.result


@dataclass
class Request:
    """A batch's rows, asked of their owners.

    ids: (n,) int64. order: (n,) the batch's positions by owner; place: (n,) where a position stands in it. sent,
    received: rows that this rank asks of each rank, and each rank of it. wanted: (sum of received,) int64, the places
    in this rank's shard that are asked of it, by rank and then in that rank's order. rows: what answers it.
    """

    ids: Tensor
    order: Tensor
    place: Tensor
    sent: list[int]
    received: list[int]
    wanted: Tensor
    rows: Transfer | None = None


class Exchange:
    """The all-to-alls of one process group. All methods but `Transfer.wait` are collective: all ranks call them, in the
    same order."""

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        rank: int,
        world_size: int,
        num_samples: int,
        device: torch.device,
    ):
        self.group, self.rank, self.world_size = group, rank, world_size
        self.num_samples, self.device = num_samples, device
        # Counts are for the host: where the group has gloo for the CPU, they don't queue behind the GPU's work.
        types = () if world_size == 1 or group is None else {kind.type for kind in group._device_types}
        self._counting = torch.device("cpu") if "cpu" in types else device
        self.traffic = Traffic()

    def request(self, index: Tensor) -> Request:
        """Ask for the rows index (n,), int64 or int32, on any device: the host has to know how many go where. It does
        not wait for the accelerator where index is on the CPU and the group has a backend for the CPU.

        IndexError for an id outside [0, N); the other ranks, which then can't go on either, raise RuntimeError.
        """
        ids = index.to(torch.int64, copy=True)
        good = (ids >= 0) & (ids < self.num_samples)
        owner = shard_owner(torch.where(good, ids, 0), self.num_samples, self.world_size)
        counts = torch.bincount(owner, minlength=self.world_size)
        counts = torch.where(good.all(), counts, -1)
        arriving = self._send("counts", counts.to(self._counting), None, None).wait()
        sent, received = counts.tolist(), arriving.tolist()
        self._check(ids, good, sent, received)
        order = torch.argsort(owner, stable=True)
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        local = (ids - self.num_samples * owner // self.world_size).index_select(0, order)
        ids, order, place, local = (x.to(self.device, non_blocking=True) for x in (ids, order, place, local))
        wanted = self._send("ids", local, sent, received).wait()
        return Request(ids, order, place, sent, received, wanted)

    def _check(self, ids: Tensor, good: Tensor, sent: list[int], received: list[int]) -> None:
        if sent[0] < 0:
            raise IndexError(f"index {int(ids[~good][0])} is outside [0, {self.num_samples})")
        if min(received) < 0:
            raise RuntimeError(
                f"rank {received.index(-1)} was given an index outside [0, {self.num_samples}), so no rank can go on"
            )

    def send_rows(self, request: Request, rows: Tensor) -> None:
        """Answer: rows (len(request.wanted), ...), those that were asked of this rank."""
        request.rows = self._send("rows", rows, request.received, request.sent)

    def send_gradients(self, request: Request, grad: Tensor) -> Transfer:
        """grad: (n, ...), by position in the batch. What arrives belongs to request.wanted."""
        return self._send("gradients", grad.index_select(0, request.order), request.sent, request.received)

    def _send(
        self, kind: str, values: Tensor, sent: list[int] | None, received: list[int] | None
    ) -> Transfer:
        """All-to-all of values (rows, ...) by rows; None: one row for each rank."""
        if self.world_size == 1:
            return Transfer(kind, values, values, None)
        arriving = len(values) if received is None else sum(received)
        result = values.new_empty((arriving, *values.shape[1:]))
        with named(f"all_to_all of α's {kind}"):
            work = dist.all_to_all_single(result, values, received, sent, group=self.group, async_op=True)
        own = 1 if sent is None else sent[self.rank]
        size = values[:1].numel() * values.element_size()
        setattr(self.traffic, kind, getattr(self.traffic, kind) + (len(values) - own) * size)
        return Transfer(kind, values, result, work)
