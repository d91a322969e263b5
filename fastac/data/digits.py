"""scikit-learn's handwritten digits: 1797 images of 8x8 that need no download."""

from __future__ import annotations

import numpy as np

from fastac.data.draws import SPLIT, permutation
from fastac.data.samples import Dataset, Samples
from fastac.extras import require

__all__ = ["load_digits"]

_TEST_SAMPLES = 450
_SPLIT_SEED = 0


def load_digits() -> Dataset:
    """1347 training and 450 test images, (N, 8, 8, 1) uint8; the split is fixed and stratified by class.

    Source: the test part of UCI's "Optical Recognition of Handwritten Digits", as sklearn.datasets ships it.
    Pixels of 0 to 16 are scaled to 0 to 255.
    """
    bunch = require("sklearn.datasets", "train").load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    is_test = _stratified(labels, _TEST_SAMPLES)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(
        "digits",
        Samples(images[~is_test], labels[~is_test], names),
        Samples(images[is_test], labels[is_test], names),
    )


def _stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """(N,) bool with `count` True, each class in proportion to its size (largest remainders)."""
    share = np.bincount(labels) * (count / len(labels))
    quota = share.astype(np.int64)
    by_remainder = np.argsort(quota - share, kind="stable")
    quota[by_remainder[: count - quota.sum()]] += 1
    order = permutation(len(labels), _SPLIT_SEED, SPLIT, 0)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, size in enumerate(quota):
        chosen[order[labels[order] == label][:size]] = True
    return chosen
