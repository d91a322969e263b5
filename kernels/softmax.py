"""Cross entropy of a tile of rows in registers: loss, gradient and training dynamics. Functions that kernels call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def target_weights(weight, y, kept, K: tl.constexpr, COLUMNS: tl.constexpr):
    """w_y (R,), 0 for rows that are not kept, and Σ_k w_k."""
    if weight is None:
        return kept.to(tl.float32), tl.full([], K, tl.float32)
    else:
        k = tl.arange(0, COLUMNS)
        total = tl.sum(tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32), 0)
        return tl.load(weight + y, mask=kept, other=0.0).to(tl.float32), total


@triton.jit
def log_total(rest, e_y):
    """log(rest + e_y), also where the highest logit is y's (e_y = 1) and the rest is far below 1's last place."""
    small = (e_y == 1.0) & (rest < 0.0078125)
    return tl.where(small, rest * (1 - rest * (0.5 - rest * 0.33333333)), tl.log(rest + e_y))


@triton.jit
def row_factors(
    rest, e_y, gap, spread, w_y, w_all, smoothing, normaliser, K: tl.constexpr, SMOOTH: tl.constexpr
):
    """From a row's exponentials relative to its highest training logit: the loss (R,), the factor of e_k in the
    gradient, and the gradient at y.

    rest: Σ e_k without y. gap: highest − z_y. spread: Σ_k w_k (highest − z_k). The gradient is p_k Σq − q_k with
    q_k = (1 − ε) w_y [k = y] + ε/K w_k. At y it is written without p_y − 1, which cancels in confident rows, and with
    one division: a GPU's is approximate, and the difference of two would have the errors of both.
    """
    total_log = log_total(rest, e_y)
    if SMOOTH:
        each = smoothing / K
        q_y, q_others = (1 - smoothing) * w_y + each * w_y, each * (w_all - w_y)
        factor = (q_y + q_others) / (rest + e_y) / normaliser
        loss = (1 - smoothing) * w_y * gap + each * spread + (q_y + q_others) * total_log
        return loss, factor, (e_y * q_others - rest * q_y) / (rest + e_y) / normaliser
    else:
        factor = w_y / (rest + e_y) / normaliser
        return w_y * (gap + total_log), factor, -rest * factor


@triton.jit
def row_statistics(m, y, columns):
    """Training dynamics (eager.dynamics) of raw logits m (R, C), −inf past the last class: five vectors (R,)."""
    at_y = columns[None, :] == y[:, None]
    others = tl.max(tl.where(at_y, -float("inf"), m), 1)
    m_y = tl.sum(tl.where(at_y, m, 0.0), 1)
    top = tl.maximum(others, m_y)
    e = tl.where(at_y, 0.0, tl.exp(m - top[:, None]))
    return statistics(others, m_y, tl.sum(e, 1), tl.sum(e * e, 1))


@triton.jit
def statistics(others, m_y, rest, squares):
    """margin, p_y, correct, EL2N and loss from a row's highest other logit, that of y, and Σ e and Σ e² without y,
    relative to the higher of the two."""
    top = tl.maximum(others, m_y)
    e_y = tl.exp(m_y - top)
    total = rest + e_y
    el2n = tl.sqrt(squares + rest * rest) / total
    loss = log_total(rest, e_y) + (top - m_y)
    return m_y - others, e_y / total, (m_y >= others).to(tl.float32), el2n, loss
