"""What a run of the trainer keeps, so that its labels can be ranked again: a few numbers a sample, in scores.npz."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastac.extras import require
from fastac.issues.alpha import AlphaStatistics
from fastac.issues.exports import read_csv
from fastac.issues.find import find_label_issues

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rank_run", "run_alpha", "write_scores"]


def write_scores(
    path: Path,
    *,
    given: np.ndarray,
    class_names: Sequence[str],
    predictions: np.ndarray | None,
    others: np.ndarray | None,
    alpha: AlphaStatistics | None,
) -> None:
    """An .npz file without pickled objects, whole or not at all. given, predictions, others: (N,) int64, as
    find_label_issues takes them; without the latter two the labels are ranked again without them."""
    arrays = {"given": given}
    for name, found in (("predictions", predictions), ("others", others)):
        if found is not None:
            arrays[name] = found
    names = json.dumps(list(class_names)).encode()  # an array of texts is as wide as its longest
    arrays["class_names"] = np.frombuffer(names, np.uint8)
    if alpha is not None:
        arrays |= alpha.arrays()
    draft = path.with_name(f".{path.name}.tmp")
    with open(draft, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(draft, path)


def rank_run(folder: Path, *, method: str | None = None, percent: float | None = None) -> pd.DataFrame:
    """The labels of the run in `folder`, ranked by a method of find_label_issues; with neither method nor percent the
    ranking that the run wrote, issues.csv.

    Raises FileNotFoundError where a file is missing that this needs, ValueError where files don't belong together or
    the run has not recorded what the method needs.
    """
    issues = read_csv(_file(folder, "issues.csv", "the folder of a run that has come to its end"))
    if method is None and percent is None:
        return issues
    arrays = _read_npz(_file(folder, "scores.npz", "written by runs of this version of fastac"))
    given = arrays["given"]
    _check_issues(folder, issues, given)
    alpha = AlphaStatistics.from_arrays(arrays) if "alpha_form" in arrays else None
    dynamics = _read_dynamics(folder / "dynamics.csv", len(given))
    source = dynamics if alpha is None else alpha
    if source is None:
        raise ValueError(
            f"{folder} has neither α nor dynamics.csv; train with loss ac1 or ac2, or with dynamics"
        )
    if method is None:
        method = "alpha" if dynamics is None else "combined"
    frame = find_label_issues(
        source,
        given,
        method=method,
        percent=percent,
        class_names=json.loads(bytes(arrays["class_names"])),
        pred_labels=arrays.get("predictions"),
        other_labels=arrays.get("others"),
        dynamics=None if alpha is None else dynamics,
    )
    if "path" in issues:
        frame["path"] = issues.set_index("index")["path"].loc[frame["index"]].to_numpy()
    return frame


def run_alpha(folder: Path) -> AlphaStatistics:
    """What the finished run in `folder` keeps of each sample's α.

    Raises FileNotFoundError where scores.npz is missing, ValueError where the run had no α.
    """
    arrays = _read_npz(_file(folder, "scores.npz", "written by runs of this version of fastac"))
    if "alpha_form" not in arrays:
        raise ValueError(f"{folder} has no α; it should be a run with loss ac1 or ac2")
    return AlphaStatistics.from_arrays(arrays)


def _file(folder: Path, name: str, what: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has no {name}; it should be {what}")
    return folder / name


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _read_dynamics(path: Path, num_samples: int) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    dynamics: pd.DataFrame = require("pandas", "report").read_csv(path)
    if len(dynamics) != num_samples:
        raise ValueError(f"{path} has {len(dynamics)} rows; it should have {num_samples}, as scores.npz")
    return dynamics


def _check_issues(folder: Path, issues: pd.DataFrame, given: np.ndarray) -> None:
    by_id = issues.sort_values("index")
    if len(issues) != len(given) or not np.array_equal(by_id["index"], np.arange(len(given))):
        raise ValueError(
            f"{folder / 'issues.csv'} has {len(issues)} rows; it should have each of the {len(given)} samples of "
            "scores.npz once"
        )
    if not np.array_equal(by_id["given_label"], given):
        raise ValueError(
            f"{folder}: issues.csv and scores.npz have different given labels; they are of two runs"
        )
