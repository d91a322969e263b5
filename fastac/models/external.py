"""Networks of timm and torchvision by name, without pretrained weights. Neither package is needed for anything else."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["LIBRARIES", "create_external"]

LIBRARIES = ("timm", "torchvision")


def create_external(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """The network `timm:NAME` or `torchvision:NAME`, its weights drawn from torch's global random state.

    Raises ImportError, with the command that mends it, where the package is missing or can't be imported; ValueError
    for a name that it has no image classifier of, and for other than 3 channels in torchvision.
    """
    library, _, model = name.partition(":")
    package = _import(library, name)
    if library == "timm":
        if not package.is_model(model):
            raise _unknown(name, library, package.list_models())
        return package.create_model(model, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=models)  # without those for detection, segmentation, video
    if model not in known:
        raise _unknown(name, library, known)
    if in_channels != 3:
        raise ValueError(
            f"in_channels is {in_channels}; it should be 3 for {name!r}: torchvision's networks take no other number, "
            "timm's do (timm:NAME)"
        )
    # These two also return logits of inner layers in training, which no loss here knows.
    single = {"aux_logits": False, "init_weights": True} if model in ("googlenet", "inception_v3") else {}
    return models.get_model(model, weights=None, num_classes=num_classes, **single)


def _import(library: str, name: str) -> Any:
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        missing = (error.name or library).split(".")[0]
        raise ImportError(
            f"model was {name!r}, which needs {library}, and {missing} is not installed: {_install(library)}"
        ) from error
    except Exception as error:  # a torchvision of another build raises RuntimeError, or OSError
        raise ImportError(
            f"model was {name!r}, which needs {library}, and importing it failed with {type(error).__name__}: {error}. "
            f"torchvision should be of the same build as torch, which is {torch.__version__}: "
            f"pip uninstall -y torchvision && {_install(library)}"
        ) from error


def _install(library: str) -> str:
    """The pip command that installs it and leaves torch as it is: PyPI's torchvision fits one build of torch only."""
    version, _, build = torch.__version__.partition("+")
    packages = " ".join(dict.fromkeys((library, "torchvision")))
    index = ""
    if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+|xpu", build):
        index = f" --extra-index-url https://download.pytorch.org/whl/{build}"
    return f"pip install {packages} torch=={version}{index}"


def _unknown(name: str, library: str, known: Sequence[str]) -> ValueError:
    nearest = difflib.get_close_matches(name.partition(":")[2], known, n=1, cutoff=0.0)
    hint = f"; did you mean '{library}:{nearest[0]}'?" if nearest else ""
    return ValueError(f"unknown model {name!r}{hint} {library} has {len(known)} image classifiers")
