"""What each image undergoes: draws that are a function of (seed, epoch, the image's id)."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastac.data.draws import POLICY
from fastac.data.policies.levels import LEVELS, MIRRORED, OPERATIONS, RANDOM_OPERATIONS
from fastac.rng import hash_bits

__all__ = ["Draws", "Policy", "RandomOperations", "Schedule", "SubPolicies"]

_Tables = tuple[np.ndarray, np.ndarray, np.ndarray]
_CODE = {name: code for code, name in enumerate(OPERATIONS)}
_MIRRORED = np.array([name in MIRRORED for name in OPERATIONS])
_ENHANCE = np.array([name in ("Contrast", "Color", "Brightness", "Sharpness") for name in OPERATIONS])


@dataclass(frozen=True)
class Draws:
    """Each image's operations: a row of those that come first, of those that come second, …"""

    operation: np.ndarray
    """(S, B) int64 into `levels.OPERATIONS`."""
    value: np.ndarray
    """(S, B) float64, with its sign, in the units of `levels`."""
    place: np.ndarray
    """(S, 2, B) float64 in [0, 1): where Cutout's centre is, down and across."""


@dataclass(frozen=True)
class Operation:
    """An operation as a policy lists it."""

    name: str
    probability: float
    level: float


@dataclass(frozen=True)
class Policy(ABC):
    """An augmentation policy: operations and how they are drawn."""

    name: str
    """As in the key `aa`, resolved: autoaugment-cifar10."""
    levels: str
    """The lineage in `levels.LEVELS`."""
    fill: int | None
    """Grey level of what a geometric operation moves in from outside the image; None: the data set's mean colour."""
    _known: dict[tuple[Any, ...], _Tables] = field(
        default_factory=dict, init=False, repr=False, compare=False, kw_only=True
    )

    @abstractmethod
    def draw(self, ids: np.ndarray, size: tuple[int, int], *, seed: int, epoch: int) -> Draws:
        """For the samples `ids`, (B,) int64, whose images have `size`, (height, width)."""

    def _tables(
        self, size: tuple[int, int], listed: Callable[[], Sequence[Sequence[Operation]]], part: int = 0
    ) -> _Tables:
        """Codes, probabilities and values of the policy's lists of operations, a row each, in images of `size`."""
        if (part, size) not in self._known:
            self._known[part, size] = _tabulated(listed(), self.levels, *size)
        return self._known[part, size]


@dataclass(frozen=True)
class SubPolicies(Policy):
    """One of the sub-policies for each image, and each of its operations by that operation's probability."""

    sub_policies: tuple[tuple[Operation, ...], ...] = field(repr=False)

    def draw(self, ids: np.ndarray, size: tuple[int, int], *, seed: int, epoch: int) -> Draws:
        operation, probability, value = self._tables(size, lambda: self.sub_policies)
        stages = operation.shape[1]
        drawn = _uniform(1 + 4 * stages, ids, seed, epoch)
        chosen = (drawn[0] * len(self.sub_policies)).astype(np.int64)
        happens, sign, place = np.split(drawn[1:], [stages, 2 * stages])
        code, wanted = operation[chosen].T, value[chosen].T
        code = np.where(happens < probability[chosen].T, code, 0)
        return Draws(code, _signed(code, wanted, sign), place.reshape(stages, 2, -1))


@dataclass(frozen=True)
class RandomOperations(Policy):
    """Operations drawn evenly from the 14, each at a level drawn evenly from `range_of_levels`."""

    stages: int
    range_of_levels: range
    symmetric: bool
    """Whether a factor is 1 plus or minus the value, and not the value."""

    def draw(self, ids: np.ndarray, size: tuple[int, int], *, seed: int, epoch: int) -> Draws:
        operation, _, value = self._tables(size, self._listed)
        which, level, sign = _uniform(3 * self.stages, ids, seed, epoch).reshape(3, self.stages, -1)
        row = (which * len(RANDOM_OPERATIONS)).astype(np.int64)
        column = (level * len(self.range_of_levels)).astype(np.int64)
        code, wanted = operation[row, column], value[row, column]
        values = _signed(code, wanted, sign)
        if self.symmetric:
            values = np.where(_ENHANCE[code], 1 + np.where(sign < 0.5, wanted, -wanted), values)
        return Draws(code, values, np.zeros((self.stages, 2, len(ids))))

    def _listed(self) -> list[list[Operation]]:
        """A row an operation, a column a level."""
        return [[Operation(name, 1.0, level) for level in self.range_of_levels] for name in RANDOM_OPERATIONS]


@dataclass(frozen=True)
class Schedule(Policy):
    """Population Based Augmentation: a list of operations that changes with the epoch. For each image it is shuffled,
    and the operations that happen, each by its probability, are applied until there are none, one or two, as drawn."""

    published_epochs: int
    """Of the training that the schedule was published for."""
    phases: tuple[tuple[int, tuple[Operation, ...]], ...] = field(repr=False)
    """The published epoch at which a phase ends, and its operations."""
    epochs: int | None = None
    """Of the run, over which the schedule is spread; None: as published, and its last phase from then on."""

    _SHARES = (0.2, 0.5)  # of images with none, and with none or one

    def phase(self, epoch: int) -> int:
        """The place in `phases` of the one that the run's epoch is in."""
        published = epoch if self.epochs is None else epoch * self.published_epochs // self.epochs
        ends = [end for end, _ in self.phases]
        return min(bisect.bisect_right(ends, published), len(ends) - 1)

    def draw(self, ids: np.ndarray, size: tuple[int, int], *, seed: int, epoch: int) -> Draws:
        phase = self.phase(epoch)
        tables = self._tables(size, lambda: [self.phases[phase][1]], phase)
        code, probability, value = (table[0] for table in tables)
        n, most = len(code), 2
        drawn = _uniform(1 + 2 * n + 3 * most, ids, seed, epoch)
        wanted = np.searchsorted(self._SHARES, drawn[0], side="right")
        order = np.argsort(drawn[1 : 1 + n], axis=0, kind="stable")
        happens = drawn[1 + n : 1 + 2 * n] < probability[:, None]
        happens = np.take_along_axis(happens, order, axis=0)  # in the order of this image
        first = np.argsort(~happens, axis=0, kind="stable")[:most]  # places of the first that happen
        chosen = np.take_along_axis(order, first, axis=0)
        there = np.take_along_axis(happens, first, axis=0) & (np.arange(most)[:, None] < wanted)
        codes = np.where(there, code[chosen], 0)
        sign, place = drawn[1 + 2 * n :][:most], drawn[1 + 2 * n + most :]
        return Draws(codes, _signed(codes, value[chosen], sign), place.reshape(most, 2, -1))


def _uniform(count: int, ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(count, B) float64 in [0, 1)."""
    bits = hash_bits(seed, POLICY, epoch, torch.arange(count).view(-1, 1), torch.from_numpy(ids))
    return bits.numpy() / 2.0**32


def _signed(code: np.ndarray, value: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return np.where(_MIRRORED[code] & (sign < 0.5), -value, value)


def _tabulated(listed: Sequence[Sequence[Operation]], levels: str, height: int, width: int) -> _Tables:
    """Lists of operations as arrays, (lists, longest): short ones end in Identity."""
    shape = len(listed), max(map(len, listed))
    code, probability, value = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    for row, operations in enumerate(listed):
        for column, op in enumerate(operations):
            side = height if op.name.endswith("Y") else width
            code[row, column], probability[row, column] = _CODE[op.name], op.probability
            value[row, column] = LEVELS[levels](op.name, op.level, side)
    return code, probability, value
