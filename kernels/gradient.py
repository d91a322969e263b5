"""The gradient by the logits, from that of the loss at hand and the incoming one."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def backward(grad, scale, out, size, K: tl.constexpr, PER_ROW: tl.constexpr, CHUNK: tl.constexpr):
    """out = grad · scale, (B, K) of `size` elements, in out's dtype. scale: () or with PER_ROW (B,)."""
    i = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    mask = i < size
    if PER_ROW:
        s = tl.load(scale + i // K, mask=mask, other=0.0).to(tl.float32)
    else:
        s = tl.load(scale).to(tl.float32)
    g = tl.load(grad + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + i, (g * s).to(out.dtype.element_ty), mask=mask)


@triton.jit
def scale_gradient(grad, scale, size, CHUNK: tl.constexpr):
    """grad *= scale, (); nothing is touched where it is 1."""
    s = tl.load(scale).to(tl.float32)
    if s != 1.0:
        i = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
        g = tl.load(grad + i, mask=i < size, other=0.0).to(tl.float32)
        tl.store(grad + i, (g * s).to(grad.dtype.element_ty), mask=i < size)
