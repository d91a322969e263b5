"""The α table over many ranks: each owns a part of the rows, as ZeRO's ranks own parts of the parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fastac.clock import StepClock
from fastac.contract import Rows, Sgd
from fastac.exchange import Exchange, Request, Traffic, Transfer
from fastac.gather import gather_on_all, gather_on_one
from fastac.partition import shard_bounds
from fastac.table import AlphaTable, Staged
from fastac.validation import check_index, debugging

__all__ = ["Batch", "ShardedAlphaTable"]

PLACEMENTS = ("aligned", "exchange")
STORAGES = ("device", "host")


class Batch(NamedTuple):
    """A batch as the loss reads it: place (B,) int64 counts the rows of `rows`, which has `size` of them."""

    place: Tensor
    rows: Rows
    size: int
    request: Request | None


class Arrival(NamedTuple):
    """Row gradients on their way to this rank, for the places `wanted` of its shard."""

    wanted: Tensor
    transfer: Transfer
    loss_scale: Tensor | None


class ShardedAlphaTable(AlphaTable):
    """α of N samples, whose rows are owned by ranks: rank r of W owns the ids [⌊N·r/W⌋, ⌊N·(r+1)/W⌋).

    It goes wherever an AlphaTable goes, with the same results: those of one rank on the concatenated batches. (With
    dtype=bfloat16 in distribution: the random bits of the rounding belong to a row's place in its shard.)

    placement: "aligned", a rank trains on ids that it owns (EpochSampler(aligned=True)) and nothing is sent for α; an
    id of another rank is an IndexError, on an accelerator at a later step's end (see FASTAC_DEBUG). "exchange": any
    rank may draw any id. Then each forward and backward pass of the loss, `prefetch`, `rows` and `step` are collective:
    all ranks run the same ones in the same order, if only on a batch of no rows.
    storage: "device", or "host": rows, momentum and clock stay in (pinned) host memory, and the batch's rows come to
    the device. On a CPU the two are the same memory.
    wire_dtype: of the rows and gradients that travel between ranks, and of rows that come from host memory: float32
    (float64 for a float64 table, the default there) or bfloat16, rounded to nearest also where a row stays on its rank,
    so that results don't depend on the ranks' number.
    process_group: the data-parallel ranks, all of which make the table at the same time. None: a new group of all
    ranks where torch.distributed is initialised, a single rank where it is not.
    options: form, weight_decay, lr_scale, history, dtype, device, momentum, nesterov, seed, window, as in AlphaTable.

    held: the ids that this rank owns, a range. traffic: bytes sent so far, see fastac.exchange.Traffic.

    Sends need the host: with "exchange" or "host" a step can't be captured into a CUDA graph, and prefetch with the ids
    still on the CPU is what keeps the host from waiting for the device.
    """

    sharded = True

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        placement: str = "aligned",
        storage: str = "device",
        wire_dtype: torch.dtype | None = None,
        **options: Any,
    ):
        if placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {PLACEMENTS}, got {placement!r}")
        if storage not in STORAGES:
            raise ValueError(f"storage must be one of {STORAGES}, got {storage!r}")
        self.placement, self.storage = placement, storage
        super().__init__(num_samples, num_classes, **options)
        exact = self._compute_dtype()
        if wire_dtype not in (None, exact, torch.bfloat16):
            raise ValueError(f"wire_dtype must be {exact} or torch.bfloat16, got {wire_dtype}")
        self.wire_dtype = exact if wire_dtype is None else wire_dtype
        ranks = self.world_size if placement == "exchange" else 1
        self._exchange = Exchange(self.process_group, self.rank, ranks, self.num_samples, self.device)
        self._pending: deque[Request] = deque()  # prefetched, in the order in which the forwards come
        self._forwarded = False  # since the last step
        self._arrivals: list[Arrival] = []
        self._requests: dict[int, tuple[StorageWeakRef, Request]] = {}
        self._still = StepClock(self.device, 16)  # never ticks: fetched rows are as of now

    def _find_group(self, given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
        if given is None and dist.is_available() and dist.is_initialized():
            given = dist.new_group()
        self.rank = 0 if given is None else dist.get_rank(given)
        if self.rank < 0:
            raise ValueError("process_group must hold this process, which is not among its ranks")
        return given

    def _find_held(self) -> range:
        return range(*shard_bounds(self.num_samples, self.rank, self.world_size))

    def _find_storage(self) -> torch.device:
        return torch.device("cpu") if self.storage == "host" else self.device

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        pinned = self.storage == "host" and self.device.type == "cuda"
        return torch.zeros(shape, dtype=dtype, device=self.storage_device, pin_memory=pinned)

    def _options(self) -> dict[str, Any]:
        own = {"placement": self.placement, "storage": self.storage, "wire_dtype": self.wire_dtype}
        return super()._options() | own

    def __repr__(self) -> str:
        return (
            f"ShardedAlphaTable({self.num_samples}, {self.num_classes}, form={self.form!r}, "
            f"placement={self.placement!r}, storage={self.storage!r}, history={self.history!r}, dtype={self.dtype}, "
            f"device={str(self.device)!r}, rank {self.rank} of {self.world_size})"
        )

    @property
    def traffic(self) -> Traffic:
        """Bytes that this rank sent to other ranks for ids, rows and gradients."""
        return self._exchange.traffic

    @property
    def in_place(self) -> bool:
        """Whether the loss reads and writes the shard itself: its rows are here, on the device."""
        return self.placement == "aligned" and self.storage_device == self.device

    # --- a batch's rows ------------------------------------------------------------------------------------

    def prefetch(self, index: Tensor) -> None:
        """Ask for the rows of a batch to come; the forward passes then take the prefetched batches in their order.

        index: (n,) int64 or int32, of any n ≥ 0, on any device, best the CPU. The ids travel at once, and so do the
        rows where they can't change any more: where no batch waits before this one and none was forwarded since the
        last step. Otherwise the rows follow at the end of the next step. Where nothing has to be fetched
        (placement="aligned", storage="device") this only checks the ids of an index on the CPU.
        Raises TypeError, or IndexError for an id that is not in [0, N), or with "aligned" not this rank's.
        """
        check_index(index)
        if self.in_place:
            return self._check_held(index)
        request = self._request(index)
        if not self._pending and not self._forwarded:
            self._send_rows(request)
        self._pending.append(request)

    def locate(self, index: Tensor, rows: Rows) -> Batch:
        """For the loss: where the rows index (B,) are. rows: this table's own storage."""
        if self.in_place:
            self._check_held(index)
            return Batch(index.to(torch.int64) - self.held.start, rows, len(self.held), None)
        request = self._pending.popleft() if self._pending else self._request(index)
        place = self._matched(request, index)
        if request.rows is None:
            self._send_rows(request)
        self._forwarded = True
        assert request.rows is not None
        values, request.rows = request.rows.wait(), None
        last = torch.zeros(len(values), dtype=torch.int32, device=self.device)
        fetched = Rows(values.to(self._compute_dtype()), None, last, self._still)
        return Batch(place, fetched, len(values), request)

    def identify(self, batch: Batch, index: Tensor, local: Tensor) -> Tensor:
        """(B,) int64: the ids that `stage` and TrainingDynamics take, −1 where local, which a backend returned, is.

        With "exchange" the gradients go back as the rows came; the tensor stands for the batch that it is made for.
        """
        if not len(index):
            ids = local.new_empty(1)[:0]  # with memory of its own
        else:
            ids = torch.where(local < 0, -1, index.to(torch.int64))
        if self.placement == "exchange" and batch.request is not None:
            # A batch is kept as long as a graph holds its ids.
            self._requests = {key: kept for key, kept in self._requests.items() if not kept[0].expired()}
            storage = ids.untyped_storage()
            self._requests[storage.data_ptr()] = (StorageWeakRef(storage), batch.request)
        return ids

    def _request(self, index: Tensor) -> Request:
        if self.placement == "exchange":
            return self._exchange.request(index)
        ids = index.to(torch.int64, copy=True)
        place = torch.arange(len(ids), device=self.device)
        if self.storage_device.type == "cpu":
            ids = ids.cpu()
        self._check_held(ids)
        sizes = [len(ids)]
        return Request(
            ids.to(self.device, non_blocking=True), place, place, sizes, sizes, ids - self.held.start
        )

    def _matched(self, request: Request, index: Tensor) -> Tensor:
        """Places of the positions among the request's rows."""
        error = (
            "this batch is not the one that prefetch was called for next: prefetch batches in the order in which the "
            "loss is called on them"
        )
        if len(request.ids) != len(index):
            raise RuntimeError(f"{error} (it has {len(index)} rows, the other one {len(request.ids)})")
        same = request.ids == index
        if index.device.type != "cpu" and not debugging():
            return torch.where(same, request.place, -1)  # what the loss reports as outside
        if not bool(same.all()):
            raise RuntimeError(error)
        return request.place

    def _send_rows(self, request: Request) -> None:
        rows = self._read(request.wanted.to(self.storage_device)).to(self.wire_dtype)
        self._exchange.send_rows(request, self._to_device(rows))

    def _to_device(self, values: Tensor) -> Tensor:
        if values.device != self.device and self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def _check_held(self, index: Tensor) -> None:
        """IndexError for an id of another rank, where the host can see it. (Where no row is held, it can: a backend
        that leaves a foreign id out still reads some row.)"""
        if index.device.type != "cpu" and not debugging() and (self.held or not len(index)):
            return
        outside = (index < self.held.start) | (index >= self.held.stop)
        if not bool(outside.any()):
            return
        value = int(index[outside][0])
        if not 0 <= value < self.num_samples:
            raise IndexError(f"index {value} is outside [0, {self.num_samples})")
        raise IndexError(
            f"index {value} is not of rank {self.rank}, which owns [{self.held.start}, {self.held.stop}): with "
            "placement='aligned' a rank trains on its own samples (EpochSampler(aligned=True)); "
            "placement='exchange' lets it draw any"
        )

    # --- gradients -----------------------------------------------------------------------------------------

    def _keep(self, entry: Staged) -> None:
        if self.placement == "aligned":
            super()._keep(entry)
            return
        _, request = self._requests.get(entry.ids.untyped_storage().data_ptr(), (None, None))
        if request is None:
            raise RuntimeError(
                "these ids are not those that the forward pass made: placement='exchange' knows a batch by "
                "the memory of its ids, so hooks must not move saved tensors"
            )
        scale = entry.scale / self.world_size
        columns = entry.grad.ndim == 2
        grad = entry.grad * (scale[:, None] if scale.ndim and columns else scale)
        dropped = entry.ids < 0
        # What is not finite is not written (see Backend.update_rows), and so takes no flag of its own on the wire.
        grad = torch.where(dropped[:, None] if columns else dropped, torch.nan, grad).to(self.wire_dtype)
        transfer = self._exchange.send_gradients(request, grad)
        self._arrivals.append(Arrival(request.wanted, transfer, entry.loss_scale))

    def _merge(self, staged: list[Staged]) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if self.placement == "exchange":
            arrivals, self._arrivals = self._arrivals, []
            ids = [arrival.wanted for arrival in arrivals]
            grads = [self._arrived(arrival) for arrival in arrivals]
        else:
            ids = [torch.where(entry.ids < 0, -1, entry.ids - self.held.start) for entry in staged]
            scales = [self._scale(entry) for entry in staged]
            grads = [
                entry.grad * (scale[:, None] if scale.ndim and entry.grad.ndim == 2 else scale)
                for entry, scale in zip(staged, scales, strict=True)
            ]
        if not any(map(len, ids)):
            return None
        index, grad = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (ids, grads))
        return index.to(self.storage_device), grad.to(self.storage_device), None

    def _arrived(self, arrival: Arrival) -> Tensor:
        grad = arrival.transfer.wait().to(self._compute_dtype())
        unscale = self._unscale(arrival.loss_scale)
        return grad if unscale is None else grad * unscale

    def discard(self) -> None:
        """Forget the row gradients since the last step, as zero_grad() does without a step. With "exchange" all ranks
        call it."""
        super().discard()
        for arrival in self._arrivals:
            arrival.transfer.wait()
        self._arrivals.clear()

    def _apply(self, skip: Tensor | None) -> None:
        super()._apply(skip)
        self._forwarded = False
        if self._pending:
            head = self._pending[0]
            if head.rows is not None:  # sent before a step that no forward pass came before
                head.rows.wait()
            self._send_rows(head)

    def _set_clock_lr(self, lr: float | Tensor) -> None:
        if isinstance(lr, Tensor) and lr.device != self.storage_device:
            lr = float(lr)
        super()._set_clock_lr(lr)

    def _sgd(self) -> Sgd:
        # Two ranks' rows of the same place get other random bits.
        return super()._sgd()._replace(seed=self.seed + self.held.start)

    # --- reading -------------------------------------------------------------------------------------------

    def _read_ids(self, index: Tensor) -> Tensor:
        if self.placement == "aligned":
            self._check_held(index.cpu())
            return self._read((index - self.held.start).to(self.storage_device)).to(self.device)
        request = self._exchange.request(index)
        self._exchange.send_rows(request, self._to_device(self._read(request.wanted.to(self.storage_device))))
        assert request.rows is not None
        return request.rows.wait().index_select(0, request.place)

    @torch.no_grad()
    def dense(self, gather: bool = True) -> Tensor:
        """All of α as a dense optimizer would have it now, (N, K), AC2 (N,), on every rank: all ranks call it.

        gather=False: this rank's own rows, those of `held`, and nothing is sent. A new tensor, where the table is
        stored.
        """
        own = self._read_held()
        return gather_on_all(own, self.num_samples, self.process_group, self.device, "α") if gather else own

    @torch.no_grad()
    def gather(self, dst: int = 0) -> Tensor | None:
        """All of α as `dense` has it, in the host memory of rank `dst` of the group, and None on the other ranks: all
        ranks call it."""
        return gather_on_one(self._read_held(), self.num_samples, self.process_group, self.device, "α", dst)

    # --- checkpoints ---------------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """As AlphaTable's. With "exchange" all ranks call it."""
        super().load_state_dict(state)
        self._pending.clear()
        self._forwarded = False
