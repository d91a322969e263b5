"""What α costs a rank in bytes: the memory it takes, and what a training step moves. Integers, exact for any N.

The sizes of what is kept are those that the tables, the step clock and the training dynamics allocate, and what ranks
send is what they hand to torch.distributed: tests compare both with real ones. Of the memories' traffic, only what α
adds to plain cross entropy is counted: rows for each time that a one-pass kernel needs them, and every buffer between
as written once and read once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastac.contract import STATISTICS, SUMS
from fastac.links import Group, Traffic, all_gather, all_reduce, all_to_all, ceil_div, reduce_scatter

__all__ = [
    "DTYPES",
    "Cost",
    "Shape",
    "clock_bytes",
    "dense_cost",
    "dynamics_bytes",
    "dynamics_memory",
    "exchange_sent",
    "gather_sent",
    "table_cost",
]

DTYPES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""

_ID, _COUNT, _LAST, _MATRIX, _SCALAR = 8, 8, 4, 4 * 8, 4


@dataclass(frozen=True)
class Shape:
    """`rows` rows of α. form: "ac1" or "ac2". history: "exact", "folded", or "none" for SGD without momentum.
    window: of the step clock."""

    rows: int
    num_classes: int
    form: str
    history: str
    dtype: str
    window: int = 1 << 18

    @property
    def numbers(self) -> int:
        """Numbers a row."""
        return self.num_classes if self.form == "ac1" else 1

    @property
    def gradient(self) -> int:
        """Bytes of a row's gradient, float32."""
        return self.numbers * 4

    def memory(self) -> dict[str, int]:
        """Bytes of what AlphaTable keeps."""
        alpha = self.rows * self.numbers * DTYPES[self.dtype]
        return {
            "alpha": alpha,
            "momentum": alpha if self.history == "exact" else 0,
            "last": self.rows * _LAST,
            "clock": clock_bytes(self.window),
            "flags": 2 * 8 + _SCALAR,  # targets and ids outside their range; the anchor
        }

    def read(self, count: int) -> int:
        """Bytes that say what `count` rows are now."""
        copies = 2 if self.history == "exact" else 1
        return count * (copies * self.numbers * DTYPES[self.dtype] + _LAST)

    def updated(self, count: int) -> int:
        """Bytes read and written to step `count` different rows."""
        return 2 * self.read(count)

    def clock_step(self, steps_per_epoch: int) -> int:
        """Bytes that the clock's advance reads and writes, and a step's share of the sweep: it looks at each row's
        `last`, and rewrites the rows that no batch held since the sweep before."""
        window, block = _clock_shape(self.window)
        every = window // 4
        swept = self.updated(self.rows) if steps_per_epoch >= every else self.rows * _LAST
        return 2 * _MATRIX * (block + window // block) + ceil_div(swept, every)


def _clock_shape(window: int) -> tuple[int, int]:
    """Steps in StepClock's window and in a block of it."""
    exponent = (window - 1).bit_length()
    return 1 << exponent, 1 << ((exponent + 1) // 2)


def clock_bytes(window: int) -> int:
    """StepClock: 2×2 float64 matrices for each step and block of the window and an identity; a block's lanes; steps
    and learning rate."""
    window, block = _clock_shape(window)
    return _MATRIX * (window + window // block + 1) + 8 * block + 2 * 8


def dynamics_bytes(num_samples: int) -> int:
    """TrainingDynamics: visits and forgetting int64, the sums float64, was_correct bool; the anchor."""
    return num_samples * (2 * 8 + 8 * len(SUMS) + 1) + _SCALAR


def dynamics_memory(num_samples: int, ranks: int, placement: str) -> dict[str, int]:
    """ShardedTrainingDynamics, of the rank with the most samples. placement "exchange": until `sync`, at the latest at
    the epoch's end, a rank keeps what it saw: an id and float32 statistics a visit, of as many visits as it owns
    samples."""
    rows = ceil_div(num_samples, ranks)
    kept = {"dynamics": dynamics_bytes(rows) + 1}  # whether a foreign id came
    if placement == "exchange" and ranks > 1:
        kept["visits"] = rows * (_ID + 4 * len(STATISTICS))
    return kept


@dataclass(frozen=True)
class Cost:
    """Bytes of a rank, by name. memory: on the device. host_memory: pinned, on its host. traffic: of a step, by what
    it can hide behind: the network's "forward", its "backward", or, in the optimizer's "step", nothing."""

    memory: dict[str, int]
    traffic: dict[str, Traffic]
    host_memory: dict[str, int] = field(default_factory=dict)

    def total(self) -> Traffic:
        """All of a step."""
        whole = Traffic()
        for part in self.traffic.values():
            whole = whole.plus(part)
        return whole


def gather_sent(shape: Shape, ranks: int, longest: int) -> int:
    """Bytes that each rank sends at a step of an AlphaTable with copies on all ranks: how many rows it has, their ids
    and their gradients, to each other rank; all pad to the `longest` rank's rows."""
    return (ranks - 1) * (_COUNT + longest * (_ID + shape.gradient))


def exchange_sent(shape: Shape, ranks: int, wire: str, asked: int, served: int) -> dict[str, int]:
    """Bytes that a rank of a ShardedAlphaTable with placement "exchange" sends for a batch, by what they are.

    asked: rows of its batch that other ranks own. served: rows that it owns and other ranks asked it for. wire: the
    dtype in which rows and gradients travel.
    """
    row = shape.numbers * DTYPES[wire]
    return {
        "counts": (ranks - 1) * _COUNT,
        "ids": asked * _ID,
        "rows": served * row,
        "gradients": asked * row,
    }


def table_cost(
    shape: Shape,
    group: Group,
    batch: int,
    steps_per_epoch: int,
    placement: str = "replicated",
    storage: str = "device",
    wire: str = "float32",
) -> Cost:
    """An α table whose ranks hold shape.rows rows each and train on `batch` rows each.

    placement: "replicated" (AlphaTable, copies on all ranks), or a ShardedAlphaTable's: "aligned" (each rank trains on
    its own rows), "exchange" (any rank may draw any row; all owners are taken to be asked alike). storage: "device" or
    "host".
    """
    kept, on_host = shape.memory(), {}
    if placement != "replicated":
        kept["fetched clock"] = clock_bytes(16)  # of rows that come as they are now
    if storage == "host":
        on_host = {name: kept.pop(name) for name in ("alpha", "momentum", "last", "clock")}
    buffers = {"staged": batch * (_ID + shape.gradient) + _SCALAR}
    sending: dict[str, Traffic] = {}
    if placement == "replicated":
        buffers |= _gather_buffers(shape, group, batch)
        sending = _gather_sending(shape, group, batch)
    elif placement == "exchange" and group.ranks > 1:
        buffers |= _exchange_buffers(shape, group, batch, wire)
        sending = _exchange_sending(shape, group, batch, wire)
    else:
        buffers["merged"] = batch * (_ID + shape.gradient)
    written = batch * group.ranks if placement == "replicated" else batch
    rows = shape.read(batch) + shape.updated(written) + shape.clock_step(steps_per_epoch)
    own = Traffic(device=2 * sum(buffers.values()))
    if storage == "host":
        own = own.plus(_host_traffic(shape, group, batch, wire, rows))
    else:
        own = own.plus(Traffic(device=rows))
    step = own.plus(sending.get("step", Traffic()))
    traffic = {name: sending.get(name, Traffic()) for name in ("forward", "backward")} | {"step": step}
    return Cost({**kept, **buffers}, traffic, on_host)


def _gather_buffers(shape: Shape, group: Group, batch: int) -> dict[str, int]:
    """Rows scaled and put together; padded to the longest rank's; all ranks'; how many each has."""
    if group.ranks == 1:
        return {}
    part = batch * (_ID + shape.gradient)
    counts = _COUNT * (group.ranks + 1)
    return {"gathered": batch * shape.gradient + 2 * part + group.ranks * part + counts}


def _gather_sending(shape: Shape, group: Group, batch: int) -> dict[str, Traffic]:
    step = Traffic()
    for part in (_COUNT, batch * _ID, batch * shape.gradient):
        step = step.plus(all_gather(group, part))
    return {"step": step}


def _exchange_buffers(shape: Shape, group: Group, batch: int, wire: str) -> dict[str, int]:
    """Ids, their order, their places and what is asked of this rank; rows and gradients as they are sent and as they
    come, and both in float32."""
    travelling = batch * shape.numbers * DTYPES[wire]
    return {
        "requests": 4 * batch * _ID + 2 * group.ranks * _COUNT,
        "exchanged": 4 * travelling + 2 * batch * shape.numbers * 4 + batch * _LAST,
    }


def _exchange_sending(shape: Shape, group: Group, batch: int, wire: str) -> dict[str, Traffic]:
    """Counts and ids must be there before the rows can be sent; the host sends four int64 a row, and the counts."""
    asked = ceil_div(batch * (group.ranks - 1), group.ranks)
    sent = exchange_sent(shape, group.ranks, wire, asked, asked)
    host = Traffic(host=4 * batch * _ID + 2 * group.ranks * _COUNT)
    return {
        "forward": all_to_all(group, sent["rows"]),
        "backward": all_to_all(group, sent["gradients"]),
        "step": host.plus(all_to_all(group, sent["counts"])).plus(all_to_all(group, sent["ids"])),
    }


def _host_traffic(shape: Shape, group: Group, batch: int, wire: str, rows: int) -> Traffic:
    """The batch's rows to the device as they are now, in the wire's dtype; its gradients to the host in float32; ids
    with both. `rows`: read and written where they are stored, by the processor."""
    moved = batch * (shape.numbers * DTYPES[wire] + shape.gradient + 2 * _ID)
    return Traffic(host=moved, ram=group.ranks_per_node * (rows + 2 * moved))


def dense_cost(shape: Shape, group: Group, batch: int, stage: int) -> Cost:
    """α of all shape.rows samples as a float32 parameter of the network, under DDP (stage 0) or ZeRO 1, 2 or 3
    (Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models", sections 5
    and 7): no less than this; DeepSpeed adds buckets and, but for float32 networks, master copies."""
    whole = shape.rows * shape.numbers * 4
    share = ceil_div(whole, group.ranks)
    has_momentum = shape.history != "none"
    kept = {
        "alpha": share if stage == 3 else whole,
        "gradient": share if stage >= 2 else whole,
        "momentum": (share if stage >= 1 else whole) * has_momentum,
    }
    forward = Traffic(device=batch * shape.numbers * 4)
    backward = Traffic(device=whole)  # the dense gradient
    step = Traffic(device=(share if stage else whole) * (5 if has_momentum else 3))
    if group.ranks > 1:
        gathered = all_gather(group, share)
        if stage == 0:
            backward = backward.plus(all_reduce(group, whole))
        else:
            backward = backward.plus(reduce_scatter(group, whole))
        if stage in (1, 2):
            step = step.plus(gathered)
        if stage == 3:
            forward, backward = forward.plus(gathered), backward.plus(gathered)
            kept["gathered"] = whole
    return Cost(kept, {"forward": forward, "backward": backward, "step": step})
