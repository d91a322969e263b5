"""A run's data, loaded again after it: from where its files are, and only if the labels are still those of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastac.config import Config, read_config
from fastac.data import EncodedImages, Samples, label_file_path
from fastac.data.folder import with_removed
from fastac.run import RunFolder
from fastac.training_data import load_data, load_images

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["image_folder", "paths_by_id", "run_config", "run_samples"]


def run_config(folder: RunFolder) -> Config:
    """The run's config, whose data_dir, labels and exclude can be read from any current folder: relative ones are
    taken from the folder in which the run was started, where they are still there."""
    config = read_config(folder.path)
    start = _started_in(folder)
    if start is None:
        return config
    c, found = config.data, {}
    for name, path in (
        ("data_dir", None if c.data_dir is None else Path(c.data_dir)),
        ("labels", None if c.labels is None else label_file_path(c.labels)),
        ("exclude", None if c.exclude is None else Path(c.exclude)),
    ):
        if path is not None and not path.is_absolute() and (start / path).exists():
            found[name] = str(start / getattr(c, name))
    return config.with_values(**found)


def run_samples(
    folder: RunFolder,
    config: Config,
    given: np.ndarray,
    data_dir: str | None = None,
    *,
    paths: Sequence[str] | None = None,
) -> Samples:
    """The run's training samples. given: (N,) int64, the labels that it was trained on. data_dir: where the files are
    now, if not where they were. paths: the N images' in the ids' order, of an image folder; some may be gone since.

    Raises ValueError where the data's labels are others now, and what loading it raises.
    """
    if data_dir is not None:
        config = config.with_values(data_dir=data_dir)
    dataset = load_images(config)
    if config.data.dataset == "folder" and paths is not None and len(paths) == len(given):
        dataset = with_removed(dataset, paths)
    data = load_data(config, dataset)
    if len(data.given) != len(given):
        change = f"there are {len(data.given)} samples now, and {len(given)} in {folder.labels}"
    else:
        differ = np.flatnonzero(data.given != given)
        if not differ.size:
            return data.dataset.train
        change = f"{differ.size} labels are not those of {folder.labels}, the first of id {differ[0]}"
    raise ValueError(f"the data has changed since the run: {change}; its ids may be those of other images")


def paths_by_id(ranking: pd.DataFrame) -> list[str] | None:
    """The images' paths in the ids' order, where a ranking of all samples has them."""
    return None if "path" not in ranking else [str(path) for path in ranking.sort_values("index")["path"]]


def image_folder(samples: Samples) -> Path | None:
    """The folder of the samples' files, absolute, where each sample is a file of its own; else None."""
    images = samples.images
    if isinstance(images, EncodedImages) and images.keys is None:
        return images.root.absolute()
    return None


def _started_in(folder: RunFolder) -> Path | None:
    """None: not known (a run of an older version)."""
    if not folder.environment.is_file():
        return None
    directory = json.loads(folder.environment.read_text(encoding="utf-8")).get("directory")
    return None if directory is None else Path(directory)
