"""The backend `cpu`: the operations of fastac/contract.py in C++ (csrc/cpu), one pass over a batch's rows.

It is compiled for the baseline, AVX2 and AVX-512 and takes the best that the processor has;
FASTAC_CPU_CAPABILITY=default|avx2|avx512 names another one (read at the first call). float64 logits, float64 tables
and tensors on another device are not its business: for them it calls fastac/eager.py.

Results don't depend on the number of threads. Importing this module raises ImportError where the library was not
built.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastac import eager
from fastac.clock import StepClock
from fastac.contract import Accumulators, Forward, Objective, Rows, Sgd

__all__ = [
    "advance",
    "backward",
    "capabilities",
    "capability",
    "forward",
    "forward_update",
    "read_rows",
    "record",
    "row_gradient",
    "scale_gradient",
    "sweep",
    "update_rows",
]

_LIBRARY = Path(__file__).with_name("_cpu.so")
if not _LIBRARY.is_file():
    raise ImportError(
        "the native CPU backend is not built. In the source tree, with cmake and a C++ compiler: "
        "FASTAC_NATIVE=1 pip install --no-build-isolation -e ."
    )
torch.ops.load_library(str(_LIBRARY))
_ops = torch.ops.fastac_cpu
# The overloads: looking one up costs as much as a small call.
_forward, _forward_update = _ops.forward.default, _ops.forward_update.default
_backward, _scale_gradient = _ops.backward.default, _ops.scale_gradient.default
_update_rows, _read_rows, _sweep = _ops.update_rows.default, _ops.read_rows.default, _ops.sweep.default
_record, _advance, _row_gradient = _ops.record.default, _ops.advance.default, _ops.row_gradient.default


def capability() -> str:
    """The kernels in use: "default", "avx2" or "avx512"."""
    return str(_ops.capability())


def capabilities() -> list[str]:
    """Those that are built and that this processor can run, best first."""
    return list(_ops.capabilities())


def _takes(tensor: Tensor, rows: Rows | None) -> bool:
    if tensor.dtype == torch.float64 or not tensor.is_cpu:
        return False
    return rows is None or rows.alpha.dtype != torch.float64


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
    if not _takes(logits, rows):
        return eager.forward(logits, target, index, rows, objective, flags, num_samples, statistics)
    weight, form, ignore_index, reduction, label_smoothing = objective
    if rows is None or index is None:
        state: tuple[Tensor | None, ...] = (None,) * 6
    else:
        alpha, momentum, last, clock = rows
        state = alpha, momentum, last, clock.within, clock.tail, clock.steps
    return Forward(
        *_forward(
            logits,
            target,
            index,
            *state,
            weight,
            form == "ac2",
            ignore_index,
            reduction,
            label_smoothing,
            num_samples,
            statistics,
        )
    )


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
    """See fastac.eager.forward_update. Rows whose ids come once are written in the pass that reads them."""
    if not _takes(logits, rows):
        return eager.forward_update(
            logits, target, index, rows, objective, flags, num_samples, accumulators, sgd, grad_output
        )
    alpha, momentum, last, clock = rows
    weight, form, ignore_index, reduction, label_smoothing = objective
    return Forward(
        *_forward_update(
            logits,
            target,
            index,
            alpha,
            momentum,
            last,
            clock.within,
            clock.tail,
            clock.steps,
            weight,
            form == "ac2",
            ignore_index,
            reduction,
            label_smoothing,
            num_samples,
            clock.lr,
            *sgd,
            grad_output,
            *(accumulators or ()),
        )
    )


def row_gradient(grad: Tensor, target: Tensor, form: str) -> Tensor:
    """See fastac.eager.row_gradient."""
    if form == "ac1":
        return grad
    if not _takes(grad, None):
        return eager.row_gradient(grad, target, form)
    result: Tensor = _row_gradient(grad, target)
    return result


def backward(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """See fastac.eager.backward."""
    if not _takes(grad, None):
        return eager.backward(grad, scale, dtype)
    result: Tensor = _backward(grad, scale, dtype)
    return result


def scale_gradient(grad: Tensor, scale: Tensor) -> None:
    """See fastac.eager.scale_gradient. Nothing is touched where scale is 1."""
    if not _takes(grad, None):
        return eager.scale_gradient(grad, scale)
    _scale_gradient(grad, scale)


def update_rows(
    rows: Rows, ids: Tensor, grad: Tensor, scale: Tensor | None, sgd: Sgd, skip: Tensor | None
) -> None:
    """See fastac.eager.update_rows."""
    if not _takes(grad, rows):
        return eager.update_rows(rows, ids, grad, scale, sgd, skip)
    alpha, momentum, last, clock = rows
    _update_rows(
        alpha,
        momentum,
        last,
        clock.within,
        clock.tail,
        clock.steps,
        ids,
        grad,
        scale,
        clock.lr,
        *sgd,
        skip,
    )


def record(accumulators: Accumulators, ids: Tensor, statistics: Tensor) -> None:
    """See fastac.eager.record."""
    if not _takes(statistics, None):
        return eager.record(accumulators, ids, statistics)
    _record(*accumulators, ids, statistics)


def read_rows(rows: Rows, ids: Tensor) -> Tensor:
    """See fastac.eager.read_rows."""
    if not _takes(rows.alpha, rows):
        return eager.read_rows(rows, ids)
    alpha, momentum, last, clock = rows
    result: Tensor = _read_rows(alpha, momentum, last, clock.within, clock.tail, clock.steps, ids)
    return result


def sweep(rows: Rows, ids: Tensor, seed: int) -> None:
    """See fastac.eager.sweep."""
    if not _takes(rows.alpha, rows):
        return eager.sweep(rows, ids, seed)
    alpha, momentum, last, clock = rows
    _sweep(alpha, momentum, last, clock.within, clock.tail, clock.steps, ids, clock.sweep_every, seed)


def advance(clock: StepClock, sgd: Sgd, skip: Tensor | None) -> None:
    """See fastac.eager.advance. Products that no row needs yet are left as they are."""
    if not clock.steps.is_cpu:
        return eager.advance(clock, sgd, skip)
    momentum, weight_decay, nesterov, folded, _ = sgd
    _advance(clock.within, clock.tail, clock.steps, clock.lr, momentum, weight_decay, nesterov, folded, skip)
