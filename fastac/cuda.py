"""The backend `cuda`: the operations of fastac/contract.py in CUDA C++ (csrc/cuda), one pass over a batch's rows.

float64 logits, float64 tables and tensors that are not on a CUDA device are not its business: for them it calls
fastac/eager.py. Nothing waits for the device; learning rate, steps and skips are read there, so a captured CUDA graph
follows them. Results are the same bits on every repeat.

Importing this module raises ImportError where the library was not built, or torch has no CUDA.
FASTAC_CUDA_LIBRARY names another build of it (read at import): the tests run the kernels on a CPU that way.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from fastac import eager
from fastac.clock import StepClock
from fastac.contract import Accumulators, Forward, Objective, Rows, Sgd
from fastac.validation import check_range

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

_LIBRARY = Path(os.environ.get("FASTAC_CUDA_LIBRARY") or Path(__file__).with_name("_cuda.so"))
_DEVICE = "cpu" if _LIBRARY.stem == "_cuda_host" else "cuda"
if _DEVICE == "cuda" and torch.version.cuda is None:
    raise ImportError(f"this torch ({torch.__version__}) has no CUDA")
if not _LIBRARY.is_file():
    raise ImportError(
        "the CUDA backend is not built. In the source tree, with cmake, a C++ compiler and the CUDA toolkit: "
        "FASTAC_CUDA=1 pip install --no-build-isolation -e ."
    )
torch.ops.load_library(str(_LIBRARY))
_ops = getattr(torch.ops, f"fastac{_LIBRARY.stem}")

# The enums of kernels.h.
_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
_TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def _takes(tensor: Tensor, rows: Rows | None) -> bool:
    if tensor.dtype == torch.float64 or tensor.device.type != _DEVICE:
        return False
    return rows is None or rows.alpha.dtype != torch.float64


def _state(rows: Rows) -> tuple[Tensor | None, ...]:
    clock = rows.clock
    return rows.alpha, rows.momentum, rows.last, clock.within, clock.tail, clock.steps, clock.lr


def _batch(logits: Tensor, target: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the kernels read them: rows of logits at any distance, the rest without gaps."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    return logits, target.contiguous(), None if index is None else index.contiguous()


def _options(objective: Objective, num_samples: int) -> tuple[object, ...]:
    weight, form, ignore_index, reduction, label_smoothing = objective
    if weight is not None:
        weight = weight.to(torch.float32).contiguous()
    return weight, form == "ac2", ignore_index, _REDUCTIONS[reduction], label_smoothing, num_samples


def _debug(
    target: Tensor, index: Tensor | None, classes: int, samples: int, ignore_index: int, flags: Tensor
) -> None:
    """FASTAC_DEBUG=1: wait for the device and raise at once, where `flags` would tell later."""
    if "FASTAC_DEBUG" in os.environ and os.environ["FASTAC_DEBUG"] == "1":  # get() costs four times as much
        check_range(target, index, classes, samples, ignore_index, flags)


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
    _debug(target, index, logits.shape[1], num_samples, objective.ignore_index, flags)
    state = (None,) * 7 if rows is None or index is None else _state(rows)
    arguments = (*_batch(logits, target, index), flags, *state, *_options(objective, num_samples))
    return Forward(*_ops.forward.default(*arguments, statistics))


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
    """See fastac.eager.forward_update. Logits and α come from memory once; two launches for a batch of up to 1024
    samples (128 for each thread that a row gets, one for 8 classes), a few more for a larger one."""
    if not _takes(logits, rows):
        return eager.forward_update(
            logits, target, index, rows, objective, flags, num_samples, accumulators, sgd, grad_output
        )
    _debug(target, index, logits.shape[1], num_samples, objective.ignore_index, flags)
    arguments = (*_batch(logits, target, index), flags, *_state(rows), *_options(objective, num_samples))
    recorded = (None,) * 4 if accumulators is None else accumulators
    return Forward(*_ops.forward_update.default(*arguments, *sgd, grad_output, *recorded))


def row_gradient(grad: Tensor, target: Tensor, form: str) -> Tensor:
    """See fastac.eager.row_gradient. AC2's in one launch."""
    if form == "ac1":
        return grad
    if not _takes(grad, None):
        return eager.row_gradient(grad, target, form)
    result: Tensor = _ops.row_gradient.default(grad.contiguous(), target.contiguous())
    return result


def backward(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """See fastac.eager.backward."""
    if not _takes(grad, None) or dtype not in _TYPES:
        return eager.backward(grad, scale, dtype)
    result: Tensor = _ops.backward.default(grad.contiguous(), scale.to(torch.float32), _TYPES[dtype])
    return result


def scale_gradient(grad: Tensor, scale: Tensor) -> None:
    """See fastac.eager.scale_gradient. Nothing is touched where scale, read on the device, is 1."""
    if not _takes(grad, None) or not grad.is_contiguous():
        return eager.scale_gradient(grad, scale)
    _ops.scale_gradient.default(grad, scale.to(torch.float32))


def update_rows(
    rows: Rows, ids: Tensor, grad: Tensor, scale: Tensor | None, sgd: Sgd, skip: Tensor | None
) -> None:
    """See fastac.eager.update_rows."""
    if not _takes(grad, rows):
        return eager.update_rows(rows, ids, grad, scale, sgd, skip)
    grad = grad.to(torch.float32).contiguous()
    scale = None if scale is None else scale.to(torch.float32)
    _ops.update_rows.default(*_state(rows), ids.contiguous(), grad, scale, *sgd, skip)


def record(accumulators: Accumulators, ids: Tensor, statistics: Tensor) -> None:
    """See fastac.eager.record."""
    if not _takes(statistics, None):
        return eager.record(accumulators, ids, statistics)
    _ops.record.default(*accumulators, ids.contiguous(), statistics.contiguous())


def read_rows(rows: Rows, ids: Tensor) -> Tensor:
    """See fastac.eager.read_rows."""
    if not _takes(rows.alpha, rows):
        return eager.read_rows(rows, ids)
    result: Tensor = _ops.read_rows.default(*_state(rows), ids.contiguous())
    return result


def sweep(rows: Rows, ids: Tensor, seed: int) -> None:
    """See fastac.eager.sweep. ids must be distinct."""
    if not _takes(rows.alpha, rows):
        return eager.sweep(rows, ids, seed)
    _ops.sweep.default(*_state(rows), ids.contiguous(), rows.clock.sweep_every, seed)


def advance(clock: StepClock, sgd: Sgd, skip: Tensor | None) -> None:
    """See fastac.eager.advance. One launch."""
    if clock.steps.device.type != _DEVICE:
        return eager.advance(clock, sgd, skip)
    momentum, weight_decay, nesterov, folded, _ = sgd
    state = clock.within, clock.tail, clock.steps, clock.lr
    _ops.advance.default(*state, momentum, weight_decay, nesterov, folded, skip)
