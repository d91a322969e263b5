"""What the rankings need of α: a few numbers a row, taken by chunks, on the rank that owns the row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastac.collectives import named
from fastac.issues.checks import check_finite, check_range, ignored_labels, integer_vector
from fastac.table import AlphaTable

__all__ = [
    "AlphaStatistics",
    "alpha_statistics",
    "are_probabilities",
    "from_all_ranks",
    "given_label_alpha",
]

_CHUNK_ELEMENTS = 1 << 21  # of α worked on at once, in float64: 16 MiB
_NEAR_ONE = 1e-2  # of 1, for sums of probabilities: those of thousands of classes in half precision
_COLUMNS = ("highest", "lowest", "given_alpha", "offset", "rival_offset", "rival")


@dataclass(frozen=True, eq=False)
class AlphaStatistics:
    """α of N samples in a few numbers a sample. form: "ac1" or "ac2". num_classes: K, AC2 None. given: (N,) int64, the
    labels that it was taken with. The rest is (N,) float64, `rival` int64; of AC2 all but highest, given_alpha and
    offset, which are α, are NaN and −1, and so is what goes by the given label where that is ignored.

    highest, lowest: max_k α̂ and min_k α̂ with α̂ = α − mean_k α (Algorithm 2). given_alpha: α̂ at the given label.
    offset, rival_offset: α* at the given label and the lowest α* of the other classes, rival: its class. α* is α with
    the class that the gauge holds at zero set free: α*_0 = −Σ_{k≥1} α_k. The gradient of a row of logits sums to zero
    and the optimizer is linear, so this is what class 0 would have gathered had it been updated; α*_k ≤ 0 ≤ α*_y but
    for rounding.
    """

    form: str
    num_classes: int | None
    given: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    given_alpha: np.ndarray
    offset: np.ndarray
    rival_offset: np.ndarray
    rival: np.ndarray

    def __len__(self) -> int:
        return len(self.given)

    @property
    def rival_share(self) -> np.ndarray:
        """(N,) float64 in [0, 1]: the share of the probability that the given label did not get, over the training,
        that the rival got; 0 where α says nothing. Training adds to a row, step by step, the learning rate times
        (1 − p_y) at the given label y and −p_k at every other class k, so it is −α*_rival / α*_y."""
        known = (self.rival >= 0) & (self.offset > 0)
        offset = np.where(known, self.offset, 1.0)
        return np.clip(np.where(known, -self.rival_offset, 0.0) / offset, 0, 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes, for an .npz file."""
        columns = {f"alpha_{name}": getattr(self, name) for name in (*_COLUMNS, "given")}
        return {
            **columns,
            "alpha_form": np.array(self.form),
            "alpha_classes": np.array(self.num_classes or 0),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> AlphaStatistics:
        classes = int(arrays["alpha_classes"]) or None
        columns = {name: arrays[f"alpha_{name}"] for name in (*_COLUMNS, "given")}
        return cls(str(arrays["alpha_form"]), classes, **columns)

    @property
    def drawn(self) -> np.ndarray:
        """(N,) bool: whether training has written the row. False where it is one number (AC2: zero), as it starts, and
        where the label is ignored."""
        written = self.highest != (self.lowest if self.form == "ac1" else 0.0)
        return written & ~np.isnan(self.offset)


def alpha_statistics(source: Any, labels: Any, *, ignore_index: int = -100) -> AlphaStatistics:
    """Read α once.

    source: an AlphaTable, a ShardedAlphaTable (then all ranks call it and all get the result: each rank reads its own
        rows, and a few numbers a row are sent), anything with `dense()` and `form`, or α itself, (N, K) or (N,).
    labels: (N,) integers in [0, K), or ignore_index, which is no label.

    Memory beside `source`: 16 MiB, and eight numbers a sample. ValueError for a wrong shape, type or range, and for α
    that is not finite.
    """
    if isinstance(source, AlphaStatistics):
        given = integer_vector("labels", labels, len(source))
        if not np.array_equal(given, source.given):
            raise ValueError("labels must be those that these AlphaStatistics were taken with")
        return source
    if isinstance(source, AlphaTable):
        given = integer_vector("labels", labels, source.num_samples)
        classes = source.num_classes if source.form == "ac1" else None
        ignored = ignored_labels(given, ignore_index)
        check_range("labels", given, source.num_classes, ignored)
        columns = from_all_ranks(source, _reduced(_table_chunks(source), np.where(ignored, 0, given)))
    else:
        alpha = _alpha_array(source)
        given = integer_vector("labels", labels, len(alpha))
        classes = int(alpha.shape[1]) if alpha.ndim == 2 else None
        ignored = ignored_labels(given, ignore_index)
        check_range("labels", given, classes, ignored)
        columns = _reduced(_array_chunks(alpha), np.where(ignored, 0, given))
    check_finite(columns[:, 0])
    columns[ignored, _COLUMNS.index("given_alpha") :] = (math.nan, math.nan, math.nan, -1)
    values = dict(zip(_COLUMNS, columns.T.copy(), strict=True))
    rival = values.pop("rival").astype(np.int64)
    return AlphaStatistics("ac2" if classes is None else "ac1", classes, given, rival=rival, **values)


def given_label_alpha(source: Any, labels: Any, *, ignore_index: int = -100) -> np.ndarray:
    """α̂ at each sample's given label, (N,) float64, NaN where that is ignored; AC2: α itself. Arguments as in
    alpha_statistics."""
    return alpha_statistics(source, labels, ignore_index=ignore_index).given_alpha


def are_probabilities(source: Any) -> bool:
    """Whether a source that would be read as α is an array (N, K) of probabilities: all in [0, 1], each row's sum 1. α
    is not: the gauge holds class 0 at zero, and α* of all classes but the given one is below."""
    if hasattr(source, "dense") or isinstance(source, AlphaStatistics):
        return False
    values = _alpha_array(source)
    return values.ndim == 2 and all(_sum_to_one(rows.double()) for _, rows in _array_chunks(values))


def _sum_to_one(rows: Tensor) -> bool:
    low, high = rows.aminmax()
    inside = bool(low >= -_NEAR_ONE) and bool(high <= 1 + _NEAR_ONE)
    return inside and bool(((rows.sum(dim=1) - 1).abs() <= _NEAR_ONE).all())


def _reduced(chunks: Iterator[tuple[slice, Tensor]], given: np.ndarray) -> np.ndarray:
    """(N, columns) float64; rows that no chunk holds are zero."""
    columns = np.zeros((len(given), len(_COLUMNS)))
    for part, rows in chunks:
        if rows.ndim == 1:
            offset = rows.double().cpu().numpy()
            nothing = np.full(len(offset), math.nan)
            columns[part] = np.stack(
                [offset, nothing, offset, offset, nothing, np.full(len(offset), -1.0)], 1
            )
        else:
            label = torch.from_numpy(given[part]).to(rows.device)[:, None]
            columns[part] = _reduce_rows(rows.to(torch.float64, copy=True), label).cpu().numpy()
    return columns


def _reduce_rows(rows: Tensor, label: Tensor) -> Tensor:
    """rows: (n, K) float64, overwritten; so that the mean's rounding decides no ranks. label: (n, 1)."""
    total = rows.sum(dim=1)
    mean = total / rows.shape[1]
    low, high = rows.aminmax(dim=1)
    low, high = low - mean, high - mean
    given = rows.gather(1, label)[:, 0] - mean
    rows[:, 0] -= total
    offset = rows.gather(1, label)[:, 0]
    rival_offset, rival = rows.scatter_(1, label, math.inf).min(dim=1)
    return torch.stack([high, low, given, offset, rival_offset, rival.double()], dim=1)


def _array_chunks(alpha: np.ndarray | Tensor) -> Iterator[tuple[slice, Tensor]]:
    step = max(1, _CHUNK_ELEMENTS // (alpha.shape[1] if alpha.ndim == 2 else 1))
    for start in range(0, len(alpha), step):
        part = slice(start, min(start + step, len(alpha)))
        chunk = alpha[part]
        if isinstance(chunk, np.ndarray):
            chunk = torch.from_numpy(chunk.astype(np.float64, order="C"))
        yield part, chunk


def _table_chunks(table: AlphaTable) -> Iterator[tuple[slice, Tensor]]:
    """The rows that this rank holds."""
    for places, rows in table.chunks():
        yield slice(table.held.start + places.start, table.held.start + places.stop), rows


def from_all_ranks(table: AlphaTable, values: np.ndarray) -> np.ndarray:
    """What the ranks have of `values` together, on all of them. Each has its own rows' part and zeros elsewhere."""
    if not table.sharded or table.world_size == 1:
        return values
    whole = torch.from_numpy(values).to(table.device)
    with named("all_reduce of what the ranks read of α"):
        dist.all_reduce(whole, group=table.process_group)
    return whole.cpu().numpy()


def _alpha_array(source: Any) -> np.ndarray | Tensor:
    """α as a floating-point array or tensor, not copied: (N, K) or (N,) with N ≥ 1, K ≥ 2."""
    values, want = source, "(N, K) or (N,)"
    if hasattr(source, "dense"):
        values, want = source.dense(), "(N, K)" if source.form == "ac1" else "(N,)"
    elif hasattr(source, "aum"):
        raise ValueError(
            f"source: {type(source).__name__} holds training dynamics, no α; pass another method than 'alpha'"
        )
    values = values.detach() if isinstance(values, Tensor) else np.asarray(values)
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    shape = tuple(values.shape)
    named = {1: "(N,)", 2: "(N, K)"}.get(len(shape), "neither")
    if not floating or named not in want or shape[0] == 0:
        raise ValueError(f"source must hold floating-point numbers {want}, got {shape} {values.dtype}")
    if len(shape) == 2 and shape[1] < 2:
        raise ValueError(f"source must have at least 2 classes, got α of shape {shape}; AC2's is (N,)")
    return values
