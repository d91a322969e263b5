"""The operators `torch.ops.fastac.*`: schemas, kernels, fakes and autograd. The only file that registers any.

cross_entropy          forward of update="step": reads rows, returns the loss and what backward needs
cross_entropy_update   forward of update="forward": the same, and writes the rows
cross_entropy_backward logits' gradient; hands the row gradients to the table, the statistics to the dynamics
scale_gradient         logits' gradient of update="forward", in place: nothing is written where the factor is 1

An operator carries a table by its number (`AlphaTable.handle`) beside the tensors that it reads or writes, which
torch.compile must see. The one thing it can't see, rows staged in backward, hangs on a value that autograd needs:
the gradient of `anchor`, a scalar leaf of the table. So no graph breaks, no pass drops or repeats a backward, and
α learns even where the logits don't require grad.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastac import backends
from fastac.contract import STATISTICS, Forward, Objective, Rows
from fastac.dynamics import TrainingDynamics
from fastac.eager import row_gradient
from fastac.table import AlphaTable

__all__ = ["cross_entropy", "cross_entropy_update"]

_OPTIONS = (
    "Tensor? weight, str form, int ignore_index, str reduction, float label_smoothing, "
    "int num_samples, int table, int dynamics, bool learn"
)
_TENSORS = ("logits", "target", "index", "anchor", "alpha", "momentum", "last", "steps", "flags")
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
_lib.define("scale_gradient(Tensor(a!) grad, Tensor scale) -> ()")
_lib.define(
    "cross_entropy_backward(Tensor grad_loss, Tensor grad, Tensor target, Tensor ids, Tensor statistics, "
    "ScalarType dtype, str form, int table, int dynamics) -> (Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),  # it runs Python that a replayed graph would not
)


class _Call(NamedTuple):
    """The options of one call, in the order of the schema."""

    weight: Tensor | None
    form: str
    ignore_index: int
    reduction: str
    label_smoothing: float
    num_samples: int
    table: int
    dynamics: int
    learn: bool

    @property
    def objective(self) -> Objective:
        return Objective(*self[:5])


_FIRST, _LAST = (
    len(_TENSORS),
    len(_TENSORS) + len(_Call._fields),
)  # where a call's options stand among its inputs


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
) -> Forward:
    call = _Call(*options)
    rows = None
    if call.table and alpha is not None and last is not None:
        rows = Rows(alpha, momentum, last, AlphaTable.from_handle(call.table).clock)
    return backends.select(logits.device).forward(
        logits, target, index, rows, call.objective, flags, call.num_samples, call.dynamics != 0
    )


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
) -> Forward:
    call, grad_output = _Call(*options[:-1]), options[-1]
    table = AlphaTable.from_handle(call.table)
    recorded = TrainingDynamics.from_handle(call.dynamics).accumulators if call.dynamics else None
    with table.forward_update() as sgd:
        return backends.select(logits.device).forward_update(
            logits,
            target,
            index,
            Rows(alpha, momentum, last, table.clock),
            call.objective,
            flags,
            call.num_samples,
            recorded,
            sgd,
            grad_output,
        )


def _backward(
    grad_loss: Tensor,
    grad: Tensor,
    target: Tensor,
    ids: Tensor,
    statistics: Tensor,
    dtype: torch.dtype,
    form: str,
    table: int,
    dynamics: int,
) -> tuple[Tensor, Tensor]:
    if table and len(ids):
        AlphaTable.from_handle(table).stage(ids, row_gradient(grad, target, form), grad_loss.clone())
    if dynamics and len(ids):
        TrainingDynamics.from_handle(dynamics).record(ids, statistics)
    grad_logits = backends.select(grad.device).backward(grad, grad_loss, dtype)
    return grad_logits, torch.zeros((), device=grad.device)


def _scale_gradient(grad: Tensor, scale: Tensor) -> None:
    backends.select(grad.device).scale_gradient(grad, scale)


_lib.impl("cross_entropy", _forward, "CompositeExplicitAutograd")
_lib.impl("cross_entropy_update", _forward_update, "CompositeExplicitAutograd")
_lib.impl("cross_entropy_backward", _backward, "CompositeExplicitAutograd")
_lib.impl("scale_gradient", _scale_gradient, "CompositeExplicitAutograd")


def _fake_forward(logits: Tensor, target: Tensor, index: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    call = _Call(*rest[_FIRST - 3 : _LAST - 3])
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    batch, updates = logits.shape[0], len(rest) > _LAST - 3
    return (
        logits.new_empty((batch,) if call.reduction == "none" else (), dtype=dtype),
        logits.new_empty(logits.shape, dtype=logits.dtype if updates else dtype),
        target.new_empty(0 if index is None else batch),
        logits.new_empty(
            (batch if call.dynamics and not updates else 0, len(STATISTICS)), dtype=torch.float32
        ),
    )


def _fake_backward(
    grad_loss: Tensor,
    grad: Tensor,
    target: Tensor,
    ids: Tensor,
    statistics: Tensor,
    dtype: torch.dtype,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad, dtype=dtype), grad.new_empty((), dtype=torch.float32)


torch.library.register_fake("fastac::cross_entropy", _fake_forward, lib=_lib)
torch.library.register_fake("fastac::cross_entropy_update", _fake_forward, lib=_lib)
torch.library.register_fake("fastac::cross_entropy_backward", _fake_backward, lib=_lib)
torch.library.register_fake("fastac::scale_gradient", lambda grad, scale: None, lib=_lib)


class _CrossEntropy(torch.autograd.Function):
    """Autograd of both forward operators. (torch.library.register_autograd takes functional operators only.)"""

    @staticmethod
    def forward(ctx: Any, op: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            loss, grad, ids, statistics = op(*inputs)
        logits, target = inputs[:2]
        call = _Call(*inputs[_FIRST:_LAST])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(grad, ids, statistics)
        ctx.save_for_backward(grad, target, ids, statistics)
        updates = len(inputs) > _LAST  # update="forward" has nothing left to hand over
        handles = (call.table, call.dynamics) if call.learn and not updates else (0, 0)
        ctx.arguments = (logits.dtype, call.form, *handles)
        # In place where the compiler, which decides for itself what it may overwrite, is not looking on.
        ctx.in_place, ctx.spent = updates and type(grad) is Tensor, False
        ctx.num_inputs = len(inputs)
        return loss, grad, ids, statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        grad_logits = grad_anchor = None
        if grad_loss is not None and ctx.in_place:
            if ctx.spent:
                raise RuntimeError(
                    "update='forward' allows one backward pass for each forward pass: use update='step'"
                )
            ctx.spent = True
            grad_logits = ctx.saved_tensors[0]
            torch.ops.fastac.scale_gradient(grad_logits, grad_loss)
        elif grad_loss is not None:
            grad_logits, grad_anchor = torch.ops.fastac.cross_entropy_backward(
                grad_loss, *ctx.saved_tensors, *ctx.arguments
            )
        wanted = ctx.needs_input_grad[1:]
        grads: list[Tensor | None] = [None] * ctx.num_inputs
        anchor = _TENSORS.index("anchor")
        grads[0] = grad_logits if wanted[0] else None
        grads[anchor] = grad_anchor if wanted[anchor] else None
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
