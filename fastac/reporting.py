"""What a run says of itself while it trains: a bar and lines on stderr, metrics.csv, TensorBoard, a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastac.config import RunConfig
from fastac.history import ScoreHistory
from fastac.metrics import MetricsLog, Progress, Reading
from fastac.run import RunFolder
from fastac.tracing import StepTrace

__all__ = ["Reporter"]


class Reporter:
    """One for each rank; only rank 0's says and writes anything.

    epoch, step: how far the run is; what is newer in the folder's logs is cut off. epochs, steps_per_epoch, last_step:
    of the whole run.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        *,
        rank: int,
        device: torch.device,
        epoch: int,
        step: int,
        epochs: int,
        steps_per_epoch: int,
        last_step: int,
    ):
        first = rank == 0
        self._interval, self._bar = config.log_interval, config.progress
        self._log: MetricsLog | None = None
        if first:
            self._log = MetricsLog(
                folder.metrics, folder.tensorboard if config.tensorboard else None, epoch, step
            )
            ScoreHistory(folder.history).forget_after(epoch)
        self._progress = Progress(first, epochs, steps_per_epoch, last_step)
        self._trace = StepTrace(folder.profile, config.profile_steps if first else 0, device)
        self._reading: tuple[Reading, int, float, float] | None = None

    def begin_epoch(self, epoch: int, step: int) -> None:
        self._progress.begin_epoch(epoch, step, bar=self._bar)

    def step(self, step: int, totals: Tensor, lr: float, images_per_second: float) -> None:
        """After each training step. totals: the meter's, read at every log_interval-th step; on a GPU they are shown
        some steps later, when they have arrived, and nothing waits for them."""
        self._progress.step()
        self._trace.step()
        if self._reading is not None and self._reading[0].ready():
            self._report()
        if (
            step % self._interval == 0 and self._reading is None
        ):  # one at a time: a newer one would also be later
            self._reading = Reading(totals), step, lr, images_per_second
            if self._reading[0].ready():
                self._report()

    def _report(self) -> None:
        if self._reading is None:
            return
        (reading, step, lr, images_per_second), self._reading = self._reading, None
        figures = reading.figures()
        self._progress.figures(figures, images_per_second, step)
        if self._log is not None:
            self._log.step(step, figures, lr, images_per_second)

    def end_training(self) -> None:
        """After an epoch's last step, before its test."""
        self._trace.close()
        self._report()

    def end_epoch(self, row: dict[str, Any]) -> None:
        """row: a value for each of fastac.metrics.COLUMNS."""
        self._progress.end_epoch(row)
        if self._log is not None:
            self._log.epoch(row)

    def close(self) -> None:
        self._progress.close()
        if self._log is not None:
            self._log.close()
        self._trace.close()
