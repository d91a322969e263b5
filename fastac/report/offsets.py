"""α̂ of single samples: whole rows, and the classes with the largest offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastac.issues.alpha import from_all_ranks
from fastac.table import AlphaTable

__all__ = ["CenteredRows", "TopOffsets", "centered_rows", "top_offsets"]


@dataclass(frozen=True, eq=False)
class TopOffsets:
    """α̂ of M classes of each of n samples, the highest first."""

    index: np.ndarray
    """(n,) int64: the samples' ids."""
    classes: np.ndarray
    """(n, M) int64."""
    values: np.ndarray
    """(n, M) float32: α̂ in logits."""


@dataclass(frozen=True, eq=False)
class CenteredRows:
    """α̂ of all classes of n samples, in the place of the table that it was read from."""

    index: np.ndarray
    """(n,) int64: the samples' ids."""
    values: np.ndarray
    """(n, K) float64: α̂ in logits."""


def centered_rows(alpha: Any, ids: np.ndarray, num_samples: int, num_classes: int) -> np.ndarray | None:
    """α̂ of these samples, (len(ids), K) float64; None for AC2.

    alpha: AC1's α, (N, K), or AC2's, (N,), as array or tensor; an AlphaTable, of which only these rows are read; a
    ShardedAlphaTable, then all ranks call this with the same ids and all get the rows; CenteredRows with these ids.
    """
    if isinstance(alpha, CenteredRows):
        return _looked_up(alpha, ids, num_classes)
    if isinstance(alpha, AlphaTable):
        _check_shape(alpha, num_samples, num_classes)
        if alpha.form == "ac2":
            return None
        centred = np.zeros((len(ids), num_classes))
        for positions, part in alpha.chunks_of(torch.tensor(ids)):
            centred[positions.cpu().numpy()] = _centred(part.double().cpu().numpy())
        return _finite(from_all_ranks(alpha, centred), ids)
    values = alpha.dense() if hasattr(alpha, "dense") else alpha
    values = values if isinstance(values, Tensor) else np.asarray(values)
    _check_shape(values, num_samples, num_classes)
    if values.ndim == 1:
        return None
    if isinstance(values, Tensor):
        rows = values.detach()[torch.tensor(ids, device=values.device)].double().cpu().numpy()
    else:
        rows = values[ids].astype(np.float64)
    return _finite(_centred(rows), ids)


def top_offsets(
    alpha: Any, index: np.ndarray, named: np.ndarray, *, num_samples: int, num_classes: int, count: int = 6
) -> TopOffsets | None:
    """The classes with the largest |α̂| of some samples, and those of `named` in any case.

    alpha: as for centered_rows; for AC2 the answer is None. Of a ShardedAlphaTable's rows each rank sends the result
    alone. index: (n,) int64 ids. named: (n, m) int64 classes, -1 for none. count: M, at most K.
    """
    count = min(count, num_classes)
    if not isinstance(alpha, AlphaTable):
        rows = centered_rows(alpha, index, num_samples, num_classes)
        if rows is None:
            return None
        top = _top(rows, named, count)
    else:
        _check_shape(alpha, num_samples, num_classes)
        if alpha.form == "ac2":
            return None
        top = np.zeros((2, len(index), count))
        for positions, part in alpha.chunks_of(torch.tensor(index)):
            places = positions.cpu().numpy()
            top[:, places] = _top(_centred(part.double().cpu().numpy()), named[places], count)
        top = from_all_ranks(alpha, top)
    classes, values = top
    _finite(values, index)
    return TopOffsets(index, classes.astype(np.int64), values.astype(np.float32))


def _top(rows: np.ndarray, named: np.ndarray, count: int) -> np.ndarray:
    """Of α̂ (n, K): (2, n, count) float64, classes and their values."""
    weight = np.abs(rows)
    sample, place = np.nonzero(named >= 0)
    weight[sample, named[sample, place]] = np.inf
    chosen = np.argpartition(-weight, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(rows, chosen, axis=1)
    order = np.lexsort((chosen, -values), axis=1)
    classes, values = (np.take_along_axis(part, order, axis=1) for part in (chosen, values))
    return np.stack([classes, values])


def _centred(rows: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a number that is not finite leaves none of its row finite
        centred: np.ndarray = rows - rows.mean(axis=1, keepdims=True)
    return centred


def _finite(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"alpha must be finite, it is not for sample {ids[bad][0]}")
    return values


def _check_shape(alpha: Any, num_samples: int, num_classes: int) -> None:
    if isinstance(alpha, AlphaTable):
        shape = (alpha.num_samples, alpha.num_classes) if alpha.form == "ac1" else (alpha.num_samples,)
    else:
        shape = tuple(alpha.shape)
    if shape not in ((num_samples,), (num_samples, num_classes)):
        raise ValueError(f"alpha must be ({num_samples}, {num_classes}) or ({num_samples},), got {shape}")


def _looked_up(rows: CenteredRows, ids: np.ndarray, num_classes: int) -> np.ndarray:
    if rows.values.shape != (len(rows.index), num_classes):
        raise ValueError(
            f"alpha must be of {num_classes} classes, got {rows.values.shape} of {len(rows.index)} samples"
        )
    missing = ids[~np.isin(ids, rows.index)]
    if missing.size:
        raise ValueError(f"alpha must have the rows of all ids, it lacks {missing[0]}")
    order = np.argsort(rows.index)
    values: np.ndarray = rows.values[order[np.searchsorted(rows.index, ids, sorter=order)]]
    return values
