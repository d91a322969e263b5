"""How likely each label is to be wrong, and so how many are, from the training dynamics of one run.

Where the noise is uniform, the AUM of right and of wrong labels are two groups, and a mixture of two normal
distributions counts them. Where wrong labels come from one or two classes each, as people's do, the groups run into
each other. Then the number comes from how sure the run was of another class, and the mixture is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastac.issues.checks import count_and_ids
from fastac.issues.confidence import class_thresholds
from fastac.issues.mixture import fit_mixture, otsu_threshold

if TYPE_CHECKING:
    from fastac.issues.rankings import Scores

__all__ = ["classes_of", "confident_count", "margin_count", "wrong_probability"]

SEPARATION = 3.5
"""Ashman's D from which the two groups of the AUM are believed: from the measurements in docs/detection.md, in which
pair noise that is counted 13 points too high reaches 3.4 and human noise, counted 35 too low, 2.6."""

_LEAST_OF_MIXTURE = 0.5  # of the number by the threshold: a mixture that finds fewer has found some outliers
_AS_FAR = 0.75  # see margin_count
_SOFTNESS = 0.1  # see _by_threshold


def wrong_probability(scores: Scores) -> np.ndarray:
    """(N,) estimated probability that the label is wrong, 0 for samples that were never seen. As many labels are above
    1/2 as are estimated to be wrong.

    The mixture of two normal distributions of the AUM where it finds two groups that are apart by SEPARATION, else that
    of the AUM less the median of its class, for classes that differ by more than right and wrong labels do. Where
    neither does, or has less than half as many in its lower group: `confident_count` labels with AC1's α and the mean
    probability of the given label, and without them `margin_count`. ValueError where the AUM is infinite."""
    aum = scores.aum
    assert aum is not None
    if np.isinf(aum).any():
        raise ValueError(f"source: AUM is infinite for {count_and_ids(np.isinf(aum))}")
    wrong = np.zeros(len(aum))
    seen = np.flatnonzero(~np.isnan(aum))
    if not len(seen):
        return wrong
    values, given = aum[seen], scores.given[seen]
    by_threshold = _by_threshold(values, _threshold(scores, values, seen))
    by_mixture = _by_mixture(values, given, scores.classes)
    fewest = _LEAST_OF_MIXTURE * (by_threshold > 0.5).sum()
    if by_mixture is None or (by_mixture > 0.5).sum() < fewest:
        wrong[seen] = by_threshold
    else:
        wrong[seen] = by_mixture
    return wrong


def confident_count(
    own: np.ndarray, of_rival: np.ndarray, rival: np.ndarray, given: np.ndarray, num_classes: int
) -> int:
    """How many labels are wrong by the mean probabilities of a run.

    own, of_rival: (N,) float64, the mean probability of the given label and of the `rival`, (N,) int64, another class.
    given: (N,) int64 in [0, K).

    Confident learning takes a label for wrong where the rival is as probable as it is, on average, among the samples
    labelled so. That is for probabilities of networks that have not seen the sample. A run's own ones have learned
    some wrong labels by heart, the more the more there are, and so the rival only needs to reach a part of that: 1 − r,
    where r is the share of labels that are wrong, the largest with which the count agrees. And it must be more probable
    than the given label.
    """
    usual = class_thresholds(own, given, num_classes)[rival]
    return _agreeing_count(np.where(of_rival > own, of_rival / usual, 0.0))


def margin_count(aum: np.ndarray) -> int:
    """How many labels are wrong by the AUM alone, (N,) finite. Another class has to win by 3/4 · (1 − r) of what the
    given label wins by where it wins, in the median, r as in confident_count. 0 where no given label wins."""
    usual = _winning_margin(aum)
    return _agreeing_count(-aum / (_AS_FAR * usual)) if usual else 0


def classes_of(given: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The positions of each class that has any, ascending."""
    ends = np.cumsum(np.bincount(given, minlength=num_classes))
    parts = np.split(np.argsort(given, kind="stable"), ends[:-1])
    return [part for part in parts if len(part)]


# ---- parts


def _by_mixture(aum: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray | None:
    """The probabilities by the mixture, None where there are no two groups."""
    below = aum < min(0.0, otsu_threshold(aum))  # below 0 another class wins on average
    mixture = fit_mixture(aum, below)
    if mixture.found(SEPARATION):
        return mixture.wrong(aum)
    centred = aum.copy()
    for members in classes_of(given, num_classes):
        centred[members] -= np.median(aum[members])
    mixture = fit_mixture(centred, below)
    return mixture.wrong(centred) if mixture.found(SEPARATION) else None


def _agreeing_count(reached: np.ndarray) -> int:
    """The largest number of samples, n of N, that all have reached 1 − n / N, and more than 0."""
    ordered = np.sort(reached)[::-1]
    share = (np.arange(len(ordered)) + 1) / len(ordered)
    agrees = np.flatnonzero((ordered > 0) & (ordered >= 1 - share))
    return int(agrees[-1]) + 1 if len(agrees) else 0


def _threshold(scores: Scores, aum: np.ndarray, seen: np.ndarray) -> float:
    """The AUM below which labels are taken for wrong where there are no two groups. aum: of the samples `seen`."""
    alpha, confidence = scores.alpha, scores.confidence
    if alpha is None or alpha.form != "ac1" or confidence is None:
        number = margin_count(aum)
    else:
        own = confidence[seen]
        of_rival = (1 - own) * alpha.rival_share[seen]
        number = confident_count(own, of_rival, alpha.rival[seen], scores.given[seen], scores.classes)
    ordered = np.concatenate([[-np.inf], np.sort(aum), [np.inf]])
    return float(ordered[number : number + 2].mean())  # midway between the last of them and the next one


def _by_threshold(aum: np.ndarray, threshold: float) -> np.ndarray:
    """The logistic function of the AUM that is 1/2 at the threshold. Its scale is the usual winning margin times the
    sum of a tenth and the share below the threshold: the more labels are wrong, the more right and wrong ones mix. 0
    where no given label wins."""
    usual = _winning_margin(aum)
    if not usual:
        return np.zeros(len(aum))
    scale = (_SOFTNESS + float((aum < threshold).mean())) * usual
    return np.asarray(1 / (1 + np.exp(np.clip((aum - threshold) / scale, -700, 700))))


def _winning_margin(aum: np.ndarray) -> float:
    """The median of the positive AUM, 0 where none is."""
    winning = aum[aum > 0]
    return float(np.median(winning)) if len(winning) else 0.0
