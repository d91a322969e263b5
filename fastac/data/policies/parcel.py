"""Many small arrays to a device in one copy, which the host does not wait for."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

__all__ = ["Parcel"]

_ALIGNED = 8  # bytes; where a part of any type may begin


class Parcel:
    """Collects NumPy arrays and sends them together."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, part: np.ndarray) -> int:
        """Its number among the tensors that `send` returns."""
        self._parts.append(np.ascontiguousarray(part))
        return len(self._parts) - 1

    def send(self, device: torch.device) -> list[Tensor]:
        """The parts, as tensors on the device."""
        if device.type == "cpu":
            return [torch.from_numpy(part) for part in self._parts]
        return self._unpack(self._pack(pinned=device.type == "cuda").to(device, non_blocking=True))

    @property
    def _starts(self) -> list[int]:
        sizes = [-(-part.nbytes // _ALIGNED) * _ALIGNED for part in self._parts]
        return list(accumulate(sizes, initial=0))

    def _pack(self, *, pinned: bool) -> Tensor:
        """The parts' bytes, one behind the other, in host memory."""
        starts = self._starts
        buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
        for start, part in zip(starts, self._parts, strict=False):
            buffer[start : start + part.nbytes] = torch.from_numpy(part.reshape(-1).view(np.uint8))
        return buffer

    def _unpack(self, buffer: Tensor) -> list[Tensor]:
        return [
            buffer[start : start + part.nbytes].view(torch.from_numpy(part).dtype).view(part.shape)
            for start, part in zip(self._starts, self._parts, strict=False)
        ]
