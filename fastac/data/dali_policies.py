"""Augmentation policies made of DALI's own operations (nvidia.dali.auto_aug), drawn by (seed, epoch, id).

DALI's own functions draw from the state of the pipeline, so that what a sample undergoes depends on all that was drawn
before. Here operations, magnitudes and signs come in from outside, and DALI's operations are chosen by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastac.data.draws import POLICY, sample_draws
from fastac.extras import require

__all__ = ["DALI_POLICIES", "DaliPolicy", "create_dali_policy", "in_dali"]

DALI_POLICIES = (
    "autoaugment",
    "autoaugment-imagenet",
    "autoaugment-cifar10",
    "autoaugment-svhn",
    "randaugment-nN-mM",
    "trivialaugment",
)
_BINS = 31  # magnitudes of RandAugment and TrivialAugment are 0 to 30
_GRAY = 128  # what comes in from outside an image that is moved


@dataclass(frozen=True)
class DaliPolicy:
    """Stages in which one of several operations is applied to an image."""

    stages: tuple[tuple[Any, ...], ...]
    """The operations of each stage, as nvidia.dali.auto_aug.core.augmentation makes them."""
    num_bins: int
    """Magnitudes are bins in [0, num_bins)."""
    draws: int
    """Numbers that are drawn for a sample."""
    choose: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(b, draws) in [0, 1) to operation, magnitude bin and sign (1: negated), (b, stages) each."""

    def choices(self, ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """(b, 3, stages) int32: operation, magnitude bin and sign of the samples `ids`, (b,) int64."""
        drawn = sample_draws(self.draws, ids, seed, POLICY, epoch).numpy()
        return np.stack(self.choose(drawn), axis=1).astype(np.int32)

    def apply(self, dali: Any, images: Any, choices: Any) -> Any:
        """Within a pipeline's definition (with conditionals): the images, uint8 HWC, after all stages. dali: the
        module."""
        core = dali.auto_aug.core
        bins = core.signed_bin(choices[1], choices[2])
        for stage, operations in enumerate(self.stages):
            images = core.select(
                list(operations),
                choices[0, stage],
                data=images,
                magnitude_bin=bins[stage],
                num_magnitude_bins=self.num_bins,
                fill_value=_GRAY,
                interp_type=dali.types.INTERP_NN,
            )
        return images


def in_dali(name: str) -> bool:
    """Whether `name` is one of `DALI_POLICIES`."""
    return name in DALI_POLICIES or re.fullmatch(r"randaugment-n\d+-m\d+", name) is not None


def create_dali_policy(name: str, image_size: int) -> DaliPolicy | None:
    """The policy by name, one of `DALI_POLICIES`; None for `none`. image_size: side in pixels of what it is applied to.

    autoaugment is ImageNet's; M in randaugment-nN-mM is 0 to 30. Raises ValueError for other names.
    """
    if name == "none":
        return None
    if name.startswith("autoaugment"):
        kind = name.removeprefix("autoaugment").removeprefix("-") or "imagenet"
        if kind in ("imagenet", "cifar10", "svhn"):
            return _auto_augment(kind, image_size)
    match = re.fullmatch(r"randaugment-n(\d{1,2})-m(\d{1,2})", name)
    if match is not None and int(match[1]) >= 1 and int(match[2]) < _BINS:
        return _rand_augment(int(match[1]), int(match[2]), image_size)
    if name == "trivialaugment":
        return _trivial_augment()
    raise ValueError(
        f"aa is {name!r}; of DALI's operations it should be {', '.join(DALI_POLICIES)} (N at least 1, M 0 to "
        f"{_BINS - 1})"
    )


def _auto_augment(kind: str, image_size: int) -> DaliPolicy:
    """25 pairs of operations, each with a probability (Cubuk et al. 2018)."""
    library = require("nvidia.dali.auto_aug.auto_augment", "dali")
    identity = require("nvidia.dali.auto_aug.augmentations", "dali").identity
    pixels = max(1, round(image_size * 150 / 331))  # the paper's, of 331 pixels
    policy = {
        "imagenet": library.get_reduced_image_net_policy,  # the paper's 25; DALI's image_net is TensorFlow's table
        "cifar10": lambda: library.get_reduced_cifar10_policy(max_translate_abs=pixels),
        "svhn": lambda: library.get_svhn_policy(max_translate_abs=pixels),
    }[kind]()
    subs = policy.sub_policies
    depth = max(len(sub) for sub in subs)
    stages = [[identity] for _ in range(depth)]
    operation, bins = np.zeros((2, len(subs), depth), dtype=np.int64)
    probability = np.zeros((len(subs), depth))
    for row, sub in enumerate(subs):
        for stage, (augmentation, chance, magnitude) in enumerate(sub):
            if augmentation not in stages[stage]:
                stages[stage].append(augmentation)
            operation[row, stage] = stages[stage].index(augmentation)
            probability[row, stage] = chance
            bins[row, stage] = magnitude or 0

    def choose(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sub = _below(len(subs), drawn[:, 0])
        applied = drawn[:, 1 : 1 + depth] < probability[sub]
        return np.where(applied, operation[sub], 0), bins[sub], drawn[:, 1 + depth :] < 0.5

    return DaliPolicy(tuple(map(tuple, stages)), policy.num_magnitude_bins, 1 + 2 * depth, choose)


def _rand_augment(number: int, magnitude: int, image_size: int) -> DaliPolicy:
    """`number` operations of one magnitude (Cubuk et al. 2019)."""
    library = require("nvidia.dali.auto_aug.rand_augment", "dali")
    suite = tuple(library.get_rand_augment_suite(max_translate_abs=max(1, round(image_size * 100 / 224))))

    def choose(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        operation = _below(len(suite), drawn[:, :number])
        return operation, np.full_like(operation, magnitude), drawn[:, number:] < 0.5

    return DaliPolicy((suite,) * number, _BINS, 2 * number, choose)


def _trivial_augment() -> DaliPolicy:
    """One operation of any magnitude, wide ranges (Müller & Hutter 2021), which move by up to 32 pixels."""
    library = require("nvidia.dali.auto_aug.trivial_augment", "dali")
    suite = tuple(library.get_trivial_augment_wide_suite())

    def choose(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        operation, bins = _below(len(suite), drawn[:, :1]), _below(_BINS, drawn[:, 1:2])
        return operation, bins, drawn[:, 2:] < 0.5

    return DaliPolicy((suite,), _BINS, 3, choose)


def _below(n: int, drawn: np.ndarray) -> np.ndarray:
    """Integers in [0, n) from numbers in [0, 1), float32: n·(1 − 2^-24) may round to n."""
    return np.minimum((drawn.astype(np.float64) * n).astype(np.int64), n - 1)
