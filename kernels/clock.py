"""One step of the clock; see fastac/clock.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply_from_left(m, pointer):
    """pointer[...] = m · pointer[...], 2×2 matrices."""
    a, b = tl.load(pointer), tl.load(pointer + 1)
    c, d = tl.load(pointer + 2), tl.load(pointer + 3)
    tl.debug_barrier()  # a matrix may be held by several threads
    tl.store(pointer, m[0] * a + m[1] * c)
    tl.store(pointer + 1, m[0] * b + m[1] * d)
    tl.store(pointer + 2, m[2] * a + m[3] * c)
    tl.store(pointer + 3, m[2] * b + m[3] * d)


@triton.jit
def store_identity(pointer):
    k = tl.arange(0, 4)
    tl.store(pointer + k, tl.where((k == 0) | (k == 3), 1.0, 0.0).to(tl.float64))


@triton.jit(do_not_specialize=["momentum", "weight_decay"])
def advance(
    lr,
    steps,
    within,
    tail,
    skip,
    momentum: tl.float64,
    weight_decay: tl.float64,
    STEP: tl.constexpr,
    FOLDED: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count one step, by one program. skip: () bool or None. The matrix is clock.step_matrix's."""
    counts = True
    if skip is not None:
        counts = tl.load(skip) == 0
    if counts:
        eta = tl.load(lr)
        mu = tl.full([], momentum, tl.float64)
        decay = tl.full([], weight_decay, tl.float64)
        if FOLDED:
            decay /= 1 - mu
        m = (1 - eta * decay, eta * 0, eta * 0, eta * 0 + 1)
        if STEP == "nesterov":
            m = (1 - eta * (decay * (1 + mu)), -eta * mu * mu, eta * 0 + decay, eta * 0 + mu)
        if STEP == "heavy ball":
            m = (1 - eta * decay, -eta * mu, eta * 0 + decay, eta * 0 + mu)
        step = tl.load(steps)
        block = step // BLOCK
        lanes = (block * BLOCK + tl.arange(0, BLOCK)) % WINDOW
        multiply_from_left(m, within + 4 * lanes)
        multiply_from_left(m, tail + 4 * tl.arange(0, WINDOW // BLOCK))
        tl.debug_barrier()
        # The new step's own product, and the tails of blocks that no later one follows, are the identity.
        store_identity(within + 4 * ((step + 1) % WINDOW))
        store_identity(tail + 4 * (block % (WINDOW // BLOCK)))
        store_identity(tail + 4 * (((step + 1) // BLOCK) % (WINDOW // BLOCK)))
        tl.store(steps, step + 1)
