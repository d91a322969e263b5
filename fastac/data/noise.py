"""Label noise: seeded flips, for experiments in which the truth is known."""

from __future__ import annotations

import difflib

import numpy as np
import torch

from fastac.data.draws import NOISE, integers_below, permutation
from fastac.data.samples import check_labels
from fastac.rng import hash_bits

__all__ = ["NOISE_KINDS", "inject_noise"]

NOISE_KINDS = ("uniform", "pair", "asymmetric")

# Patrini et al. 2017, section 5: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog.
_CIFAR10_MAP = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}


def inject_noise(
    labels: np.ndarray,
    num_classes: int,
    *,
    kind: str,
    rate: float,
    seed: int,
    class_groups: np.ndarray | None = None,
    dataset: str = "",
) -> np.ndarray:
    """Return `labels` ((N,) int64 in [0, num_classes)) with some of them wrong, as a new (N,) int64 array.

    kind:
        uniform: to one of the other K-1 classes, each as likely.
        pair: class y to class y+1 mod K.
        asymmetric: between classes that people confuse. CIFAR-10 (dataset="cifar10"): the map of Patrini et
            al. 2017, which affects five classes. Data sets with `class_groups` ((K,) int64 superclasses, as
            CIFAR-100 has them): to the next class of the superclass, circularly. Others: ValueError.
    rate: in [0, 1), the share of wrong labels among the samples of the classes that the kind affects. These
        are all, except for CIFAR-10's asymmetric map: there rate 0.4 changes 0.4 of five classes' labels, 0.2
        of all. Exactly round(rate · those samples) labels change.

    The result is a function of the arguments alone: NumPy's and torch's random states don't matter to it and
    are not changed.
    """
    check_labels(labels, "labels", len(labels), num_classes)
    if kind not in NOISE_KINDS:
        nearest = difflib.get_close_matches(kind, NOISE_KINDS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown kind {kind!r}; did you mean {nearest!r}? Known: {', '.join(NOISE_KINDS)}")
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; it should be in [0, 1)")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; noise needs at least 2")
    if kind == "uniform":
        bits = hash_bits(seed, NOISE, 1, torch.arange(len(labels)))
        wrong = (labels + 1 + integers_below(num_classes - 1, bits).numpy()) % num_classes
    else:
        successor = _successor(kind, num_classes, class_groups, dataset)
        wrong = successor[labels]
    order = permutation(len(labels), seed, NOISE, 0)
    affected = order[wrong[order] != labels[order]]
    flipped = affected[: round(rate * len(affected))]
    noisy = labels.copy()
    noisy[flipped] = wrong[flipped]
    return noisy


def _successor(kind: str, num_classes: int, class_groups: np.ndarray | None, dataset: str) -> np.ndarray:
    """(K,) int64: the class that each class is mistaken for, itself where it isn't."""
    if kind == "pair":
        return (np.arange(num_classes) + 1) % num_classes
    if dataset == "cifar10":
        if num_classes != 10:
            raise ValueError(f"num_classes is {num_classes}; CIFAR-10's asymmetric map has 10")
        return np.array([_CIFAR10_MAP.get(k, k) for k in range(10)])
    if class_groups is None:
        raise ValueError(
            f"asymmetric noise is defined for cifar10 and for data with class_groups (cifar100), "
            f"not for {dataset or 'this data'!r}; use uniform or pair"
        )
    if class_groups.shape != (num_classes,):
        raise ValueError(f"class_groups has the shape {class_groups.shape}; it should be ({num_classes},)")
    successor = np.empty(num_classes, dtype=np.int64)
    for group in np.unique(class_groups):
        members = np.flatnonzero(class_groups == group)
        successor[members] = np.roll(members, -1)
    return successor
