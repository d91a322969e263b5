"""The rows without a loss: the optimizer's step with staged gradients, reading, and the sweep."""

from __future__ import annotations

import triton
import triton.language as tl

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


@triton.jit
def load_gradient(grad, scale, p, k, active, K: tl.constexpr, PER_ROW: tl.constexpr):
    """Staged gradients (R, C), times their scale."""
    mask = active[:, None] & (k < K)[None, :]
    g = tl.load(grad + p.to(tl.int64)[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
    if scale is None:
        return g
    elif PER_ROW:
        return g * tl.load(scale + p, mask=active, other=0.0).to(tl.float32)[:, None]
    else:
        return g * tl.load(scale).to(tl.float32)


@triton.jit
def finite_rows(g):
    return tl.max(tl.where(tl.abs(g) < float("inf"), 0, 1), 1) == 0


@triton.jit
def finite_gradient(grad, scale, p, active, K: tl.constexpr, C: tl.constexpr, PER_ROW: tl.constexpr):
    """Whether the gradients of positions p (R,) are finite in all columns."""
    good = active
    for start in range(0, K, C):
        k = start + tl.arange(0, C)
        good = good & finite_rows(load_gradient(grad, scale, p, k, active, K, PER_ROW))
    return good


@triton.jit
def written_rows(grad, scale, contested, index, p, following, active, ids, n, K, C, PER_ROW, CHUNK):
    """Whether one of the positions of each row's group has a finite gradient."""
    written = active & False
    while tl.max(active.to(tl.int32), 0) > 0:
        written = written | finite_gradient(grad, scale, p, active, K, C, PER_ROW)
        p = following
        active = active & (p < n)
        earlier, following = find(index, contested, p, ids, active, n, CHUNK)
    return written


@triton.jit(do_not_specialize=["seed"])
def update_rows(
    rows,
    sgd,
    index,
    grad,
    scale,
    skip,
    contested,
    n,
    seed: tl.int64,
    K: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    GAUGE: tl.constexpr,
    PER_ROW: tl.constexpr,
    STEP: tl.constexpr,
    FOLDED: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """R positions a program, C columns at a time; see eager.update_rows. index: (n,) int64, negative for none. grad:
    (n, K), AC2 with K = 1. scale: None, () or with PER_ROW (n,). skip: () bool or None."""
    counts = True
    if skip is not None:
        counts = tl.load(skip) == 0
    if counts:
        p = tl.program_id(0) * R + tl.arange(0, R)
        ids = tl.load(index + p, mask=p < n, other=-1)
        known = ids >= 0
        earlier, following = find(index, contested, p, ids, known, n, CHUNK)
        known = known & (earlier == 0)
        ids = tl.where(known, ids, 0)
        c = coefficients(rows, ids, known, WINDOW, BLOCK)
        step = tl.load(rows.steps) + 1
        written = known
        several = False
        if C < K:  # a row is written in parts, so whether it is must be known before
            written = written_rows(
                grad, scale, contested, index, p, following, known, ids, n, K, C, PER_ROW, CHUNK
            )
            several = tl.max((known & (following < n)).to(tl.int32), 0) > 0
        for start in range(0, K, C):
            k = start + tl.arange(0, C)
            total = tl.zeros([R, C], tl.float32)
            sound = known & False
            q = p
            later = following
            active = known
            while tl.max(active.to(tl.int32), 0) > 0:
                g = load_gradient(grad, scale, q, k, active, K, PER_ROW)
                good = active & finite_rows(g)
                if C < K:  # a row's only gradient is finite where the row is written
                    good = active & written
                    if several:
                        good = active & finite_gradient(grad, scale, q, active, K, C, PER_ROW)
                total += tl.where(good[:, None], g, 0.0)
                sound = sound | good
                q = later
                active = active & (q < n)
                ignored, later = find(index, contested, q, ids, active, n, CHUNK)
            if C >= K:
                written = sound
            if GAUGE:
                total = tl.where((k == 0)[None, :], 0.0, total)
            offsets = ids[:, None] * K + k[None, :]
            mask = written[:, None] & (k < K)[None, :]
            a, b = load_now(rows, offsets, mask, c)
            tl.debug_barrier()  # all threads have read the row's state before one writes it
            a, b = stepped(a, b, total, sgd, STEP)
            bits = tl.zeros([1, 1], tl.uint32)
            if rows.alpha.dtype.element_ty == tl.bfloat16:
                bits = element_bits(row_bits(seed, step, ids), k)
            store_state(rows, offsets, mask, a, b, bits, FOLDED)
        tl.store(rows.last + ids, step.to(tl.int32), mask=written)


@triton.jit
def read_rows(
    rows,
    index,
    out,
    n,
    K: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (n, K) float32 = α of rows index (n,) int64 as they are now."""
    p = tl.program_id(0) * R + tl.arange(0, R)
    ids = tl.load(index + p, mask=p < n, other=0)
    c = coefficients(rows, ids, p < n, WINDOW, BLOCK)
    for start in range(0, K, C):
        k = start + tl.arange(0, C)
        mask = (p < n)[:, None] & (k < K)[None, :]
        a = load_alpha(rows, ids[:, None] * K + k[None, :], mask, c)
        tl.store(out + p.to(tl.int64)[:, None] * K + k[None, :], a, mask=mask)


@triton.jit(do_not_specialize=["seed"])
def sweep(
    rows,
    index,
    n,
    sweep_every,
    seed: tl.int64,
    K: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bring rows index (n,) int64 that are sweep_every steps old, or older, to now."""
    p = tl.program_id(0) * R + tl.arange(0, R)
    ids = tl.load(index + p, mask=p < n, other=0)
    step = tl.load(rows.steps)
    age = step - tl.load(rows.last + ids, mask=p < n, other=0).to(tl.int64)
    old = (p < n) & (age >= sweep_every)
    if tl.max(old.to(tl.int32), 0) > 0:
        c = coefficients(rows, ids, old, WINDOW, BLOCK)
        for start in range(0, K, C):
            k = start + tl.arange(0, C)
            offsets, mask = ids[:, None] * K + k[None, :], old[:, None] & (k < K)[None, :]
            a, b = load_now(rows, offsets, mask, c)
            tl.debug_barrier()  # as in update_rows
            bits = tl.zeros([1, 1], tl.uint32)
            if rows.alpha.dtype.element_ty == tl.bfloat16:
                bits = element_bits(row_bits(seed, step, ids), k)
            store_state(rows, offsets, mask, a, b, bits, False)
        tl.store(rows.last + ids, step.to(tl.int32), mask=old)
