"""Training dynamics: what each sample's logits did over training, in a few numbers a sample.

All statistics are of the network's own logits, without α, at the moment a sample was trained on:

    AUM         mean of m_y − max_{j≠y} m_j                  Pleiss et al. 2020, "Identifying Mislabeled Data using
                                                             the Area Under the Margin Ranking", equation 2
    p_y         mean and variance over visits (data maps)    Swayamdipta et al. 2020
    forgetting  times that a sample that had been right came out wrong    Toneva et al. 2019
    EL2N        mean of ‖softmax(m) − onehot(y)‖₂            Paul et al. 2021
"""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastac import backends
from fastac.contract import SUMS, Accumulators, Objective
from fastac.extras import require
from fastac.frames import check_frame_path, write_frame
from fastac.parts import as_states, check_cover, held_rows, take_parts
from fastac.validation import RangeCheck, check_batch, check_size

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TrainingDynamics"]


class TrainingDynamics:
    """Accumulators of N samples, written by the loss: `AutoCleansingLoss(table, dynamics=dynamics)`; for a loss of
    one's own, by `dynamics.update(logits, target, index)`.

    num_samples: N. num_classes: K ≥ 2. A visit is a backward pass over the sample (with update="forward", a
    forward pass); ignored targets and rows whose logits are not finite are no visit.
    """

    _handles = itertools.count(1)
    _by_handle: weakref.WeakValueDictionary[int, TrainingDynamics] = weakref.WeakValueDictionary()

    def __init__(self, num_samples: int, num_classes: int, *, device: torch.device | str | None = None):
        self.num_samples = check_size("num_samples", num_samples, 1)
        self.num_classes = check_size("num_classes", num_classes, 2)
        self.device = torch.empty(0, device=device).device
        self.held = self._find_held()
        rows = len(self.held)
        self.count = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.sums = torch.zeros((rows, len(SUMS)), dtype=torch.float64, device=self.device)
        self.forgetting = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.was_correct = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)
        self.handle = next(self._handles)
        self._by_handle[self.handle] = self

    def _find_held(self) -> range:
        """The samples whose accumulators this process holds."""
        return range(self.num_samples)

    @classmethod
    def from_handle(cls, handle: int) -> TrainingDynamics:
        """The living accumulators with this number."""
        try:
            return cls._by_handle[handle]
        except KeyError:
            raise RuntimeError(
                "the TrainingDynamics that this loss was computed with no longer exists"
            ) from None

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingDynamics:
        copy = TrainingDynamics(self.num_samples, self.num_classes, device=self.device)
        copy.load_state_dict(self.state_dict())
        return copy

    def __reduce__(self) -> Any:
        raise TypeError("TrainingDynamics are not pickled: save their state_dict()")

    @functools.cached_property
    def _checks(self) -> RangeCheck:
        return RangeCheck(self.device)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor, index: Tensor, *, ignore_index: int = -100) -> None:
        """Record one visit of each sample of a batch, for those who keep their own loss: call it once a batch.

        logits: (B, K) float16, bfloat16, float32 or float64, the network's own. target: (B,) int64 class indices;
        where it is ignore_index, there is no visit. index: (B,) int64 or int32 sample ids. All on one device, that
        of the accumulators. The host does not wait for it.

        TypeError, ValueError or IndexError that names the argument, and nothing recorded; on an accelerator a
        target or index outside its range is left out and reported by a later call (FASTAC_DEBUG=1: at once).
        """
        check_batch(logits, target, index, None, None)
        if logits.device != self.device:
            raise ValueError(f"logits are on {logits.device}, the dynamics is on {self.device}")
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits have K = {logits.shape[1]} classes, dynamics has {self.num_classes}")
        self._checks.poll()
        objective = Objective(None, "ac1", ignore_index, "sum", 0.0)
        seen = backends.select(self.device).forward(
            logits, target, index, None, objective, self._checks.flags, self.num_samples, True
        )
        self.record(seen.ids, seen.statistics)

    @torch.no_grad()
    def record(self, index: Tensor, statistics: Tensor) -> None:
        """Add one visit a row. index: (B,) int64, negative where there was none. statistics: (B, 5) float32, the
        columns that contract.STATISTICS names. The same sample twice is two visits, in the batch's order."""
        if len(index):
            backends.select(self.device).record(self.accumulators, index, statistics)

    @property
    def accumulators(self) -> Accumulators:
        """The storage, as a backend takes it."""
        return Accumulators(self.count, self.sums, self.forgetting, self.was_correct)

    def part(self, samples: range) -> Accumulators:
        """Those of the samples, all of which are held here."""
        rows = slice(samples.start - self.held.start, samples.stop - self.held.start)
        return Accumulators(*(values[rows] for values in self.accumulators))

    def _whole(self, values: Tensor) -> Tensor:
        """The values (N, ...) of all samples, from those (len(held), ...) of the samples held here."""
        return values

    def _mean(self, name: str) -> Tensor:
        return self._whole(self.sums[:, SUMS.index(name)] / self.count)

    @property
    def aum(self) -> Tensor:
        """(N,) float64, NaN for a sample that was never seen."""
        return self._mean("margin")

    def frame(self) -> pd.DataFrame:
        """One row a sample: index, count, aum, p_mean, p_var (population variance), correct (visits), forgetting,
        el2n, loss_mean. Means are NaN for a sample that was never seen."""
        pandas = require("pandas", "report")
        p_mean = self._mean("p")
        columns = {
            "index": torch.arange(self.num_samples),
            "count": self._whole(self.count),
            "aum": self._mean("margin"),
            "p_mean": p_mean,
            "p_var": (self._mean("p_squared") - p_mean**2).clamp(min=0),
            "correct": self._whole(self.sums[:, SUMS.index("correct")].to(torch.int64)),
            "forgetting": self._whole(self.forgetting),
            "el2n": self._mean("el2n"),
            "loss_mean": self._mean("loss"),
        }
        return pandas.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})

    def _tensors(self) -> dict[str, Tensor]:
        names = ("count", "sums", "forgetting", "was_correct")
        return dict(zip(names, self.accumulators, strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `frame()` to a .csv or .parquet file (which needs pyarrow), whole or not at all. ValueError for
        another suffix."""
        path = check_frame_path(path)
        write_frame(self.frame(), path)

    def state_dict(self) -> dict[str, Any]:
        """Tensors (the accumulators' own, not copies), the two sizes, and "rows": the samples held here, (first, the
        first after them)."""
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "rows": (self.held.start, self.held.stop),
            **self._tensors(),
        }

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Take the samples held here from a state, or from several that were saved together on any number of ranks.
        ValueError, and nothing changed, where they don't have them or belong to other data."""
        states = as_states(state)
        parts = [self._check_part(part) for part in states]
        check_cover(parts, self.held)
        take_parts(self._tensors(), self.held, states, parts)

    def _check_part(self, state: dict[str, Any]) -> range:
        """The samples that a state holds; ValueError unless it is of the same data."""
        for key in ("num_samples", "num_classes"):
            if state.get(key) != getattr(self, key):
                raise ValueError(
                    f"the state is of other training dynamics: its {key} is {state.get(key)!r}, not "
                    f"{getattr(self, key)!r}"
                )
        rows = held_rows(state, self.num_samples)
        for key, mine in self._tensors().items():
            value, shape = state.get(key), (len(rows), *mine.shape[1:])
            if not isinstance(value, Tensor) or value.shape != shape or value.dtype != mine.dtype:
                raise ValueError(f"{key} in the state is not a {mine.dtype} tensor of shape {shape}")
        return rows
