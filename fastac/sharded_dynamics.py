"""Training dynamics over many ranks: each owns a part of the samples, by the rule of the α table's rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastac import backends
from fastac.collectives import named
from fastac.contract import STATISTICS
from fastac.dynamics import TrainingDynamics
from fastac.frames import check_frame_path, write_frame
from fastac.gather import gather_on_all, gather_on_one
from fastac.partition import shard_bounds, shard_owner
from fastac.sharded import PLACEMENTS
from fastac.validation import debugging

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ShardedTrainingDynamics"]

_WIRE = 4 + len(
    STATISTICS
)  # int32 words of a visit: its id, its number of the call (two each), the statistics
_VISITS = 1 << 20  # recorded at once


class ShardedTrainingDynamics(TrainingDynamics):
    """Accumulators of N samples, of which rank r of W owns [⌊N·r/W⌋, ⌊N·(r+1)/W⌋), as in ShardedAlphaTable.

    It goes wherever TrainingDynamics go, with the same results: those of one rank on the concatenated batches.

    placement: "aligned", a rank trains on samples that it owns and records them at once. "exchange": any rank may
    train on any sample; it keeps what it saw, 28 bytes a visit, until `sync` sends it to the owners, which record it in
    the order of training. So nothing travels in a step.
    process_group: the data-parallel ranks, all of which make this at the same time. None: a new group of all ranks
    where torch.distributed is initialised, a single rank where it is not.

    `sync`, `frame`, `save`, `aum` and `state_dict` are collective: all ranks call them. `count`, `sums`, `forgetting`
    and `was_correct` are of the samples `held` here, as of the last `sync`.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        placement: str = "aligned",
        device: torch.device | str | None = None,
        process_group: dist.ProcessGroup | None = None,
    ):
        if placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {PLACEMENTS}, got {placement!r}")
        if process_group is None and dist.is_available() and dist.is_initialized():
            process_group = dist.new_group()
        self.placement, self.process_group = placement, process_group
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.world_size = 1 if process_group is None else dist.get_world_size(process_group)
        if self.rank < 0:
            raise ValueError("process_group must hold this process, which is not among its ranks")
        super().__init__(num_samples, num_classes, device=device)
        self.sent_bytes = 0
        self._kept: list[tuple[Tensor, Tensor, int]] = []  # ids, statistics, number of the call
        self._calls = 0
        self._foreign = torch.zeros((), dtype=torch.bool, device=self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedTrainingDynamics:
        """Collective, as `state_dict` is."""
        copy = ShardedTrainingDynamics(
            self.num_samples,
            self.num_classes,
            placement=self.placement,
            device=self.device,
            process_group=self.process_group,
        )
        copy.load_state_dict(self.state_dict())
        return copy

    def _find_held(self) -> range:
        return range(*shard_bounds(self.num_samples, self.rank, self.world_size))

    @torch.no_grad()
    def record(self, index: Tensor, statistics: Tensor) -> None:
        """As TrainingDynamics'. With "aligned" an id of another rank is an IndexError, on an accelerator at `sync`
        (under FASTAC_DEBUG=1 at once), and is left out."""
        if self.placement == "exchange" and self.world_size > 1:
            # Copies: the tensors of a batch keep its whole request alive.
            self._kept.append((index.clone(), statistics.clone(), self._calls))
            self._calls += 1
            return
        outside = (index >= 0) & ((index < self.held.start) | (index >= self.held.stop))
        if index.device.type == "cpu" or debugging():
            self._refuse(outside.any(), index[outside])
        else:
            self._foreign |= outside.any()
        super().record(torch.where(outside | (index < 0), -1, index - self.held.start), statistics)

    def _refuse(self, found: Tensor, which: Tensor) -> None:
        if bool(found):
            name = f"index {int(which[0])}" if len(which) else "an index of an earlier batch"
            raise IndexError(
                f"{name} is not of rank {self.rank}, which owns [{self.held.start}, {self.held.stop}): with "
                "placement='aligned' a rank trains on its own samples (EpochSampler(aligned=True)); "
                "placement='exchange' lets it draw any"
            )

    @torch.no_grad()
    def sync(self) -> None:
        """Bring the visits since the last call to the samples' owners. All ranks call it, at the latest before the
        memory of the visits matters: the trainer does at each epoch's end and checkpoint."""
        found, self._foreign = self._foreign, torch.zeros_like(self._foreign)
        if self.placement == "aligned":
            if self.device.type != "cpu":
                self._refuse(found, self.count[:0])
            return
        if self.world_size == 1:
            return
        visits, owner = self._packed()
        arrived = self._exchange(visits, owner)
        # By the number of the call, then by rank, then as in the batch: as one rank would have recorded them.
        order = torch.argsort(_int64(arrived[:, 2:4]), stable=True)
        arrived = arrived.index_select(0, order)
        place = _int64(arrived[:, :2]) - self.held.start
        statistics = arrived[:, 4:].contiguous().view(torch.float32)
        for first in range(0, len(place), _VISITS):
            part = slice(first, first + _VISITS)
            backends.select(self.device).record(self.accumulators, place[part], statistics[part])

    def _packed(self) -> tuple[Tensor, Tensor]:
        """What this rank saw, by owner: visits (n, 9) int32, and the owners (n,)."""
        kept, self._kept = self._kept, []
        ids = torch.cat([ids for ids, _, _ in kept] or [self.count[:0]]).to(torch.int64)
        calls = torch.cat([torch.full_like(ids, call) for ids, _, call in kept] or [ids])
        none = torch.empty((0, len(STATISTICS)), device=self.device)
        statistics = torch.cat([values for _, values, _ in kept] or [none])
        seen = ids >= 0
        ids, calls, statistics = ids[seen], calls[seen], statistics[seen]
        owner, order = torch.sort(shard_owner(ids, self.num_samples, self.world_size), stable=True)
        words = [_words(ids), _words(calls), statistics.contiguous().view(torch.int32)]
        return torch.cat(words, 1).index_select(0, order), owner

    def _exchange(self, visits: Tensor, owner: Tensor) -> Tensor:
        counts = torch.bincount(owner, minlength=self.world_size)
        arriving = torch.empty_like(counts)
        with named("all_to_all of training dynamics"):
            dist.all_to_all_single(arriving, counts, group=self.process_group)
            sent, received = counts.tolist(), arriving.tolist()
            arrived = visits.new_empty((sum(received), _WIRE))
            dist.all_to_all_single(arrived, visits, received, sent, group=self.process_group)
        self.sent_bytes += (len(visits) - sent[self.rank]) * _WIRE * 4
        return arrived

    def _whole(self, values: Tensor) -> Tensor:
        return gather_on_all(values, self.num_samples, self.process_group, self.device, "training dynamics")

    @torch.no_grad()
    def gather(self, dst: int = 0) -> TrainingDynamics | None:
        """All samples' accumulators on the CPU of rank `dst` of the group, None on the others: all ranks call it."""
        self.sync()
        parts = {
            name: gather_on_one(
                values, self.num_samples, self.process_group, self.device, "training dynamics", dst
            )
            for name, values in self._tensors().items()
        }
        if parts["count"] is None:
            return None
        whole = TrainingDynamics(self.num_samples, self.num_classes, device="cpu")
        whole.load_state_dict({**super().state_dict(), "rows": (0, self.num_samples), **parts})
        return whole

    @property
    def aum(self) -> Tensor:
        self.sync()
        return super().aum

    def frame(self) -> pd.DataFrame:
        self.sync()
        return super().frame()

    def save(self, path: str | os.PathLike[str]) -> None:
        """As TrainingDynamics'; the first rank of the group writes. All ranks call it."""
        path = check_frame_path(path)
        frame = self.frame()
        if self.rank == 0:
            write_frame(frame, path)

    def state_dict(self) -> dict[str, Any]:
        """As TrainingDynamics', of the samples owned by this rank. All ranks call it."""
        self.sync()
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        super().load_state_dict(state)
        self._kept.clear()


def _words(values: Tensor) -> Tensor:
    """int64 (n,) as int32 (n, 2)."""
    return values.contiguous().view(torch.int32).view(-1, 2)


def _int64(words: Tensor) -> Tensor:
    """The inverse of _words."""
    return words.clone(memory_format=torch.contiguous_format).view(torch.int64).view(-1)
