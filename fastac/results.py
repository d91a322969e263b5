"""What a run says of its labels when it ends: the rankings, and α̂ of the samples that it is shown of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastac.dynamics import TrainingDynamics
from fastac.engine import Engine
from fastac.issues import AlphaStatistics, alpha_statistics, detection_scores, find_label_issues
from fastac.report.offsets import CenteredRows, TopOffsets, centered_rows, top_offsets
from fastac.sharded_dynamics import ShardedTrainingDynamics
from fastac.table import AlphaTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["Offsets", "RankedLabels", "rank_on_first"]

_TOP = 5000  # samples whose largest α̂ are kept for the review page
_SHEET = 20  # samples on the contact sheet


def rank_on_first(
    engine: Engine,
    table: AlphaTable | None,
    dynamics: TrainingDynamics | None,
    given: np.ndarray,
    *,
    predictions: np.ndarray | None,
    others: np.ndarray | None,
    unread: np.ndarray,
    class_names: Sequence[str],
    percent: float | None,
) -> tuple[RankedLabels | None, Offsets]:
    """The labels ranked on rank 0, None on the others, and α̂ of the samples that are shown. All ranks call it: each
    reads its own rows of α, and sends a few numbers a sample.

    given: (N,) int64 labels. predictions, others: (N,) int64, what the network predicts, and its best class other than
    the given label, -1 where the image could not be read; None where it was not asked. unread: (n,) int64 ids of the
    images that could not be read. percent: as find_label_issues has it.
    """
    alpha = None if table is None else alpha_statistics(table, given)
    whole = dynamics.gather() if isinstance(dynamics, ShardedTrainingDynamics) else dynamics
    labels = shown = None
    if engine.rank == 0:
        frame = None if whole is None else whole.frame()
        predicted = _instead(predictions, given), _instead(others, given)
        labels = _rank_labels(given, *predicted, unread, alpha, frame, class_names, percent)
        shown = _shown_samples(labels)
    return labels, _read_offsets(table, engine.broadcast(shown, "the samples that are shown"))


@dataclass(frozen=True, eq=False)
class RankedLabels:
    """The labels of a run, ranked. given: (N,) int64; predictions, others: (N,) int64, a label for each sample, None
    without a pass over the training images; unread: ids of the images that could not be read; frame: the dynamics'
    frame. rankings: of find_label_issues, by method, the run's own first; none without α and dynamics."""

    given: np.ndarray
    predictions: np.ndarray | None
    others: np.ndarray | None
    unread: np.ndarray
    alpha: AlphaStatistics | None
    frame: pd.DataFrame | None
    rankings: dict[str, pd.DataFrame]

    @property
    def method(self) -> str | None:
        """What `issues` is ranked by."""
        return next(iter(self.rankings), None)

    @property
    def issues(self) -> pd.DataFrame | None:
        """The ranking of the run."""
        return None if self.method is None else self.rankings[self.method]

    @property
    def on_sheet(self) -> pd.DataFrame | None:
        """The rows of `issues` whose images can be shown, as many as a contact sheet has."""
        issues = self.issues
        return None if issues is None else issues[~issues["index"].isin(self.unread)].head(_SHEET)

    def detection(self, truth: np.ndarray | None) -> dict[str, dict[str, float]]:
        """How well each ranking finds the labels that differ from truth (N,) int64; nothing where that is not known."""
        if truth is None:
            return {}
        wrong = self.given != truth
        return {
            method: detection_scores(ranking, wrong, true_labels=truth)
            for method, ranking in self.rankings.items()
        }


def _rank_labels(
    given: np.ndarray,
    predictions: np.ndarray | None,
    others: np.ndarray | None,
    unread: np.ndarray,
    alpha: AlphaStatistics | None,
    frame: pd.DataFrame | None,
    class_names: Sequence[str],
    percent: float | None,
) -> RankedLabels:
    """By AUM and mean probabilities, or by α where there are no dynamics."""
    rankings = {}
    for method, needed in (("combined", frame), ("alpha", alpha), ("aum", frame)):
        if needed is not None:
            rankings[method] = find_label_issues(
                frame if alpha is None else alpha,
                given,
                method=method,
                percent=percent,
                class_names=class_names,
                pred_labels=predictions,
                other_labels=others,
                dynamics=None if alpha is None else frame,
            )
    return RankedLabels(given, predictions, others, unread, alpha, frame, rankings)


def _instead(found: np.ndarray | None, given: np.ndarray) -> np.ndarray | None:
    """The given label where the network was shown no image."""
    return None if found is None else np.where(found < 0, given, found)


class _Shown(NamedTuple):
    """Of which samples α̂ is read: top (n,) int64 ids with `named` (n, 2) int64, their given and suggested labels, -1
    for none; sheet (m,) int64 ids, of which all classes are."""

    top: np.ndarray
    named: np.ndarray
    sheet: np.ndarray


class Offsets(NamedTuple):
    """α̂ as it is shown; None of AC2, or where there is no α: the largest of the most suspicious samples, and all of
    those on the contact sheet, where that draws them."""

    top: TopOffsets | None = None
    sheet: CenteredRows | None = None


def _shown_samples(labels: RankedLabels) -> _Shown:
    """The most suspicious samples, and those on the contact sheet, which has bars where the AUM is not known."""
    nothing = np.empty(0, np.int64)
    if labels.issues is None or labels.on_sheet is None:
        return _Shown(nothing, np.empty((0, 2), np.int64), nothing)
    first = labels.issues.head(_TOP)
    suggested = first["suggested_label"].to_numpy(float, na_value=math.nan)
    named = [first["given_label"].to_numpy(np.int64), np.where(np.isnan(suggested), -1, suggested)]
    sheet = nothing if labels.frame is not None else labels.on_sheet["index"].to_numpy(np.int64)
    return _Shown(first["index"].to_numpy(np.int64), np.stack(named, axis=1).astype(np.int64), sheet)


def _read_offsets(table: AlphaTable | None, shown: _Shown) -> Offsets:
    """α̂ of these samples. With a sharded table all ranks call it with the same samples and get the same; what travels
    is what is returned, never the table."""
    if table is None or table.form == "ac2":
        return Offsets()
    sizes = {"num_samples": table.num_samples, "num_classes": table.num_classes}
    rows = centered_rows(table, shown.sheet, **sizes)
    return Offsets(
        top_offsets(table, shown.top, shown.named, **sizes),
        None if rows is None or not len(shown.sheet) else CenteredRows(shown.sheet, rows),
    )
