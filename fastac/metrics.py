"""A run's running figures: accumulated on the device, written as CSV and TensorBoard, shown as a bar."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastac.extras import require

__all__ = ["COLUMNS", "Figures", "Meter", "MetricsLog", "Progress", "Reading", "with_bar"]

T = TypeVar("T")

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "test_top5",
    "ema_test_accuracy",
    "images_per_second",
    "seconds",
)


class Figures(NamedTuple):
    """Mean loss, share of right answers in [0, 1], the rows they are over, and the share of rows whose target is
    among the five best answers, where that was counted."""

    loss: float
    accuracy: float
    rows: int
    top5: float | None = None


class Meter:
    """Sums of loss, right answers and rows on the device: adding waits for nothing, reading does.

    top5: count also the rows whose target is among the five largest logits.
    """

    def __init__(self, device: torch.device, *, top5: bool = False):
        self.top5 = top5
        self.totals = torch.zeros(4 if top5 else 3, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """loss: (), the mean over the rows. logits: (B, K). target: (B,). No rows add nothing."""
        if len(target) == 0:
            return
        self.totals[0] += loss.detach() * len(target)
        self.totals[1] += (logits.detach().argmax(1) == target).sum()
        self.totals[2] += len(target)
        if self.top5:
            best = logits.detach().topk(min(5, logits.shape[1])).indices
            self.totals[3] += (best == target[:, None]).sum()

    def reset(self) -> None:
        self.totals.zero_()

    @staticmethod
    def figures(totals: Tensor) -> Figures:
        """The figures of `totals` (3,) or (4,), perhaps summed over ranks. NaN where there were no rows."""
        loss, right, rows, *five = totals.tolist()
        shares = [value / rows if rows else float("nan") for value in (loss, right, *five)]
        return Figures(shares[0], shares[1], int(rows), shares[2] if five else None)


class Reading:
    """A meter's totals on their way to the host: the training loop goes on, and reads them when they are there."""

    def __init__(self, totals: Tensor):
        self._arrived: torch.cuda.Event | None = None
        if totals.device.type == "cuda":
            self._totals = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
            self._totals.copy_(totals, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._totals = totals.clone()

    def ready(self) -> bool:
        """Whether `figures` would not wait."""
        return self._arrived is None or self._arrived.query()

    def figures(self) -> Figures:
        if self._arrived is not None:
            self._arrived.synchronize()
        return Meter.figures(self._totals)


class MetricsLog:
    """One row an epoch in metrics.csv, and the same and more in TensorBoard. Only rank 0 has one."""

    def __init__(self, csv_path: Path, tensorboard: Path | None, epochs: int, step: int):
        """Go on after so many finished epochs and steps: what is newer than the checkpoint is cut off."""
        self.path = csv_path
        kept = [row for row in _rows(csv_path) if int(row["epoch"]) <= epochs]
        temporary = csv_path.with_name(f".{csv_path.name}.tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, csv_path)
        self.writer: Any = None
        if tensorboard is not None:
            require("tensorboard", "train")
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def step(self, step: int, figures: Figures, lr: float, images_per_second: float) -> None:
        """Running figures of the epoch so far, to TensorBoard."""
        if self.writer is not None:
            self.writer.add_scalar("train/running_loss", figures.loss, step)
            self.writer.add_scalar("train/running_accuracy", figures.accuracy, step)
            self.writer.add_scalar("train/lr", lr, step)
            self.writer.add_scalar("train/images_per_second", images_per_second, step)

    def epoch(self, row: dict[str, Any]) -> None:
        """A finished epoch: a value for each of COLUMNS; None (no test set) is left empty."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([_text(row[name]) for name in COLUMNS])
        if self.writer is not None:
            for name in COLUMNS[3:-2]:
                if row[name] is not None:
                    self.writer.add_scalar(_tag(name), row[name], row["step"])
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            row for row in csv.DictReader(file) if row["seconds"]
        ]  # a kill may have cut the last one short


def _tag(column: str) -> str:
    """train_loss as train/loss, ema_test_accuracy as test/ema_accuracy."""
    average = "ema_" if column.startswith("ema_") else ""
    split, _, figure = column.removeprefix(average).partition("_")
    return f"{split}/{average}{figure}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def with_bar(batches: Iterable[T], total: int, what: str, *, shown: bool) -> Iterable[T]:
    """The batches; while they are gone through, a bar on stderr where it is a terminal. shown=False: without."""
    if not shown or not sys.stderr.isatty():
        return batches
    bar: Iterable[T] = require("tqdm", "train").tqdm(
        batches, total=total, desc=what, unit="batch", leave=False, dynamic_ncols=True
    )
    return bar


class Progress:
    """The state of a run on stderr: a bar for the epoch where it is a terminal, and a line for each epoch."""

    def __init__(self, enabled: bool, epochs: int, steps_per_epoch: int, total_steps: int):
        """enabled: False says nothing (ranks other than 0). total_steps: of the whole run."""
        self.enabled, self.epochs = enabled, epochs
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self._bar: Any = None
        self._began = time.monotonic()
        self._first_step: int | None = None

    def begin_epoch(self, epoch: int, step: int, bar: bool) -> None:
        """epoch: counted from 0. step: steps done in the run. bar: show one if stderr is a terminal."""
        if self._first_step is None:
            self._began, self._first_step = time.monotonic(), step
        if self.enabled and bar and sys.stderr.isatty():
            self._bar = require("tqdm", "train").tqdm(
                total=self.steps_per_epoch,
                initial=step - epoch * self.steps_per_epoch,
                desc=f"epoch {epoch + 1}/{self.epochs}",
                unit="step",
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def figures(self, figures: Figures, images_per_second: float, step: int) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {figures.loss:.3f}, accuracy {figures.accuracy:.1%}, "
                f"{images_per_second:,.0f} images/s, {self._left(step)} left"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Close the bar and print a line of the metrics' row."""
        self.close()
        if not self.enabled:
            return
        names = {"test_accuracy": "test accuracy", "test_top5": "top-5", "ema_test_accuracy": "EMA"}
        test = "".join(f"  {text} {row[name]:.2%}" for name, text in names.items() if row[name] is not None)
        width = len(str(self.epochs))
        print(
            f"epoch {row['epoch']:>{width}}/{self.epochs}  loss {row['train_loss']:.4f}  "
            f"accuracy {row['train_accuracy']:.2%}{test}  lr {row['lr']:.4g}  "
            f"{row['images_per_second']:,.0f} images/s  {self._left(row['step'])} left",
            file=sys.stderr,
            flush=True,
        )

    def _left(self, step: int) -> str:
        done = step - (self._first_step or 0)
        if done <= 0:
            return "?"
        seconds = round((time.monotonic() - self._began) / done * max(self.total_steps - step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
