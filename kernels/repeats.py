"""Ids that come more than once in a batch, without atomics, sorting or a wait.

The program of an id's first position does all of its positions, one after the other: it reads the row once and writes
it once, with the gradients summed in the batch's order. Programs of later positions leave.

Small batches: each program looks through the batch's ids itself. Large ones: `mark` and `contest` first find the
positions whose id is repeated, and only those look.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scan(index, p, ids, known, n, CHUNK: tl.constexpr):
    """For positions p (R,) with ids (R,): whether an earlier position has the same id, and the next one that has (n
    where there is none). known: (R,) bool, the others match nothing."""
    earlier = tl.zeros(p.shape, tl.int32)
    following = tl.zeros(p.shape, tl.int32) + n
    for start in range(0, n, CHUNK):
        j = start + tl.arange(0, CHUNK)
        other = tl.load(index + j, mask=j < n, other=-1).to(tl.int64)
        same = (ids[:, None] == other[None, :]) & known[:, None] & (j < n)[None, :]
        before = same & (j[None, :] < p[:, None])
        after = same & (j[None, :] > p[:, None])
        earlier = tl.maximum(earlier, tl.max(before.to(tl.int32), 1))
        following = tl.minimum(following, tl.min(tl.where(after, j[None, :], n), 1))
    return earlier > 0, following


@triton.jit
def find(index, contested, p, ids, known, n, CHUNK: tl.constexpr):
    """`scan`, but only if one of the positions is contested, where that is known."""
    earlier = tl.zeros(p.shape, tl.int1)
    following = tl.zeros(p.shape, tl.int32) + n
    if contested is None:
        earlier, following = scan(index, p, ids, known, n, CHUNK)
    else:
        here = tl.load(contested + p, mask=known, other=0).to(tl.int32)
        if tl.max(here, 0) > 0:
            earlier, following = scan(index, p, ids, known, n, CHUNK)
    return earlier, following


@triton.jit
def mark(index, slot, contested, n, num_rows, CHUNK: tl.constexpr):
    """slot[id] = one of the id's positions, whichever comes last; contested[i] = 0."""
    i = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    ids = tl.load(index + i, mask=i < n, other=-1).to(tl.int64)
    tl.store(slot + ids, i, mask=(ids >= 0) & (ids < num_rows))
    tl.store(contested + i, 0, mask=i < n)


@triton.jit
def contest(index, slot, contested, n, num_rows, CHUNK: tl.constexpr):
    """contested = 1 for all positions of an id that has more than one, whoever won its slot."""
    i = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    ids = tl.load(index + i, mask=i < n, other=-1).to(tl.int64)
    known = (ids >= 0) & (ids < num_rows)
    winner = tl.load(slot + ids, mask=known, other=0)
    lost = known & (winner != i)
    tl.store(contested + i, 1, mask=lost)
    tl.store(contested + winner, 1, mask=lost)
