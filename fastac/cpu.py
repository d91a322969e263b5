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
from fastac.contract import Accumulators, Forward, Objective, Rows, Sgd
from fastac.eager import advance, backward, record, scale_gradient

__all__ = [
    "advance",
    "backward",
    "capabilities",
    "capability",
    "forward",
    "forward_update",
    "read_rows",
    "record",
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


def capability() -> str:
    """The kernels in use: "default", "avx2" or "avx512"."""
    return str(_ops.capability())


def capabilities() -> list[str]:
    """Those that are built and that this processor can run, best first."""
    return list(_ops.capabilities())


def _takes(tensor: Tensor, rows: Rows | None) -> bool:
    if tensor.dtype == torch.float64 or tensor.device.type != "cpu":
        return False
    return rows is None or rows.alpha.dtype != torch.float64


def _state(rows: Rows) -> tuple[Tensor | None, ...]:
    clock = rows.clock
    return rows.alpha, rows.momentum, rows.last, clock.within, clock.tail, clock.steps


def _options(objective: Objective, num_samples: int, statistics: bool) -> tuple[object, ...]:
    weight, form, ignore_index, reduction, label_smoothing = objective
    return weight, form == "ac2", ignore_index, reduction, label_smoothing, num_samples, statistics


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
    state = (None,) * 6 if rows is None or index is None else _state(rows)
    return Forward(
        *_ops.forward.default(logits, target, index, *state, *_options(objective, num_samples, statistics))
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
    result = Forward(
        *_ops.forward_update.default(
            logits,
            target,
            index,
            *_state(rows),
            *_options(objective, num_samples, accumulators is not None),
            rows.clock.lr,
            *sgd,
            grad_output,
        )
    )
    if accumulators is not None and len(result.ids):
        record(accumulators, result.ids, result.statistics)
    return result._replace(grad=result.grad.to(logits.dtype), statistics=result.statistics[:0])


def update_rows(
    rows: Rows, ids: Tensor, grad: Tensor, scale: Tensor | None, sgd: Sgd, skip: Tensor | None
) -> None:
    """See fastac.eager.update_rows."""
    if not _takes(grad, rows):
        return eager.update_rows(rows, ids, grad, scale, sgd, skip)
    if scale is not None:
        grad = grad * (scale[:, None] if scale.ndim and grad.ndim == 2 else scale)
    _ops.update_rows.default(*_state(rows), ids, grad, rows.clock.lr, *sgd, skip)


def read_rows(rows: Rows, ids: Tensor) -> Tensor:
    """See fastac.eager.read_rows."""
    if not _takes(rows.alpha, rows):
        return eager.read_rows(rows, ids)
    result: Tensor = _ops.read_rows.default(*_state(rows), ids)
    return result


def sweep(rows: Rows, ids: Tensor, seed: int) -> None:
    """See fastac.eager.sweep."""
    if not _takes(rows.alpha, rows):
        return eager.sweep(rows, ids, seed)
    _ops.sweep.default(*_state(rows), ids, rows.clock.sweep_every, seed)
