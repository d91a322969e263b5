"""Checks of a batch's arguments, without making the host wait for the device."""

from __future__ import annotations

import operator
import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["RangeCheck", "check_batch", "check_index", "check_range", "check_size", "debugging"]


def check_size(name: str, value: Any, least: int) -> int:
    """value as an int; ValueError unless it is an integer (NumPy's too) of at least `least`."""
    try:
        size = operator.index(value)
    except TypeError:
        size = least - 1
    if size < least or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return size


def check_index(index: Tensor) -> None:
    """TypeError unless index is (n,) int64 or int32."""
    if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"index must be a vector of int64 or int32, got {tuple(index.shape)} of {index.dtype}"
        )


def check_batch(
    logits: Tensor, target: Tensor, index: Tensor | None, num_classes: int | None, weight: Tensor | None
) -> None:
    """Raise for what can be told from dtypes, shapes and devices alone."""
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (B, K), got {tuple(logits.shape)}")
    if logits.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(f"logits have K = {logits.shape[1]} classes, the table has {num_classes}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must hold class indices as int64, got {target.dtype}")
    for name, tensor in (("target", target), ("index", index)):
        if tensor is None:
            continue
        if tensor.shape != logits.shape[:1]:
            raise ValueError(f"{name} must have shape ({logits.shape[0]},), got {tuple(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, logits are on {logits.device}")
    if index is not None and index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"index must hold sample ids as int64 or int32, got {index.dtype}")
    if weight is not None and (weight.shape != logits.shape[1:] or weight.device != logits.device):
        raise ValueError(
            f"weight must have shape ({logits.shape[1]},) on {logits.device}, "
            f"got {tuple(weight.shape)} on {weight.device}"
        )


class RangeCheck:
    """Targets and ids outside their range: at once on the CPU, at a later step's end on an accelerator.

    On an accelerator the batch's largest fault is kept in `flags` and read when a copy of it has reached the host;
    FASTAC_DEBUG=1 waits for it at once. A row with a fault has no gradient and writes nothing.
    """

    def __init__(self, device: torch.device):
        self.flags = torch.zeros(2, dtype=torch.int64, device=device)  # a target, an index was outside
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def poll(self) -> None:
        """At a step's end: raise what an earlier step's copy brought, and send the next copy on its way."""
        if self.flags.device.type == "cpu" or torch.cuda.is_current_stream_capturing():
            return
        if self._copied is not None and self._copied.query():
            self._copied = None
            self._raise(self._host)
        if self._copied is None:
            if self._host is None:
                self._host = torch.zeros_like(self.flags, device="cpu").pin_memory()
            self._host.copy_(self.flags, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _raise(self, flags: Tensor | None) -> None:
        if flags is not None and bool(flags.any()):
            target, index = flags.tolist()
            self.flags.zero_()
            names = [name for name, hit in (("target", target), ("index", index)) if hit]
            raise IndexError(
                f"{' and '.join(names)} held values outside their range in an earlier batch; those rows were left "
                "out. Set FASTAC_DEBUG=1 to stop at the batch itself"
            )


def debugging() -> bool:
    """Whether values on an accelerator are to be checked at once."""
    return os.environ.get("FASTAC_DEBUG") == "1"


def check_range(
    target: Tensor, index: Tensor | None, num_classes: int, num_samples: int, ignore_index: int, flags: Tensor
) -> Tensor:
    """(B,) bool: rows whose target and index are in range (an ignored target is).

    On the CPU, or under FASTAC_DEBUG=1, a value outside raises IndexError with the value; on an accelerator it is
    noted in `flags` (2,) int64, in place.
    """
    good_target = ((target >= 0) & (target < num_classes)) | (target == ignore_index)
    good_index = torch.ones_like(good_target) if index is None else (index >= 0) & (index < num_samples)
    good = good_target & good_index
    if target.device.type == "cpu" or debugging():
        if not bool(good.all()):
            if not bool(good_target.all()):
                value = int(target[~good_target][0])
                raise IndexError(
                    f"target {value} is outside [0, {num_classes}) and is not ignore_index ({ignore_index})"
                )
            assert index is not None
            raise IndexError(f"index {int(index[~good_index][0])} is outside [0, {num_samples})")
    else:
        flags |= torch.stack([(~good_target).any(), (~good_index).any()]).to(flags.dtype)
    return good
