"""Drop-ins for the package `aum` 1.0 of Pleiss et al.: `from fastac.compat import AUMCalculator, DatasetWithIndex`.

The same signatures, files and numbers to the last bit; but no Python per sample, and the device is not waited for.
With AutoCleansingLoss, `dynamics=TrainingDynamics(...)` records the AUM in the loss's own pass, for less still.

Source: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking" (NeurIPS 2020), equation 2.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastac.extras import require
from fastac.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AUMCalculator", "AUMRecord", "DatasetWithIndex"]

_DETAILS = ("target_logit", "target_val", "other_logit", "other_val")
_SETTLE_AT = 1 << 18  # visits that may wait on the device: 1 MiB of margins in float32


@dataclass
class AUMRecord:
    """One sample at one update: its logits' two values of interest, their margin, and the mean margin so far."""

    sample_id: Any
    num_measurements: int
    target_logit: int
    target_val: float
    other_logit: int
    other_val: float
    margin: float
    aum: float


class _Places(dict[Hashable, int]):
    """Sample id → its place in the arrays; a new id gets the next one."""

    def __missing__(self, sample_id: Hashable) -> int:
        self[sample_id] = place = len(self)
        return place


@dataclass(slots=True)
class _Update:
    """What one call of update() brought. ids: of its samples, until they have places. margin: (B,). details: what
    records say beside it, (B,) each: target, its value, other logit, its value; compressed=False only."""

    ids: Tensor | None
    places: np.ndarray | None
    margin: Tensor
    details: tuple[Tensor, Tensor, Tensor, Tensor] | None


class AUMCalculator:
    """The area under the margin of each sample: `aum.AUMCalculator`, vectorised.

    save_dir: where finalize() writes. compressed: keep a count and a sum a sample; False: keep every measurement too,
    for `records` and full_aum_records.csv.

    Beyond the package: sample ids may be a tensor or an array of integers; batches of one; it can be pickled. Margins
    wait where the logits are, and come to the host once in 262,144 visits, or when counts, sums, records or files are
    asked for.

    Unlike the package's: counts, sums and records are copies of what is so far, so emptying them resets nothing (make
    a new calculator); update() returns a Mapping that is no dict (`dict(result)` is one); shapes that don't fit are
    refused.
    """

    def __init__(self, save_dir: str | os.PathLike[str], compressed: bool = True):
        self.save_dir, self.compressed = save_dir, compressed
        self._places = _Places()
        self._counts = np.zeros(0, np.int64)
        self._sums = np.zeros(0, np.float64)
        self._waiting: list[_Update] = []
        self._num_waiting = 0
        self._latest: weakref.ref[_Records] | None = None
        self._measured: list[dict[str, np.ndarray]] = []  # compressed=False: columns of all visits, in order

    @torch.no_grad()
    def update(
        self, logits: Tensor, targets: Tensor, sample_ids: Iterable[Hashable] | Tensor | np.ndarray
    ) -> Mapping[Any, AUMRecord]:
        """Take one measurement of each sample of a batch.

        logits: (B, K). targets: (B,) or (B, 1) int64. sample_ids: B strings, integers or other hashables; a tensor
        stays on its device. All three may be overwritten after. Returns the samples' AUMRecords by id as of this
        update, in a mapping that makes them when they are read; a result that is kept until the next update costs a
        transfer to the host.

        ValueError for shapes that don't fit (the package drops what is too much), and nothing counted.
        """
        if not isinstance(sample_ids, Tensor | np.ndarray):
            sample_ids = list(sample_ids)
        batch = logits.shape[:1]
        if logits.ndim != 2 or targets.shape not in (batch, (*batch, 1)) or len(sample_ids) != len(logits):
            raise ValueError(
                f"logits must have shape (B, K), targets (B,), and sample_ids B ids; got {tuple(logits.shape)}, "
                f"{tuple(targets.shape)} and {len(sample_ids)}"
            )
        if self._latest is not None and (earlier := self._latest()) is not None:
            earlier.freeze()
        targets = targets.reshape(-1).clone()  # the caller's may be a buffer for the next batch
        column = targets[:, None]
        value = logits.gather(1, column)[:, 0]
        others = logits.scatter(1, column, -torch.inf)
        if self.compressed:
            other_value, details = others.amax(1), None
        else:
            other_value, other = others.max(1)
            details = (targets, value, other, other_value)
        update = _Update(*self._identify(sample_ids), value - other_value, details)
        self._waiting.append(update)
        self._num_waiting += len(logits)
        records = _Records(self, update, targets, value, others)
        self._latest = weakref.ref(records)
        if self._num_waiting >= _SETTLE_AT:
            self._settle()
        return records

    def _identify(self, sample_ids: Any) -> tuple[Tensor | None, np.ndarray | None]:
        """A tensor's ids are looked up later, when it is on the host; others at once, so that one that can't be a key
        is refused here."""
        if isinstance(sample_ids, Tensor):
            if sample_ids.ndim != 1 or sample_ids.is_floating_point() or sample_ids.is_complex():
                raise ValueError(f"sample_ids must hold B integers, got {sample_ids.dtype}")
            return sample_ids.clone(), None
        if any(update.ids is not None for update in self._waiting[-1:]):
            self._settle()  # ids are numbered in the order in which they come
        known = len(self._places)
        try:
            return None, self._look_up(
                sample_ids.tolist() if isinstance(sample_ids, np.ndarray) else sample_ids
            )
        except TypeError:  # one that can't be a key: forget those before it
            for sample_id in list(self._places)[known:]:
                del self._places[sample_id]
            raise

    def _look_up(self, ids: Sequence[Hashable]) -> np.ndarray:
        return np.fromiter(map(self._places.__getitem__, ids), np.int64, len(ids))

    def _settle(self) -> None:
        """Add what waits to counts and sums, in the order in which it came."""
        waiting, self._waiting, self._num_waiting = self._waiting, [], 0
        if not waiting:
            return
        in_tensors = [update for update in waiting if update.ids is not None]
        if in_tensors:
            ids = _on_host([update.ids for update in in_tensors if update.ids is not None])
            ends = np.cumsum([len(update.margin) for update in in_tensors])
            for update, places in zip(
                in_tensors, np.split(self._look_up(ids.tolist()), ends[:-1]), strict=True
            ):
                update.places, update.ids = places, None
        places = np.concatenate([update.places for update in waiting if update.places is not None])
        margins = _on_host([update.margin for update in waiting]).to(torch.float64).numpy()
        grown = len(self._places) - len(self._counts)
        self._counts, self._sums = np.pad(self._counts, (0, grown)), np.pad(self._sums, (0, grown))
        if self.compressed:
            np.add.at(self._counts, places, 1)  # one after the other: the same sums as Python's
            np.add.at(self._sums, places, margins)
        else:
            self._measured.append(self._add_one_by_one(places, margins))
            details = [update.details for update in waiting if update.details is not None]
            for number, field in enumerate(_DETAILS):
                kind = torch.int64 if field.endswith("logit") else torch.float64
                values = _on_host([measured[number] for measured in details])
                self._measured[-1][field] = values.to(kind).numpy()

    def _add_one_by_one(self, places: np.ndarray, margins: np.ndarray) -> dict[str, np.ndarray]:
        """Counts and means after each visit: the first visits of all samples at once, then the second ones, …"""
        count, aum = np.empty(len(places), np.int64), np.empty(len(places))
        order = np.argsort(places, kind="stable")
        starts = np.flatnonzero(np.diff(places[order], prepend=-1))
        turn = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        for number in range(int(turn.max(initial=-1)) + 1):
            visits = order[turn == number]
            samples = places[visits]
            self._counts[samples] += 1
            self._sums[samples] += margins[visits]
            count[visits], aum[visits] = self._counts[samples], self._sums[samples] / self._counts[samples]
        return {"place": places, "num_measurements": count, "margin": margins, "aum": aum}

    def _state_of(self, update: _Update) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places, counts and sums of an update's samples, as they are now."""
        self._settle()
        assert update.places is not None
        return update.places, self._counts[update.places], self._sums[update.places]

    @property
    def counts(self) -> dict[Any, int]:
        """Measurements of each sample, by id; a copy."""
        self._settle()
        return dict(zip(self._places, self._counts.tolist(), strict=True))

    @property
    def sums(self) -> dict[Any, float]:
        """Sum of each sample's margins, by id; a copy."""
        self._settle()
        return dict(zip(self._places, self._sums.tolist(), strict=True))

    @property
    def records(self) -> list[AUMRecord]:
        """Every measurement, in order, a copy; with compressed=False only."""
        if self.compressed:
            raise AttributeError("records are kept with compressed=False only")
        columns = self._columns()
        return [AUMRecord(*row) for row in zip(*columns.values(), strict=True)]

    def _columns(self) -> dict[str, list[Any]]:
        """The fields of AUMRecord, one value a measurement."""
        self._settle()
        names = list(self._places)
        parts = self._measured
        whole = (
            {key: np.concatenate([part[key] for part in parts]).tolist() for key in parts[0]} if parts else {}
        )
        places = whole.pop("place", [])
        columns = {"sample_id": [names[place] for place in places], **whole}
        return {field: columns.get(field, []) for field in AUMRecord.__dataclass_fields__}

    def finalize(self, save_dir: str | os.PathLike[str] | None = None) -> None:
        """Write aum_values.csv (sample_id, aum; the highest first) and, with compressed=False, full_aum_records.csv
        into save_dir, by default that of the constructor. ValueError where nothing was measured."""
        pandas = require("pandas", "report")
        self._settle()
        if not self._places:
            raise ValueError("there is nothing to write: no sample was measured")
        folder = Path(save_dir or self.save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        frame = pandas.DataFrame({"sample_id": list(self._places), "aum": self._sums / self._counts})
        write_frame(frame.sort_values(by="aum", ascending=False), folder / "aum_values.csv")
        if not self.compressed:
            write_frame(_sorted(pandas.DataFrame(self._columns())), folder / "full_aum_records.csv")

    @staticmethod
    def records_to_df(records: list[AUMRecord]) -> pd.DataFrame:
        """A frame with a row a record, by sample_id and num_measurements."""
        pandas = require("pandas", "report")
        return _sorted(pandas.DataFrame([asdict(record) for record in records]))

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return {**self.__dict__, "_latest": None}


class _Records(Mapping[Any, AUMRecord]):
    """What update() returns. Counts and sums are taken over before the next update changes them."""

    def __init__(
        self, calculator: AUMCalculator, update: _Update, target: Tensor, target_value: Tensor, others: Tensor
    ):
        self._calculator, self._update = calculator, update
        self._target, self._target_value, self._others = target, target_value, others
        self._state: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._by_id: dict[Any, AUMRecord] | None = None

    def freeze(self) -> None:
        if self._state is None:
            self._state = self._calculator._state_of(self._update)

    def _made(self) -> dict[Any, AUMRecord]:
        if self._by_id is None:
            self.freeze()
            assert self._state is not None
            places, counts, sums = self._state
            names = list(self._calculator._places)
            other_value, other = self._others.max(1)
            columns = (self._target, self._target_value, other, other_value, self._update.margin)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            self._by_id = {}
            samples = zip(places.tolist(), counts.tolist(), sums.tolist(), rows, strict=True)
            for place, count, total, (target, value, runner_up, its_value, margin) in samples:
                name = names[place]
                self._by_id[name] = AUMRecord(
                    name, count, target, value, runner_up, its_value, margin, total / count
                )
        return self._by_id

    def __getitem__(self, sample_id: Any) -> AUMRecord:
        return self._made()[sample_id]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())

    def __repr__(self) -> str:
        return repr(self._made())


def _on_host(parts: list[Tensor]) -> Tensor:
    """Values of all updates, (n,), by one transfer; one an update where they lie on several devices."""
    if len({part.device for part in parts}) > 1:
        parts = [part.cpu() for part in parts]
    return torch.cat(parts).cpu()


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(by=["sample_id", "num_measurements"])


class DatasetWithIndex(torch.utils.data.Dataset[tuple[Any, ...]]):
    """A map-style dataset whose items are tuples, with each item's position as one more element at their end."""

    def __init__(self, base_dataset: Any):
        self.base_dataset = base_dataset

    def __len__(self) -> int:
        return len(self.base_dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.base_dataset[index], index)
