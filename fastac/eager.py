"""The backend `reference`: the operations of fastac/contract.py in eager PyTorch, on any device.

It spells out the gradients that reference.py leaves to autograd, and touches the batch's rows alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastac.clock import StepClock, step_matrix
from fastac.contract import STATISTICS, Accumulators, Forward, Objective, Rows, Sgd
from fastac.groups import group_ids
from fastac.reference import training_logits
from fastac.rng import hash_bits
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
    """One forward pass.

    logits: (B, K). target: (B,) int64. index: (B,) int64 or int32, or None without table and statistics. rows: None
    for α = 0. flags: (2,) int64, where an accelerator notes values outside their range (see check_range): such a row
    counts as ignored. A row whose logits are not all finite has no id to write to.
    """
    ignore_index = objective.ignore_index
    good = check_range(target, index, logits.shape[1], num_samples, ignore_index, flags)
    target = torch.where(good, target, ignore_index)
    ids, alpha = target.new_empty(0), None
    if index is not None:
        ids = torch.where(good, index.to(torch.int64), 0)
        alpha = None if rows is None else read_rows(rows, ids)
        usable = (target != ignore_index) & finite_rows(logits)
        ids = torch.where(usable, ids, -1)
    loss, grad = cross_entropy(logits, target, alpha, objective)
    if statistics:
        seen = dynamics(logits, target, ignore_index)
    else:
        seen = logits.new_empty((0, len(STATISTICS)), dtype=torch.float32)
    return Forward(loss, grad, ids, seen)


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
    """`forward`, then at once `update_rows`, with the gradient that grad_output, the loss's own gradient, will bring,
    and `record`. The gradient is returned in the logits' dtype, without grad_output; statistics are not."""
    result = forward(logits, target, index, rows, objective, flags, num_samples, accumulators is not None)
    if len(result.ids):
        grad = row_gradient(result.grad, target, objective.form)
        update_rows(rows, result.ids, grad, grad.new_full((), grad_output), sgd, None)
        if accumulators is not None:
            record(accumulators, result.ids, result.statistics)
    return result._replace(grad=result.grad.to(logits.dtype), statistics=result.statistics[:0])


def backward(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient by the logits, in their dtype: grad (B, K) times the incoming gradient, () or (B,)."""
    scale = scale.to(grad.dtype)
    return (grad * (scale[:, None] if scale.ndim else scale)).to(dtype)


def scale_gradient(grad: Tensor, scale: Tensor) -> None:
    """`backward` in place, for a gradient in the logits' dtype. On an accelerator a backend reads scale on the device
    and touches nothing where it is 1."""
    grad.copy_(backward(grad.to(torch.promote_types(grad.dtype, torch.float32)), scale, grad.dtype))


def finite_rows(values: Tensor) -> Tensor:
    """(B,) bool: rows of (B, K) or (B,) that hold finite values only. (A tenth of the time of isfinite().all(1).)"""
    magnitude = values.abs()
    return (magnitude.amax(1) if values.ndim == 2 else magnitude) < torch.inf


def row_gradient(grad: Tensor, target: Tensor, form: str) -> Tensor:
    """The rows' gradient from that of the training logits (B, K): the same for AC1, its y entry (B,) for AC2."""
    if form == "ac1":
        return grad
    # What is ignored or outside has gradient 0 throughout.
    return grad.gather(1, target.clamp(0, grad.shape[1] - 1).unsqueeze(1)).squeeze(1)


def cross_entropy(
    logits: Tensor, target: Tensor, alpha: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor]:
    """F.cross_entropy of the training logits, and its gradient by them; see contract.Forward.

    alpha: of the batch, caught up, (B, K) or AC2 (B,), None for α = 0.
    """
    weight, form, ignore_index, reduction, label_smoothing = objective
    z = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if alpha is not None:
        z = training_logits(z, target, alpha.to(z.dtype), form)
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


def dynamics(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
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


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 rows are computed with in float32."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def catch_up(rows: Rows, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows `ids` (n,) as they are now: α and momentum buffer, (n, K) or (n,), in the compute dtype."""
    c, a, b = _stored(rows, ids)
    if b is None:
        return c[:, 0, 0] * a, None
    return c[:, 0, 0] * a + c[:, 0, 1] * b, c[:, 1, 0] * a + c[:, 1, 1] * b


def read_rows(rows: Rows, ids: Tensor) -> Tensor:
    """α of rows ids (n,) int64 in range, as it is now: (n, K) or (n,), float32 (float64 for a float64 table)."""
    c, a, b = _stored(rows, ids)
    return c[:, 0, 0] * a if b is None else c[:, 0, 0] * a + c[:, 0, 1] * b


def _stored(rows: Rows, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Catch-up coefficients (n, 2, 2[, 1]), α and momentum as they are stored, in the compute dtype."""
    dtype = compute_dtype(rows.alpha.dtype)
    c = rows.clock.coefficients(rows.last.index_select(0, ids)).to(dtype)
    a = rows.alpha.index_select(0, ids).to(dtype)
    b = None if rows.momentum is None else rows.momentum.index_select(0, ids).to(dtype)
    return c[..., None] if a.ndim == 2 else c, a, b


def step_rows(a: Tensor, b: Tensor | None, g: Tensor, lr: Tensor, sgd: Sgd) -> tuple[Tensor, Tensor | None]:
    """torch.optim.SGD's step of rows a with buffer b and gradient g."""
    lr = lr.to(a.dtype)
    g = g + sgd.weight_decay * a
    if sgd.folded:
        return a - lr / (1 - sgd.momentum) * g, None
    if sgd.momentum == 0 or b is None:
        return a - lr * g, b
    b = sgd.momentum * b + g
    return a - lr * (g + sgd.momentum * b if sgd.nesterov else b), b


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
    rows: Rows, ids: Tensor, grad: Tensor, scale: Tensor | None, sgd: Sgd, skip: Tensor | None
) -> None:
    """Bring the rows of a batch to the step that is about to be counted, with their gradients in it.

    ids: (n,) int64, n ≥ 1, negative where nothing is to be written. grad: (n, K) or AC2 (n,), times scale, () or
    (n,), is summed over equal ids in their order; one that is not finite counts as none. skip: () bool on the device,
    True writes nothing.
    """
    if scale is not None:
        scale = scale.to(grad.dtype)
        grad = grad * (scale[:, None] if scale.ndim and grad.ndim == 2 else scale)
    finite = finite_rows(grad)
    groups = group_ids(torch.where(finite, ids, -1))
    kept = groups.ids < 0 if skip is None else (groups.ids < 0) | skip  # these keep what they hold
    ids = groups.ids.clamp(min=0)
    a, b = catch_up(rows, ids)
    g = groups.sum(torch.where(finite[:, None] if grad.ndim == 2 else finite, grad, 0).to(a.dtype))
    if g.ndim == 2:
        g[:, 0] = 0  # AC1's gauge: α of the first category stays zero
    a, b = step_rows(a, b, g, rows.clock.lr, sgd)
    _write(rows, ids, kept, a, b, rows.clock.steps + 1, sgd.seed)


def sweep(rows: Rows, ids: Tensor, seed: int) -> None:
    """Bring those of the rows ids (n,) to now that were not touched for a quarter of the clock's window."""
    kept = rows.clock.steps - rows.last.index_select(0, ids) < rows.clock.sweep_every
    a, b = catch_up(rows, ids)
    _write(rows, ids, kept, a, b, rows.clock.steps, seed)


def _write(
    rows: Rows, ids: Tensor, kept: Tensor, a: Tensor, b: Tensor | None, step: Tensor, seed: int
) -> None:
    """Store rows as of `step`, but those that are kept. Equal ids come with equal values (see Groups)."""

    def put(state: Tensor, value: Tensor) -> None:
        mask = kept[:, None] if state.ndim == 2 else kept
        state.index_copy_(0, ids, torch.where(mask, state.index_select(0, ids), value))

    put(rows.alpha, round_to(a, rows.alpha.dtype, seed, step, ids, 0))
    if rows.momentum is not None and b is not None:
        put(rows.momentum, round_to(b, rows.momentum.dtype, seed, step, ids, 1))
    put(rows.last, step.to(rows.last.dtype).expand(len(ids)))


def record(accumulators: Accumulators, ids: Tensor, statistics: Tensor) -> None:
    """Add one visit a row. ids: (B,) int64, B ≥ 1, negative where there was none. statistics: (B, 5) float32. The
    same sample twice is two visits, in the batch's order."""
    seen, totals, forgetting, was_correct = accumulators
    margin, p, correct, el2n, loss = statistics.to(torch.float64).unbind(1)
    visit = torch.stack([margin, p, p * p, correct, el2n, loss], dim=1)
    groups = group_ids(ids.clamp(min=-1))
    rows, kept = groups.ids.clamp(min=0), groups.ids < 0
    right = correct > 0
    in_order = right.index_select(0, groups.order)
    before = was_correct.index_select(0, ids.clamp(min=0).index_select(0, groups.order))
    before = torch.where(groups.first, before, torch.roll(in_order, 1))
    forgot = torch.empty_like(right).index_copy_(0, groups.order, before & ~in_order)
    visits = groups.sum(torch.ones_like(p)).to(torch.int64)
    lost = groups.sum(forgot.to(torch.float64)).to(torch.int64)

    def put(state: Tensor, value: Tensor) -> None:
        held = state.index_select(0, rows)
        state.index_copy_(0, rows, torch.where(kept[:, None] if state.ndim == 2 else kept, held, value))

    put(totals, totals.index_select(0, rows) + groups.sum(visit))
    put(seen, seen.index_select(0, rows) + visits)
    put(forgetting, forgetting.index_select(0, rows) + lost)
    put(was_correct, groups.last(right))


def advance(clock: StepClock, sgd: Sgd, skip: Tensor | None) -> None:
    """Count one step, with the learning rate clock.lr. skip: () bool on the device; True counts none."""
    matrix = step_matrix(clock.lr, sgd.momentum, sgd.weight_decay, sgd.nesterov, sgd.folded)
    clock.advance(matrix, skip)
