"""A trace of some training steps, for chrome://tracing or Perfetto, and a table of where their time went."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["StepTrace"]

_SKIPPED = 5  # steps before: they load kernels, choose algorithms and take memory
_OPERATORS = 40  # lines of the table


class StepTrace:
    """Records `steps` steps, after the first few, into folder/trace.json.gz and folder/operators.txt.

    steps: 0 records nothing. Call `step` after each training step, and `close` at the epoch's end, before anything else
    runs, which ends a record that the epoch was too short for; later epochs are not recorded.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device):
        self.folder, self.steps, self.device = folder, steps, device
        self._seen, self._closed = 0, False
        self._profile: profile | None = None

    def step(self) -> None:
        if self.steps == 0 or self._closed:
            return
        self._seen += 1
        if self._seen == _SKIPPED:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._profile = profile(activities=activities)
            self._profile.start()
        elif self._seen == _SKIPPED + self.steps:
            self.close()

    def close(self) -> None:
        """Write what was recorded; nothing where there is none, or it is written."""
        record, self._profile = self._profile, None
        self._closed |= self._seen > 0
        if record is None:
            return
        record.stop()
        if self._seen == _SKIPPED:  # no step came after it was started
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = record.key_averages().table(sort_by=order, row_limit=_OPERATORS)
        (self.folder / "operators.txt").write_text(table + "\n", encoding="utf-8")
        temporary = self.folder / ".trace.json.gz"  # its suffix tells the profiler to compress
        record.export_chrome_trace(str(temporary))
        os.replace(temporary, self.folder / "trace.json.gz")
