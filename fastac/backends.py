"""One registry of the backends that an operation can run on.

A backend is a module with the functions of `Backend`. `FASTAC_BACKEND` names one; otherwise the first of the
device's list that is there is taken. A named backend that is not there is an error, never a silent other choice.
"""

from __future__ import annotations

import importlib
import os
from typing import Protocol, cast

import torch
from torch import Tensor

from fastac.clock import StepClock
from fastac.groups import Groups

__all__ = ["BACKENDS", "Backend", "select"]

BACKENDS = {"reference": "fastac.eager"}
"""Name → module, best first."""


class Backend(Protocol):
    """What a backend computes; fastac/eager.py documents each function."""

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        rows: Tensor | None,
        weight: Tensor | None,
        form: str,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]: ...

    def statistics(self, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor: ...

    def catch_up(
        self, alpha: Tensor, momentum: Tensor | None, last: Tensor, ids: Tensor, clock: StepClock
    ) -> tuple[Tensor, Tensor | None]: ...

    def update_rows(
        self,
        alpha: Tensor,
        momentum: Tensor | None,
        last: Tensor,
        groups: Groups,
        grad: Tensor,
        clock: StepClock,
        skip: Tensor | None,
        *,
        sgd_momentum: float,
        weight_decay: float,
        nesterov: bool,
        folded: bool,
        seed: int,
    ) -> None: ...

    def sweep(
        self, alpha: Tensor, momentum: Tensor | None, last: Tensor, ids: Tensor, clock: StepClock, seed: int
    ) -> None: ...


def select(device: torch.device) -> Backend:
    """The backend for tensors on `device`."""
    return _load(os.environ.get("FASTAC_BACKEND") or "reference")


_loaded: dict[str, Backend] = {}


def _load(name: str) -> Backend:
    if name not in _loaded:
        if name not in BACKENDS:
            raise ValueError(f"FASTAC_BACKEND must be one of {sorted(BACKENDS)}, got {name!r}")
        _loaded[name] = cast(Backend, importlib.import_module(BACKENDS[name]))
    return _loaded[name]
