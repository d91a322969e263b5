"""The operators `torch.ops.fastac.*`: schemas, kernels, fakes and autograd. The only file that registers any.

cross_entropy          forward of update="step": reads rows, returns the loss and what backward needs
cross_entropy_update   forward of update="forward": the same, and writes the rows
cross_entropy_backward logits' gradient; hands the row gradients to the table, the statistics to the dynamics
scale_gradient         logits' gradient of update="forward", in place: nothing is written where the factor is 1

An operator carries a table by its number (`AlphaTable.handle`) beside the tensors that it reads or writes, which
torch.compile must see. The one thing it can't see, rows staged in backward, hangs on a value that autograd needs:
the gradient of `anchor`, a scalar leaf of the table. So no graph breaks, no pass drops or repeats a backward, and
α learns even where the logits don't require grad.

Where nobody looks on (see _is_plain), `cross_entropy` and `cross_entropy_update` don't call their operator but what
it would lead to: a small batch's step takes half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastac import backends
from fastac.contract import STATISTICS, Forward, Objective, Rows
from fastac.dynamics import TrainingDynamics
from fastac.sharded import ShardedAlphaTable
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
        table = AlphaTable.from_handle(call.table)
        rows = Rows(alpha, momentum, last, table.clock)
        if isinstance(table, ShardedAlphaTable) and index is not None:
            return _sharded_forward(table, rows, logits, target, index, flags, call)
    return backends.select(logits.device).forward(
        logits, target, index, rows, call.objective, flags, call.num_samples, call.dynamics != 0
    )


def _sharded_forward(
    table: ShardedAlphaTable,
    rows: Rows,
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    flags: Tensor,
    call: _Call,
) -> Forward:
    batch = table.locate(index, rows)
    result = backends.select(logits.device).forward(
        logits, target, batch.place, batch.rows, call.objective, flags, batch.size, call.dynamics != 0
    )
    return result._replace(ids=table.identify(batch, index, result.ids))


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
    dynamics = TrainingDynamics.from_handle(call.dynamics) if call.dynamics else None
    sgd = table.start_forward_update()
    rows, size = Rows(alpha, momentum, last, table.clock), call.num_samples
    if isinstance(table, ShardedAlphaTable):
        if not table.in_place:
            result = _staged_update(table, rows, logits, target, index, flags, call, grad_output)
            table.finish_forward_update()
            return result
        index, rows, size, _ = table.locate(index, rows)
        grad_output /= table.world_size
    recorded = None if dynamics is None else dynamics.part(table.held)
    result = backends.select(logits.device).forward_update(
        logits, target, index, rows, call.objective, flags, size, recorded, sgd, grad_output
    )
    table.finish_forward_update()
    return result


def _staged_update(
    table: ShardedAlphaTable,
    rows: Rows,
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    flags: Tensor,
    call: _Call,
    grad_output: float,
) -> Forward:
    """Rows that are not on this device are on their way when the forward pass ends, and are written at the step."""
    result = _sharded_forward(table, rows, logits, target, index, flags, call)
    grad = _row_gradient(result.grad, target, call.form)
    # A copy: the logits' gradient is scaled in place.
    table.stage(result.ids, grad * grad_output, grad.new_ones(()))
    if call.dynamics:
        TrainingDynamics.from_handle(call.dynamics).record(result.ids, result.statistics)
    return result._replace(grad=result.grad.to(logits.dtype), statistics=result.statistics[:0])


def _row_gradient(grad: Tensor, target: Tensor, form: str) -> Tensor:
    if len(grad):
        return backends.select(grad.device).row_gradient(grad, target, form)
    return grad if form == "ac1" else grad[:, 0]


def _plain_backward(
    grad_loss: Tensor,
    grad: Tensor,
    target: Tensor,
    ids: Tensor,
    statistics: Tensor,
    dtype: torch.dtype,
    form: str,
    table: int,
    dynamics: int,
) -> Tensor:
    if table:  # also for no rows: the other ranks of a sharded table may have some
        AlphaTable.from_handle(table).stage(ids, _row_gradient(grad, target, form), grad_loss.clone())
    if dynamics:  # also for no rows: visits are ordered by the number of the call
        TrainingDynamics.from_handle(dynamics).record(ids, statistics)
    return backends.select(grad.device).backward(grad, grad_loss, dtype)


def _backward(grad_loss: Tensor, grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _plain_backward(grad_loss, grad, *rest), torch.zeros((), device=grad.device)


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
    """Autograd of both forward operators. (torch.library.register_autograd takes functional operators only.)

    run: the operator, or its kernel. inputs: its arguments; those that have a gradient come by themselves as well.
    """

    @staticmethod
    def forward(ctx: Any, run: Any, logits: Tensor, anchor: Tensor | None, inputs: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            loss, grad, ids, statistics = run(*inputs)
        call = _Call(*inputs[_FIRST:_LAST])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, inputs[1], ids, statistics)
        updates = len(inputs) > _LAST  # update="forward" has nothing left to hand over
        handles = (call.table, call.dynamics) if call.learn and not updates else (0, 0)
        ctx.arguments = (logits.dtype, call.form, *handles)
        # In place where the compiler, which decides for itself what it may overwrite, is not looking on.
        ctx.in_place, ctx.spent = updates and type(grad) is Tensor, False
        ctx.plain = run in _KERNELS
        if ctx.plain:
            return loss
        ctx.mark_non_differentiable(grad, ids, statistics)
        return loss, grad, ids, statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None
        plain = ctx.plain and not torch.is_grad_enabled() and _is_plain(grad_loss)
        grad_anchor = None
        if ctx.in_place:
            if ctx.spent:
                raise RuntimeError(
                    "update='forward' allows one backward pass for each forward pass: use update='step'"
                )
            ctx.spent = True
            grad_logits = ctx.saved_tensors[0]
            (_scale_gradient if plain else torch.ops.fastac.scale_gradient)(grad_logits, grad_loss)
        elif plain:
            grad_logits = _plain_backward(grad_loss, *ctx.saved_tensors, *ctx.arguments)
        else:
            grad_logits, grad_anchor = torch.ops.fastac.cross_entropy_backward(
                grad_loss, *ctx.saved_tensors, *ctx.arguments
            )
        _, logits_wanted, anchor_wanted, _ = ctx.needs_input_grad
        return None, grad_logits if logits_wanted else None, grad_anchor if anchor_wanted else None, None


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing looks on that must see an operator: no compiler, no mode, no subclass of Tensor."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(x is None or type(x) is Tensor for x in tensors)
    )


def _differentiable(run: Any) -> Callable[..., Any]:
    def kernel(*inputs: Any) -> Any:
        logits, anchor = inputs[0], inputs[_ANCHOR]
        if torch.is_grad_enabled() and (
            logits.requires_grad or (anchor is not None and anchor.requires_grad)
        ):
            return _CrossEntropy.apply(run, logits, anchor, inputs)
        with torch._C._AutoDispatchBelowAutograd():
            outputs = run(*inputs)
        return outputs[0] if run in _KERNELS else outputs

    return kernel


_ANCHOR = _TENSORS.index("anchor")
_KERNELS = (_forward, _forward_update)
_lib.impl("cross_entropy", _differentiable(torch.ops.fastac.cross_entropy.default), "Autograd")
_lib.impl("cross_entropy_update", _differentiable(torch.ops.fastac.cross_entropy_update.default), "Autograd")
_plain_forward, _plain_forward_update = _differentiable(_forward), _differentiable(_forward_update)


def cross_entropy(*inputs: Any) -> Tensor:
    """The loss of the operator `cross_entropy`, with its inputs."""
    if _is_plain(*inputs[:3]):
        return _plain_forward(*inputs)
    return torch.ops.fastac.cross_entropy.default(*inputs)[0]


def cross_entropy_update(*inputs: Any) -> Tensor:
    """The loss of the operator `cross_entropy_update`, with its inputs."""
    if _is_plain(*inputs[:3]):
        return _plain_forward_update(*inputs)
    return torch.ops.fastac.cross_entropy_update.default(*inputs)[0]
