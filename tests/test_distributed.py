"""The trainer under torchrun on gloo: several ranks give what one rank gives, stop together, and go on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from training_runs import config, differences, final_state, linear, metrics, without_pictures

from fastac.checkpoint import list_checkpoints
from fastac.train import train

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.dist

SCRIPT = """
import glob, json, os, signal, sys
import torch
torch.set_num_threads(1)
import fastac.run, fastac.train
import training_runs
from fastac.config import Config

job = json.loads(sys.argv[1])
for name in ("contact_sheet", "plot_alpha", "plot_curves"):
    setattr(fastac.run, name, lambda *args, **kwargs: None)
# A table of all rows may fit on no rank.
fastac.sharded.ShardedAlphaTable.dense = fastac.sharded.ShardedAlphaTable.gather = None
values = job["config"]
real = fastac.train.train_step

def train_step(j, group):
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if job.get("kill") == j.position.step and os.environ["RANK"] == "1" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(j, group)

fastac.train.train_step = train_step
config = Config().with_values(**values)
try:
    fastac.train.train(config, resume=job.get("resume", False), create=training_runs.linear)
except fastac.train.StoppedError as stop:
    print(stop, file=sys.stderr)
    status = 128 + stop.signum
else:
    status = 0
# A thread of the process group that lives on can abort the process while the interpreter ends.
names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
assert not [name for name in names if "gloo" in name], names
sys.exit(status)
"""


def torchrun(tmp_path, ranks, configuration, *words, **job):
    """Start `ranks` processes that run the configuration with the linear network; the process of torchrun."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    job["config"] = {name: value for name, value in configuration.values().items() if value is not None}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *launcher, *words, str(script), json.dumps(job)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, status=0) -> str:
    try:
        text, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == status, text
    return text


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_pictures(monkeypatch)


def assert_close_run(one: Path, other: Path) -> None:
    """The same run up to the rounding of sums in another order."""
    a, b = final_state(one), final_state(other)
    for state in (a, b):
        state["table"] = {name: value for name, value in state["table"].items() if torch.is_tensor(value)}
    for name in ("network", "table", "meter"):
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
    assert a["table"]["alpha"].abs().max() > 1e-3
    counts = ("count", "forgetting", "was_correct")
    assert differences(*({name: s["dynamics"][name] for name in counts} for s in (a, b))) == []
    torch.testing.assert_close(a["dynamics"]["sums"], b["dynamics"]["sums"], rtol=1e-4, atol=1e-4)
    assert a["position"] == b["position"]
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert (mine["epoch"], mine["step"], mine["lr"]) == (theirs["epoch"], theirs["step"], theirs["lr"])
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-4)


def test_two_ranks_give_what_one_gives_and_one_goes_on_where_two_stopped(tmp_path):
    """The last global batch of an epoch has 33 rows: 16 on one rank, 17 on the other."""
    two = config(tmp_path, name="two", batch_size=16, grad_accum_steps=2, max_steps=5)
    text = finish(torchrun(tmp_path, 2, two))
    assert text.count("epoch 1/3") == 1
    assert text.count("test accuracy of the cleansed network") == 1

    train(config(tmp_path, name="one", batch_size=32, grad_accum_steps=2, max_steps=5), create=linear)
    assert_close_run(tmp_path / "two", tmp_path / "one")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")]
    assert [result["ranks"] for result in results] == [2, 1]
    for name in ("test_accuracy", "train_accuracy", "train_accuracy_on_truth", "test_loss"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-4)
    issues = [pd.read_csv(tmp_path / name / "issues.csv").sort_values("index") for name in ("two", "one")]
    pd.testing.assert_frame_equal(issues[0], issues[1], rtol=1e-3, atol=1e-5, check_like=True)
    tops = [np.load(tmp_path / name / "alpha.npz") for name in ("two", "one")]
    values = [dict(zip(top["index"].tolist(), np.sort(top["values"]), strict=True)) for top in tops]
    assert values[0].keys() == values[1].keys() == set(range(193))
    for index, largest in values[0].items():
        np.testing.assert_allclose(largest, values[1][index], rtol=1e-3, atol=1e-5)

    train(config(tmp_path, name="one", batch_size=32, grad_accum_steps=2), create=linear, resume=True)
    train(config(tmp_path, name="two", batch_size=32, grad_accum_steps=2), create=linear, resume=True)
    assert final_state(tmp_path / "two")["position"]["step"] == 9
    assert_close_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_dead_rank_is_restarted_and_the_run_goes_on_to_the_same_bits(tmp_path):
    settings = {"batch_size": 16, "checkpoint_every": 2}
    finish(torchrun(tmp_path, 2, config(tmp_path, name="whole", **settings)))
    killed = config(tmp_path, name="killed", **settings)
    text = finish(torchrun(tmp_path, 2, killed, "--max-restarts=2", kill=9, resume=True))
    assert "going on from" in text
    assert "of 18" in text  # from step 8, or from 6 where it died before that was on the disk
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "killed")) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_sigterm_to_torchrun_stops_all_ranks_with_one_checkpoint(tmp_path):
    long = config(tmp_path, name="run", batch_size=16, epochs=2000, checkpoint_every=5)
    process = torchrun(tmp_path, 2, long)
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    try:
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert text.count("SIGTERM at step") == 2
    assert process.returncode != 0
    state = final_state(tmp_path / "run")
    step = state["position"]["step"]
    assert f"SIGTERM at step {step} of 12000, saved" in text
    assert len(state["rng"]) == 2
