"""find_label_issues: all samples by how likely their label is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastac.extras import require
from fastac.issues.alpha import AlphaStatistics, alpha_statistics, are_probabilities
from fastac.issues.checks import (
    ClassNames,
    check_percent,
    check_range,
    class_count,
    count_and_ids,
    ignored_labels,
    integer_vector,
    listed_names,
    vector,
)
from fastac.issues.kinds import issue_kinds
from fastac.issues.rankings import (
    Ranking,
    Scores,
    positions,
    rank_alpha,
    rank_aum,
    rank_combined,
    rank_confidence,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHODS", "find_label_issues", "issues_frame"]

_ROUNDING = 1e-3  # by which an average of probabilities may lie outside [0, 1], in half precision
_RANK: dict[str, Callable[[Scores], Ranking]] = {
    "alpha": rank_alpha,
    "aum": rank_aum,
    "confidence": rank_confidence,
    "combined": rank_combined,
}
METHODS = tuple(_RANK)


def find_label_issues(
    source: Any,
    labels: Any,
    *,
    method: str | None = None,
    percent: float | None = None,
    class_names: ClassNames | None = None,
    pred_labels: Any = None,
    other_labels: Any = None,
    dynamics: Any = None,
    ignore_index: int = -100,
) -> pd.DataFrame:
    """Rank all samples by how likely their label is wrong, worst first. docs/detection.md explains and compares the
    methods.

    source: an AlphaTable (anything with `dense()` and `form`; with a ShardedAlphaTable all ranks call this), α itself
        as an array or tensor, (N, K) for AC1 and (N,) for AC2, or AlphaStatistics; or TrainingDynamics (anything with
        `aum`, or their frame). With method "aum" also the AUM itself, (N,), NaN for samples that were never seen; with
        "confidence" the mean probability of the given label, (N,), or the probabilities of all classes, (N, K), best
        from networks that were not trained on the sample.
    labels: (N,) integers in [0, K), the labels that were trained on, or ignore_index; bool where K is 2.
    method: "alpha", Algorithm 2; "aum"; "confidence", the probability of the given label; "combined". None: "combined"
        where there are dynamics, else "alpha"; probabilities need "confidence", and are refused without.
    percent: Algorithm 2's τ, in per cent of N: the first round(percent / 100 · N) of the ranking are label
        issues. None takes them from the distribution of the scores, see below.
    class_names: K names, in order or by class, as in transformers' id2label; adds the columns given_class and
        suggested_class.
    pred_labels: (N,) integers in [0, K), what the network predicts without α: the suggested labels.
    other_labels: with pred_labels, (N,) integers in [0, K): the network's best class other than the given one.
    dynamics: TrainingDynamics or their frame (a DataFrame with index, aum and p_mean), beside a source that holds α.
    ignore_index: what stands for no label, as in the loss.

    The rankings; ties go to the smaller id. Samples that were never seen come last: those whose label is ignored, whose
    AUM or p_y is NaN, or, without dynamics, whose row of α is one number (AC2: α = 0), as before training.
        alpha       AC1: with α̂ = α − mean_k α, one list has the samples by max_k α̂, descending, another by min_k α̂,
                    ascending. They are taken from the two by turns, the maximum first; a sample that is taken already
                    uses up its turn. AC2: α descending
        aum         AUM ascending
        confidence  p_y less the mean p_y of the samples with that label, ascending (confident learning)
        combined    AUM ascending, by its place among all samples and, with half the weight, among those with the same
                    label, together with the margin of the mean probabilities where EL2N is known. α gives the suggested
                    labels and the kinds, and has no part in this ranking

    Returns one row a sample:
        index             int64: the sample's id, its position in `labels`
        given_label       int64
        suggested_label   Int64. AC1: the class of the lowest α* other than the given one (Theorem 2: the
                          constant of the true label is the lowest; α*: see AlphaStatistics); <NA> where the whole row
                          is one number, as for a sample that was never drawn. Probabilities of all classes: the most
                          probable one. AC2, AUM and p_y know of no other label: <NA>.
                          With `pred_labels` these; but for a label issue whose given label the network
                          predicts, having learned it by heart, AC1's suggestion as above, else `other_labels`
                          where given
        is_label_issue    bool
        label_quality     float64, 1 clean … 0 wrong; NaN for a sample that was never seen, which is never a label
                          issue either. combined: the estimated probability that the label is right. confidence: the
                          adjusted probability. alpha, aum: the position in the ranking over the last position, so a
                          comparison with the other samples, no probability
        kind              str: "within", "outside" or "several", see fastac.issues.issue_kinds; None for what is no
                          label issue, and without AC1's α
        alpha_max, alpha_min   float64: max_k α̂ and min_k α̂; AC2: α and NaN; without α NaN
        max_rank, min_rank     float64: their percentile ranks in per cent as in Figures 4 to 6, so rank 1 of
                               50,000 is 0.002; AC2: the rank of α and NaN; without α NaN
        aum, p_mean            float64, where they are known: the AUM, the mean probability of the given label
        given_class, suggested_class   str, with class_names; missing for no label

    The label issues where percent is None. combined: where the estimated probability that the label is right is below
    1/2. It is that of a mixture of two normal distributions of the AUM, or of the AUM less its class's median, where
    the two are apart by an Ashman's D of 3.5. Else as many labels are taken for wrong as have, by the run's mean
    probabilities, another class that reaches what it usually has where it is the given label (AC1), or, without α, as
    many as another class wins by 3/4 of the usual margin; both less by the share that is wrong, see
    fastac.issues.wrong. alpha (with dynamics) and aum: as many as that, from the top of the ranking. alpha without
    dynamics, confidence from p_y alone: by mixtures of log α* and of logit p_y, which must be apart by 2.5. confidence
    with the probabilities of all classes: what lies off the diagonal of the confident joint.

    Reads α by chunks of rows and does not copy it: memory beside `source` is some arrays of N numbers.
    ValueError for an argument of the wrong shape, type or range, and for α that is not finite.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if percent is not None:
        check_percent("percent", percent)
    names = None if class_names is None else listed_names(class_names)
    _check_not_probabilities(source, method, dynamics)
    if method is None:
        method = "combined" if dynamics is not None or _holds_dynamics(source) else "alpha"
    scores = _read(source, labels, method, dynamics, names, ignore_index)
    size, classes = len(scores.given), scores.num_classes
    predicted, other = (
        _labels_or_none(name, values, size, classes)
        for name, values in (("pred_labels", pred_labels), ("other_labels", other_labels))
    )
    ranking = _RANK[method](scores)
    seen = ~np.isnan(ranking.quality)
    flagged = ranking.flagged
    if percent is not None:
        flagged = positions(ranking.order) < min(round(percent / 100 * size), int(seen.sum()))
    kind = np.full(size, None, dtype=object)
    if scores.alpha is not None:
        kind[flagged] = issue_kinds(scores.alpha, scores.confidence)[flagged]
    if predicted is not None:
        ranking.suggested = _suggestions(predicted, other, ranking.suggested, scores.given, flagged)
    return issues_frame(scores, ranking, flagged, kind, names)


def issues_frame(
    scores: Scores,
    ranking: Ranking,
    flagged: np.ndarray,
    kind: np.ndarray,
    class_names: Sequence[str] | None,
) -> pd.DataFrame:
    """The columns that find_label_issues promises, in the ranking's order. flagged: (N,) bool, kind: (N,) object."""
    pandas = require("pandas", "report")
    unknown = ranking.suggested < 0
    nan = np.full(len(scores.given), math.nan)
    columns: dict[str, Any] = {
        "index": np.arange(len(scores.given)),
        "given_label": scores.given,
        "suggested_label": pandas.arrays.IntegerArray(ranking.suggested.astype(np.int64), unknown),
        "is_label_issue": flagged,
        "label_quality": ranking.quality,
        "kind": pandas.Series(kind, dtype=object),
        **dict.fromkeys(("alpha_max", "alpha_min", "max_rank", "min_rank"), nan),
        **ranking.columns,
    }
    for name, values in (("aum", scores.aum), ("p_mean", scores.confidence)):
        if values is not None:
            columns[name] = values
    if class_names is not None:
        names, given = np.array(class_names, dtype=object), scores.given
        known = (given >= 0) & (given < len(names))
        columns["given_class"] = pandas.Series(names[np.where(known, given, 0)]).mask(~known, None)
        columns["suggested_class"] = pandas.Series(names[ranking.suggested]).mask(unknown, None)
    return pandas.DataFrame(columns).iloc[ranking.order].reset_index(drop=True)


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


# ---- what source, labels and dynamics hold


def _labels_or_none(name: str, values: Any, size: int, classes: int | None) -> np.ndarray | None:
    if values is None:
        return None
    labels = integer_vector(name, values, size)
    check_range(name, labels, classes)
    return labels


def _holds_dynamics(source: Any) -> bool:
    return hasattr(source, "aum") and not hasattr(source, "dense")


def _read(
    source: Any,
    labels: Any,
    method: str,
    dynamics: Any,
    class_names: Sequence[str] | None,
    ignore_index: int,
) -> Scores:
    """Everything that the arguments say about the samples, checked; what the method needs is there."""
    known: dict[str, Any] = dict.fromkeys(("alpha", "aum", "confidence", "el2n", "pred_probs"))
    classes = None
    if dynamics is not None:
        known.update(_dynamics_columns("dynamics", dynamics))
    if _holds_dynamics(source):
        if method == "alpha":
            raise ValueError(f"source: {type(source).__name__} holds dynamics; method 'alpha' needs α")
        if dynamics is not None:
            raise ValueError("source and dynamics are both training dynamics; pass them once, as source")
        known.update(_dynamics_columns("source", source))
        classes = getattr(source, "num_classes", None)
    elif (
        method == "alpha"
        or dynamics is not None
        or hasattr(source, "dense")
        or isinstance(source, AlphaStatistics)
    ):
        known["alpha"] = alpha_statistics(source, labels, ignore_index=ignore_index)
        classes = known["alpha"].num_classes
    elif method == "confidence":
        known.update(_probabilities(source))
        classes = None if known["pred_probs"] is None else known["pred_probs"].shape[1]
    else:
        known["aum"] = _numbers("source", source, ("(N,)",))
    _check_method(method, source, known)
    size = next(len(values) for values in known.values() if values is not None)
    given = integer_vector("labels", labels, size)
    for name, values in known.items():
        if values is not None and len(values) != size:
            raise ValueError(f"dynamics must be of {size} samples, as source is, got {len(values)} ({name})")
    classes = class_count(classes, class_names)
    ignored = ignored_labels(given, ignore_index)
    check_range("labels", given, classes, ignored)
    for name in ("aum", "confidence", "el2n"):
        if known[name] is not None:
            known[name][ignored] = math.nan
    return Scores(given, classes, **known, ignored=ignored)


def _check_not_probabilities(source: Any, method: str | None, dynamics: Any) -> None:
    """α is what an array stands for where the method does not say otherwise; probabilities would rank at random."""
    if _holds_dynamics(source) or method == "alpha" or (method is not None and dynamics is None):
        return
    if are_probabilities(source):
        raise ValueError(
            "source looks like probabilities of all classes (in [0, 1], each row's sum is 1), not like α: for "
            "probabilities pass method='confidence' and no dynamics"
        )


def _check_method(method: str, source: Any, known: dict[str, Any]) -> None:
    needs = {
        "alpha": ("alpha",),
        "aum": ("aum",),
        "combined": ("aum",),
        "confidence": ("confidence", "pred_probs"),
    }
    if all(known[name] is None for name in needs[method]):
        raise ValueError(
            f"source: {type(source).__name__} holds α alone; method {method!r} needs training dynamics: pass them as "
            "dynamics"
        )


def _dynamics_columns(name: str, dynamics: Any) -> dict[str, np.ndarray]:
    """AUM and, where they are there, mean p_y and EL2N, by id."""
    frame = dynamics.frame() if hasattr(dynamics, "frame") else dynamics
    if not hasattr(frame, "columns"):  # something that has the AUM alone
        if not hasattr(frame, "aum"):
            raise ValueError(f"{name} must be TrainingDynamics or their frame, got {type(dynamics).__name__}")
        return {"aum": _numbers(name, frame.aum, ("(N,)",))}
    lacks = [column for column in ("index", "aum", "p_mean") if column not in frame.columns]
    if lacks:
        raise ValueError(f"{name} lacks the columns {', '.join(lacks)}")
    ids = frame["index"].to_numpy()
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise ValueError(
            f"{name} must hold every sample once: its column index must be a permutation of 0 … N−1"
        )
    by_id = np.argsort(ids)
    columns = {"aum": frame["aum"], "confidence": frame["p_mean"]}
    if "el2n" in frame.columns:
        columns["el2n"] = frame["el2n"]
    return {key: column.to_numpy(np.float64)[by_id] for key, column in columns.items()}


def _probabilities(source: Any) -> dict[str, np.ndarray]:
    values = _numbers("source", source, ("(N,)", "(N, K)"))
    inside = (values >= -_ROUNDING) & (values <= 1 + _ROUNDING)
    rows: np.ndarray = ~(inside | np.isnan(values)) if values.ndim == 1 else ~np.all(inside, axis=1)
    if rows.any():
        raise ValueError(f"source must hold probabilities in [0, 1], it does not for {count_and_ids(rows)}")
    np.clip(values, 0, 1, out=values)
    return {"confidence": values} if values.ndim == 1 else {"pred_probs": values}


def _numbers(name: str, source: Any, shapes: tuple[str, ...]) -> np.ndarray:
    """Floating-point numbers of one of the shapes, in float64, with N ≥ 1, K ≥ 2."""
    values = source.detach() if isinstance(source, Tensor) else np.asarray(source)
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    shape = tuple(values.shape)
    named = {1: "(N,)", 2: "(N, K)"}.get(len(shape), "neither")
    if not floating or named not in shapes or shape[0] == 0 or shape[-1] == 1 < len(shape):
        raise ValueError(
            f"{name} must hold floating-point numbers {' or '.join(shapes)}, got {shape} {values.dtype}"
        )
    return vector(values)
