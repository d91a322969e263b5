"""Runs under torchrun's agent whose workers are killed: `python elastic_runs.py JOB`, JOB as JSON.

The workers are forked from this process, so that a restart costs no imports.
"""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch
import training_runs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import fastac.run
import fastac.train
from fastac import checkpoint_writer
from fastac.config import Config

KINDS = ("step", "moment", "stage", "write", "written", "finish", "publish", "prune")


def plan(seed: int, kills: int) -> list[dict]:
    """Whom to kill at each start, and when. Every kind comes in its turn; what is left to chance is drawn."""
    draw = random.Random(seed)
    plans = []
    for number in range(kills):
        kind = KINDS[(seed * kills + number) % len(KINDS)]
        rank = 0 if kind in ("finish", "publish", "prune") else draw.randrange(2)  # rank 0 does these
        plans.append(
            {"kind": kind, "rank": rank, "count": draw.randint(1, 3), "seconds": draw.uniform(0.05, 0.6)}
        )
    return plans


def die(log: str) -> None:
    with open(log, "a") as file:
        file.write(os.environ["RANK"] + "\n")
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, count: int, seconds: float, log: str) -> None:
    """From now on this process kills itself at the moment of this kind, the count-th time that it comes."""
    if kind == "moment":
        timer = threading.Timer(seconds, die, [log])
        timer.daemon = True
        timer.start()
        return
    left = [count]

    def killing(real, after=False):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and not after:
                die(log)
            result = real(*args, **kwargs)
            if left[0] == 0:
                die(log)
            return result

        return call

    owner, name = {
        "step": (fastac.train, "train_step"),
        "stage": (checkpoint_writer.Stager, "stage"),
        "write": (checkpoint_writer.Writer, "write_data"),
        "written": (checkpoint_writer.Writer, "write_data"),
        "finish": (checkpoint_writer.Writer, "finish"),
        "publish": (checkpoint_writer, "publish"),
        "prune": (checkpoint_writer, "prune"),
    }[kind]
    setattr(owner, name, killing(getattr(owner, name), after=kind == "written"))


def worker(values: dict, kills: list[dict], log: str) -> int:
    torch.set_num_threads(1)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(kills) and kills[attempt]["rank"] == int(os.environ["RANK"]):
        arm(kills[attempt]["kind"], kills[attempt]["count"], kills[attempt]["seconds"], log)
    config = Config().with_values(**values)
    fastac.train.train(config, resume=True, create=training_runs.with_dropout)
    return attempt


def main() -> None:
    job = json.loads(sys.argv[1])
    for name in ("contact_sheet", "plot_alpha", "plot_curves"):
        setattr(fastac.run, name, lambda *args, **kwargs: None)
    for run in job["runs"]:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            max_restarts=run["kills"],
            start_method="fork",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=run["config"]["name"],
            monitor_interval=0.02,
        )
        log = str(Path(run["config"]["output"]) / f"{run['config']['name']}.kills")
        attempts = elastic_launch(config, worker)(run["config"], plan(run["seed"], run["kills"]), log)
        print(run["config"]["name"], "ended at start", attempts[0] + 1, flush=True)


if __name__ == "__main__":
    main()
