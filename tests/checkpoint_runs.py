"""Checkpoints on several ranks: what each rank of a group saw, for test_checkpoint.py to compare."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import threading
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from fastac import checkpoint, checkpoint_files, checkpoint_writer
from fastac.checkpoint import CheckpointError, Checkpoints
from fastac.checkpoint_writer import Stager
from fastac.partition import shard_bounds

N, K = 11, 3


def network(step, size=1000):
    """What all ranks hold."""
    weights = {str(i): torch.full((size,), float(10 * step + i)) for i in range(4)}
    return {
        "step": step,
        "model": weights,
        "optimizer": {"state": {0: {"momentum_buffer": weights["0"] * 2}}},
    }


def table(step, rank=0, world=1):
    """A rank's rows of α."""
    first, stop = shard_bounds(N, rank, world)
    alpha = torch.arange(N * K, dtype=torch.float64).view(N, K)[first:stop] + 1000 * step
    return {"rows": (first, stop), "steps": step, "alpha": alpha, "parts": [alpha[:, 0], None]}


def save(checkpoints, step, **options):
    rank, world = checkpoints.rank, checkpoints.world_size
    own = {"table": table(step, rank, world), "rng": {"rank": rank}}
    checkpoints.save(step, network(step, **options), own)


def problem(loaded, rank, world):
    """What is wrong with a loaded checkpoint, for a rank of another world: "" if nothing."""
    step = loaded.step
    expected = network(step, loaded.shared["model"]["0"].numel())
    for name, values in expected["model"].items():
        if not torch.equal(loaded.shared["model"][name], values):
            return f"model {name}"
    if not torch.equal(loaded.shared["optimizer"]["state"][0]["momentum_buffer"], expected["model"]["0"] * 2):
        return "momentum"
    first, stop = shard_bounds(N, rank, world)
    seen = []

    def overlaps(plain):
        seen.append(set(plain))
        return plain["rows"][0] < stop and first < plain["rows"][1]

    states = loaded.own("table", overlaps)
    if len(seen) != loaded.world_size or any(keys != {"rows", "steps", "parts"} for keys in seen):
        return f"wanted saw {seen}"
    whole = table(step)["alpha"]
    rows = set()
    for state in states:
        low, high = state["rows"]
        if not torch.equal(state["alpha"], whole[low:high]) or not torch.equal(
            state["parts"][0], whole[low:high, 0]
        ):
            return f"rows {low} to {high}"
        rows |= set(range(low, high))
    if not rows >= set(range(first, stop)):
        return f"rows {rows}"
    ranks = [state["rank"] for state in loaded.own("rng")]
    return "" if ranks == list(range(loaded.world_size)) else f"ranks {ranks}"


def said(action):
    """The text of the CheckpointError that an action raised, else "" ."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_memory(*args, **kwargs):
    raise RuntimeError("out of memory")


# Where a rank's part of a save fails: an attribute, and what stands in its place.
FAILURES = {
    "stage": (Stager, "stage", no_memory),
    "write": (checkpoint_files._ChecksumFile, "write", no_space),
    "sync": (checkpoint_files.os, "fsync", no_space),
}


def fail_on(failing, checkpoints, name):
    """Save step 7 with a failure on one rank; the next save works. Returns what was said."""
    owner, attribute, stand_in = FAILURES[name]
    real = getattr(owner, attribute)
    if checkpoints.rank == failing:
        setattr(owner, attribute, stand_in)
    try:
        save(checkpoints, 7)
        text = said(checkpoints.wait)
    finally:
        setattr(owner, attribute, real)
    return text


def failures(checkpoints):
    texts = {}
    for name, owner, attribute in (
        ("publish", checkpoint_writer, "publish"),
        ("prune", checkpoint_files, "_prune"),
    ):
        FAILURES[name] = (owner, attribute, no_space)
        texts[name] = fail_on(0, checkpoints, name)
        texts[f"names {name}"] = names(checkpoints)
        del FAILURES[name]
    save(checkpoints, 4)
    save(checkpoints, 6)
    for failing in (0, checkpoints.world_size - 1):
        for name in FAILURES:
            texts[f"{name} {failing}"] = fail_on(failing, checkpoints, name)
            texts[f"names {name} {failing}"] = names(checkpoints)
        own = {"what": {"is": no_space if checkpoints.rank == failing else 1}}
        checkpoints.save(7, network(7), own)
        texts[f"state {failing}"] = said(lambda: save(checkpoints, 8))
        texts[f"load {failing}"] = fail_to_load(checkpoints, failing)
    return texts


def fail_to_load(checkpoints, failing):
    """One rank cannot read what the others can."""
    real = checkpoint.verify

    def refuse(*args):
        raise CheckpointError(f"rank {failing} can't read it")

    if checkpoints.rank == failing:
        checkpoint.verify = refuse
    try:
        return said(checkpoints.load_newest)
    finally:
        checkpoint.verify = real


def names(checkpoints):
    dist.barrier(group=checkpoints._group)
    return sorted(path.name for path in checkpoints.folder.iterdir())


def busy_save(checkpoints, step):
    """All-reduces of the training's own group while a save is under way, and changes of what is saved."""
    state, own = network(step, 300_000), table(step, checkpoints.rank, checkpoints.world_size)
    checkpoints.save(step, state, {"table": own, "rng": {"rank": checkpoints.rank}})
    own["alpha"].zero_()
    for values in state["model"].values():
        values.zero_()
    for _ in range(50):
        dist.all_reduce(torch.ones(1000))


def run_all(rank, world, folder, others):
    results = {"others": {}}
    group = dist.new_group(backend="gloo")
    checkpoints = Checkpoints(folder / f"of {world}", keep=2, group=group)
    results["nothing"] = checkpoints.load_newest() is None
    for step in (2, 4):
        save(checkpoints, step)
    busy_save(checkpoints, 6)
    loaded = checkpoints.load_newest()
    results["newest"] = [loaded.step, loaded.world_size, loaded.problems, problem(loaded, rank, world)]
    results["names"] = names(checkpoints)
    results["failures"] = failures(checkpoints)
    results["after"] = [checkpoints.load_newest().step, names(checkpoints)]
    for other in others:
        elsewhere = Checkpoints(Path(other), keep=2, group=group)
        results["others"][other] = problem(elsewhere.load_newest(), rank, world)
    if rank == 0:
        (checkpoints.folder / "step-00000006" / ".metadata").write_bytes(b"")
    dist.barrier()
    passed = checkpoints.load_newest()
    results["damaged"] = [passed.step, passed.problems]
    results["empty"] = said(lambda: checkpoints.load(folder / "nowhere"))
    checkpoints.close()
    names_of_threads = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    ]
    results["threads"] = names_of_threads
    return results


def worker(rank, world, folder, others):
    torch.set_num_threads(1)
    join(rank, world, f"{folder}/store {world}")
    results = run_all(rank, world, Path(folder), others)
    Path(f"{folder}/{world} {rank}.json").write_text(json.dumps(results))
    dist.barrier()
    leave()
    tasks = Path("/proc/self/task")
    threads = [path.read_text() for path in tasks.glob("*/comm")]
    assert not any("gloo" in thread for thread in threads), threads


def join(rank, world, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)


def leave():
    dist.destroy_process_group()
    gc.collect()


# --- forked processes, to be killed ------------------------------------------------------------------------


def fork(action) -> int:
    """Run `action` in a forked process; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def ended(pid) -> int:
    """What ended a process: an exit status, or a signal as a negative number. SIGABRT if it took a minute."""
    deadline = time.monotonic() + 60
    while (result := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(result[1])


CALLS = ("mkdir", "fsync", "rename", "unlink", "rmdir")


def kill_at_call(number):
    """Kill this process in place of the given call, of those that change a folder or reach the disk."""
    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
