"""The table's rows on the device: catch-up, SGD's step, rounding to the storage. Functions that kernels call."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    """Pointers to contract.Rows and its clock. momentum: None where there is none."""

    alpha: Any
    momentum: Any
    last: Any
    within: Any
    tail: Any
    steps: Any


class Sgd(NamedTuple):
    """The optimizer of the step to come. lr: pointer to the clock's. divisor: 1 − momentum if folded, else 1."""

    lr: Any
    momentum: Any
    weight_decay: Any
    divisor: Any


@triton.jit
def coefficients(rows, ids, mask, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """C(last[ids]) as four float32 vectors (clock.StepClock.coefficients); the identity where mask is off."""
    last = tl.load(rows.last + ids, mask=mask, other=0).to(tl.int64)
    old = mask & (last < tl.load(rows.steps))
    t = rows.tail + 4 * ((last // BLOCK) % (WINDOW // BLOCK))
    w = rows.within + 4 * (last % WINDOW)
    t00 = tl.load(t, mask=old, other=1.0)
    t01 = tl.load(t + 1, mask=old, other=0.0)
    t10 = tl.load(t + 2, mask=old, other=0.0)
    t11 = tl.load(t + 3, mask=old, other=1.0)
    w00 = tl.load(w, mask=old, other=1.0)
    w01 = tl.load(w + 1, mask=old, other=0.0)
    w10 = tl.load(w + 2, mask=old, other=0.0)
    w11 = tl.load(w + 3, mask=old, other=1.0)
    c00 = (t00 * w00 + t01 * w10).to(tl.float32)
    c01 = (t00 * w01 + t01 * w11).to(tl.float32)
    c10 = (t10 * w00 + t11 * w10).to(tl.float32)
    c11 = (t10 * w01 + t11 * w11).to(tl.float32)
    return c00[:, None], c01[:, None], c10[:, None], c11[:, None]


@triton.jit
def load_now(rows, offsets, mask, c):
    """α and momentum buffer of a tile as they are now, in float32. Without a buffer the second one is not used."""
    a = tl.load(rows.alpha + offsets, mask=mask, other=0.0).to(tl.float32)
    if rows.momentum is None:
        return c[0] * a, a
    else:
        b = tl.load(rows.momentum + offsets, mask=mask, other=0.0).to(tl.float32)
        return c[0] * a + c[1] * b, c[2] * a + c[3] * b


@triton.jit
def load_alpha(rows, offsets, mask, c):
    """α of a tile as it is now, in float32."""
    a = c[0] * tl.load(rows.alpha + offsets, mask=mask, other=0.0).to(tl.float32)
    if rows.momentum is not None:
        a += c[1] * tl.load(rows.momentum + offsets, mask=mask, other=0.0).to(tl.float32)
    return a


@triton.jit
def stepped(a, b, g, sgd, STEP: tl.constexpr):
    """torch.optim.SGD's step of α and buffer with the gradient g."""
    lr = tl.load(sgd.lr).to(tl.float32) / sgd.divisor
    g += sgd.weight_decay * a
    if STEP == "heavy ball":
        b = sgd.momentum * b + g
        g = b
    if STEP == "nesterov":
        b = sgd.momentum * b + g
        g += sgd.momentum * b
    return a - lr * g, b


@triton.jit
def store_state(rows, offsets, mask, a, b, bits, FOLDED: tl.constexpr):
    tl.store(rows.alpha + offsets, rounded(a, bits, 0, rows.alpha.dtype.element_ty), mask=mask)
    if rows.momentum is not None and not FOLDED:
        tl.store(rows.momentum + offsets, rounded(b, bits, 1, rows.momentum.dtype.element_ty), mask=mask)


# --- stochastic rounding: the bits of fastac/rng.py ---


@triton.jit
def rounded(x, bits, STREAM: tl.constexpr, TYPE: tl.constexpr):
    """float32 as it is; bfloat16 stochastically, with one half of the random bits (eager.round_to)."""
    if TYPE == tl.bfloat16:
        noise = (bits >> (16 * STREAM)) & 0xFFFF
        up = (x.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
        return tl.where(tl.abs(x) < float("inf"), up.to(tl.float32, bitcast=True), x).to(tl.bfloat16)
    else:
        return x.to(TYPE)


@triton.jit
def mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def absorb(x, low, high):
    x = mix((x ^ low) + 0x9E3779B9)
    return mix((x ^ high) + 0x85EBCA6B)


@triton.jit
def row_bits(seed, step, ids):
    """The hash's state after (seed, step, id), (R,) uint32. seed: after the seed alone."""
    step = step.to(tl.uint64)
    ids = ids.to(tl.uint64)
    x = absorb(tl.full([1], seed, tl.uint32), step.to(tl.uint32), (step >> 32).to(tl.uint32))
    return absorb(x, ids.to(tl.uint32), (ids >> 32).to(tl.uint32))


@triton.jit
def element_bits(row, columns):
    """32 random bits an element (R, C): after the column."""
    return absorb(row[:, None], columns[None, :].to(tl.uint32), tl.zeros([1, 1], tl.uint32))
