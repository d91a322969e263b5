"""Optional packages: imported where they are used, with an error that says how to install them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """Import `module`; where it is missing, raise ImportError with the command that installs the extra it is in."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # the package is there and broken: its own message says more than ours
        needed = module if package == "nvidia" else package  # a namespace that many packages share
        raise ImportError(
            f"fastac needs {needed} for this and it is not installed: pip install 'autocleansing[{extra}]'"
        ) from error
