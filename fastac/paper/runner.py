"""Train what is missing: each run in a process of its own, several side by side, each going on where it was cut off."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch

from fastac.paper.runs import Run

__all__ = ["InterruptedRunsError", "Outcome", "Process", "run_all", "start_process"]

_POLL_SECONDS = 0.2
_STATUS_SECONDS = 60.0
_TAIL = 15  # lines of a failed run's log that are shown


class Process(Protocol):
    """What `start_process` gives: a subprocess.Popen, or something in its place."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self) -> int: ...


Start = Callable[[Run, int, IO[bytes]], Process]


class InterruptedRunsError(Exception):
    """SIGINT or SIGTERM: the runs under way have saved a checkpoint and ended. signum: which signal."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from here")
        self.signum = signum


@dataclass
class Outcome:
    """results: what each finished run's result.json holds. failed: why the others did not come to their end."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def start_process(run: Run, slot: int, lock: IO[bytes]) -> Process:
    """Train the run in a new process, its output at the end of its log. slot: which of the runs side by side it is;
    with several GPUs they are shared out by it. lock: the run's, which the process keeps for as long as it lives."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    env = slot_environment(os.environ, slot, torch.cuda.device_count())
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            run.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, pass_fds=[lock.fileno()]
        )


def slot_environment(env: Mapping[str, str], slot: int, count: int) -> dict[str, str]:
    """The environment of a run: one GPU of those that CUDA_VISIBLE_DEVICES names, or of all `count`, by turns."""
    named = env.get("CUDA_VISIBLE_DEVICES")
    devices = [str(i) for i in range(count)] if named is None else named.split(",")
    if len(devices) < 2:
        return dict(env)
    return {**env, "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}


def run_all(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    start: Start = start_process,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Outcome:
    """Bring all runs to their end, as far as they get there, in their order but for those that wait for others.

    runs: no name twice; a run's needs are among them. jobs: how many train side by side. A run that has come to its
    end is not started again. One that fails is reported with the end of its log, and does not stop the others, except
    those that need it.

    ValueError, and nothing started, for wrong settings; InterruptedRunsError after SIGINT or SIGTERM.
    """
    if jobs < 1:
        raise ValueError(f"jobs was {jobs}; it should be at least 1")
    for run in runs:
        run.check()
    return _Runner(runs, jobs, start, say).run()


def take_lock(path: Path) -> IO[bytes] | None:
    """The open file whose lock is ours until it is closed or the process ends; None where another command has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class _Active(NamedTuple):
    """A run under way."""

    process: Process
    slot: int
    began: float
    lock: IO[bytes]


class _Runner:
    def __init__(self, runs: Sequence[Run], jobs: int, start: Start, say: Callable[[str], None]):
        self.runs = {run.name: run for run in runs}
        self.start, self.say = start, say
        self.waiting = list(runs)
        self.free = list(range(jobs))
        self.active: dict[str, _Active] = {}
        self.elsewhere: set[str] = set()
        self.outcome = Outcome()
        self.signum = 0
        self.told = time.monotonic()

    def run(self) -> Outcome:
        for run in list(self.waiting):
            result = run.result()
            if result is not None:
                self.outcome.results[run.name] = result
                self.waiting.remove(run)
        if self.outcome.results:
            self.say(f"{len(self.outcome.results)} of {len(self.runs)} runs have come to their end before")
        with self._signals():
            while (self.waiting or self.active) and not self.signum:
                self._start_ready()
                self._collect()
                if self.active or self.waiting:
                    self._tell()
                    time.sleep(_POLL_SECONDS)
            if self.signum:
                self._stop()
                raise InterruptedRunsError(self.signum)
        return self.outcome

    def _start_ready(self) -> None:
        """Start what can be started. A run that another command trains is waited for."""
        for run in list(self.waiting):
            broken = [name for name in run.needs if name in self.outcome.failed]
            if broken:
                self.waiting.remove(run)
                self._fail(run, f"it needs {broken[0]}, which failed")
            elif self.free and all(name in self.outcome.results for name in run.needs):
                lock = take_lock(run.log.with_suffix(".lock"))
                if lock is None:
                    self._wait_for(run)
                    continue
                self.waiting.remove(run)
                self._launch(run, lock)

    def _wait_for(self, run: Run) -> None:
        if run.name not in self.elsewhere:
            self.elsewhere.add(run.name)
            self.say(f"{self._place()} {run.name}: another command trains it, waiting")

    def _launch(self, run: Run, lock: IO[bytes]) -> None:
        result = run.result()
        if result is not None:  # another command's
            lock.close()
            self.outcome.results[run.name] = result
            return
        try:
            if run.prepare is not None:
                run.prepare({name: self.runs[name].folder.path for name in run.needs})
        except (ValueError, OSError) as error:
            lock.close()
            return self._fail(run, str(error))
        slot = self.free.pop(0)
        self.say(f"{self._place()} {run.name}: started")
        self.active[run.name] = _Active(self.start(run, slot, lock), slot, time.monotonic(), lock)

    def _collect(self) -> None:
        for name, active in list(self.active.items()):
            status = active.process.poll()
            if status is None:
                continue
            del self.active[name]
            active.lock.close()
            self.free.append(active.slot)
            run, result = self.runs[name], self.runs[name].result()
            if status == 0 and result is not None:
                self.outcome.results[name] = result
                accuracy = result["test_accuracy"]
                figure = "done" if accuracy is None else f"{accuracy:.2%} on the test set"
                self.say(f"{self._place()} {name}: {figure}, {time.monotonic() - active.began:.0f} s")
            else:
                self._fail(run, f"exit status {status}; {run.log}:\n{log_tail(run.log)}")

    def _fail(self, run: Run, reason: str) -> None:
        self.outcome.failed[run.name] = reason
        self.say(f"{self._place()} {run.name}: failed, {reason}")

    def _place(self) -> str:
        done = len(self.outcome.results) + len(self.outcome.failed)
        return f"[{done}/{len(self.runs)}]"

    def _tell(self) -> None:
        """Now and then, the last line of each log under way: the trainer says there how long it has left."""
        if time.monotonic() - self.told < _STATUS_SECONDS:
            return
        self.told = time.monotonic()
        for name in self.active:
            self.say(f"{self._place()} {name}: {log_tail(self.runs[name].log, 1)}")

    def _stop(self) -> None:
        for active in self.active.values():
            active.process.terminate()  # they save a checkpoint; a terminal's Ctrl-C has reached them already
        for active in self.active.values():
            active.process.wait()
            active.lock.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def keep(signum: int, frame: object) -> None:
            self.signum = self.signum or signum

        if threading.current_thread() is not threading.main_thread():  # Python hands signals to no other
            yield
            return
        before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def log_tail(path: Path, lines: int = _TAIL) -> str:
    """The last lines of a log."""
    if not path.is_file():
        return "(no log)"
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        return "\n".join(file.read().decode("utf-8", errors="replace").rstrip().splitlines()[-lines:])
