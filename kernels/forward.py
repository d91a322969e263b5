"""The loss with α, its gradient and, with update="forward", the rows' new state: from one read of logits and rows.

forward_tile holds R whole rows in registers, up to 16,384 classes; forward_long.py goes through longer ones twice. Each
is the loss alone (update="step") or the loss and the update.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastac.kernels.dynamics import begin, end, visit
from fastac.kernels.repeats import find
from fastac.kernels.rows import (
    coefficients,
    element_bits,
    load_alpha,
    load_now,
    row_bits,
    stepped,
    store_state,
)
from fastac.kernels.softmax import row_factors, row_statistics, target_weights


class Batch(NamedTuple):
    """Pointers to what comes in. index, weight: None where there is none. contested: see repeats.py. sums: partial
    sums of Σ w_y by `kept_weight`, None where each program adds them up itself."""

    logits: Any
    target: Any
    index: Any
    weight: Any
    contested: Any
    sums: Any


class Out(NamedTuple):
    """Pointers to what goes out. loss: (B,), or a partial sum a program. normaliser: (), of reduction "mean". flags: of
    RangeCheck. scratch: (B, 4) float32, of forward_long's groups. ids, statistics, normaliser: may be None."""

    loss: Any
    grad: Any
    ids: Any
    statistics: Any
    normaliser: Any
    flags: Any
    scratch: Any


@triton.jit
def kept_rows(batch, flags, p, active, num_rows, ignore_index, K: tl.constexpr):
    """Ids and targets of positions p (R,), 0 where they are outside their range or ignored, and whether id and row
    count. Faults are noted in flags: every program writes the same 1."""
    y = tl.load(batch.target + p, mask=active, other=0)
    ignored = y == ignore_index
    y_good = (y >= 0) & (y < K)
    kept = active & y_good & (ignored == 0)
    known = active
    ids = y * 0
    if flags is not None:
        tl.store(flags, 1, mask=tl.max((active & (y_good == 0) & (ignored == 0)).to(tl.int32), 0) > 0)
    if batch.index is not None:
        ids = tl.load(batch.index + p, mask=active, other=0).to(tl.int64)
        known = active & (ids >= 0) & (ids < num_rows)
        if flags is not None:
            tl.store(flags + 1, 1, mask=tl.max((active & (known == 0)).to(tl.int32), 0) > 0)
        ids = tl.where(known, ids, 0)
        kept = kept & known
    return ids, known, tl.where(kept, y, 0).to(tl.int32), kept


@triton.jit
def weight_between(batch, start, stop, n, num_rows, ignore_index, K: tl.constexpr, CHUNK: tl.constexpr):
    """Σ w_y of the kept rows in [start, stop), always in the same order."""
    total = tl.zeros([CHUNK], tl.float32)
    for begins in range(start, stop, CHUNK):
        p = begins + tl.arange(0, CHUNK)
        ids, known, y, kept = kept_rows(batch, None, p, p < n, num_rows, ignore_index, K)
        if batch.weight is None:
            total += kept.to(tl.float32)
        else:
            total += tl.load(batch.weight + y, mask=kept, other=0.0).to(tl.float32)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["ignore_index"])
def kept_weight(
    batch, n, num_rows, ignore_index: tl.int64, K: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr
):
    """One partial sum a program, of SPAN rows, into batch.sums."""
    start = tl.program_id(0) * SPAN
    total = weight_between(batch, start, start + SPAN, n, num_rows, ignore_index, K, CHUNK)
    tl.store(batch.sums + tl.program_id(0), total)


@triton.jit
def normalise(batch, out, n, num_rows, ignore_index, num_sums, K: tl.constexpr, MEAN: tl.constexpr):
    """What the loss's sum is divided by."""
    if MEAN:
        if batch.sums is None:
            total = weight_between(batch, 0, n, n, num_rows, ignore_index, K, 1024)
        else:
            parts = tl.zeros([1024], tl.float32)
            for begins in range(0, num_sums, 1024):
                i = begins + tl.arange(0, 1024)
                parts += tl.load(batch.sums + i, mask=i < num_sums, other=0.0)
            total = tl.sum(parts, 0)
        tl.store(out.normaliser, total)  # the same in every program
        return total
    else:
        return tl.full([], 1.0, tl.float32)


@triton.jit
def put_losses(out, p, active, loss, PER_ROW: tl.constexpr):
    """Losses (R,) where they are asked for; their sum otherwise."""
    if PER_ROW:
        tl.store(out.loss + p, loss, mask=active)
    return tl.sum(tl.where(active, loss, 0.0), 0)


@triton.jit
def put_statistics(out, p, active, s):
    if out.statistics is not None:
        to = out.statistics + 5 * p.to(tl.int64)
        tl.store(to, s[0], mask=active)
        tl.store(to + 1, s[1], mask=active)
        tl.store(to + 2, s[2], mask=active)
        tl.store(to + 3, s[3], mask=active)
        tl.store(to + 4, s[4], mask=active)


@triton.jit
def row_of(ids, k, FORM: tl.constexpr, K: tl.constexpr):
    """Where the rows' columns k lie in the table, (R, C); AC2 (R, 1)."""
    if FORM == "ac1":
        return ids[:, None] * K + k[None, :]
    else:
        return ids[:, None]


@triton.jit
def row_mask(known, k, FORM: tl.constexpr, K: tl.constexpr):
    if FORM == "ac1":
        return known[:, None] & (k < K)[None, :]
    else:
        return known[:, None]


@triton.jit
def training_logits(m, alpha, at_y, FORM: tl.constexpr):
    if FORM == "ac1":
        return m + alpha
    elif FORM == "ac2":
        return tl.where(at_y, m + alpha, m)
    else:
        return m


@triton.jit
def load_weights(weight, k, K: tl.constexpr):
    """Class weights (1, C), 0 past the last class."""
    if weight is None:
        return tl.where(k < K, 1.0, 0.0)[None, :]
    else:
        return tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32)[None, :]


@triton.jit
def gradient(
    e, k, at_y, kept, weight, factor, g_y, smoothing, normaliser, K: tl.constexpr, SMOOTH: tl.constexpr
):
    """∂loss/∂z (R, C) from exponentials relative to the highest training logit; see row_factors."""
    g = e * factor[:, None]
    if SMOOTH:
        g -= load_weights(weight, k, K) * (smoothing / K / normaliser)
    return tl.where(kept[:, None], tl.where(at_y, g_y[:, None], g), 0.0)


@triton.jit
def state_gradient(g, g_y, k, FORM: tl.constexpr):
    """The rows' gradient: AC1 (R, C) without the gauge's column, AC2 (R, 1)."""
    if FORM == "ac1":
        return tl.where((k == 0)[None, :], 0.0, g)
    else:
        return g_y[:, None]


@triton.jit
def tile_loss(
    batch,
    out,
    p,
    active,
    alpha,
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
    """Loss of positions p (R,), whole rows in registers: their sum, the gradient by α, which of them may write it,
    which are a visit, and their statistics. alpha: (R, C), AC2 (R, 1)."""
    ids, known, y, kept = kept_rows(batch, out.flags, p, active, num_rows, ignore_index, K)
    k = tl.arange(0, C)
    inside = active[:, None] & (k < K)[None, :]
    at_y = k[None, :] == y[:, None]
    at = p.to(tl.int64)[:, None]
    m = tl.load(batch.logits + at * stride + k[None, :], mask=inside, other=-float("inf")).to(tl.float32)
    finite = tl.max(tl.where(inside & ((tl.abs(m) < float("inf")) == 0), 1, 0), 1) == 0
    z = training_logits(m, alpha, at_y, FORM)
    top = tl.max(z, 1)
    z_y = tl.sum(tl.where(at_y, z, 0.0), 1)
    w_y, w_all = target_weights(batch.weight, y, kept, K, C)
    spread = top
    if SMOOTH:
        w = load_weights(batch.weight, k, K)
        spread = tl.sum(tl.where(inside & (w > 0), w * (top[:, None] - z), 0.0), 1)
    e = tl.exp(z - top[:, None])
    rest = tl.sum(tl.where(at_y, 0.0, e), 1)
    e_y = tl.exp(z_y - top)
    loss, factor, g_y = row_factors(
        rest, e_y, top - z_y, spread, w_y, w_all, smoothing, normaliser, K, SMOOTH
    )
    g = gradient(e, k, at_y, kept, batch.weight, factor, g_y, smoothing, normaliser, K, SMOOTH)
    tl.store(out.grad + at * K + k[None, :], g.to(out.grad.dtype.element_ty), mask=inside)
    loss = tl.where(kept, loss, 0.0)
    total = put_losses(out, p, active, loss, PER_ROW)
    usable = kept & finite
    if out.ids is not None:
        tl.store(out.ids + p, tl.where(usable, ids, -1), mask=active)
    seen = (loss, loss, loss, loss, loss)
    if STATISTICS:
        seen = row_statistics(m, y, k)
        put_statistics(out, p, active, seen)
    return total, state_gradient(g, g_y, k, FORM), usable & (tl.abs(factor) < float("inf")), usable, seen


@triton.jit
def write_rows(
    rows, sgd, ids, written, offsets, mask, k, a, b, g, seed, STEP: tl.constexpr, FOLDED: tl.constexpr
):
    """SGD's step of a tile, and its storage. All threads have read the row's state before one writes it."""
    tl.debug_barrier()
    a, b = stepped(a, b, g, sgd, STEP)
    bits = tl.zeros([1, 1], tl.uint32)
    if rows.alpha.dtype.element_ty == tl.bfloat16:
        bits = element_bits(row_bits(seed, tl.load(rows.steps) + 1, ids), k)
    store_state(rows, offsets, mask & written[:, None], a, b, bits, FOLDED)


@triton.jit(do_not_specialize=["ignore_index", "seed"])
def forward_tile(
    batch,
    out,
    rows,
    sgd,
    recorded,
    n,
    num_rows,
    num_sums,
    ignore_index: tl.int64,
    stride,
    smoothing,
    grad_output,
    seed: tl.int64,
    K: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    FORM: tl.constexpr,
    UPDATE: tl.constexpr,
    STEP: tl.constexpr,
    FOLDED: tl.constexpr,
    APART: tl.constexpr,
    MEAN: tl.constexpr,
    SMOOTH: tl.constexpr,
    PER_ROW: tl.constexpr,
    STATISTICS: tl.constexpr,
    STRIDED: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """R rows a program. APART: rows whose id is repeated are left to forward_long, for lack of registers."""
    p = tl.program_id(0) * R + tl.arange(0, R)
    active = p < n
    if not STRIDED:
        stride = K
    normaliser = normalise(batch, out, n, num_rows, ignore_index, num_sums, K, MEAN)
    k = tl.arange(0, C if FORM == "ac1" else 1)
    total = 0.0
    if UPDATE:
        ids = tl.load(batch.index + p, mask=active, other=-1).to(tl.int64)
        known = (ids >= 0) & (ids < num_rows)
        ids = tl.where(known, ids, 0)
        earlier, following = find(batch.index, batch.contested, p, ids, known, n, CHUNK)
        active = active & (earlier == 0)
        if APART:
            active = active & (following == n)
        known = known & active
        offsets, mask = row_of(ids, k, FORM, K), row_mask(known, k, FORM, K)
        a, b = load_now(rows, offsets, mask, coefficients(rows, ids, known, WINDOW, BLOCK))
        g = a * 0.0
        written = active & False
        if STATISTICS:
            record = begin(recorded, ids, known)
        if APART:
            total, g, written, usable, seen = tile_loss(
                batch,
                out,
                p,
                active,
                a,
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
            if STATISTICS:
                record = visit(record, usable, seen)
            g *= grad_output
            a, b = load_now(rows, offsets, mask, coefficients(rows, ids, known, WINDOW, BLOCK))
        else:
            while tl.max(active.to(tl.int32), 0) > 0:
                loss, gradient_p, sound, usable, seen = tile_loss(
                    batch,
                    out,
                    p,
                    active,
                    a,
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
                g += tl.where(sound[:, None], gradient_p * grad_output, 0.0)
                written = written | sound
                if STATISTICS:
                    record = visit(record, usable, seen)
                p = following
                active = active & known & (p < n)
                earlier, following = find(batch.index, batch.contested, p, ids, active, n, CHUNK)
        write_rows(rows, sgd, ids, written, offsets, mask, k, a, b, g, seed, STEP, FOLDED)
        tl.store(rows.last + ids, (tl.load(rows.steps) + 1).to(tl.int32), mask=written)
        if STATISTICS:
            end(recorded, ids, known, record)
    else:
        alpha = tl.zeros([1, 1], tl.float32)
        if FORM != "none":
            ids, known, y, kept = kept_rows(batch, None, p, active, num_rows, ignore_index, K)
            c = coefficients(rows, ids, known, WINDOW, BLOCK)
            alpha = load_alpha(rows, row_of(ids, k, FORM, K), row_mask(known, k, FORM, K), c)
        total, g, written, usable, seen = tile_loss(
            batch,
            out,
            p,
            active,
            alpha,
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
    if not PER_ROW:
        tl.store(out.loss + tl.program_id(0), total)


@triton.jit
def reduce_loss(parts, normaliser, loss, num_parts, CHUNK: tl.constexpr):
    """loss = Σ parts, over normaliser if there is one, by one program in a fixed order, in float64."""
    total = tl.zeros([CHUNK], tl.float64)
    for start in range(0, num_parts, CHUNK):
        i = start + tl.arange(0, CHUNK)
        total += tl.load(parts + i, mask=i < num_parts, other=0.0).to(tl.float64)
    result = tl.sum(total, 0)
    if normaliser is not None:
        result /= tl.load(normaliser).to(tl.float64)
    tl.store(loss, result.to(tl.float32))
