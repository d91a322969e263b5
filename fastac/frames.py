"""Data frames to files: CSV or Parquet, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastac.extras import require

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_frame_path", "write_frame"]

_SUFFIXES = (".csv", ".parquet")


def check_frame_path(path: str | os.PathLike[str]) -> Path:
    """The path; ValueError for another suffix than .csv and .parquet, ImportError where .parquet lacks pyarrow."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path must end in one of {_SUFFIXES}, got {str(path)!r}")
    if path.suffix == ".parquet":
        require("pyarrow", "parquet")
    return path


def write_frame(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write frame, without its row labels, to PATH.csv or PATH.parquet. The folder must be there. A reader finds
    the old file or the new one, also where the write fails."""
    path = check_frame_path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if path.suffix == ".csv":
                frame.to_csv(file, index=False)
            else:
                frame.to_parquet(file, engine="pyarrow", index=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
