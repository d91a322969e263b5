"""AUM's protocol: two runs with threshold samples, what both of them flag is removed, and the network trained again.

Pleiss et al. 2020, section 3.2, with the numbers of their reference code: 150 epochs at a constant rate, batch 64, the
first epoch not counted. A label is flagged by a run if its AUM is not above the 99th percentile of the threshold
samples' AUM, and is removed if every run flagged it in which it was no threshold sample itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastac.extras import require
from fastac.history import ScoreHistory
from fastac.issues import find_threshold_issues
from fastac.paper.runs import Run, Settings, exclude_path, make_run, write_ids
from fastac.run import RunFolder

__all__ = ["aum_after_first_epoch", "aum_runs", "flagged_ids"]

PERCENTILE = 99.0


def aum_runs(recipe: str, seed: int, settings: Settings) -> list[Run]:
    """Both threshold runs, by the recipe BASE-aum with the recipe's variants, and the run on what they leave."""
    base, _, variants = recipe.partition("+")
    threshold = "+".join(part for part in (f"{base}-aum", variants) if part)
    both = [
        make_run(f"{threshold}-set{number}-seed{seed}", threshold, seed, settings, {"threshold_set": number})
        for number in (1, 2)
    ]
    names = tuple(run.name for run in both)
    stem = f"{recipe}-without-flagged-seed{seed}"
    path = exclude_path(settings, stem if settings.short == 1 else f"{stem}-short{settings.short:g}")

    def remove(folders: Mapping[str, Path]) -> None:
        write_ids(path, flagged_ids([folders[name] for name in names]).tolist())

    values = {"exclude": str(path), "loss": "ce"}
    return [*both, make_run(stem, recipe, seed, settings, values, names, remove)]


def flagged_ids(folders: list[Path], percentile: float = PERCENTILE) -> np.ndarray:
    """(n,) int64: the samples to remove, from the folders of both threshold runs. ValueError where these are not two
    runs of disjoint threshold sets with the same labels otherwise."""
    runs = [RunFolder(folder) for folder in folders]
    labels = np.stack([run.read_labels() for run in runs])
    false = [json.loads(run.result.read_text(encoding="utf-8"))["classes"] - 1 for run in runs]
    is_threshold = labels == np.array(false)[:, None]
    given = np.where(is_threshold[0], labels[1], labels[0])
    same = (labels[0] == labels[1]) | is_threshold.any(0)
    if is_threshold.all(0).any() or not same.all() or len({int(n) for n in is_threshold.sum(1)}) > 1:
        raise ValueError(
            f"{folders[0]} and {folders[1]} should be the two threshold runs of one seed: the same labels, but for "
            "disjoint sets of threshold samples"
        )
    aum = np.stack([aum_after_first_epoch(run) for run in runs])
    sets = np.stack([np.flatnonzero(row) for row in is_threshold])
    frame = find_threshold_issues(aum, sets, given, percentile=percentile)
    return np.sort(frame.loc[frame["is_label_issue"], "index"].to_numpy(np.int64))


def aum_after_first_epoch(run: RunFolder) -> np.ndarray:
    """(N,) float64: the AUM over all epochs but the first, in which a network's start still decides; NaN for a sample
    that was not seen then. A run of one epoch has no others, and its AUM is that epoch's."""
    dynamics = require("pandas", "report").read_csv(run.dynamics)
    count, aum = dynamics["count"].to_numpy(np.float64), dynamics["aum"].to_numpy(np.float64)
    epochs = json.loads(run.result.read_text(encoding="utf-8"))["epochs"]
    if epochs == 1:
        return aum
    history = ScoreHistory(run.history).read(np.arange(len(aum)))
    if history is None or history["epoch"][0] != 1:
        raise ValueError(f"{run.path} has no AUM of its first epoch; it should be trained with score_history")
    first = history["score"][0].astype(np.float64)  # kept in half precision: 1e-3 of one epoch's margin
    seen = ~np.isnan(first)
    total = np.where(count > 0, count * aum, 0.0) - np.where(seen, first, 0.0)
    visits = count - seen
    return np.divide(total, visits, out=np.full(len(aum), np.nan), where=visits > 0)
