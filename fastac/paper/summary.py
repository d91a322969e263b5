"""A figure over the seeds: its mean and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastac.extras import require

__all__ = ["Summary", "summarize"]


@dataclass(frozen=True)
class Summary:
    """Accuracy over seeds, per cent. half: of the 95 % interval of the mean (Student's t), None for a single run."""

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (" (1 run)" if self.half is None else f" ± {self.half:.2f}")


def summarize(accuracies: Sequence[float]) -> Summary | None:
    """accuracies: shares in [0, 1], one a seed. None where there is none."""
    if not accuracies:
        return None
    percent, count = [100 * value for value in accuracies], len(accuracies)
    if count == 1:
        return Summary(percent[0], None, 1)
    quantile = float(require("scipy.stats", "train").t.ppf(0.975, count - 1))
    return Summary(statistics.mean(percent), quantile * statistics.stdev(percent) / math.sqrt(count), count)
