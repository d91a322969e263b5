"""Rows that don't fit into registers: twice in chunks, and the second time most of a row is still in a cache."""

from __future__ import annotations

import triton
import triton.language as tl

from fastac.kernels.dynamics import begin, end, visit
from fastac.kernels.forward import (
    gradient,
    kept_rows,
    load_weights,
    normalise,
    put_losses,
    put_statistics,
    row_mask,
    row_of,
    state_gradient,
    training_logits,
    write_rows,
)
from fastac.kernels.repeats import find
from fastac.kernels.rows import coefficients, load_alpha, load_now
from fastac.kernels.softmax import row_factors, statistics, target_weights

LEAST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def extend(top, total, x, at_y):
    """Of each lane: its top with x in it, and Σ exp(x − top), without y's. −inf adds nothing, NaN and +inf make the
    sum NaN."""
    higher = tl.maximum(top, x)
    return higher, total * tl.exp(top - higher) + tl.where(at_y, 0.0, tl.exp(x - higher))


@triton.jit
def long_loss(
    batch,
    out,
    rows,
    c,
    p,
    active,
    num_rows,
    ignore_index,
    stride,
    smoothing,
    normaliser,
    K: tl.constexpr,
    C: tl.constexpr,
    FORM: tl.constexpr,
    SMOOTH: tl.constexpr,
    PER_ROW: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """First time through the row of position p (1,): its loss, and into out.scratch what the gradient needs: highest
    training logit, factor, gradient at y, and whether it counts (0), has a gradient (1) and may write the row (2)."""
    ids, known, y, kept = kept_rows(batch, out.flags, p, active, num_rows, ignore_index, K)
    at = p.to(tl.int64)[:, None]
    top = tl.full([1, C], LEAST, tl.float32)
    total = tl.zeros([1, C], tl.float32)
    wrong = tl.zeros([1, C], tl.int32)
    spread = tl.zeros([1, C], tl.float32)
    w_sum = tl.zeros([1, C], tl.float32)
    m_top = top
    m_total = total
    m_squares = total
    m_others = tl.full([1, C], -float("inf"), tl.float32)
    for start in range(0, K, C):
        k = start + tl.arange(0, C)
        inside = active[:, None] & (k < K)[None, :]
        at_y = k[None, :] == y[:, None]
        m = tl.load(batch.logits + at * stride + k[None, :], mask=inside, other=-float("inf")).to(tl.float32)
        wrong += tl.where(inside & ((tl.abs(m) < float("inf")) == 0), 1, 0)
        alpha = tl.zeros([1, 1], tl.float32)
        if FORM != "none":
            here = k if FORM == "ac1" else tl.arange(0, 1)
            alpha = load_alpha(rows, row_of(ids, here, FORM, K), row_mask(known, here, FORM, K), c)
        z = training_logits(m, alpha, at_y, FORM)
        before = top
        top, total = extend(top, total, z, at_y)
        w = load_weights(batch.weight, k, K)
        w_sum_before = w_sum
        w_sum += w
        if SMOOTH:
            spread += w_sum_before * (top - before) + tl.where(inside & (w > 0), w * (top - z), 0.0)
        if STATISTICS:
            m_before = m_top
            m_top, m_total = extend(m_top, m_total, m, at_y)
            shrink = tl.exp(m_before - m_top)
            e = tl.where(at_y, 0.0, tl.exp(m - m_top))
            m_squares = m_squares * shrink * shrink + e * e
            m_others = tl.maximum(m_others, tl.where(at_y, -float("inf"), m))
    column = y[:, None]
    m_y = tl.load(batch.logits + at * stride + column, mask=active[:, None], other=0.0).to(tl.float32)
    z_y = m_y
    if FORM == "ac1":
        z_y += load_alpha(rows, ids[:, None] * K + column, known[:, None], c)
    if FORM == "ac2":
        z_y += load_alpha(rows, ids[:, None], known[:, None], c)
    m_y, z_y = tl.sum(m_y, 1), tl.sum(z_y, 1)
    highest = tl.max(top, 1)
    rest = tl.sum(total * tl.exp(top - highest[:, None]), 1)
    spread = tl.sum(spread + w_sum * (highest[:, None] - top), 1)
    w_y, w_unused = target_weights(None, y, kept, K, 1)
    if batch.weight is not None:
        w_y = tl.load(batch.weight + y, mask=kept, other=0.0).to(tl.float32)
    loss, factor, g_y = row_factors(
        rest,
        tl.exp(z_y - highest),
        highest - z_y,
        spread,
        w_y,
        tl.sum(w_sum),
        smoothing,
        normaliser,
        K,
        SMOOTH,
    )
    loss = tl.where(kept, loss, 0.0)
    usable = kept & (tl.max(wrong, 1) == 0)
    sound = usable & (tl.abs(factor) < float("inf"))
    if out.ids is not None:
        tl.store(out.ids + p, tl.where(usable, ids, -1), mask=active)
    to = out.scratch + 4 * p.to(tl.int64)
    tl.store(to, highest, mask=active)
    tl.store(to + 1, factor, mask=active)
    tl.store(to + 2, g_y, mask=active)
    tl.store(to + 3, kept.to(tl.float32) + sound.to(tl.float32), mask=active)
    seen = (loss, loss, loss, loss, loss)
    if STATISTICS:
        others = tl.max(m_others, 1)
        shrink = tl.exp(m_top - tl.maximum(others, m_y)[:, None])
        seen = statistics(others, m_y, tl.sum(m_total * shrink, 1), tl.sum(m_squares * shrink * shrink, 1))
        put_statistics(out, p, active, seen)
    return put_losses(out, p, active, loss, PER_ROW), g_y, sound, usable, seen


@triton.jit
def long_gradient(
    batch,
    out,
    p,
    active,
    alpha,
    k,
    num_rows,
    ignore_index,
    stride,
    smoothing,
    normaliser,
    K: tl.constexpr,
    FORM: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """Second time, columns k: writes the gradient by the logits; returns that by α (AC1), and whether it counts."""
    y = tl.load(batch.target + p, mask=active, other=0)
    at = p.to(tl.int64)[:, None]
    known = out.scratch + 4 * p.to(tl.int64)
    highest = tl.load(known, mask=active, other=0.0)
    factor = tl.load(known + 1, mask=active, other=0.0)
    g_y = tl.load(known + 2, mask=active, other=0.0)
    state = tl.load(known + 3, mask=active, other=0.0)
    inside = active[:, None] & (k < K)[None, :]
    at_y = k[None, :] == y[:, None]
    m = tl.load(batch.logits + at * stride + k[None, :], mask=inside, other=-float("inf")).to(tl.float32)
    e = tl.exp(training_logits(m, alpha, at_y, FORM) - highest[:, None])
    g = gradient(e, k, at_y, state > 0, batch.weight, factor, g_y, smoothing, normaliser, K, SMOOTH)
    tl.store(out.grad + at * K + k[None, :], g.to(out.grad.dtype.element_ty), mask=inside)
    return g, state > 1


@triton.jit(do_not_specialize=["ignore_index", "seed"])
def forward_long(
    batch,
    out,
    rows,
    sgd,
    recorded,
    n,
    num_rows,
    num_sums,
    part,
    ignore_index: tl.int64,
    stride,
    smoothing,
    grad_output,
    seed: tl.int64,
    K: tl.constexpr,
    C: tl.constexpr,
    FORM: tl.constexpr,
    UPDATE: tl.constexpr,
    STEP: tl.constexpr,
    FOLDED: tl.constexpr,
    REPEATED: tl.constexpr,
    MEAN: tl.constexpr,
    SMOOTH: tl.constexpr,
    PER_ROW: tl.constexpr,
    STATISTICS: tl.constexpr,
    STRIDED: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One row a program; REPEATED: only rows whose id comes more than once. part: place of the first partial loss."""
    p = tl.program_id(0) + tl.arange(0, 1)
    active = p < n
    if not STRIDED:
        stride = K
    ids = tl.zeros([1], tl.int64)
    known = active
    following = tl.zeros([1], tl.int32) + n
    if batch.index is not None:
        ids = tl.load(batch.index + p, mask=active, other=-1).to(tl.int64)
        known = (ids >= 0) & (ids < num_rows)
        ids = tl.where(known, ids, 0)
    if UPDATE:
        earlier, following = find(batch.index, batch.contested, p, ids, known, n, CHUNK)
        active = active & (earlier == 0)
        if REPEATED:
            active = active & (following < n)
        known = known & active
    if tl.max(active.to(tl.int32), 0) > 0:
        normaliser = normalise(batch, out, n, num_rows, ignore_index, num_sums, K, MEAN)
        c = (active[:, None], active[:, None], active[:, None], active[:, None])
        if FORM != "none":
            c = coefficients(rows, ids, known, WINDOW, BLOCK)
        if STATISTICS and UPDATE:
            record = begin(recorded, ids, known)
        total = 0.0
        sum_y = tl.zeros([1], tl.float32)
        written = active & False
        q = p
        later = following
        here = active
        while tl.max(here.to(tl.int32), 0) > 0:
            loss, g_y, sound, usable, seen = long_loss(
                batch,
                out,
                rows,
                c,
                q,
                here,
                num_rows,
                ignore_index,
                stride,
                smoothing,
                normaliser,
                K,
                C,
                FORM,
                SMOOTH,
                PER_ROW,
                STATISTICS,
            )
            total += loss
            sum_y += tl.where(sound, g_y * grad_output, 0.0)
            written = written | sound
            if STATISTICS and UPDATE:
                record = visit(record, usable, seen)
            q = later
            here = here & known & (q < n)
            if UPDATE:
                earlier, later = find(batch.index, batch.contested, q, ids, here, n, CHUNK)
        tl.debug_barrier()
        for start in range(0, K, C):
            k = start + tl.arange(0, C)
            columns = k if FORM == "ac1" else tl.arange(0, 1)
            offsets, mask = row_of(ids, columns, FORM, K), row_mask(known, columns, FORM, K)
            a = tl.zeros([1, 1], tl.float32)
            b = a
            if FORM != "none":
                a, b = load_now(rows, offsets, mask, c)
            sum_g = tl.zeros([1, C], tl.float32)
            q = p
            later = following
            here = active
            while tl.max(here.to(tl.int32), 0) > 0:
                g, sound = long_gradient(
                    batch,
                    out,
                    q,
                    here,
                    a,
                    k,
                    num_rows,
                    ignore_index,
                    stride,
                    smoothing,
                    normaliser,
                    K,
                    FORM,
                    SMOOTH,
                )
                sum_g += tl.where(sound[:, None], g * grad_output, 0.0)
                q = later
                here = here & known & (q < n)
                if UPDATE:
                    earlier, later = find(batch.index, batch.contested, q, ids, here, n, CHUNK)
            if UPDATE and FORM == "ac1":
                g = state_gradient(sum_g, sum_y, k, FORM)
                write_rows(rows, sgd, ids, written, offsets, mask, k, a, b, g, seed, STEP, FOLDED)
        if UPDATE:
            if FORM == "ac2":
                one = tl.arange(0, 1)
                offsets, mask = row_of(ids, one, FORM, K), row_mask(known, one, FORM, K)
                a, b = load_now(rows, offsets, mask, c)
                write_rows(
                    rows, sgd, ids, written, offsets, mask, one, a, b, sum_y[:, None], seed, STEP, FOLDED
                )
            tl.store(rows.last + ids, (tl.load(rows.steps) + 1).to(tl.int32), mask=written)
            if STATISTICS:
                end(recorded, ids, known, record)
        if not PER_ROW:
            tl.store(out.loss + part + tl.program_id(0), total)
    elif not PER_ROW:
        tl.store(out.loss + part + tl.program_id(0), 0.0)
