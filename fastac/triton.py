"""The backend `triton`: the operations of fastac/contract.py as Triton kernels (kernels/), for CUDA devices.

What is computed is the kernels' business; here are tensors, sizes and launches. float64 logits, float64 tables and
tensors on another device go to fastac/eager.py. With TRITON_INTERPRET=1, set before this module is imported, the
kernels run on CPU tensors, slowly, in Triton's interpreter.

Importing this module raises ImportError where triton is not installed.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastac import eager
from fastac.clock import StepClock
from fastac.contract import STATISTICS, Accumulators, Forward, Objective, Rows, Sgd
from fastac.eager import row_gradient
from fastac.extras import require
from fastac.rng import seed_state
from fastac.validation import check_range, debugging

_triton = require("triton", "triton")

from fastac.kernels import clock, dynamics, forward_long, gradient, repeats, update  # noqa: E402
from fastac.kernels import forward as losses  # noqa: E402
from fastac.kernels import rows as state  # noqa: E402

__all__ = [
    "advance",
    "backward",
    "forward",
    "forward_update",
    "read_rows",
    "record",
    "row_gradient",
    "scale_gradient",
    "sweep",
    "update_rows",
]

DEVICE_TYPE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SCANNED = 1024  # positions that every program looks through by itself for repeated ids and for Σ w_y
RESIDENT = 16384  # columns up to which a row is held in registers, half as many for each thing kept beside it
GROUPED = 4096  # columns up to which a group of repeated ids fits beside it
LONG = 2048  # columns at a time, beyond RESIDENT
_TILE = 1024  # elements a program, where rows are short
_RECORDED = 32  # rows a program that only records
_SPAN = 4096  # rows a partial sum of Σ w_y
_FLAT = 4096  # elements a program of the element-wise kernels


def _takes(tensor: Tensor, rows: Rows | None) -> bool:
    if tensor.dtype == torch.float64 or tensor.device.type != DEVICE_TYPE:
        return False
    return rows is None or rows.alpha.dtype != torch.float64


class Shape(NamedTuple):
    """Of a kernel's tiles."""

    columns: int
    rows: int
    warps: int

    @property
    def launch(self) -> dict[str, int]:
        """Warps, and all registers that they can have: left alone, ptxas now and then spills for more programs."""
        return {"num_warps": self.warps, "maxnreg": min(255, 65536 // (32 * self.warps))}


@functools.cache
def tile(batch: int, classes: int, limit: int) -> Shape:
    """Rows and columns that one program holds: whole rows up to `limit` columns, several where they are short, but
    no fewer programs than there are processors."""
    columns = min(_power_of_two(classes), limit)
    rows = max(1, min(_TILE // columns, _power_of_two(batch // 256), 64))
    warps = max(
        1, min(rows * columns // 256, 16)
    )  # 8 elements a thread, more where a program can't have more warps
    return Shape(columns, rows, warps)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _parts(n: int, size: int) -> int:
    return -(-n // size)


def _scan(rows: int) -> int:
    """Ids that a program of so many rows compares itself with at once."""
    return max(8, min(256, 512 // rows))


def _step(sgd: Sgd, rows: Rows) -> str:
    if sgd.folded or sgd.momentum == 0 or rows.momentum is None:
        return "plain"
    return "nesterov" if sgd.nesterov else "heavy ball"


def _clock(rows: Rows) -> dict[str, int]:
    return {"WINDOW": rows.clock.window, "BLOCK": rows.clock.block}


def _rows(rows: Rows) -> state.Rows:
    steps = rows.clock
    return state.Rows(rows.alpha, rows.momentum, rows.last, steps.within, steps.tail, steps.steps)


def _sgd(sgd: Sgd, rows: Rows) -> state.Sgd:
    divisor = 1.0 - sgd.momentum if sgd.folded else 1.0
    return state.Sgd(rows.clock.lr, float(sgd.momentum), float(sgd.weight_decay), divisor)


def _columns(rows: Rows) -> int:
    return rows.alpha.shape[1] if rows.alpha.ndim == 2 else 1


def _state_columns(rows: Rows | None) -> int:
    """Numbers that a row's state has."""
    return 0 if rows is None else _columns(rows) * (1 if rows.momentum is None else 2)


def _contested(index: Tensor, num_rows: int) -> Tensor | None:
    """(B,) int8, 1 for positions whose id is repeated; None where the programs are to look for themselves."""
    n = len(index)
    if n <= SCANNED:
        return None
    slot = torch.empty(num_rows, dtype=torch.int32, device=index.device)
    contested = torch.empty(n, dtype=torch.int8, device=index.device)
    for kernel in (repeats.mark, repeats.contest):
        kernel[(_parts(n, 1024),)](index, slot, contested, n, num_rows, CHUNK=1024)
    return contested


# --- the loss ---


class _Options(NamedTuple):
    """What all kernels of one forward pass are told: the arguments before and after the rows, and the constants."""

    batch: losses.Batch
    out: losses.Out
    rows: state.Rows | None
    sgd: state.Sgd | None
    recorded: dynamics.Accumulators | None
    sizes: tuple[int, int, int]
    scalars: tuple[Any, ...]
    constants: dict[str, Any]


def forward(
    logits: Tensor,
    target: Tensor,
    index: Tensor | None,
    rows: Rows | None,
    objective: Objective,
    flags: Tensor,
    num_samples: int,
    statistics: bool,
) -> Forward:
    """See fastac.eager.forward."""
    if not _takes(logits, rows) or not len(logits):
        return eager.forward(logits, target, index, rows, objective, flags, num_samples, statistics)
    rows = None if index is None else rows
    return _loss(logits, target, index, rows, objective, flags, num_samples, statistics, None, None, 1.0)


def forward_update(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    rows: Rows,
    objective: Objective,
    flags: Tensor,
    num_samples: int,
    accumulators: Accumulators | None,
    sgd: Sgd,
    grad_output: float,
) -> Forward:
    """See fastac.eager.forward_update. Everything is one pass, repeated ids too (kernels/repeats.py)."""
    if not _takes(logits, rows) or not len(logits):
        return eager.forward_update(
            logits, target, index, rows, objective, flags, num_samples, accumulators, sgd, grad_output
        )
    return _loss(
        logits, target, index, rows, objective, flags, num_samples, False, accumulators, sgd, grad_output
    )


def _loss(
    logits: Tensor,
    target: Tensor,
    index: Tensor | None,
    rows: Rows | None,
    objective: Objective,
    flags: Tensor,
    num_samples: int,
    statistics: bool,
    accumulators: Accumulators | None,
    sgd: Sgd | None,
    grad_output: float,
) -> Forward:
    if debugging():
        check_range(target, index, logits.shape[1], num_samples, objective.ignore_index, flags)
    batch, classes = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    counted = statistics or accumulators is not None
    smooth = objective.label_smoothing != 0
    beside = counted + smooth + (_state_columns(rows) > classes)
    resident = min(RESIDENT, max(GROUPED, RESIDENT >> beside))
    shape = tile(batch, classes, resident if classes <= resident else LONG)
    if counted and shape.rows > 1:  # a row's record takes registers too
        shape = shape._replace(rows=shape.rows // 2)
    per_row, mean = objective.reduction == "none", objective.reduction == "mean"
    target, index = target.contiguous(), None if index is None else index.contiguous()
    new = functools.partial(torch.empty, device=logits.device)
    out = Forward(
        loss=new(batch if per_row else (), dtype=torch.float32),
        grad=new(logits.shape, dtype=torch.float32 if sgd is None else logits.dtype),
        ids=new(0 if index is None else batch, dtype=torch.int64),
        statistics=new((batch if statistics else 0, len(STATISTICS)), dtype=torch.float32),
    )
    long = classes > resident
    apart = sgd is not None and GROUPED < classes <= resident  # repeated ids in a launch of their own
    tiles = 0 if long else _parts(batch, shape.rows)
    parts = tiles + (batch if long or apart else 0)
    sums = _parts(batch, _SPAN) if mean and batch > SCANNED else 0
    options = _Options(
        losses.Batch(
            logits,
            target,
            index,
            None if objective.weight is None else objective.weight.contiguous(),
            None if sgd is None or index is None else _contested(index, num_samples),
            new(sums, dtype=torch.float32) if sums else None,
        ),
        losses.Out(
            out.loss if per_row else new(parts, dtype=torch.float32),
            out.grad,
            None if index is None else out.ids,
            out.statistics if statistics else None,
            new((), dtype=torch.float32) if mean else None,
            flags,
            new((batch, 4), dtype=torch.float32) if long or apart else None,
        ),
        None if rows is None else _rows(rows),
        None if sgd is None or rows is None else _sgd(sgd, rows),
        None if accumulators is None else dynamics.Accumulators(*accumulators),
        (batch, num_samples, sums),
        (
            objective.ignore_index,
            logits.stride(0),
            float(objective.label_smoothing),
            float(grad_output),
            0 if sgd is None else seed_state(sgd.seed),
        ),
        {
            "K": classes,
            "FORM": "none" if rows is None else objective.form,
            "UPDATE": sgd is not None,
            "STEP": "plain" if sgd is None or rows is None else _step(sgd, rows),
            "FOLDED": sgd is not None and sgd.folded,
            "MEAN": mean,
            "SMOOTH": smooth,
            "PER_ROW": per_row,
            "STATISTICS": counted,
            "STRIDED": logits.stride(0) != classes,
            "WINDOW": 1 if rows is None else rows.clock.window,
            "BLOCK": 1 if rows is None else rows.clock.block,
        },
    )
    _launch(options, shape, tiles, long, apart)
    if not per_row:
        _reduce(options.out.loss, options.out.normaliser, out.loss)
    return out


def _reduce(parts: Tensor, normaliser: Tensor | None, loss: Tensor) -> None:
    """One program; as many loads at once as its threads can hold, since each turn waits for memory."""
    chunk = min(max(1024, _power_of_two(len(parts))), 16384)
    losses.reduce_loss[(1,)](
        parts, normaliser, loss, len(parts), CHUNK=chunk, num_warps=max(4, min(16, chunk // 512))
    )


def _launch(options: _Options, shape: Shape, tiles: int, long: bool, apart: bool) -> None:
    batch, out, *others, sizes, scalars, constants = options
    n, num_rows, num_sums = sizes
    if num_sums:
        losses.kept_weight[(num_sums,)](
            batch, n, num_rows, scalars[0], K=constants["K"], SPAN=_SPAN, CHUNK=1024
        )
    if not long:
        losses.forward_tile[(tiles,)](
            *(batch, out, *others),
            *sizes,
            *scalars,
            C=shape.columns,
            R=shape.rows,
            APART=apart,
            CHUNK=_scan(shape.rows),
            **constants,
            **shape.launch,
        )
    if long or apart:
        forward_long.forward_long[(n,)](
            *(batch, out, *others),
            *sizes,
            tiles,
            *scalars,
            C=min(LONG, shape.columns),
            REPEATED=apart,
            CHUNK=1024,
            **constants,
            **Shape(1, 1, 8).launch,
        )


def backward(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """See fastac.eager.backward."""
    if not _takes(grad, None) or dtype == torch.float64:
        return eager.backward(grad, scale, dtype)
    out = torch.empty(grad.shape, dtype=dtype, device=grad.device)
    _scaled(grad.contiguous(), scale, out)
    return out


def scale_gradient(grad: Tensor, scale: Tensor) -> None:
    """See fastac.eager.scale_gradient."""
    if not _takes(grad, None):
        return eager.scale_gradient(grad, scale)
    if scale.ndim:
        return _scaled(grad, scale, grad)
    if grad.numel():
        kernel = gradient.scale_gradient[(_parts(grad.numel(), _FLAT),)]
        kernel(grad, scale, grad.numel(), CHUNK=_FLAT, num_warps=8)


def _scaled(grad: Tensor, scale: Tensor, out: Tensor) -> None:
    if grad.numel():
        gradient.backward[(_parts(grad.numel(), _FLAT),)](
            grad,
            scale.contiguous(),
            out,
            grad.numel(),
            K=grad.shape[1],
            PER_ROW=scale.ndim == 1,
            CHUNK=_FLAT,
            num_warps=8,
        )


# --- rows ---


def update_rows(
    rows: Rows, ids: Tensor, grad: Tensor, scale: Tensor | None, sgd: Sgd, skip: Tensor | None
) -> None:
    """See fastac.eager.update_rows."""
    if not _takes(grad, rows):
        return eager.update_rows(rows, ids, grad, scale, sgd, skip)
    columns = _columns(rows)
    shape = tile(len(ids), columns, GROUPED)
    ids = ids.contiguous()
    update.update_rows[(_parts(len(ids), shape.rows),)](
        _rows(rows),
        _sgd(sgd, rows),
        ids,
        grad.contiguous(),
        None if scale is None else scale.contiguous(),
        skip,
        _contested(ids, len(rows.last)),
        len(ids),
        seed_state(sgd.seed),
        K=columns,
        C=shape.columns,
        R=shape.rows,
        GAUGE=rows.alpha.ndim == 2,
        PER_ROW=scale is not None and scale.ndim == 1,
        STEP=_step(sgd, rows),
        FOLDED=sgd.folded,
        CHUNK=_scan(shape.rows),
        **_clock(rows),
        **shape.launch,
    )


def record(accumulators: Accumulators, ids: Tensor, statistics: Tensor) -> None:
    """See fastac.eager.record."""
    if not _takes(statistics, None):
        return eager.record(accumulators, ids, statistics)
    ids = ids.contiguous()
    dynamics.record[(_parts(len(ids), _RECORDED),)](
        dynamics.Accumulators(*accumulators),
        ids,
        statistics.contiguous(),
        _contested(ids, len(accumulators.visits)),
        len(ids),
        R=_RECORDED,
        CHUNK=_scan(_RECORDED),
        **Shape(1, _RECORDED, 1).launch,
    )


def read_rows(rows: Rows, ids: Tensor) -> Tensor:
    """See fastac.eager.read_rows."""
    if not _takes(rows.alpha, rows) or not len(ids):
        return eager.read_rows(rows, ids)
    columns = _columns(rows)
    shape = tile(len(ids), columns, GROUPED)
    out = torch.empty((len(ids), *rows.alpha.shape[1:]), dtype=torch.float32, device=ids.device)
    update.read_rows[(_parts(len(ids), shape.rows),)](
        _rows(rows),
        ids.contiguous(),
        out,
        len(ids),
        K=columns,
        C=shape.columns,
        R=shape.rows,
        **_clock(rows),
        **shape.launch,
    )
    return out


def sweep(rows: Rows, ids: Tensor, seed: int) -> None:
    """See fastac.eager.sweep."""
    if not _takes(rows.alpha, rows):
        return eager.sweep(rows, ids, seed)
    columns = _columns(rows)
    shape = tile(len(ids), columns, GROUPED)
    update.sweep[(_parts(len(ids), shape.rows),)](
        _rows(rows),
        ids.contiguous(),
        len(ids),
        rows.clock.sweep_every,
        seed_state(seed),
        K=columns,
        C=shape.columns,
        R=shape.rows,
        **_clock(rows),
        **shape.launch,
    )


def advance(clock_: StepClock, sgd: Sgd, skip: Tensor | None) -> None:
    """See fastac.eager.advance."""
    if clock_.lr.device.type != DEVICE_TYPE:
        return eager.advance(clock_, sgd, skip)
    plain = sgd.folded or sgd.momentum == 0
    clock.advance[(1,)](
        clock_.lr,
        clock_.steps,
        clock_.within,
        clock_.tail,
        skip,
        float(sgd.momentum),
        float(sgd.weight_decay),
        STEP="plain" if plain else "nesterov" if sgd.nesterov else "heavy ball",
        FOLDED=sgd.folded,
        WINDOW=clock_.window,
        BLOCK=clock_.block,
        num_warps=4,
    )
