"""The accumulators of training dynamics; see fastac/dynamics.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastac.kernels.repeats import find


class Accumulators(NamedTuple):
    """Pointers to contract.Accumulators."""

    visits: Any
    sums: Any
    forgetting: Any
    was_correct: Any


@triton.jit
def begin(recorded, ids, mask):
    """A row's record as it stands: visits, six sums, forgetting events, whether it was right (R,) each."""
    s = recorded.sums + 6 * ids
    return (
        tl.load(recorded.visits + ids, mask=mask, other=0),
        tl.load(s, mask=mask, other=0.0),
        tl.load(s + 1, mask=mask, other=0.0),
        tl.load(s + 2, mask=mask, other=0.0),
        tl.load(s + 3, mask=mask, other=0.0),
        tl.load(s + 4, mask=mask, other=0.0),
        tl.load(s + 5, mask=mask, other=0.0),
        tl.load(recorded.forgetting + ids, mask=mask, other=0),
        tl.load(recorded.was_correct + ids, mask=mask, other=0).to(tl.int32),
    )


@triton.jit
def visit(record, seen, s):
    """The record with one more visit where `seen`; s: margin, p_y, correct, EL2N, loss (R,) float32."""
    p = tl.where(seen, s[1], 0.0).to(tl.float64)
    right = (s[2] > 0).to(tl.int32)
    forgot = seen & (record[8] > 0) & (right == 0)
    return (
        record[0] + seen.to(tl.int64),
        record[1] + tl.where(seen, s[0], 0.0).to(tl.float64),
        record[2] + p,
        record[3] + p * p,
        record[4] + tl.where(seen, s[2], 0.0).to(tl.float64),
        record[5] + tl.where(seen, s[3], 0.0).to(tl.float64),
        record[6] + tl.where(seen, s[4], 0.0).to(tl.float64),
        record[7] + forgot.to(tl.int64),
        tl.where(seen, right, record[8]),
    )


@triton.jit
def end(recorded, ids, mask, record):
    s = recorded.sums + 6 * ids
    tl.store(recorded.visits + ids, record[0], mask=mask)
    tl.store(s, record[1], mask=mask)
    tl.store(s + 1, record[2], mask=mask)
    tl.store(s + 2, record[3], mask=mask)
    tl.store(s + 3, record[4], mask=mask)
    tl.store(s + 4, record[5], mask=mask)
    tl.store(s + 5, record[6], mask=mask)
    tl.store(recorded.forgetting + ids, record[7], mask=mask)
    tl.store(recorded.was_correct + ids, record[8] > 0, mask=mask)


@triton.jit
def record(recorded, index, statistics, contested, n, R: tl.constexpr, CHUNK: tl.constexpr):
    """Add one visit a position: index (n,) int64, negative for none; statistics (n, 5). See eager.record."""
    p = tl.program_id(0) * R + tl.arange(0, R)
    ids = tl.load(index + p, mask=p < n, other=-1)
    known = ids >= 0
    earlier, following = find(index, contested, p, ids, known, n, CHUNK)
    first = known & (earlier == 0)
    active = first
    held = begin(recorded, ids, first)
    while tl.max(active.to(tl.int32), 0) > 0:
        s = statistics + 5 * p.to(tl.int64)
        row = (
            tl.load(s, mask=active, other=0.0),
            tl.load(s + 1, mask=active, other=0.0),
            tl.load(s + 2, mask=active, other=0.0),
            tl.load(s + 3, mask=active, other=0.0),
            tl.load(s + 4, mask=active, other=0.0),
        )
        held = visit(held, active, row)
        p = following
        active = active & (p < n)
        earlier, following = find(index, contested, p, ids, active, n, CHUNK)
    tl.debug_barrier()  # a record may be held by several threads
    end(recorded, ids, first, held)
