"""One registry of the backends that an operation can run on.

A backend is a module with the functions of `fastac.contract.Backend`. `FASTAC_BACKEND` names one; otherwise the
first of the list that can be imported and is made for the device is taken. Which one that is, and why a better one
was not, is logged once a device (logger `fastac`). A named backend that is not there is an error, never a silent
other choice.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import NamedTuple, cast

import torch

from fastac.contract import Backend

__all__ = ["BACKENDS", "Entry", "select"]


class Entry(NamedTuple):
    """A backend's module, and the types of devices that it is made for; () is any."""

    module: str
    devices: tuple[str, ...]


BACKENDS = {
    "cuda": Entry("fastac.cuda", ("cuda",)),
    "triton": Entry("fastac.triton", ("cuda",)),
    "cpu": Entry("fastac.cpu", ("cpu",)),
    "reference": Entry("fastac.eager", ()),
}
"""Name → entry, best first. Every backend takes what it is not made for to fastac.eager."""

_log = logging.getLogger("fastac")
_loaded: dict[str, Backend] = {}
_chosen: dict[str, Backend] = {}


def select(device: torch.device) -> Backend:
    """The backend for tensors on `device`."""
    if "FASTAC_BACKEND" in os.environ and (
        name := os.environ["FASTAC_BACKEND"]
    ):  # get() costs four times as much
        return _load(name)
    if device.type not in _chosen:
        _chosen[device.type] = _first(device.type)
    return _chosen[device.type]


def _first(device: str) -> Backend:
    for name, entry in BACKENDS.items():
        if entry.devices and device not in entry.devices:
            continue
        try:
            backend = _load(name)
        except (ImportError, OSError) as error:
            _log.warning("backend %s is not used for %s tensors: %s", name, device, error)
            continue
        _log.info("backend %s is used for %s tensors", name, device)
        return backend
    raise RuntimeError(f"there is no backend for {device} tensors")


def _load(name: str) -> Backend:
    if name not in _loaded:
        if name not in BACKENDS:
            raise ValueError(f"FASTAC_BACKEND must be one of {sorted(BACKENDS)}, got {name!r}")
        _loaded[name] = cast(Backend, importlib.import_module(BACKENDS[name].module))
    return _loaded[name]
