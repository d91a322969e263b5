"""What a collective was for, said when it fails, and which ranks have not come to it.

torch.distributed says "Timed out waiting 600000ms for recv operation to complete", on every rank that waited. Here
such an error is raised again with the collective's name, and the ranks that failed find each other by keys in the
store in which the run's ranks met: those that left none are the ones to look for.

This is for gloo. NCCL's watchdog aborts the process by itself, with the operation's name in its own message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

__all__ = ["CollectiveError", "forget", "named", "watch"]

_LOST = re.compile(r"timed? ?out|connection (closed|reset|refused)|broken pipe|socket closed", re.IGNORECASE)
_GRACE = 5.0  # seconds for which a rank that failed waits for the others to say that they did


class CollectiveError(RuntimeError):
    """A collective timed out or lost a rank; the message names it, and the ranks that have not come to it."""


@dataclass(frozen=True)
class _Watch:
    store: Store
    rank: int
    world_size: int
    timeout: float


_watched: _Watch | None = None


def watch(store: Store, rank: int, world_size: int, timeout: float) -> None:
    """From now on, name collectives of this process, rank of world_size. store: the one that the ranks met in, with a
    prefix of this start's own. timeout: seconds that a collective may take."""
    global _watched
    _watched = _Watch(store, rank, world_size, timeout)


def forget() -> None:
    """The process group is left."""
    global _watched
    _watched = None


@contextmanager
def named(collective: str) -> Iterator[None]:
    """Around a collective: where it times out or a rank is gone, raise CollectiveError.

    collective: what it is and what for, like "all_reduce of the network's gradients (DDP)". Inside another `named`,
    the inner name counts. Without `watch` it does nothing.
    """
    start = time.monotonic()
    try:
        yield
    except CollectiveError:
        raise
    except RuntimeError as error:
        if _watched is None or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        waited = time.monotonic() - start
        raise CollectiveError(_message(_watched, collective, waited, str(error))) from error


def _message(run: _Watch, collective: str, waited: float, error: str) -> str:
    timed_out = re.search(r"timed? ?out", error, re.IGNORECASE)
    what = f"rank {run.rank} waited {waited:.0f} s in {collective}"
    if not timed_out:
        what = f"rank {run.rank} lost its connection in {collective}"
    where = _others(run, collective)
    if where is None:
        return f"{what}; which rank is missing is not known: the ranks' store is gone"
    silent = [rank for rank, place in where.items() if place is None]
    parts = [f"rank {rank} is in {place}" for rank, place in where.items() if place not in (None, collective)]
    if silent:
        ranks = f"rank {silent[0]} does" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))} do"
        parts.insert(0, f"{ranks} not answer")
    limit = f" (dist_timeout is {run.timeout:g} s)" if timed_out else ""
    return f"{what}{limit}: {'; '.join(parts) or 'all ranks are there, so the network between them is not'}"


def _others(run: _Watch, collective: str) -> dict[int, str | None] | None:
    """The collective that each other rank failed in, None where it said nothing; None where the store is gone."""
    others = [rank for rank in range(run.world_size) if rank != run.rank]
    deadline = time.monotonic() + min(_GRACE, run.timeout)
    try:
        run.store.set(f"failed/{run.rank}", collective)
        while True:
            there = [rank for rank in others if run.store.check([f"failed/{rank}"])]
            if len(there) == len(others) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return {rank: run.store.get(f"failed/{rank}").decode() if rank in there else None for rank in others}
    except RuntimeError:
        return None
