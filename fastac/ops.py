"""The operators `torch.ops.fastac.*`: schemas, kernels, fakes and autograd. The only file that registers any.

cross_entropy          forward of update="step": reads rows, returns the loss and what backward needs
cross_entropy_update   forward of update="forward": the same, and writes the rows
cross_entropy_backward logits' gradient; hands the row gradients to the table, the statistics to the dynamics

An operator carries a table by its number (`AlphaTable.handle`) beside the tensors that it reads or writes, which
torch.compile must see. The one thing it can't see, rows staged in backward, hangs on a value that autograd needs:
the gradient of `anchor`, a scalar leaf of the table. So no graph breaks, no pass drops or repeats a backward, and
α learns even where the logits don't require grad.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastac import backends
from fastac.dynamics import TrainingDynamics
from fastac.eager import STATISTICS
from fastac.table import AlphaTable
from fastac.validation import check_range

__all__ = ["cross_entropy", "cross_entropy_update"]

_OPTIONS = (
    "Tensor? weight, str form, int ignore_index, str reduction, float label_smoothing, "
    "int num_samples, int table, int dynamics, bool learn"
)
_FIRST, _LAST = 9, 18  # where these stand among an operator's inputs
_lib = torch.library.Library("fastac", "DEF")
_lib.define(
    "cross_entropy(Tensor logits, Tensor target, Tensor? index, Tensor? anchor, Tensor? alpha, Tensor? momentum, "
    f"Tensor? last, Tensor? steps, Tensor(a!) flags, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_lib.define(
    "cross_entropy_update(Tensor logits, Tensor target, Tensor index, Tensor? anchor, Tensor(b!) alpha, "
    f"Tensor(c!)? momentum, Tensor(d!) last, Tensor? steps, Tensor(a!) flags, {_OPTIONS}, float grad_output) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_lib.define(
    "cross_entropy_backward(Tensor grad_loss, Tensor grad, Tensor target, Tensor rows, Tensor statistics, "
    "ScalarType dtype, str form, int table, int dynamics) -> (Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),  # it runs Python that a replayed graph would not
)


def _loss(
    logits: Tensor,
    target: Tensor,
    index: Tensor | None,
    table: AlphaTable | None,
    state: Any,
    flags: Tensor,
    opt: dict,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradient by the training logits, the ids to write (−1: none) and the statistics or (0, 5)."""
    ignore_index = opt["ignore_index"]
    good = check_range(target, index, logits.shape[1], opt["num_samples"], ignore_index, flags)
    target = torch.where(good, target, ignore_index)
    backend = backends.select(logits.device)
    alpha = None
    if index is not None:
        index = torch.where(good, index.to(torch.int64), 0)
        if table is not None:
            alpha, momentum, last = state
            alpha = backend.catch_up(alpha, momentum, last, index, table.clock)[0]
    loss, grad = backend.cross_entropy(
        logits,
        target,
        alpha,
        opt["weight"],
        opt["form"],
        ignore_index,
        opt["reduction"],
        opt["label_smoothing"],
    )
    statistics = logits.new_empty((0, len(STATISTICS)), dtype=torch.float32)
    if opt["dynamics"]:
        statistics = backend.statistics(logits, target, ignore_index)
    rows = target.new_empty(0)
    if index is not None:
        usable = (target != ignore_index) & logits.isfinite().all(1)
        rows = torch.where(usable, index, -1)
    return loss, grad, rows, statistics


def _options(weight: Tensor | None, *rest: Any) -> dict[str, Any]:
    names = (
        "form",
        "ignore_index",
        "reduction",
        "label_smoothing",
        "num_samples",
        "table",
        "dynamics",
        "learn",
    )
    return {"weight": weight, **dict(zip(names, rest, strict=True))}


def _forward(
    logits: Tensor,
    target: Tensor,
    index: Tensor | None,
    anchor: Tensor | None,
    alpha: Tensor | None,
    momentum: Tensor | None,
    last: Tensor | None,
    steps: Tensor | None,
    flags: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    opt = _options(*options)
    table = AlphaTable.from_handle(opt["table"]) if opt["table"] else None
    return _loss(logits, target, index, table, (alpha, momentum, last), flags, opt)


def _forward_update(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    anchor: Tensor | None,
    alpha: Tensor,
    momentum: Tensor | None,
    last: Tensor,
    steps: Tensor | None,
    flags: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *options, grad_output = options  # type: ignore[assignment]
    opt = _options(*options)
    table = AlphaTable.from_handle(opt["table"])
    loss, grad, rows, statistics = _loss(logits, target, index, table, (alpha, momentum, last), flags, opt)
    table.begin_forward_update()
    if len(rows):
        row_grad = row_gradient(grad, target, opt["form"]) * grad_output
        finite = row_grad.isfinite().flatten(1).all(1) if row_grad.ndim == 2 else row_grad.isfinite()
        table.update(torch.where(finite, rows, -1), row_grad, state=(alpha, momentum, last))
        if opt["dynamics"]:
            TrainingDynamics.from_handle(opt["dynamics"]).record(rows, statistics)
    return loss, grad, rows, statistics


def row_gradient(grad: Tensor, target: Tensor, form: str) -> Tensor:
    """The rows' gradient from that of the training logits (B, K): the same for AC1, its y entry (B,) for AC2."""
    if form == "ac1":
        return grad
    column = target.clamp(0, grad.shape[1] - 1)[
        :, None
    ]  # what is ignored or outside has gradient 0 throughout
    return grad.gather(1, column)[:, 0]


def _backward(
    grad_loss: Tensor,
    grad: Tensor,
    target: Tensor,
    rows: Tensor,
    statistics: Tensor,
    dtype: torch.dtype,
    form: str,
    table: int,
    dynamics: int,
) -> tuple[Tensor, Tensor]:
    scale = grad_loss.to(grad.dtype)
    if table and len(rows):
        AlphaTable.from_handle(table).stage(rows, row_gradient(grad, target, form), scale.clone())
    if dynamics and len(rows):
        TrainingDynamics.from_handle(dynamics).record(rows, statistics)
    grad_logits = (grad * (scale[:, None] if scale.ndim else scale)).to(dtype)
    return grad_logits, torch.zeros((), device=grad.device)


_lib.impl("cross_entropy", _forward, "CompositeExplicitAutograd")
_lib.impl("cross_entropy_update", _forward_update, "CompositeExplicitAutograd")
_lib.impl("cross_entropy_backward", _backward, "CompositeExplicitAutograd")


def _fake_forward(logits: Tensor, target: Tensor, index: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    opt = _options(*rest[_FIRST - 3 : _LAST - 3])
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    batch = logits.shape[0]
    return (
        logits.new_empty((batch,) if opt["reduction"] == "none" else (), dtype=dtype),
        logits.new_empty(logits.shape, dtype=dtype),
        target.new_empty(0 if index is None else batch),
        logits.new_empty((batch if opt["dynamics"] else 0, len(STATISTICS)), dtype=torch.float32),
    )


def _fake_backward(
    grad_loss: Tensor,
    grad: Tensor,
    target: Tensor,
    rows: Tensor,
    statistics: Tensor,
    dtype: torch.dtype,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad, dtype=dtype), grad.new_empty((), dtype=torch.float32)


torch.library.register_fake("fastac::cross_entropy", _fake_forward, lib=_lib)
torch.library.register_fake("fastac::cross_entropy_update", _fake_forward, lib=_lib)
torch.library.register_fake("fastac::cross_entropy_backward", _fake_backward, lib=_lib)


class _CrossEntropy(torch.autograd.Function):
    """Autograd of both forward operators. (torch.library.register_autograd takes functional operators only.)"""

    @staticmethod
    def forward(ctx: Any, op: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            loss, grad, rows, statistics = op(*inputs)
        logits, target = inputs[:2]
        opt = _options(*inputs[_FIRST:_LAST])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(grad, rows, statistics)
        ctx.save_for_backward(grad, target, rows, statistics)
        learn = opt["learn"] and len(inputs) == _LAST  # update="forward" has nothing left to hand over
        ctx.arguments = (
            logits.dtype,
            opt["form"],
            opt["table"] if learn else 0,
            opt["dynamics"] if learn else 0,
        )
        ctx.num_inputs = len(inputs)
        return loss, grad, rows, statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        grad_logits = grad_anchor = None
        if grad_loss is not None:
            grad_logits, grad_anchor = torch.ops.fastac.cross_entropy_backward(
                grad_loss, *ctx.saved_tensors, *ctx.arguments
            )
        wanted = ctx.needs_input_grad[1:]
        grads: list[Tensor | None] = [None] * ctx.num_inputs
        grads[0] = grad_logits if wanted[0] else None
        grads[3] = grad_anchor if wanted[3] else None
        return None, *grads


def _differentiable(op: Any) -> Any:
    def kernel(*inputs: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return _CrossEntropy.apply(op, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    return kernel


cross_entropy = torch.ops.fastac.cross_entropy.default
cross_entropy_update = torch.ops.fastac.cross_entropy_update.default
_lib.impl("cross_entropy", _differentiable(cross_entropy), "Autograd")
_lib.impl("cross_entropy_update", _differentiable(cross_entropy_update), "Autograd")
