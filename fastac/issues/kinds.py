"""What is wrong with a label: the three kinds that the paper tells apart (introduction, Table 1, Figures 4 to 6)."""

from __future__ import annotations

import numpy as np

from fastac.issues.alpha import AlphaStatistics

__all__ = ["KINDS", "issue_kinds"]

KINDS = ("within", "outside", "several")
"""within: another class of the category set is right. outside: none of them explains the image. several: it shows what
the given label says and another class too."""

_EXPLAINED = 0.5  # of what the given label lacks, taken by one class
_PLAUSIBLE = 0.5  # of the rival's probability, reached by the given label


def issue_kinds(alpha: AlphaStatistics, confidence: np.ndarray | None = None) -> np.ndarray:
    """(N,) object: one of KINDS, None where α says nothing (a row of zeros, AC2).

    The rival is the class with the largest share s of the probability that the given label did not get, over the whole
    training: see AlphaStatistics.rival_share.

        outside   s < 1/2: no class takes half of it
        several   s ≥ 1/2 and p ≥ s (1 − p) / 2: the given label is at least half as probable as the rival
        within    otherwise

    p: (N,) the mean probability of the given label, `confidence`. Without it 1 − α*_y / max α*_y: no α* is larger than
    that of a sample whose label is never predicted, so this is an estimate of the same.
    """
    kinds = np.full(len(alpha), None, dtype=object)
    known = (alpha.rival >= 0) & (alpha.offset > 0)
    if not known.any():
        return kinds
    share = alpha.rival_share
    probability = 1 - alpha.offset / alpha.offset[known].max() if confidence is None else confidence
    plausible = probability >= _PLAUSIBLE * share * (1 - probability)
    kinds[known] = "within"
    kinds[known & plausible] = "several"
    kinds[known & (share < _EXPLAINED)] = "outside"
    return kinds
