"""The loss as a function."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastac import ops, reference
from fastac.dynamics import TrainingDynamics
from fastac.table import AlphaTable
from fastac.validation import RangeCheck, check_batch

__all__ = ["ac_cross_entropy"]

REDUCTIONS = ("mean", "sum", "none")
UPDATES = ("step", "forward", "never")


def ac_cross_entropy(
    logits: Tensor,
    target: Tensor,
    index: Tensor | None = None,
    table: AlphaTable | Tensor | None = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    update: str = "step",
    grad_output: float = 1.0,
    dynamics: TrainingDynamics | None = None,
    form: str = "ac1",
) -> Tensor:
    """F.cross_entropy(logits + α[index], target) (AutoCleansing, equation 2 and section 3).

    logits: (B, K) float16, bfloat16, float32 or float64. target: (B,) int64 class indices. index: (B,) int64 or
    int32 sample ids, on the device of the logits. table: an AlphaTable, which learns α from this; or α as a dense
    tensor, (N, K) for form="ac1" and (N,) for "ac2", with gradients by autograd; or None for α = 0.
    weight, ignore_index, reduction, label_smoothing: as in F.cross_entropy. update, grad_output, dynamics: as in
    AutoCleansingLoss; update="never" reads α and learns nothing. form: of a dense α only.
    Returns a float32 loss (float64 for float64 logits), () or (B,) for reduction "none".

    Differentiable once. Raises TypeError, ValueError or IndexError that names the argument; on an accelerator a
    target or index outside its range is reported at a later step's end (see FASTAC_DEBUG).
    """
    check_options(reduction, label_smoothing, update)
    check_batch(logits, target, index, table.num_classes if isinstance(table, AlphaTable) else None, weight)
    if index is None and (table is not None or dynamics is not None):
        raise ValueError("index is missing: an α table and training dynamics need the batch's sample ids")
    if isinstance(table, Tensor):
        assert index is not None
        return _dense(
            logits, target, index, table, form, dynamics, weight, ignore_index, reduction, label_smoothing
        )
    return _sparse(
        logits,
        target,
        index,
        table,
        dynamics,
        update,
        grad_output,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
    )


def check_options(reduction: str, label_smoothing: float, update: str) -> None:
    """ValueError for an option that is none."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if update not in UPDATES:
        raise ValueError(f"update must be one of {UPDATES}, got {update!r}")


def _dense(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    alpha: Tensor,
    form: str,
    dynamics: TrainingDynamics | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    shape = (alpha.shape[0], logits.shape[1]) if form == "ac1" else alpha.shape[:1]
    if form not in reference.FORMS or alpha.shape != shape:
        raise ValueError(
            f"form {form!r} needs α of shape (N, K) for 'ac1', (N,) for 'ac2'; got {tuple(alpha.shape)}"
        )
    if dynamics is not None:
        raise ValueError("dynamics are recorded with an AlphaTable or with table=None, not with a dense α")
    return reference.ac_cross_entropy(
        logits if logits.dtype == torch.float64 else logits.float(),
        target,
        index,
        alpha,
        form=form,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


@functools.cache
def _range_check(device: torch.device) -> RangeCheck:
    return RangeCheck(device)


def _flags(table: AlphaTable | None, device: torch.device) -> Tensor:
    """Where values outside their range are noted. A table's step reports them; without a table the next call does,
    but for compiled code, where such rows are left out unseen."""
    if table is not None:
        return table.checks.flags
    if torch.compiler.is_compiling():
        return torch.zeros(2, dtype=torch.int64, device=device)
    checks = _range_check(device)
    checks.poll()
    return checks.flags


def _sparse(
    logits: Tensor,
    target: Tensor,
    index: Tensor | None,
    table: AlphaTable | None,
    dynamics: TrainingDynamics | None,
    update: str,
    grad_output: float,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    store = table if table is not None else dynamics
    for name, owner in (("table", table), ("dynamics", dynamics)):
        if owner is not None and owner.device != logits.device:
            raise ValueError(f"logits are on {logits.device}, the {name} is on {owner.device}")
    if dynamics is not None and dynamics.num_classes != logits.shape[1]:
        raise ValueError(f"logits have K = {logits.shape[1]} classes, dynamics has {dynamics.num_classes}")
    if table is not None and dynamics is not None and table.num_samples != dynamics.num_samples:
        raise ValueError(f"dynamics has {dynamics.num_samples} samples, the table has {table.num_samples}")
    flags = _flags(table, logits.device)
    options = (
        weight,
        "ac1" if table is None else table.form,
        ignore_index,
        reduction,
        label_smoothing,
        0 if store is None else store.num_samples,
        0 if table is None else table.handle,
        0 if dynamics is None else dynamics.handle,
        update != "never",
    )
    anchor = None if store is None else store.anchor
    if table is None:
        index = None if dynamics is None else index
        return ops.cross_entropy(logits, target, index, anchor, None, None, None, None, flags, *options)
    state = (table.alpha, table.momentum_buffer, table.last, table.clock.steps)
    if update == "forward" and torch.is_grad_enabled():
        return ops.cross_entropy_update(logits, target, index, anchor, *state, flags, *options, grad_output)
    return ops.cross_entropy(logits, target, index, anchor, *state, flags, *options)
