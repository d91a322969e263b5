"""The rankings: each an order of all samples, worst first, a quality a sample, and which of them are label issues."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fastac.issues import confidence as confident
from fastac.issues.alpha import AlphaStatistics
from fastac.issues.mixture import fit_mixture
from fastac.issues.wrong import classes_of, wrong_probability

__all__ = [
    "Ranking",
    "Scores",
    "combined_score",
    "positions",
    "probability_margin",
    "rank_alpha",
    "rank_aum",
    "rank_combined",
    "rank_confidence",
]

_WITHIN_CLASS = 0.5  # weight of a sample's place among those of its label, see combined_score
_FEW = 10  # samples of a class at which that place counts half
_TIE = 1e-6  # of the quality: the order among samples of equal probability
_LOWEST = 1e-4  # p_y, whose logit would be infinite
_LEAST_ALPHA = 1e-3  # of the largest, whose logarithm would be infinite


@dataclass(frozen=True, eq=False)
class Scores:
    """What is known of N samples. given: (N,) int64. num_classes: K, None where only the labels tell. aum,
    confidence (the mean p_y): (N,) float64, NaN for samples that were never seen, as those whose label is ignored.
    pred_probs: (N, K) float64. ignored: (N,) bool, whose label is none; None for all labels being some."""

    given: np.ndarray
    num_classes: int | None
    alpha: AlphaStatistics | None = None
    aum: np.ndarray | None = None
    confidence: np.ndarray | None = None
    el2n: np.ndarray | None = None
    pred_probs: np.ndarray | None = None
    ignored: np.ndarray | None = None

    @property
    def labelled(self) -> np.ndarray:
        """(N,) bool: whose label is not ignored."""
        return np.ones(len(self.given), bool) if self.ignored is None else ~self.ignored

    @property
    def classes(self) -> int:
        """K, or how many classes the labels show."""
        return self.num_classes or int(self.given[self.labelled].max(initial=0)) + 1


@dataclass(eq=False)
class Ranking:
    """order: (N,) ids, worst first, those never seen last. quality: (N,) float64 by id, NaN for those. flagged: (N,)
    bool by id, the label issues where no percentage is asked for. suggested: (N,) int64, −1 where unknown."""

    order: np.ndarray
    quality: np.ndarray
    flagged: np.ndarray
    suggested: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def rank_alpha(scores: Scores) -> Ranking:
    """Algorithm 2 for AC1; by α for AC2. As many samples are issues as wrong_probability says, or, without AUM, as α
    has in its upper group."""
    alpha = scores.alpha
    assert alpha is not None
    columns = _alpha_columns(alpha)
    seen = scores.labelled & (alpha.drawn if scores.aum is None else ~np.isnan(scores.aum))
    by_highest = np.argsort(np.where(seen, -alpha.highest, math.inf), kind="stable")
    if alpha.form == "ac1":
        max_rank = positions(by_highest)
        min_rank = positions(np.argsort(np.where(seen, alpha.lowest, math.inf), kind="stable"))
        turn = np.minimum(
            2 * max_rank, 2 * min_rank + 1
        )  # in which Algorithm 2 takes the sample; no two are equal
        order = np.argsort(turn)
    else:
        order = by_highest
    suggested = _alpha_suggestions(alpha)
    number = _alpha_issues(alpha) if scores.aum is None else int((wrong_probability(scores) > 0.5).sum())
    return Ranking(order, *_by_position(order, int(seen.sum()), number), suggested, columns)


def rank_aum(scores: Scores) -> Ranking:
    """By AUM, ascending."""
    aum = scores.aum
    assert aum is not None
    order = np.argsort(aum, kind="stable")  # NaN comes last
    number = int((wrong_probability(scores) > 0.5).sum())
    return Ranking(order, *_by_position(order, int((~np.isnan(aum)).sum()), number), _unknown(aum))


def rank_confidence(scores: Scores) -> Ranking:
    """By the probability of the given label, adjusted by class."""
    if scores.pred_probs is not None:
        return _rank_pred_probs(scores.pred_probs, scores.given, scores.classes, scores.labelled)
    confidence = scores.confidence
    assert confidence is not None
    quality = confident.adjusted_self_confidence(confidence, scores.given, scores.classes)
    seen = ~np.isnan(confidence)
    p = np.clip(confidence[seen], _LOWEST, 1 - _LOWEST)
    logit = np.log(p / (1 - p))
    order = np.lexsort((confidence, quality))  # qualities are cut to [0, 1]; NaN comes last
    number = int((fit_mixture(logit, p < 0.5).wrong(logit) > 0.5).sum())
    _, flagged = _by_position(order, int(seen.sum()), number)
    return Ranking(order, quality, flagged, _unknown(confidence))


def rank_combined(scores: Scores) -> Ranking:
    """By the AUM among all samples and among those of the same label; the quality is an estimate of the probability
    that the label is right."""
    aum = scores.aum
    assert aum is not None
    seen = int((~np.isnan(aum)).sum())
    margin = None
    if scores.confidence is not None and scores.el2n is not None:
        margin = probability_margin(scores.confidence, scores.el2n)
    order = np.argsort(combined_score(aum, scores.given, scores.classes, margin), kind="stable")
    # As many of each probability as the AUM has, in this ranking's order.
    wrong = np.sort(wrong_probability(scores))[::-1]
    place = np.arange(len(aum)) / max(1, seen - 1)
    quality = np.empty(len(aum))
    quality[order] = np.where(np.arange(len(aum)) < seen, (1 - wrong) * (1 - _TIE) + _TIE * place, math.nan)
    flagged = np.zeros(len(aum), bool)
    flagged[order] = wrong > 0.5
    suggested = _unknown(aum)
    columns = {}
    if scores.alpha is not None:
        suggested, columns = _alpha_suggestions(scores.alpha), _alpha_columns(scores.alpha)
    return Ranking(order, quality, flagged, suggested, columns)


def combined_score(
    aum: np.ndarray, given: np.ndarray, num_classes: int, margin: np.ndarray | None = None
) -> np.ndarray:
    """(N,) float64, higher is cleaner: (AUM − median) / IQR over all samples, plus half of the same over the samples
    with the same label, plus (margin − median) / IQR where `margin`, (N,), is known: see probability_margin.

    The second part sees a wrong label in a class whose margins are all small or all large, as in classes that are
    easily taken for each other. A class's IQR is widened by a tenth of that of all samples, so that a class of
    equal margins divides by no zero, and its part shrinks by n / (n + 10), where it has few samples n."""
    seen = np.flatnonzero(~np.isnan(aum))
    score = np.full(len(aum), math.nan)
    if not len(seen):
        return score
    score[seen] = _standardised(aum[seen])
    spread = _median_and_iqr(aum[seen])[1] or 1.0
    for members in classes_of(given[seen], num_classes):
        ids = seen[members]
        middle, own = _median_and_iqr(aum[ids])
        weight = _WITHIN_CLASS * len(ids) / (len(ids) + _FEW)
        score[ids] += weight * (aum[ids] - middle) / (own + spread / 10)
    if margin is not None:
        score += np.nan_to_num(_standardised(margin), nan=0.0)
    return score


def probability_margin(confidence: np.ndarray, el2n: np.ndarray) -> np.ndarray:
    """(N,) float64, about the margin of the mean probabilities: p̄_y less the length of the other classes' vector, which
    is little more than the largest of them. Of a vector p, EL2N² = (1 − p_y)² + Σ_{k≠y} p_k².

    confidence: (N,) the mean p_y; el2n: (N,) the mean EL2N (Paul et al. 2021) of the same visits."""
    others = np.sqrt(np.maximum(el2n**2 - (1 - confidence) ** 2, 0))
    return np.asarray(confidence - others)


def positions(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation: each sample's position in `order`, from 0."""
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


# ---- parts


def _alpha_issues(alpha: AlphaStatistics) -> int:
    """How many samples α itself has in its upper group: by the logarithm of α* at the given label less the rival's
    (AC2: of α), because clean labels have α over several orders of magnitude."""
    size = (alpha.offset - alpha.rival_offset if alpha.form == "ac1" else alpha.offset)[alpha.drawn]
    if size.max(initial=0.0) <= 0:
        return 0
    size = np.maximum(size / size.max(), _LEAST_ALPHA)
    score = -np.log(size)
    return int((fit_mixture(score, size > 0.5).wrong(score) > 0.5).sum())


def _rank_pred_probs(
    pred_probs: np.ndarray, given: np.ndarray, num_classes: int, labelled: np.ndarray
) -> Ranking:
    suggested = pred_probs.argmax(axis=1)
    quality, flagged = np.full(len(given), math.nan), np.zeros(len(given), bool)
    if not labelled.all():
        pred_probs, given = pred_probs[labelled], given[labelled]
    own = pred_probs[np.arange(len(given)), given]
    threshold = confident.class_thresholds(own, given, num_classes)
    quality[labelled] = confident.adjusted_confidence(pred_probs, given, threshold)
    flagged[labelled], guess = confident.off_diagonal(pred_probs, given, threshold)
    suggested[flagged] = guess[flagged[labelled]]
    return Ranking(np.argsort(quality, kind="stable"), quality, flagged, suggested)  # NaN comes last


def _alpha_suggestions(alpha: AlphaStatistics) -> np.ndarray:
    """(N,) int64: AC1's rival; −1 where the row is one number, and for AC2, which knows of none."""
    return np.where(alpha.highest == alpha.lowest, -1, alpha.rival)


def _alpha_columns(alpha: AlphaStatistics) -> dict[str, np.ndarray]:
    max_rank = positions(np.argsort(-alpha.highest, kind="stable"))
    if alpha.form == "ac1":
        min_rank = _percentile(positions(np.argsort(alpha.lowest, kind="stable")))
    else:
        min_rank = np.full(len(alpha), math.nan)
    return {
        "alpha_max": alpha.highest,
        "alpha_min": alpha.lowest,
        "max_rank": _percentile(max_rank),
        "min_rank": min_rank,
    }


def _by_position(order: np.ndarray, num_seen: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Quality as the position over the last position, and the first `number` of the ranking."""
    position = positions(order)
    quality = position / (num_seen - 1) if num_seen > 1 else np.ones(len(order))
    return np.where(position < num_seen, quality, math.nan), position < min(number, num_seen)


def _standardised(values: np.ndarray) -> np.ndarray:
    """(values − median) / IQR over those that are not NaN."""
    seen = values[~np.isnan(values)]
    if not len(seen):
        return values
    middle, spread = _median_and_iqr(seen)
    return (values - middle) / (spread or 1.0)


def _median_and_iqr(values: np.ndarray) -> tuple[float, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(middle), float(high - low)


def _percentile(ranks: np.ndarray) -> np.ndarray:
    return (ranks + 1) / len(ranks) * 100


def _unknown(like: np.ndarray) -> np.ndarray:
    return np.full(len(like), -1)
