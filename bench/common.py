"""What every benchmark shares: fair timing, the machine's copy bandwidth, free memory, the stamp, the record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastac.run import environment, write_json

__all__ = [
    "Case",
    "Timing",
    "copy_bandwidth",
    "copy_case",
    "free_memory",
    "stamp",
    "time_cases",
    "write_record",
]

BEYOND_CACHES = 256 << 20  # bytes; several times the last cache of a CPU core or a GPU
_UNTIMED_ROUNDS = 2  # first calls allocate, and choose their kernels


@dataclass(frozen=True)
class Case:
    """One thing to time: run(prepare()), of which only run is timed."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the median of all rounds and its spread, the quartiles. host: the median of the time until
    the host had sent all work to the device, where that is measured apart."""

    median: float
    low: float
    high: float
    rounds: int
    host: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float], host: Sequence[float] = ()) -> Timing:
        low, median, high = np.percentile(seconds, [25, 50, 75])
        sent = float(np.median(host)) if len(host) else None
        return cls(float(median), float(low), float(high), len(seconds), sent)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def time_cases(
    cases: Sequence[Case], device: torch.device, rounds: int, queued: bool = False
) -> list[Timing]:
    """Time each case once a round, so that whatever disturbs the machine disturbs all of them alike.

    Every second round goes backwards, so that no case always follows the same one. The caches are emptied before
    each run, as a network's pass empties them between two steps of training. queued: on a GPU, the work is sent to a
    busy device, so that its time is the device's alone, and the host's is measured apart.
    """
    seconds: list[list[float]] = [[] for _ in cases]
    sent: list[list[float]] = [[] for _ in cases]
    filler = torch.zeros(BEYOND_CACHES // 4, device=device)
    measure = _queued if queued and device.type == "cuda" else _seconds
    for number in range(_UNTIMED_ROUNDS + rounds):
        order = range(len(cases)) if number % 2 == 0 else reversed(range(len(cases)))
        for place in order:
            filler.add_(1)  # reads and writes; a plain fill may go around the caches
            if device.type == "cuda":
                filler.sum()  # or what was written would be written back while the case is timed
            argument = cases[place].prepare()
            time.sleep(0.001)  # a fresh time slice: on a busy machine the run is then seldom interrupted
            elapsed, host = measure(cases[place].run, argument, device)
            if number >= _UNTIMED_ROUNDS:
                seconds[place].append(elapsed)
                sent[place] += [] if host is None else [host]
    return [Timing.of(values, host) for values, host in zip(seconds, sent, strict=True)]


def _seconds(run: Callable[[Any], object], argument: Any, device: torch.device) -> tuple[float, float | None]:
    """From the start of run to the end of its work. On a GPU from an idle device on, so the host's part counts."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        begin.record()
        run(argument)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, None
    start = time.perf_counter()
    run(argument)
    return time.perf_counter() - start, None


_BUSY_CYCLES = (
    8_000_000  # about 4 ms, longer than a host takes to send one run's work, many small kernels too
)


def _queued(run: Callable[[Any], object], argument: Any, device: torch.device) -> tuple[float, float | None]:
    """The device's time for the work of run, which waits until all of it is there; and the host's."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(_BUSY_CYCLES)
    begin.record()
    start = time.perf_counter()
    run(argument)
    host = time.perf_counter() - start
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, host


def copy_case(device: torch.device) -> Case:
    """A copy between two buffers past the caches; time it among the others and give it to `copy_bandwidth`."""
    source = torch.ones(BEYOND_CACHES // 4, device=device)
    target = torch.zeros_like(source)
    return Case(lambda _: target.copy_(source))


def copy_bandwidth(timing: Timing) -> dict[str, float]:
    """Bytes a second, read and written, of `copy_case`: what this machine could move during the same rounds."""
    moved = 2 * BEYOND_CACHES
    return {"median": moved / timing.median, "low": moved / timing.high, "high": moved / timing.low}


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def stamp(device: torch.device) -> dict[str, Any]:
    """What made a record, as in a run's environment.json, and how busy the machine was."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {**environment(device, world_size=1), "load_average": load}


def write_record(folder: Path, name: str, record: dict[str, Any]) -> Path:
    """FOLDER/NAME.json, whole or not at all; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_json(path, record)
    return path
