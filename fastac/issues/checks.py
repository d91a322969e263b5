"""Checks of the arguments that rankings are made from."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = [
    "ClassNames",
    "check_finite",
    "check_percent",
    "check_range",
    "class_count",
    "count_and_ids",
    "host",
    "ignored_labels",
    "integer_vector",
    "listed_names",
    "vector",
]

ClassNames = Sequence[str] | Mapping[int, str] | Mapping[str, str]
"""K names by class: in order, or {0: …, 1: …} as transformers' id2label, or {"0": …} as that is in a config.json."""


def host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def integer_vector(name: str, values: Any, length: int) -> np.ndarray:
    """(N,) int64; bool is 0 and 1."""
    array = host(values)
    if array.dtype.kind not in "biu" or array.shape != (length,):
        raise ValueError(f"{name} must be ({length},) integers, got {array.shape} {array.dtype}")
    return array.astype(np.int64)


def vector(values: Any) -> np.ndarray:
    """(N,) float64, a copy."""
    array = values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(np.float64)


def listed_names(class_names: ClassNames) -> list[str]:
    """K names in the classes' order."""
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a sequence of names, got one string {class_names!r}")
    if not isinstance(class_names, Mapping):
        return [str(name) for name in class_names]
    by_class = {str(key): str(name) for key, name in class_names.items()}
    ordered = [str(k) for k in range(len(class_names))]
    if by_class.keys() != set(ordered):
        raise ValueError(
            f"class_names must have a name for each class from 0 to K − 1, got the keys {list(class_names)[:10]}"
        )
    return [by_class[key] for key in ordered]


def class_count(known: int | None, class_names: Sequence[str] | None) -> int | None:
    """K as the scores or class_names have it; None where neither does."""
    if class_names is None:
        return known
    if known not in (None, len(class_names)):
        raise ValueError(f"class_names must be {known} names, one a class, got {len(class_names)}")
    return len(class_names)


def check_percent(name: str, percent: float) -> None:
    number = isinstance(percent, numbers.Real) and not isinstance(percent, bool)
    if not number or not 0 <= percent <= 100:
        raise ValueError(f"{name} must be a number from 0 to 100, got {percent!r}")


def ignored_labels(labels: np.ndarray, ignore_index: int) -> np.ndarray:
    """(N,) bool: where a label is ignore_index."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise ValueError(f"ignore_index must be an integer, got {ignore_index!r}")
    return labels == int(ignore_index)


def check_range(
    name: str, labels: np.ndarray, num_classes: int | None, ignored: np.ndarray | None = None
) -> None:
    """ValueError for a label outside [0, K) that is not ignored."""
    bad = (labels < 0) | (labels >= (math.inf if num_classes is None else num_classes))
    if ignored is not None:
        bad &= ~ignored
    if bad.any():
        want = "0 or more" if num_classes is None else f"in [0, {num_classes})"
        raise ValueError(f"{name} must be {want}, got {labels[bad][0]} for {count_and_ids(bad)}")


def check_finite(alpha: np.ndarray) -> None:
    if not np.isfinite(alpha).all():
        bad = count_and_ids(~np.isfinite(alpha))
        raise ValueError(f"source: α must be finite, it is NaN or infinite for {bad}")


def count_and_ids(bad: np.ndarray) -> str:
    ids = np.flatnonzero(bad)
    first = ", ".join(str(i) for i in ids[:5])
    return f"{len(ids)} of {len(bad)} samples (ids {first}{', …' if len(ids) > 5 else ''})"
