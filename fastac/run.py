"""A run's folder: what is in it, how it is named, and the stamp of what made it."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastac.config import Config
from fastac.version import __version__

__all__ = ["RunFolder", "environment", "git_state"]


class RunFolder:
    """`OUTPUT/NAME`, with a name for every file in it."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.csv"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.labels = path / "labels.csv"
        self.issues = path / "issues.csv"
        self.dynamics = path / "dynamics.csv"
        self.curves = path / "curves.png"
        self.alpha = path / "alpha.png"
        self.contact_sheet = path / "contact_sheet.png"
        self.result = path / "result.json"

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """A new folder: the config's name, which must be free, or recipe-loss-seed with a number if that is
        taken. Raises ValueError for a name that exists."""
        output, name = Path(config.run.output), config.run.name
        output.mkdir(parents=True, exist_ok=True)
        if name is not None:
            check_name(name)
            try:
                (output / name).mkdir()
            except FileExistsError:
                raise ValueError(
                    f"name was {name!r} and {output / name} exists; it should be a new name, or go on with that "
                    f"run: --resume {output / name}"
                ) from None
            return cls(output / name)
        stem = f"{config.run.recipe or config.data.dataset}-{config.loss.loss}-seed{config.run.seed}"
        number = 1
        while True:
            path = output / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
                return cls(path)
            except FileExistsError:
                number += 1

    def write_labels(self, given: np.ndarray, truth: np.ndarray | None) -> None:
        """labels.csv: index, given_label and, where it is known, true_label."""
        columns = [np.arange(len(given)), given] + ([] if truth is None else [truth])
        names = ["index", "given_label", "true_label"][: len(columns)]
        with open(self.labels, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))

    def write_environment(self, stamp: dict[str, Any], resumed: bool) -> None:
        """environment.json; a resumed run adds its stamp to the first one's list `resumed`."""
        if resumed and self.environment.is_file():
            first = json.loads(self.environment.read_text(encoding="utf-8"))
            stamp = {**first, "resumed": [*first.get("resumed", []), stamp]}
        write_json(self.environment, stamp)


def check_name(name: str) -> None:
    """ValueError unless `name` is one folder's name."""
    if not name or name in (".", "..") or name != Path(name).name:
        raise ValueError(f"name was {name!r}; it should be one folder's name, without a path (see output)")


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document whole: a reader finds the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What made a run: command line, versions, device, git revision, time. The machine's name is left out."""
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fastac": __version__,
        "git": git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in ("torch", "numpy", "triton", "pandas", "scikit-learn")},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "ranks": world_size,
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Revision and whether files differ from it, where `package` is a folder of its own checkout; else None (an
    installed package, perhaps inside someone else's checkout)."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "config.py")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
