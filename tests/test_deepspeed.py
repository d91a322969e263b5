"""DeepSpeed ZeRO 1, 2 and 3 on two ranks against DDP: same network, momentum, α and curves; and bad config files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_runs import config, final_state, metrics

from fastac.engine.deepspeed import settings

ROOT = Path(__file__).parent.parent
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
ZERO = ("zero1", "zero2", "zero3")


def run_ranks(folder, *cases, status=0):
    """Start engine_runs.py on 2 ranks. Returns what it printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "tests" / "engine_runs.py"), str(folder), json.dumps(cases)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert (done.returncode != 0) == (status != 0), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    # Small enough a threshold that ZeRO 3 cuts up this network, too.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 10, "reduce_bucket_size": 10_000}
    given = {"zero_optimization": zero, "gradient_clipping": "auto", "fp16": {"enabled": False}}
    (folder / "zero3.json").write_text(json.dumps(given))
    text = run_ranks(folder, "whole_runs", "skipped", "exchanged", "own_loops")
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    return folder, text, ranks


def is_statistic(name):
    return any(word in name for word in ("running", "num_batches"))


def without_statistics(seen):
    model = {name: value for name, value in seen["model"].items() if not is_statistic(name)}
    return {**seen, "model": model}


def close(one, other, tolerance=1e-6):
    for kind in one:
        torch.testing.assert_close(one[kind], other[kind], rtol=tolerance, atol=tolerance / 10)


@needs_deepspeed
@pytest.mark.dist
@pytest.mark.parametrize(("amp", "name"), [("none", name) for name in ZERO] + [("bf16", "zero3")])
def test_the_trainers_curves_and_results_are_ddps(runs, amp, name):
    """Two epochs in groups of 4 and 2 batches, clipped, with warm-up: network, momentum, α and metrics."""
    folder, _, _ = runs
    ddp, zero = (final_state(folder / f"{engine}-{amp}") for engine in ("ddp", name))
    torch.testing.assert_close(ddp["network"], zero["network"], rtol=1e-4, atol=1e-6)
    for kind in ("alpha", "momentum_buffer"):
        torch.testing.assert_close(ddp["table"][kind], zero["table"][kind], rtol=1e-4, atol=1e-7)
    assert ddp["table"]["alpha"].abs().max() > 1e-3
    assert ddp["scheduler"]["last_epoch"] == zero["scheduler"]["last_epoch"] == 4
    curves = [metrics(folder / f"{engine}-{amp}") for engine in ("ddp", name)]
    assert len(curves[0]) == len(curves[1]) > 1
    for mine, theirs in zip(*curves, strict=True):
        for column in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            if mine[column]:
                assert float(mine[column]) == pytest.approx(float(theirs[column]), rel=1e-4)


@needs_deepspeed
@pytest.mark.dist
def test_no_noise_and_no_build(runs):
    _, text, _ = runs
    assert "test accuracy" in text
    for word in ("ninja", "untested", "deprecated", "[INFO]", "[WARNING] [engine"):
        assert word not in text


@needs_deepspeed
@pytest.mark.dist
@pytest.mark.parametrize("name", ZERO)
def test_a_step_that_one_ranks_gradient_spoils_moves_nothing(runs, name):
    for rank in runs[2]:
        before, after, later = map(without_statistics, rank["skipped"][name])
        for kind in ("model", "momentum", "alpha", "alpha momentum", "steps"):
            torch.testing.assert_close(before[kind], after[kind], rtol=0, atol=0)
        assert before["lr"] != after["lr"]  # the schedule goes on
        assert not torch.equal(after["alpha"], later["alpha"])
        close(without_statistics(rank["skipped"]["ddp"][2]), later)


@needs_deepspeed
@pytest.mark.dist
@pytest.mark.parametrize("name", ["ddp", *ZERO])
def test_states_go_from_ddp_to_deepspeed_and_back(runs, name):
    for rank in runs[2]:
        seen = rank["exchanged"]
        assert seen["fresh"]["momentum"] == seen[name, "fresh"]["momentum"] == {}
        assert len(seen["state"]["momentum"]) == 6
        assert all(value.abs().max() > 0 for value in seen["state"]["momentum"].values())
        close(seen["state"], seen[name, "loaded"], 0)
        close(seen["ddp", "gone on"], seen[name, "gone on"])
        close(seen[name, "gone on"], seen[name, "back"], 0)
        assert seen[name, "reset"]["momentum"] == {}
        close({"model": seen["fresh"]["model"]}, {"model": seen[name, "reset"]["model"]}, 0)
        assert not torch.equal(seen["state"]["alpha"], seen["ddp", "gone on"]["alpha"])
    assert all(
        torch.equal(*(rank["exchanged"][name, "gone on"]["model"][key] for rank in runs[2]))
        for key in runs[2][0]["exchanged"]["state"]["model"]
    )


def dense_loop(seen):
    """own_loop with one process, one dense α and torch's SGD, at the learning rates seen, without the steps skipped."""
    import engine_runs

    torch.manual_seed(0)
    net = nn.Linear(6, 5)
    alpha = nn.Parameter(torch.zeros(20, 5))
    free = torch.ones(5).index_fill(0, torch.tensor([0]), 0.0)  # AC1's first column does not move
    groups = [{"params": list(net.parameters())}, {"params": [alpha], "weight_decay": 1e-2}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    skipped = 0
    for number, (counts, lr, found, _) in enumerate(seen):
        for rank in (0, 1):
            inputs, target, index = engine_runs.own_batch(number, rank)
            logits = net(inputs) + (alpha * free)[index]
            (torch.nn.functional.cross_entropy(logits, target) / 4).backward()
        if number % 2:
            if counts[1] == skipped:
                for group in sgd.param_groups:
                    group["lr"] = lr
                sgd.step()
            skipped = counts[1]
            sgd.zero_grad()
        yield found, alpha.detach() * free


@needs_deepspeed
@pytest.mark.dist
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("fp16", [False, True])
def test_follow_in_a_loop_with_a_deepspeed_of_its_own(runs, stage, fp16):
    """With DeepSpeed's accumulation, schedule, and dynamic loss scale, whose first steps overflow."""
    for rank in runs[2]:
        seen = rank["own_loops"][stage, fp16]
        steps, skipped, clock = seen[-1][0]
        assert steps == 8
        assert clock == steps - skipped
        assert (skipped > 0) == fp16
        assert len({lr for _, lr, _, _ in seen}) > 2
        for found, truth in dense_loop(seen):
            torch.testing.assert_close(found, truth, rtol=2e-2 if fp16 else 1e-5, atol=2e-3 if fp16 else 1e-6)
        assert seen[-1][2].abs().max() > 0.05


@needs_deepspeed
@pytest.mark.dist
def test_one_process_without_torchrun(tmp_path):
    script = """
import sys, training_runs, fastac.run, fastac.train
for name in ("contact_sheet", "plot_alpha", "plot_curves"):
    setattr(fastac.run, name, lambda *args, **kwargs: None)
for name, more in (("ddp", {}), ("zero", {"engine": "deepspeed", "zero_stage": 3})):
    config = training_runs.config(sys.argv[1], name=name, max_steps=4, **more)
    print(fastac.train.train(config, create=training_runs.with_dropout)["parameters"])
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "DS_ACCELERATOR")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ddp, zero = (final_state(tmp_path / name) for name in ("ddp", "zero"))
    torch.testing.assert_close(ddp["network"], zero["network"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ddp["table"]["alpha"], zero["table"]["alpha"], rtol=1e-4, atol=1e-7)


def test_our_keys_come_into_deepspeeds_config(tmp_path):
    one = settings(config(tmp_path, engine="deepspeed", zero_stage=1, clip_grad=2.0, amp_dtype="bf16"))
    assert one["zero_optimization"]["stage"] == 1
    assert one["gradient_clipping"] == 2.0
    assert (one["gradient_accumulation_steps"], one["train_micro_batch_size_per_gpu"]) == (1, 32)
    assert one["torch_autocast"]["enabled"]
    assert settings(config(tmp_path, engine="deepspeed"))["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "should hold a JSON object"),
        ("{}", "zero_optimization.stage was None; it should be 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 4}}', "stage was 4; it should be 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 1}, "optimizer": {"type": "Adam"}}', "has 'optimizer'.*--opt says"),
        (
            '{"zero_optimization": {"stage": 1}, "train_batch_size": 8}',
            "'train_batch_size'.*--batch-size says",
        ),
        ('{"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}', "--clip-grad says that"),
        ('{"zero_optimization": {"stage": 1}, "fp16": {"enabled": true}}', "'fp16'.*--amp-dtype says that"),
        ('{"zero_optimization": {"stage": 1}, "gradient_allreduce_op": "sum"}', "α can't follow that"),
    ],
)
def test_a_wrong_config_file(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"deepspeed_config was .*{message}"):
        settings(config(tmp_path, engine="deepspeed", deepspeed_config=str(path)))


def test_a_config_file_may_leave_our_keys_to_us(tmp_path):
    path = tmp_path / "mine.json"
    given = {
        "zero_optimization": {"stage": 3},
        "train_batch_size": "auto",
        "bf16": {"enabled": False},
        "dump_state": True,
    }
    path.write_text(json.dumps(given))
    found = settings(config(tmp_path, engine="deepspeed", deepspeed_config=str(path)))
    assert found["dump_state"]
    assert "train_batch_size" not in found
    assert "bf16" not in found
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        settings(config(tmp_path, engine="deepspeed", deepspeed_config="nowhere.json"))


def test_without_deepspeed_the_command_that_installs_it(tmp_path, monkeypatch):
    from fastac.engine import create_engine

    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ImportError, match=r"deepspeed"):
        create_engine(config(tmp_path, engine="deepspeed"))
