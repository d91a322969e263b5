"""How many labels are wrong, and how likely each of them is: a mixture of two normal distributions of one score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Mixture", "fit_mixture", "otsu_threshold"]

SEPARATION = 2.5
"""Ashman's D below which the two components are taken for one distribution: from the measurements in
docs/detection.md, in which clean labels reach 2.4 and 2 % of wrong ones 2.9."""

_LARGEST = (
    0.5  # share of the wrong component: with more, it has taken clean samples, and the other one their best
)

_LEAST_VARIANCE = (
    1e-2  # of the whole, added to both components': a few equal scores are no group of their own
)
_GROUPS = 1 << 14
_STEPS = 200
_TOLERANCE = 1e-4
_FEWEST = 5  # samples that a component starts with


@dataclass(frozen=True)
class Mixture:
    """share: of the wrong component. means, variances: of the wrong component and of the clean one, which lies above
    it. Without two components share is 0."""

    share: float
    means: tuple[float, float]
    variances: tuple[float, float]

    @property
    def separation(self) -> float:
        """Ashman's D: the distance of the means over the root mean square of the standard deviations."""
        spread = np.sqrt((self.variances[0] + self.variances[1]) / 2)
        return float((self.means[1] - self.means[0]) / spread) if spread > 0 else 0.0

    def found(self, separation: float = SEPARATION) -> bool:
        """Whether the score has two components at all, apart by Ashman's D of `separation`."""
        return 0 < self.share <= _LARGEST and self.separation >= separation

    def wrong(self, score: np.ndarray) -> np.ndarray:
        """The probability of the wrong component, (N,), falling with the score: 0 where there are no two components.

        Beyond the two means it stays what it is there: the wider component's tail would turn it round."""
        if not self.found():
            return np.zeros(len(score))
        return _posterior(np.clip(score, *self.means), self.share, self.means, self.variances)


def fit_mixture(score: np.ndarray, start: np.ndarray) -> Mixture:
    """Expectation maximisation. score: (N,) finite, higher is cleaner. start: (N,) bool, the samples that the wrong
    component starts with; the lowest five, where it has fewer."""
    nothing = Mixture(0.0, (0.0, 0.0), (0.0, 0.0))
    spread = float(score.var()) if len(score) else 0.0
    if len(score) <= 2 * _FEWEST or spread <= 1e-18 * float(np.square(score).max()):
        return nothing
    wrong = start.astype(np.float64)
    if wrong.sum() < _FEWEST:
        wrong = (score <= np.partition(score, _FEWEST - 1)[_FEWEST - 1]).astype(np.float64)
    score, wrong, count = _grouped(score, wrong)
    for _ in range(_STEPS):
        share = ((count * wrong).sum() + 1) / (count.sum() + 2)
        (low, low_variance), (high, high_variance) = (
            _moments(score, count * weight, _LEAST_VARIANCE * spread) for weight in (wrong, 1 - wrong)
        )
        if not low < high:
            return nothing
        mixture = Mixture(float(share), (low, high), (low_variance, high_variance))
        before = wrong
        wrong = _posterior(score, mixture.share, mixture.means, mixture.variances)
        wrong[score >= high] = 0  # a wide wrong component would take the clean one's upper tail
        if np.abs(wrong - before).max() < _TOLERANCE:
            break
    return mixture


def _grouped(score: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of neighbours in groups of one size, (G,) each, and the sizes: nothing that the steps below would see, and
    they take as long for a million samples as for a few thousand."""
    order = np.argsort(score, kind="stable")
    starts = np.unique(np.linspace(0, len(score), min(len(score), _GROUPS), endpoint=False).astype(np.int64))
    count = np.diff(starts, append=len(score)).astype(np.float64)
    return np.add.reduceat(score[order], starts) / count, np.add.reduceat(wrong[order], starts) / count, count


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that parts (N,) values into two groups of the least variance within (Otsu 1979)."""
    ordered = np.sort(values)
    if len(ordered) < 2:
        return float(ordered[0])
    below = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / (len(ordered) - below)
    best = int((below * (len(ordered) - below) * gap**2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def _moments(score: np.ndarray, weight: np.ndarray, floor: float) -> tuple[float, float]:
    total = weight.sum() + 1e-12
    mean = float((weight * score).sum() / total)
    return mean, float((weight * (score - mean) ** 2).sum() / total) + floor


def _posterior(
    score: np.ndarray, share: float, means: tuple[float, float], variances: tuple[float, float]
) -> np.ndarray:
    low, high = (
        -((score - mean) ** 2) / (2 * variance) - np.log(variance) / 2
        for mean, variance in zip(means, variances, strict=True)
    )
    odds = np.clip(np.log(share / (1 - share)) + low - high, -700, 700)
    return 1 / (1 + np.exp(-odds))
