"""Runs under torchrun's agent, whose workers may be killed: `python elastic_runs.py JOB`, JOB as JSON.

The workers are forked from this process, so that a restart costs no imports.
"""

import importlib
import json
import os
import random
import signal
import subprocess
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

TESTS = Path(__file__).parent
KINDS = ("step", "moment", "stage", "write", "written", "finish", "publish", "prune")


def launch(runs: list[dict]) -> str:
    """Start the runs in another process, one after the other; what they printed."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, json.dumps({"runs": runs})],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(
    config: Config, *, ranks: int = 2, kills: int = 0, seed: int = 0, network: str = "with_dropout"
) -> dict:
    """What `launch` takes: train as the config says, on so many ranks, one of which is killed at each start but the
    last; which one, and when, is drawn by the seed."""
    values = {name: value for name, value in config.values().items() if value is not None}
    return {"config": values, "ranks": ranks, "kills": kills, "seed": seed, "network": network}


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


def worker(run: dict, log: str) -> int:
    torch.set_num_threads(1)
    kills = plan(run["seed"], run["kills"])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(kills) and kills[attempt]["rank"] == int(os.environ["RANK"]):
        arm(kills[attempt]["kind"], kills[attempt]["count"], kills[attempt]["seconds"], log)
    config = Config().with_values(**run["config"])
    fastac.train.train(config, resume=True, create=getattr(training_runs, run["network"]))
    return attempt


def import_first(engines: set[str]) -> None:
    """What each worker would import by itself, in seconds of each start."""
    for name in ("torch._dynamo", "torch.distributed.nn.functional", "sklearn.datasets", "tqdm", "tomli_w"):
        importlib.import_module(name)
    if "deepspeed" in engines:
        importlib.import_module("fastac.engine.deepspeed")
        importlib.import_module("deepspeed")


def main() -> None:
    job = json.loads(sys.argv[1])
    import_first({run["config"]["engine"] for run in job["runs"]})
    for name in ("contact_sheet", "plot_alpha", "plot_curves"):
        setattr(fastac.run, name, lambda *args, **kwargs: None)
    for run in job["runs"]:
        print("starting", run["config"]["name"], "on", run["ranks"], flush=True)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=run["ranks"],
            max_restarts=run["kills"],
            start_method="fork",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=run["config"]["name"],
            monitor_interval=0.02,
        )
        log = str(Path(run["config"]["output"]) / f"{run['config']['name']}.kills")
        attempts = elastic_launch(config, worker)(run, log)
        print(run["config"]["name"], "ended at start", attempts[0] + 1, flush=True)


if __name__ == "__main__":
    main()
