"""How a run ends before its end: SIGINT and SIGTERM are kept until the training has saved a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from fastac.engine import Engine

__all__ = ["StopSignal", "StoppedError"]


class StoppedError(Exception):
    """SIGINT or SIGTERM ended the run, after a checkpoint was saved; signum: which."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class StopSignal:
    """While it is open, the first SIGINT or SIGTERM is kept in `signum`; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.signum = 0
        self.next_question = 0  # the step after which the ranks ask each other
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # torchrun passes on a Ctrl-C that the terminal has sent to its workers already: that is one, not two.
        echo = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._when < 1
        if self.signum and signum == signal.SIGINT and not echo:
            raise KeyboardInterrupt
        self.signum, self._when = self.signum or signum, time.monotonic()

    def agreed(self, engine: Engine) -> bool:
        """Whether a rank got a signal. All ranks ask together."""
        return engine.any(self.signum != 0, "signals to stop")
