"""A network's weights as a file: what a finished run leaves for use elsewhere, and what another can start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastac.extras import require

__all__ = ["load_weights", "save_weights"]

_FILES = ("model_ema.pt", "model.pt")  # of a run's folder, the better one first
_WRAPPERS = ("state_dict_ema", "state_dict", "model")  # keys under which other trainers keep the weights


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors by name, whole or not at all. `torch.load(path, weights_only=True)` reads them."""
    plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(plain, temporary)
    os.replace(temporary, path)


def load_weights(network: nn.Module, source: str | Path) -> Path:
    """Copy weights by name into the network. Returns the file that was read.

    source: a .pt or .pth file of a state dict, also one that timm or torchvision wrote; a .safetensors file; or a run's
    folder, of which the weights' average is taken where it has one. Nothing is unpickled but tensors and plain data.
    Raises FileNotFoundError, or ValueError, with the network as it was, for a file of another network.
    """
    path = _find(Path(source))
    found = _unwrapped(_read(path), path)
    own = network.state_dict()
    for name in sorted(own.keys() | found.keys()):
        if name not in found or name not in own:
            where = "has no" if name not in found else "has a"
            raise ValueError(
                f"initial_checkpoint was {path}, which {where} {name!r}; it should be of the same network"
            )
        if found[name].shape != own[name].shape:
            raise ValueError(
                f"initial_checkpoint was {path}, whose {name!r} is {tuple(found[name].shape)}; it should be "
                f"{tuple(own[name].shape)}: of the same network with as many classes"
            )
    network.load_state_dict(found)
    return path


def _find(source: Path) -> Path:
    candidates = [source / name for name in _FILES] if source.is_dir() else [source]
    for path in candidates:
        if path.is_file():
            return path
    wanted = f"a run's folder, with {' or '.join(_FILES)} in it" if source.is_dir() else "a file of weights"
    raise FileNotFoundError(f"initial_checkpoint was {str(source)!r}; it should be {wanted}")


def _read(path: Path) -> Any:
    safetensors = path.suffix == ".safetensors"
    package = require("safetensors.torch", "safetensors") if safetensors else torch
    try:
        if safetensors:
            return package.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise many types on files that are no checkpoints
        raise ValueError(
            f"initial_checkpoint was {path}, which {package.__name__} can't read: {error}"
        ) from error


def _unwrapped(state: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of what trainers wrap them in, without DDP's prefix."""
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ValueError(f"initial_checkpoint was {path}; it should hold tensors by name, a state dict")
    names = list(state)
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}
