"""How much longer one way takes than another, from runs in turn: their order, and a ratio with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Overhead", "orders"]

_TRIM = 0.2  # of the pairs, at each end: what disturbs the machine for a while disturbs a pair or two
_LEAST_PAIRS = 3
_T = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
}  # Student's t at 97.5 % where the expansion below is off


def orders(ways: int, rounds: int, seed: int = 0) -> list[list[int]]:
    """The order of the ways in each round: a random one, then the same backwards, and so on. Over such a pair of rounds
    a steady drift adds as much to each way as to any other. rounds: even."""
    random = np.random.default_rng(seed)
    pairs = [random.permutation(ways).tolist() for _ in range(rounds // 2)]
    return [order for there in pairs for order in (there, there[::-1])]


@dataclass(frozen=True)
class Overhead:
    """In per cent of the base's time, with its 95 % interval; pairs of rounds that it is from."""

    percent: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, seconds: Sequence[float], base: Sequence[float]) -> Overhead:
        """From the seconds of both in each round, (rounds,) each, in the order of `orders`.

        The mean, 20 % trimmed at each end, of the log ratios of the pairs, and the interval of Tukey and McLaughlin
        (1963) about it: Student's t with the winsorised deviation.
        """
        if len(seconds) != len(base) or len(seconds) < 2 * _LEAST_PAIRS or len(seconds) % 2:
            raise ValueError(
                f"seconds and base have {len(seconds)} and {len(base)} rounds; they should have equally many, an even "
                f"number from {2 * _LEAST_PAIRS} on"
            )
        ratios = np.sort(np.log(_by_pair(seconds) / _by_pair(base)))
        n = len(ratios)
        cut = int(_TRIM * n)
        middle = float(ratios[cut : n - cut].mean())
        winsorised = np.clip(ratios, ratios[cut], ratios[n - cut - 1])
        error = winsorised.std(ddof=1) / ((1 - 2 * cut / n) * math.sqrt(n))
        reach = students_t(n - 2 * cut - 1) * float(error)
        low, percent, high = (100 * math.expm1(value) for value in (middle - reach, middle, middle + reach))
        return cls(percent, low, high, n)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def _by_pair(seconds: Sequence[float]) -> np.ndarray:
    return np.asarray(seconds, dtype=np.float64).reshape(-1, 2).sum(axis=1)


def students_t(freedom: int) -> float:
    """The 97.5 % point of Student's t, to 0.1 %: Abramowitz and Stegun 26.7.5, a table up to 5 degrees of freedom."""
    if freedom in _T:
        return _T[freedom]
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
