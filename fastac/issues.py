"""Wrong labels, ranked: by the paper's Algorithm 2 on α, or by the area under the margin (AUM).

Source: "AutoCleansing: Unbiased Estimation of Deep Learning with Mislabeled Data" (ICLR 2021 submission),
section 4.2, Algorithm 2 and Figures 4 to 6. AUM: Pleiss et al., "Identifying Mislabeled Data using the Area
Under the Margin Ranking" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastac.extras import require

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["detection_scores", "find_label_issues", "given_label_alpha"]

_CHUNK_ELEMENTS = 1 << 22  # of α worked on at once, in float64: 32 MiB
_BINS = 256  # of the score's histogram, and
_BANDWIDTH = 5  # the standard deviation, in bins, of the Gaussian that smooths it: 2 % of the range


def find_label_issues(
    source: Any,
    labels: Any,
    *,
    method: str = "alpha",
    percent: float | None = None,
    class_names: Sequence[str] | None = None,
    pred_labels: Any = None,
    other_labels: Any = None,
) -> pd.DataFrame:
    """Rank all samples by how likely their label is wrong, worst first.

    source: with method "alpha" an AlphaTable (anything with `dense()` and `form`), or α itself as an array or
        tensor, (N, K) for AC1 and (N,) for AC2. With method "aum" TrainingDynamics (anything with `aum`), or
        the AUM itself, (N,), NaN for samples that were never seen.
    labels: (N,) integers in [0, K), the labels that were trained on.
    percent: Algorithm 2's τ, in per cent of N: the first round(percent / 100 · N) of the ranking are label
        issues. None takes their number from the distribution of the score, see below.
    class_names: K names; adds the columns given_class and suggested_class.
    pred_labels: (N,) integers in [0, K), what the network predicts without α: the suggested labels.
    other_labels: with pred_labels, (N,) integers in [0, K): the network's best class other than the given one.

    The ranking. AC1: with α̂ = α − mean_k α, one list has the samples by max_k α̂, descending, another by
    min_k α̂, ascending. They are taken from the two by turns, the maximum first; a sample that is taken
    already uses up its turn. AC2: α descending. AUM: ascending, samples that were never seen last. Ties go to
    the smaller id.

    Returns one row a sample:
        index             int64: the sample's id, its position in `labels`
        given_label       int64
        suggested_label   Int64. AC1: the class of the lowest α̂ other than the given one (Theorem 2: the
                          constant of the true label is the lowest); <NA> where the whole row is one number, as
                          for a sample that was never drawn. AC2 and AUM know of no other label: <NA>.
                          With `pred_labels` these; but for a label issue whose given label the network
                          predicts, having learned it by heart, AC1's suggestion as above, else `other_labels`
                          where given
        is_label_issue    bool
        label_quality     float64, 1 clean … 0 wrong: the position in the ranking over the last position, so a
                          comparison with the other samples, no probability. AUM: NaN for a sample that was
                          never seen, which is never a label issue either
        alpha_max, alpha_min   float64: max_k α̂ and min_k α̂; AC2: α and NaN; AUM: NaN
        max_rank, min_rank     float64: their percentile ranks in per cent as in Figures 4 to 6, so rank 1 of
                               50,000 is 0.002; AC2: the rank of α and NaN; AUM: NaN
        aum                    float64, with method "aum"
        given_class, suggested_class   str, with class_names

    The number of label issues where percent is None. The score is max_k |α̂| (AC2: α; AUM: −AUM). The network
    did not learn a wrong label, so its score is above half of the largest (no α is larger than that of a
    sample that is never fitted; AUM: above 0, where another class wins on average). If the smoothed histogram
    of the score has a mode above this floor, behind a valley that is at least a quarter lower and by more
    than chance, then the valley is the threshold. If not, as on clean labels, only outliers count: scores
    above the floor and above the third quartile plus 1.5 interquartile ranges. As many samples as have scores
    above the threshold are flagged, from the top of the ranking.

    Reads α by chunks of rows and does not copy it: memory beside `source` is some arrays of N numbers.
    ValueError for an argument of the wrong shape, type or range, and for α that is not finite.
    """
    pandas = require("pandas", "report")
    values = _source_values(source, method)
    num_samples = len(values)
    given = _integer_vector("labels", labels, num_samples)
    num_classes = _num_classes(values, class_names)
    _check_range("labels", given, num_classes)
    if percent is not None and (isinstance(percent, bool) or not 0 <= percent <= 100):
        raise ValueError(f"percent must be None or a number from 0 to 100, got {percent!r}")

    if method == "aum":
        ranking = _rank_aum(_vector(values))
    elif values.ndim == 1:
        ranking = _rank_ac2(_vector(values))
    else:
        ranking = _rank_ac1(values, given)
    predicted, other = (
        None if values is None else _integer_vector(name, values, num_samples)
        for name, values in (("pred_labels", pred_labels), ("other_labels", other_labels))
    )
    for name, known in (("pred_labels", predicted), ("other_labels", other)):
        if known is not None:
            _check_range(name, known, num_classes)

    position = _ranks(ranking.order)
    seen = ~np.isnan(ranking.score)
    num_seen = int(seen.sum())
    if percent is None:
        num_issues = int((ranking.score > _threshold(ranking.score[seen], ranking.floor)).sum())
    else:
        num_issues = min(round(percent / 100 * num_samples), num_seen)
    is_issue = position < num_issues
    if predicted is not None:
        ranking.suggested = _suggestions(predicted, other, ranking.suggested, given, is_issue)
    quality = position / (num_seen - 1) if num_seen > 1 else np.ones(num_samples)
    unknown = ranking.suggested < 0
    columns: dict[str, Any] = {
        "index": np.arange(num_samples),
        "given_label": given,
        "suggested_label": pandas.arrays.IntegerArray(ranking.suggested, unknown),
        "is_label_issue": is_issue,
        "label_quality": np.where(seen, quality, math.nan),
        **ranking.columns,
    }
    if class_names is not None:
        names = np.array([str(name) for name in class_names], dtype=object)
        columns["given_class"] = names[given]
        columns["suggested_class"] = pandas.Series(names[ranking.suggested]).mask(unknown, None)
    return pandas.DataFrame(columns).iloc[ranking.order].reset_index(drop=True)


def given_label_alpha(source: Any, labels: Any) -> np.ndarray:
    """α̂ at each sample's given label, (N,) float64; AC2: α itself. Arguments as in find_label_issues."""
    values = _source_values(source, "alpha")
    given = _integer_vector("labels", labels, len(values))
    if values.ndim == 1:
        offsets = _vector(values)
    else:
        _check_range("labels", given, values.shape[1])
        offsets = np.empty(len(given))
        for part, rows in _centered_chunks(values):
            label = torch.from_numpy(given[part]).to(rows.device)
            offsets[part] = rows.gather(1, label[:, None])[:, 0].cpu().numpy()
    _check_finite(offsets)
    return offsets


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
    wrong = _host(truth)
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
        true = _integer_vector("true_labels", true_labels, len(ids))
        unequal = true != issues["given_label"].to_numpy(np.int64)[by_id]
        if not np.array_equal(unequal, wrong):
            raise ValueError(f"true_labels and truth disagree for {_count_and_ids(unequal != wrong)}")
        suggested = issues["suggested_label"].to_numpy(float, na_value=math.nan)[by_id]
        result["suggestion_accuracy"] = _share((suggested == true)[wrong & ~np.isnan(suggested)])
    return result


# ---- rankings


@dataclass
class _Ranking:
    order: np.ndarray  # (N,) ids, worst first
    score: np.ndarray  # (N,) higher is worse, NaN for samples never seen
    floor: float  # no label issue has a lower score
    columns: dict[str, Any]
    suggested: np.ndarray  # (N,) int64, -1 where unknown


def _rank_ac1(alpha: np.ndarray | Tensor, given: np.ndarray) -> _Ranking:
    highest, lowest, suggested = _row_extremes(alpha, given)
    max_rank = _ranks(np.argsort(-highest, kind="stable"))
    min_rank = _ranks(np.argsort(lowest, kind="stable"))
    turn = np.minimum(
        2 * max_rank, 2 * min_rank + 1
    )  # in which Algorithm 2 takes the sample; no two are equal
    score = np.maximum(highest, -lowest)
    columns = {
        "alpha_max": highest,
        "alpha_min": lowest,
        "max_rank": _percentile(max_rank),
        "min_rank": _percentile(min_rank),
    }
    suggested[highest == lowest] = -1
    return _Ranking(np.argsort(turn), score, float(score.max() / 2), columns, suggested)


def _rank_ac2(alpha: np.ndarray) -> _Ranking:
    _check_finite(alpha)
    order = np.argsort(-alpha, kind="stable")
    nan = np.full(len(alpha), math.nan)
    columns = {"alpha_max": alpha, "alpha_min": nan, "max_rank": _percentile(_ranks(order)), "min_rank": nan}
    return _Ranking(order, alpha, float(alpha.max() / 2), columns, np.full(len(alpha), -1))


def _rank_aum(aum: np.ndarray) -> _Ranking:
    if np.isinf(aum).any():
        raise ValueError(f"source: AUM is infinite for {_count_and_ids(np.isinf(aum))}")
    order = np.argsort(aum, kind="stable")  # NaN comes last
    nan = np.full(len(aum), math.nan)
    columns = {"alpha_max": nan, "alpha_min": nan, "max_rank": nan, "min_rank": nan, "aum": aum}
    return _Ranking(order, -aum, 0.0, columns, np.full(len(aum), -1))


def _suggestions(
    predicted: np.ndarray,
    other: np.ndarray | None,
    by_alpha: np.ndarray,
    given: np.ndarray,
    is_issue: np.ndarray,
) -> np.ndarray:
    """What the network predicts; for label issues that it has learned by heart another label, where one is known."""
    another = by_alpha if other is None else np.where(by_alpha >= 0, by_alpha, other)
    return np.where(is_issue & (predicted == given) & (another >= 0), another, predicted)


def _ranks(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation: each sample's position in `order`, from 0."""
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _percentile(ranks: np.ndarray) -> np.ndarray:
    return (ranks + 1) / len(ranks) * 100


def _threshold(score: np.ndarray, floor: float) -> float:
    """Scores above it are label issues; the docstring of find_label_issues has the rule."""
    if len(score) == 0 or score.max() <= floor or np.ptp(score) <= 1e-9 * abs(score.max()):
        return math.inf
    count, edges = np.histogram(score, _BINS)
    reach = 4 * _BANDWIDTH
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _BANDWIDTH) ** 2)
    smooth = np.convolve(np.pad(count, reach, mode="symmetric"), window, mode="valid")  # samples near a bin
    start = min(int(np.searchsorted(edges, floor)), _BINS - 1)
    above = smooth[start:]
    mode = int(
        (above - np.minimum.accumulate(above)).argmax()
    )  # where the rise over all before it is highest
    valley = int(above[: mode + 1].argmin())
    rise, total = above[mode] - above[valley], above[mode] + above[valley]
    if rise > above[mode] / 4 and rise > 4 * math.sqrt(total):  # a count varies by about its square root
        return float(edges[start + valley])
    first, third = np.quantile(score, [0.25, 0.75])
    return max(floor, float(third + 1.5 * (third - first)))


# ---- α̂ by chunks of rows


def _centered_chunks(alpha: np.ndarray | Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their α̂ in float64 on α's device); float64, so that the mean's rounding decides no ranks."""
    num_samples, num_classes = alpha.shape
    step = max(1, _CHUNK_ELEMENTS // num_classes)
    for start in range(0, num_samples, step):
        part = slice(start, min(start + step, num_samples))
        chunk = alpha[part]
        if isinstance(chunk, Tensor):
            rows = chunk.to(torch.float64, copy=True)
        else:
            rows = torch.from_numpy(chunk.astype(np.float64, order="C"))
        yield part, rows.sub_(rows.mean(dim=1, keepdim=True))


def _row_extremes(alpha: np.ndarray | Tensor, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """max_k α̂, min_k α̂ and the class of the lowest α̂ other than the given one; (N,) each."""
    highest, lowest, other = np.empty(len(given)), np.empty(len(given)), np.empty(len(given), np.int64)
    for part, rows in _centered_chunks(alpha):
        low, high = rows.aminmax(dim=1)
        highest[part], lowest[part] = high.cpu().numpy(), low.cpu().numpy()
        rows.scatter_(1, torch.from_numpy(given[part]).to(rows.device)[:, None], math.inf)
        other[part] = rows.argmin(dim=1).cpu().numpy()
    _check_finite(highest)
    return highest, lowest, other


def _vector(values: np.ndarray | Tensor) -> np.ndarray:
    array = values.to(torch.float64).cpu().numpy() if isinstance(values, Tensor) else values
    return array.astype(np.float64)


# ---- checks


def _source_values(source: Any, method: str) -> np.ndarray | Tensor:
    """α or AUM as a floating-point array or tensor, not copied: (N, K) or (N,) with N ≥ 1, K ≥ 2."""
    if method not in ("alpha", "aum"):
        raise ValueError(f"method must be 'alpha' or 'aum', got {method!r}")
    want = "(N, K) or (N,)" if method == "alpha" else "(N,)"
    values = source
    if method == "alpha" and hasattr(source, "dense"):
        values, want = source.dense(), "(N, K)" if source.form == "ac1" else "(N,)"
    elif method == "aum" and hasattr(source, "aum"):
        values = source.aum
    elif hasattr(source, "dense") or hasattr(source, "aum"):
        holds, fix = ("α", "alpha") if method == "aum" else ("AUM", "aum")
        raise ValueError(f"source: {type(source).__name__} holds {holds}; pass method={fix!r}")
    values = values.detach() if isinstance(values, Tensor) else np.asarray(values)
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    shape = tuple(values.shape)
    named = {1: "(N,)", 2: "(N, K)"}.get(len(shape), "neither")
    if not floating or named not in want or shape[0] == 0:
        raise ValueError(f"source must hold floating-point numbers {want}, got {shape} {values.dtype}")
    if len(shape) == 2 and shape[1] < 2:
        raise ValueError(f"source must have at least 2 classes, got α of shape {shape}; AC2's is (N,)")
    return values


def _host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _integer_vector(name: str, values: Any, length: int) -> np.ndarray:
    array = _host(values)
    if array.dtype.kind not in "iu" or array.shape != (length,):
        raise ValueError(f"{name} must be ({length},) integers, got {array.shape} {array.dtype}")
    return array.astype(np.int64)


def _num_classes(values: np.ndarray | Tensor, class_names: Sequence[str] | None) -> int | None:
    """K as α or class_names have it; None where neither does."""
    num_classes = int(values.shape[1]) if values.ndim == 2 else None
    if class_names is None:
        return num_classes
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a sequence of names, got one string {class_names!r}")
    if num_classes not in (None, len(class_names)):
        raise ValueError(f"class_names must be {num_classes} names, one a class, got {len(class_names)}")
    return len(class_names)


def _check_range(name: str, labels: np.ndarray, num_classes: int | None) -> None:
    bad = (labels < 0) | (labels >= (math.inf if num_classes is None else num_classes))
    if bad.any():
        want = "0 or more" if num_classes is None else f"in [0, {num_classes})"
        raise ValueError(f"{name} must be {want}, got {labels[bad][0]} for {_count_and_ids(bad)}")


def _check_finite(alpha: np.ndarray) -> None:
    if not np.isfinite(alpha).all():
        bad = _count_and_ids(~np.isfinite(alpha))
        raise ValueError(f"source: α must be finite, it is NaN or infinite for {bad}")


def _count_and_ids(bad: np.ndarray) -> str:
    ids = np.flatnonzero(bad)
    first = ", ".join(str(i) for i in ids[:5])
    return f"{len(ids)} of {len(bad)} samples (ids {first}{', …' if len(ids) > 5 else ''})"


# ---- scores of a ranking


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
