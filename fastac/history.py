"""Each sample's score by epoch: a file an epoch, so that none is written twice and a long run holds none in memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

__all__ = ["ScoreHistory"]

_NAME = re.compile(r"aum-(\d+)\.npy")


class ScoreHistory:
    """The AUM of all samples as of each epoch's end, in `folder`: `aum-0001.npy`, (N,) float16, NaN for a sample that
    was not seen yet, and so on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, epoch: int, scores: np.ndarray) -> None:
        """The scores (N,) at the end of epoch `epoch`, counted from 1; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"aum-{epoch:04d}.npy"
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file, np.errstate(over="ignore"):
            np.save(file, scores.astype(np.float16))
        os.replace(temporary, path)

    def forget_after(self, epoch: int) -> None:
        """Remove what a course that was given up wrote after epoch `epoch`."""
        for number, path in self._files().items():
            if number > epoch:
                path.unlink()

    def read(self, index: np.ndarray) -> dict[str, np.ndarray] | None:
        """Of the samples index (n,): `index`, `epoch` (E,) and `score` (E, n) float32; None where nothing was written.
        Raises ValueError, which names the file, for one that is damaged or of other samples."""
        rows = []
        files = self._files()
        for path in files.values():
            try:
                scores = np.load(path, mmap_mode="r")
                rows.append(scores[index].astype(np.float32))
            except (ValueError, OSError, EOFError, IndexError) as error:
                raise ValueError(f"{path} can't be read, remove it to go on without: {error}") from error
        if not rows:
            return None
        return {"index": index, "epoch": np.array(list(files)), "score": np.stack(rows)}

    def _files(self) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in found if match))
