"""α̂ of single samples: whole rows, and the classes with the largest offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["TopOffsets", "centered_rows", "top_offsets"]


@dataclass(frozen=True, eq=False)
class TopOffsets:
    """α̂ of M classes of each of n samples, the highest first."""

    index: np.ndarray
    """(n,) int64: the samples' ids."""
    classes: np.ndarray
    """(n, M) int64."""
    values: np.ndarray
    """(n, M) float32: α̂ in logits."""


def centered_rows(alpha: Any, ids: np.ndarray, num_samples: int, num_classes: int) -> np.ndarray | None:
    """α̂ of these samples, (len(ids), K) float64; None for AC2."""
    values = alpha.dense() if hasattr(alpha, "dense") else alpha
    values = values if isinstance(values, Tensor) else np.asarray(values)
    shape = tuple(values.shape)
    if shape not in ((num_samples,), (num_samples, num_classes)):
        raise ValueError(f"alpha must be ({num_samples}, {num_classes}) or ({num_samples},), got {shape}")
    if len(shape) == 1:
        return None
    if isinstance(values, Tensor):
        rows = values.detach()[torch.tensor(ids, device=values.device)].double().cpu().numpy()
    else:
        rows = values[ids].astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(
            f"alpha must be finite, it is not for sample {ids[~np.isfinite(rows).all(axis=1)][0]}"
        )
    return rows - rows.mean(axis=1, keepdims=True)


def top_offsets(
    alpha: Any, index: np.ndarray, named: np.ndarray, *, num_samples: int, num_classes: int, count: int = 6
) -> TopOffsets | None:
    """The classes with the largest |α̂| of some samples, and those of `named` in any case.

    alpha: AC1's α, (N, K), as array, tensor or AlphaTable; for AC2's (N,) the answer is None.
    index: (n,) int64 ids. named: (n, m) int64 classes, -1 for none. count: M, at most K.
    """
    rows = centered_rows(alpha, index, num_samples, num_classes)
    if rows is None:
        return None
    weight = np.abs(rows)
    sample, place = np.nonzero(named >= 0)
    weight[sample, named[sample, place]] = np.inf
    count = min(count, num_classes)
    chosen = np.argpartition(-weight, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(rows, chosen, axis=1)
    order = np.lexsort((chosen, -values), axis=1)
    classes, values = (np.take_along_axis(part, order, axis=1) for part in (chosen, values))
    return TopOffsets(index, classes.astype(np.int64), values.astype(np.float32))
