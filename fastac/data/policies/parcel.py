"""Many small arrays to a device in one copy, which the host does not wait for."""

from __future__ import annotations

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
        starts = np.cumsum([0] + [-(-part.nbytes // _ALIGNED) * _ALIGNED for part in self._parts])
        buffer = torch.empty(int(starts[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
        for start, part in zip(starts, self._parts, strict=False):
            buffer[start : start + part.nbytes] = torch.from_numpy(part.reshape(-1).view(np.uint8))
        sent = buffer.to(device, non_blocking=True)
        return [
            sent[start : start + part.nbytes].view(torch.from_numpy(part).dtype).view(part.shape)
            for start, part in zip(starts, self._parts, strict=False)
        ]
