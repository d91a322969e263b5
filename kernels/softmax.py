"""Cross entropy of a tile of rows in registers: loss, gradient and training dynamics. Functions that kernels call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def target_weights(weight, y, kept, K: tl.constexpr, COLUMNS: tl.constexpr):
    """w_y (R,), 0 for rows that are not kept, and Σ_k w_k."""
    if weight is None:
        return kept.to(tl.float32), K * 1.0
    k = tl.arange(0, COLUMNS)
    total = tl.sum(tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32), 0)
    return tl.load(weight + y, mask=kept, other=0.0).to(tl.float32), total


@triton.jit
def row_factors(rest, e_y, gap, spread, w_y, w_all, smoothing, normaliser, K: tl.constexpr, SMOOTH: tl.constexpr):
    """From a row's exponentials relative to its highest training logit: the loss (R,), the factor of e_k in the
    gradient, and the gradient at y. In float64, R numbers each.

    rest: Σ e_k without y. gap: highest − z_y. spread: Σ_k w_k (highest − z_k). The gradient is p_k Σq − q_k with
    q_k = (1 − ε) w_y [k = y] + ε/K w_k. At y it is written without p_y − 1, which cancels in confident rows.
    """
    rest = rest.to(tl.float64)
    total = rest + e_y.to(tl.float64)
    sum_q = w_y.to(tl.float64)
    at_y = tl.zeros(rest.shape, tl.float64)
    loss = sum_q * gap.to(tl.float64)
    if SMOOTH:
        each = tl.full([], smoothing, tl.float64) / K
        sum_q = (1 - each * K) * w_y + each * w_all
        at_y = each * (w_all - w_y)
        loss = loss * (1 - each * K) + each * spread.to(tl.float64)
    loss += sum_q * tl.log(total)
    factor = sum_q / (total * normaliser)
    at_y = at_y / normaliser - rest * factor
    return loss.to(tl.float32), factor.to(tl.float32), at_y.to(tl.float32)


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
    rest = rest.to(tl.float64)
    e_y = tl.exp(m_y - top).to(tl.float64)
    total = rest + e_y
    el2n = tl.sqrt(squares.to(tl.float64) + rest * rest) / total
    loss = tl.log(total) + (top - m_y).to(tl.float64)
    correct = (m_y >= others).to(tl.float32)
    return m_y - others, (e_y / total).to(tl.float32), correct, el2n.to(tl.float32), loss.to(tl.float32)

