"""How well a ranking finds the labels that are known to be wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.issues.checks import count_and_ids, host, integer_vector

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["detection_scores"]


def detection_scores(issues: pd.DataFrame, truth: Any, *, true_labels: Any = None) -> dict[str, float]:
    """How well a ranking finds the labels that are known to be wrong.

    issues: from find_label_issues, all N samples in any order; also as read back from a CSV file.
    truth: (N,) bool by sample id, True where the given label is wrong.
    true_labels: (N,) integers by sample id, for the share of right suggestions; they must differ from the
        given labels exactly where `truth` is True.

    The score of a sample is 1 − label_quality; samples for which that is NaN come last, tied. Returns
        noise_rate                    the share of wrong labels
        auroc, average_precision      of the score, ties as in scikit-learn; NaN where undefined
        precision, recall             among the first noise_rate · N of the ranking, where the two are equal
        num_flagged, flagged_precision, flagged_recall   of is_label_issue; NaN where undefined
        suggestion_accuracy           with true_labels: among the wrong labels with a suggestion, the share
                                      for which it is the true label; NaN where none has one
    """
    ids = issues["index"].to_numpy(np.int64)
    wrong = host(truth)
    if wrong.dtype != np.bool_ or wrong.shape != ids.shape:
        raise ValueError(f"truth must be ({len(ids)},) bool, got {wrong.shape} {wrong.dtype}")
    if len(ids) == 0 or not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise ValueError(
            "issues must hold every sample once: its column index must be a permutation of 0 … N−1"
        )
    by_id = np.argsort(ids)
    quality = issues["label_quality"].to_numpy(float)[by_id]
    score = np.where(np.isnan(quality), -1, 1 - quality)
    flagged = issues["is_label_issue"].to_numpy(bool)[by_id]
    num_wrong = int(wrong.sum())
    found = _share(wrong[np.argsort(-score, kind="stable")[:num_wrong]])
    result = {
        "noise_rate": num_wrong / len(ids),
        "auroc": _auroc(score, wrong),
        "average_precision": _average_precision(score, wrong),
        "precision": found,
        "recall": found,
        "num_flagged": float(flagged.sum()),
        "flagged_precision": _share(wrong[flagged]),
        "flagged_recall": _share(flagged[wrong]),
    }
    if true_labels is not None:
        true = integer_vector("true_labels", true_labels, len(ids))
        unequal = true != issues["given_label"].to_numpy(np.int64)[by_id]
        if not np.array_equal(unequal, wrong):
            raise ValueError(f"true_labels and truth disagree for {count_and_ids(unequal != wrong)}")
        suggested = issues["suggested_label"].to_numpy(float, na_value=math.nan)[by_id]
        result["suggestion_accuracy"] = _share((suggested == true)[wrong & ~np.isnan(suggested)])
    return result


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else math.nan


def _cumulative(score: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of true and of false positives at each distinct score, from the highest down."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    hits = np.cumsum(wrong[order], dtype=np.float64)[last_of_tie]
    return hits, last_of_tie + 1 - hits


def _auroc(score: np.ndarray, wrong: np.ndarray) -> float:
    hits, misses = _cumulative(score, wrong)
    if hits[-1] == 0 or misses[-1] == 0:
        return math.nan
    before = np.append(0, hits[:-1])
    area = (np.diff(misses, prepend=0) * (before + hits) / 2).sum()  # a tied pair counts half
    return float(area / (hits[-1] * misses[-1]))


def _average_precision(score: np.ndarray, wrong: np.ndarray) -> float:
    hits, misses = _cumulative(score, wrong)
    if hits[-1] == 0:
        return math.nan
    return float((np.diff(hits, prepend=0) * hits / (hits + misses)).sum() / hits[-1])
