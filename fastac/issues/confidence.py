"""Ranking by the probability of the given label, after confident learning.

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021), section
3.1: a class's threshold t_k is the mean probability of k over the samples labelled k, and a sample whose probability
of another class reaches that class's threshold counts off the diagonal of the confident joint.
"""

from __future__ import annotations

import numpy as np

__all__ = ["adjusted_confidence", "adjusted_self_confidence", "class_thresholds", "off_diagonal"]

_ROUNDING = 1e-6  # what cleanlab allows a probability to lie under its threshold


def class_thresholds(confidence: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) mean probability of the given label by class; 2, which no probability reaches, for a class without samples.
    confidence: (N,) float64. given: (N,) int64 in [0, K)."""
    count = np.bincount(given, minlength=num_classes)
    mean = np.bincount(given, confidence, minlength=num_classes) / np.maximum(count, 1)
    return np.where(count > 0, np.maximum(mean, 2e-7), 2.0)


def adjusted_self_confidence(confidence: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray:
    """(N,) probability of the given label less its class's threshold, moved up by the highest threshold, so that a
    class which is learned less well is not suspicious as a whole. For mean probabilities without those of the other
    classes; NaN stays NaN."""
    known = ~np.isnan(confidence)
    threshold = class_thresholds(confidence[known], given[known], num_classes)
    highest = threshold[threshold <= 1].max(initial=0.0)
    adjusted = np.full(len(confidence), np.nan)
    adjusted[known] = np.clip(confidence[known] - threshold[given[known]] + highest, 0, 1)
    return adjusted


def adjusted_confidence(pred_probs: np.ndarray, given: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """(N,) the same where all probabilities (N, K) are known: each less its class's threshold, moved up and
    normalised, at the given label (cleanlab's adjust_pred_probs)."""
    moved = pred_probs - threshold + threshold.max()
    return moved[np.arange(len(given)), given] / moved.sum(axis=1)


def off_diagonal(
    pred_probs: np.ndarray, given: np.ndarray, threshold: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The confident joint's samples off its diagonal, (N,) bool, and the class that each sample is confidently of, (N,)
    int64, −1 where it is of none: the one class whose threshold is reached, of several the most probable."""
    confident = pred_probs >= threshold - _ROUNDING
    number = confident.sum(axis=1)
    guess = np.where(number > 1, pred_probs.argmax(axis=1), confident.argmax(axis=1))
    guess = np.where(number > 0, guess, -1)
    return (guess >= 0) & (guess != given), guess
