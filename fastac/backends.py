"""One registry of the backends that an operation can run on.

A backend is a module with the functions of `fastac.contract.Backend`. `FASTAC_BACKEND` names one; otherwise the
first of the list that is there is taken. A named backend that is not there is an error, never a silent other choice.
"""

from __future__ import annotations

import importlib
import os
from typing import cast

import torch

from fastac.contract import Backend

__all__ = ["BACKENDS", "select"]

BACKENDS = {"reference": "fastac.eager"}
"""Name → module, best first."""


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
