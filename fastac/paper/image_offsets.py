"""α̂ and its percentile ranks of single images, read from what the finished runs with AC1 keep."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastac.config import read_config
from fastac.data import Samples
from fastac.issues.exports import read_csv
from fastac.issues.run_scores import run_alpha
from fastac.paper.grid import Grid
from fastac.paper.published import IMAGE_LIMIT, PublishedImage
from fastac.paper.runs import Settings
from fastac.report.offsets import TopOffsets
from fastac.run import RunFolder
from fastac.training_data import load_data

__all__ = ["Offsets", "Spread", "load_images", "read_offsets"]


@dataclass(frozen=True)
class Spread:
    """Numbers over the seeds, at least one: their mean, the smallest and the largest."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.values[0]:.3f}"
        return f"{self.mean:.3f} ({min(self.values):.3f} to {max(self.values):.3f})"


@dataclass(frozen=True)
class Offsets:
    """One image in one run.

    max_rank, min_rank: percentile ranks of max_k α̂, descending, and min_k α̂, ascending, per cent of the training set.
    alpha: α̂ at the given label, in logits. other_alpha: at the paper's alternative one; None where that is outside of
    the category set, or the run has not kept it. classes: α̂ by class name, the highest first, of the classes with the
    largest |α̂|; empty where the image is not among those whose α̂ the run has kept.
    """

    max_rank: float
    min_rank: float
    alpha: float
    other_alpha: float | None
    classes: dict[str, float]

    @property
    def below_limit(self) -> bool:
        """Whether MaxRank or MinRank is below 0.1 %."""
        return min(self.max_rank, self.min_rank) < IMAGE_LIMIT


def read_offsets(
    run: Path, images: Sequence[PublishedImage], class_names: Sequence[str]
) -> tuple[float, list[Offsets]]:
    """The largest α̂ of all samples of the finished run in folder `run`, and what it has of each of `images`.

    Raises FileNotFoundError or ValueError for files that are missing or are not a run's with AC1.
    """
    folder = RunFolder(run)
    issues = read_csv(folder.issues)
    lacks = [name for name in ("alpha_max", "max_rank", "min_rank") if name not in issues]
    if lacks:
        raise ValueError(
            f"{folder.issues} lacks the columns {', '.join(lacks)}; it should be of a run with α"
        )
    ids, ranks = issues["index"].to_numpy(), issues[["max_rank", "min_rank"]].to_numpy()
    given, kept = run_alpha(run).given_alpha, _kept(folder, class_names)
    found = []
    for image in images:
        places = np.flatnonzero(ids == image.index)
        if len(places) != 1 or image.index >= len(given):
            raise ValueError(f"{folder.path} has no id {image.index}; it should have that of #{image.number}")
        max_rank, min_rank = ranks[places[0]].tolist()
        classes = kept.get(image.index, {})
        found.append(
            Offsets(max_rank, min_rank, float(given[image.index]), classes.get(image.other), classes)
        )
    return float(issues["alpha_max"].max()), found


def _kept(folder: RunFolder, class_names: Sequence[str]) -> dict[int, dict[str, float]]:
    """alpha.npz: by id, α̂ by class name."""
    if not folder.alpha.is_file():
        return {}
    with np.load(folder.alpha, allow_pickle=False) as file:
        top = TopOffsets(file["index"], file["classes"], file["values"])
    return {
        index: {class_names[k]: value for k, value in zip(classes, values, strict=True)}
        for index, classes, values in zip(
            top.index.tolist(), top.classes.tolist(), top.values.astype(float).tolist(), strict=True
        )
    }


def load_images(
    grid: Grid, settings: Settings, seeds: int, images: Mapping[str, Sequence[PublishedImage]]
) -> dict[str, Samples]:
    """The training images by row: of the settings' data folder, or else of the one that a run of the row was trained
    from. Rows without either are left out. ValueError for an image that the training set lacks."""
    found = {}
    for (row, _), cell in grid.cells.items():
        runs = [cell.runs(seed, settings)[-1] for seed in range(seeds)]
        configs = [runs[0].config()] if settings.data_dir is not None else []
        configs += [read_config(run.folder.path) for run in runs if run.folder.result.is_file()]
        if not configs:
            continue
        samples = load_data(configs[0]).dataset.train
        for image in images[row]:
            if image.index >= len(samples):
                raise ValueError(
                    f"#{image.number} of the paper is id {image.index} of {configs[0].data.dataset}, of which there "
                    f"are {len(samples)} training images; it should be the whole training set of 50,000, without "
                    "train_limit"
                )
        found[row] = samples
    return found
