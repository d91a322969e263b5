"""AUM with threshold samples: how large the AUM of a label is that nobody could learn but by heart.

Source: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking" (2020), section 3.2. Some
samples get the label K of a class that does not exist. Their AUM is that of wrong labels, and a label whose AUM is not
above their 99th percentile is an issue. Samples with the false label can't be judged themselves, hence two runs with
disjoint sets of them. Networks have K + 1 outputs; they are for finding labels, not for use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastac.dynamics import TrainingDynamics
from fastac.issues.checks import (
    ClassNames,
    check_percent,
    check_range,
    integer_vector,
    listed_names,
    vector,
)
from fastac.issues.find import issues_frame
from fastac.issues.rankings import Ranking, Scores, positions
from fastac.loss import AutoCleansingLoss

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ThresholdRuns", "draw_threshold_sets", "find_threshold_issues"]


def draw_threshold_sets(num_samples: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """(2, ⌊N / (K + 1)⌋) int64: the ids of the threshold samples of two runs, no id twice. num_samples: N.
    num_classes: K. ValueError where a set would be empty or the two would overlap."""
    size = num_samples // (num_classes + 1)
    if num_classes < 1 or not 1 <= size <= num_samples // 2:
        raise ValueError(
            f"num_samples was {num_samples}; it should be at least {num_classes + 1}, so that each of two sets of "
            f"N / (K + 1) threshold samples has one, for num_classes {num_classes} (at least 1)"
        )
    return np.random.default_rng(seed).permutation(num_samples)[: 2 * size].reshape(2, size)


class ThresholdRuns:
    """Both runs at once, in one process: two networks with K + 1 outputs that see the same batches.

        runs = ThresholdRuns(labels, num_classes=K)
        for images, index in loader:
            loss = runs.loss([first(images), second(images)], index)
            ...  # backward and a step of an optimizer of both networks' parameters
        issues = runs.find_label_issues()

    labels: (N,) integers in [0, K). Runs one after the other, in any trainer, do as well: train run r on `labels[r]`
    with dynamics, and give both AUM to find_threshold_issues.
    """

    def __init__(self, labels: Any, num_classes: int, *, seed: int = 0, device: Any = None):
        given = integer_vector("labels", labels, len(labels))
        check_range("labels", given, num_classes)
        self.given = given
        self.num_classes = num_classes
        self.sets = draw_threshold_sets(len(given), num_classes, seed)
        """(2, M) int64: see draw_threshold_sets."""
        self.labels = torch.from_numpy(given).repeat(2, 1).to(device)
        """(2, N) int64: each run's labels, K for its threshold samples."""
        for run, ids in enumerate(self.sets):
            self.labels[run, torch.from_numpy(ids)] = num_classes
        self.dynamics = [TrainingDynamics(len(given), num_classes + 1, device=device) for _ in self.sets]
        self._criteria = [AutoCleansingLoss(None, dynamics=dynamics) for dynamics in self.dynamics]

    def loss(self, logits: Sequence[Tensor], index: Tensor) -> Tensor:
        """The sum of both runs' mean cross entropies, (): each network gets its own gradient. logits: two of
        (B, K + 1). index: (B,) int64, the samples' ids."""
        if len(logits) != 2:
            raise ValueError(f"logits must be those of 2 networks, got {len(logits)}")
        losses = [
            criterion(part, labels[index], index)
            for criterion, part, labels in zip(self._criteria, logits, self.labels, strict=True)
        ]
        return losses[0] + losses[1]

    def find_label_issues(
        self, *, percentile: float = 99.0, class_names: ClassNames | None = None
    ) -> pd.DataFrame:
        """As find_threshold_issues."""
        aum = [dynamics.aum.cpu().numpy() for dynamics in self.dynamics]
        return find_threshold_issues(
            aum, self.sets, self.given, percentile=percentile, class_names=class_names
        )


def find_threshold_issues(
    aum: Any,
    sets: Any,
    labels: Any,
    *,
    percentile: float = 99.0,
    class_names: ClassNames | None = None,
) -> pd.DataFrame:
    """Judge each sample by the runs in which it is no threshold sample.

    aum: (2, N) floating-point, of two runs; NaN for samples that were never seen.
    sets: (2, M) integers, each run's threshold samples, disjoint. labels: (N,) integers, the given ones.
    percentile: of the threshold samples' AUM in a run, its threshold (linear interpolation). class_names: as for
        find_label_issues.

    A label is an issue if its AUM is not above the threshold in any of those runs: in the one run for a sample that the
    other one gave the false label, in both for all other samples. The ranking is by the AUM less the threshold, the
    larger of the two where two runs judge.

    Returns find_label_issues' columns; aum is the mean over those runs, label_quality a position in the ranking.
    ValueError for arguments that don't fit each other, and for a threshold sample that was never seen.
    """
    check_percent("percentile", percentile)
    given = integer_vector("labels", labels, len(labels))
    names = None if class_names is None else listed_names(class_names)
    check_range("labels", given, None if names is None else len(names))
    values = np.stack([vector(run) for run in aum])
    if values.shape != (2, len(given)):
        raise ValueError(f"aum must be (2, {len(given)}), of two runs, got {values.shape}")
    ids = np.asarray(sets)
    if ids.ndim != 2 or len(ids) != 2 or ids.shape[1] == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"sets must be (2, M) integers with M ≥ 1, got {ids.shape} {ids.dtype}")
    if len(np.unique(ids)) != ids.size or ids.min() < 0 or ids.max() >= len(given):
        raise ValueError(f"sets must hold no id twice, and ids in [0, {len(given)}) alone")
    above = np.empty_like(values)
    for run in range(2):
        of_set = values[run, ids[run]]
        if np.isnan(of_set).any():
            raise ValueError(f"aum is NaN for {int(np.isnan(of_set).sum())} threshold samples of run {run}")
        above[run] = values[run] - np.percentile(of_set, percentile)
        above[run, ids[run]] = math.nan
        values[run, ids[run]] = math.nan
    return _judge(
        given, np.fmax(*above), np.nanmean(np.where(np.isnan(values).all(0), 0, values), axis=0), names
    )


def _judge(
    given: np.ndarray, above: np.ndarray, aum: np.ndarray, class_names: Sequence[str] | None
) -> pd.DataFrame:
    """above: (N,) AUM less threshold, NaN for a sample that no run judges."""
    order = np.argsort(above, kind="stable")  # NaN comes last
    seen = ~np.isnan(above)
    position = positions(order)
    quality = np.where(seen, position / max(1, int(seen.sum()) - 1), math.nan)
    flagged = seen & (above <= 0)
    ranking = Ranking(order, quality, flagged, np.full(len(given), -1))
    scores = Scores(given, None, aum=np.where(seen, aum, math.nan))
    return issues_frame(scores, ranking, flagged, np.full(len(given), None, dtype=object), class_names)
