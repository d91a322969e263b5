"""The backend `reference`: every operation of the α table and its loss in eager PyTorch, on any device.

One function an operation, with the arguments that every backend takes. It spells out the gradients that
reference.py leaves to autograd, and touches the batch's rows alone. No function waits for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastac.clock import StepClock
from fastac.groups import Groups
from fastac.reference import training_logits
from fastac.rng import hash_bits

__all__ = ["STATISTICS", "catch_up", "compute_dtype", "cross_entropy", "statistics", "sweep", "update_rows"]

STATISTICS = ("margin", "p", "correct", "el2n", "loss")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 rows are computed with in float32."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    rows: Tensor | None,
    weight: Tensor | None,
    form: str,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient by the training logits, of F.cross_entropy on them.

    logits: (B, K). target: (B,) int64 in [0, K) or ignore_index. rows: α of the batch, caught up, (B, K) or AC2
    (B,), None for α = 0. weight: (K,) or None. Returns the loss, () or (B,) for reduction "none", float32
    (float64 for float64 logits), and the gradient (B, K) in the same dtype, with weights and normaliser in it.
    """
    z = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if rows is not None:
        z = training_logits(z, target, rows.to(z.dtype), form)
    classes = z.shape[1]
    kept = target != ignore_index
    column = torch.where(kept, target, 0)[:, None]
    w = z.new_ones(classes) if weight is None else weight.to(z.dtype)
    w_target = torch.where(kept, w[column[:, 0]], 0)

    log_p = F.log_softmax(z, dim=1)
    # Gradient of Σ_k q_k (−log p_k) is p·Σq − q, with q = (1 − ε)·w_y·onehot(y) + ε/K·w.
    q = (w * (label_smoothing / classes)).expand_as(z).clone() if label_smoothing else torch.zeros_like(z)
    q.scatter_add_(1, column, ((1 - label_smoothing) * w_target)[:, None])
    loss = torch.where(kept, -torch.where(q > 0, log_p, 0).mul(q).sum(1), 0)
    grad = log_p.exp().mul_(q.sum(1, keepdim=True)).sub_(q)
    grad = torch.where(kept[:, None], grad, 0)
    if reduction == "none":
        return loss, grad
    if reduction == "sum":
        return loss.sum(), grad
    normaliser = w_target.sum()
    return loss.sum() / normaliser, torch.where(kept[:, None], grad / normaliser, 0)


def statistics(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Training dynamics of one forward pass, (B, 5) float32 in the order of STATISTICS, all of the network's own
    logits (B, K), without α: margin m_y − max_{j≠y} m_j (Pleiss et al. 2020, equation 1), p_y, whether the
    prediction is y, EL2N ‖p − onehot(y)‖₂ (Paul et al. 2021), cross entropy."""
    m = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    column = torch.where(target != ignore_index, target, 0)[:, None]
    m_y = m.gather(1, column)[:, 0]
    others = m.scatter(1, column, -torch.inf).amax(1)
    log_p = F.log_softmax(m, dim=1)
    error = log_p.exp().scatter_add(1, column, m.new_full((), -1.0).expand(column.shape))
    log_p_y = log_p.gather(1, column)[:, 0]
    columns = (m_y - others, log_p_y.exp(), (m_y >= others).to(m.dtype), error.norm(dim=1), -log_p_y)
    return torch.stack(columns, dim=1).to(torch.float32)


def catch_up(
    alpha: Tensor, momentum: Tensor | None, last: Tensor, ids: Tensor, clock: StepClock
) -> tuple[Tensor, Tensor | None]:
    """Rows `ids` (n,) as they are now: α and momentum buffer, (n, K) or (n,), in the compute dtype."""
    dtype = compute_dtype(alpha.dtype)
    c = clock.coefficients(last.index_select(0, ids)).to(dtype)
    if alpha.ndim == 2:
        c = c[..., None]
    a = alpha.index_select(0, ids).to(dtype)
    if momentum is None:
        return c[:, 0, 0] * a, None
    b = momentum.index_select(0, ids).to(dtype)
    return c[:, 0, 0] * a + c[:, 0, 1] * b, c[:, 1, 0] * a + c[:, 1, 1] * b


def sgd(
    a: Tensor,
    b: Tensor | None,
    g: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    folded: bool,
) -> tuple[Tensor, Tensor | None]:
    """torch.optim.SGD's step of rows a with buffer b and gradient g."""
    lr = lr.to(a.dtype)
    g = g + weight_decay * a
    if folded:
        return a - lr / (1 - momentum) * g, None
    if momentum == 0 or b is None:
        return a - lr * g, b
    b = momentum * b + g
    return a - lr * (g + momentum * b if nesterov else b), b


def round_to(value: Tensor, dtype: torch.dtype, seed: int, step: Tensor, ids: Tensor, stream: int) -> Tensor:
    """To the storage dtype. bfloat16 rounds stochastically: 16 random bits are added below the kept ones, drawn
    from (seed, step, id, class, stream), so that an update far below a half ulp still moves α by its expectation."""
    if dtype != torch.bfloat16:
        return value.to(dtype)
    column = torch.arange(value.shape[1] if value.ndim == 2 else 1, device=value.device)
    noise = hash_bits(seed, step, ids[:, None], column).view(value.shape)
    noise = (noise >> (16 * stream)) & 0xFFFF
    bits = value.contiguous().view(torch.int32).to(torch.int64) + noise
    rounded = (bits & -0x10000).to(torch.int32).view(torch.float32).to(torch.bfloat16)
    return torch.where(value.isfinite(), rounded, value.to(torch.bfloat16))


def update_rows(
    alpha: Tensor,
    momentum: Tensor | None,
    last: Tensor,
    groups: Groups,
    grad: Tensor,
    clock: StepClock,
    skip: Tensor | None,
    *,
    sgd_momentum: float,
    weight_decay: float,
    nesterov: bool,
    folded: bool,
    seed: int,
) -> None:
    """Bring the rows of a batch to the step that is about to be counted, in place, with their gradients in it.

    grad: (n, K) or AC2 (n,), one a position; summed over equal ids. skip: () bool on the device, True writes
    nothing. Rows are written through slots that may repeat an id with the same value (see Groups).
    """
    ids = groups.ids.clamp(min=0)
    kept = groups.ids < 0 if skip is None else (groups.ids < 0) | skip  # these keep what they hold
    a, b = catch_up(alpha, momentum, last, ids, clock)
    g = groups.sum(grad.to(a.dtype))
    if alpha.ndim == 2:
        g[:, 0] = 0  # AC1's gauge: α of the first category stays zero
    a, b = sgd(a, b, g, clock.lr, sgd_momentum, weight_decay, nesterov, folded)
    step = clock.steps + 1
    _write(alpha, ids, kept, round_to(a, alpha.dtype, seed, step, ids, 0))
    if momentum is not None and b is not None:
        _write(momentum, ids, kept, round_to(b, momentum.dtype, seed, step, ids, 1))
    _write(last, ids, kept, step.to(last.dtype).expand(len(ids)))


def sweep(
    alpha: Tensor, momentum: Tensor | None, last: Tensor, ids: Tensor, clock: StepClock, seed: int
) -> None:
    """Bring those of the rows ids (n,) to now that were not touched for a quarter of the clock's window."""
    kept = clock.steps - last.index_select(0, ids) < clock.sweep_every
    a, b = catch_up(alpha, momentum, last, ids, clock)
    _write(alpha, ids, kept, round_to(a, alpha.dtype, seed, clock.steps, ids, 0))
    if momentum is not None and b is not None:
        _write(momentum, ids, kept, round_to(b, momentum.dtype, seed, clock.steps, ids, 1))
    _write(last, ids, kept, clock.steps.to(last.dtype).expand(len(ids)))


def _write(state: Tensor, ids: Tensor, kept: Tensor, value: Tensor) -> None:
    if state.ndim == 2:
        kept = kept[:, None]
    state.index_copy_(0, ids, torch.where(kept, state.index_select(0, ids), value))
