"""A run that was killed, stopped or cut off goes on to the same bits."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_runs import fork
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from training_runs import (
    assert_same_run,
    config,
    differences,
    final_state,
    metrics,
    newest,
    with_dropout,
    without_pictures,
)

import fastac.evaluation
import fastac.train
from fastac import checkpoint_writer
from fastac.checkpoint import CheckpointError, Checkpoints, list_checkpoints
from fastac.train import StoppedError, main, train

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_pictures(monkeypatch)


def run(configuration, **options):
    return train(configuration, create=with_dropout, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never disturbed: 3 epochs of 6 steps."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        run(config(output, name="run", checkpoint_every=2))
    return output / "run"


def killed(action) -> int:
    """Run `action` in a forked process; returns what ended it."""
    pid = fork(action)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def kill_at(step):
    """A train_step that kills its process, as nobody can prevent, in place of the given step of the run."""
    real = fastac.train.train_step

    def train_step(job, group):
        if job.position.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(job, group)

    return train_step


STEPS = random.Random(2).sample(range(1, 18), 4)


@pytest.mark.parametrize("step", [0, *STEPS])
@pytest.mark.parametrize("every", [0, 2])
def test_a_run_killed_at_a_random_step_goes_on_to_the_same_bits(tmp_path, monkeypatch, whole, step, every):
    started = config(tmp_path, name="run", checkpoint_every=every)
    with monkeypatch.context() as patch:
        patch.setattr(fastac.train, "train_step", kill_at(step))
        assert killed(lambda: run(started)) == -signal.SIGKILL
    run(started.with_values(checkpoint_every=2), resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_killed_again_and_again(tmp_path, monkeypatch, whole):
    started = config(tmp_path, name="run", checkpoint_every=2)
    for step in (3, 4, 8, 17):
        with monkeypatch.context() as patch:
            patch.setattr(fastac.train, "train_step", kill_at(step))
            assert killed(lambda: run(started, resume=True)) == -signal.SIGKILL
    run(started, resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_killed_while_it_writes_a_checkpoint(tmp_path, monkeypatch, whole):
    started = config(tmp_path, name="run", checkpoint_every=2)
    real = checkpoint_writer.publish

    def publish(temporary, path):
        if path.name == "step-00000008":
            os.truncate(temporary / "__0_0.distcp", 5000)
            os.kill(os.getpid(), signal.SIGKILL)
        real(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "publish", publish)
        assert killed(lambda: run(started)) == -signal.SIGKILL
    assert newest(tmp_path / "run").shared["position"]["step"] == 6
    run(started, resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_torn_checkpoint_is_passed_over_aloud(tmp_path, capsys, whole):
    started = config(tmp_path, name="run", checkpoint_every=2)
    run(started.with_values(max_steps=9))
    torn = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    os.truncate(torn / "__0_0.distcp", 5000)
    run(started, resume=True)
    text = capsys.readouterr().err
    assert f"passed over: {torn} " in text
    assert "step-00000008, step 8 of 18" in text
    assert_same_run(tmp_path / "run", whole)


def stop_at(step, signum):
    """A train_step in which a signal comes."""
    real = fastac.train.train_step

    def train_step(job, group):
        if job.position.step == step:
            os.kill(os.getpid(), signum)
        return real(job, group)

    return train_step


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 7), (signal.SIGINT, 11), (signal.SIGTERM, 17)])
def test_a_signal_saves_first(tmp_path, monkeypatch, whole, signum, step):
    started = config(tmp_path, name="run", checkpoint_every=4)
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(fastac.train, "train_step", stop_at(step, signum))
        with pytest.raises(StoppedError) as stop:
            run(started)
    assert stop.value.signum == signum
    assert f"{signum.name} at step {step + 1} of 18, saved" in str(stop.value)
    assert f"python -m fastac.train --resume {tmp_path / 'run'}" in str(stop.value)
    assert signal.getsignal(signum) is before
    assert newest(tmp_path / "run").shared["position"]["step"] == step + 1
    run(started.with_values(checkpoint_every=2), resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("loader", "times", "step"),
    [("test_loader", 2, 12), ("test_loader", 3, 18), ("given_loader", 1, 18)],
)
def test_a_signal_during_a_test_saves_first_and_the_test_is_made_again(
    tmp_path, monkeypatch, whole, loader, times, step
):
    seen = []

    def noticed(batches, total, what, *, shown):
        seen.append(what)
        name = {"test_loader": "test", "given_loader": "training images"}[loader]
        if what == name and seen.count(name) == times:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches

    started = config(tmp_path, name="run", checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(fastac.evaluation, "with_bar", noticed)
        with pytest.raises(StoppedError, match=f"SIGTERM at step {step} of 18, saved"):
            run(started)
    assert newest(tmp_path / "run").shared["position"]["step"] == step
    assert not (tmp_path / "run" / "result.json").exists()
    run(started, resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def twice(job, group):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal came late")

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(fastac.train, "train_step", twice)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path))


def test_torchruns_echo_of_a_ctrl_c_is_no_second_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    real = fastac.train.train_step

    def twice(job, group):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return real(job, group)

    monkeypatch.setattr(fastac.train, "train_step", twice)
    with pytest.raises(StoppedError, match="SIGINT at step 1 of 18"):
        run(config(tmp_path))


def test_the_real_command_stopped_by_sigterm(tmp_path):
    """In a process of its own, with a signal from outside, at whatever step that is."""
    words = [
        sys.executable,
        "-m",
        "fastac.train",
        "--recipe",
        "digits",
        "--train-limit",
        "300",
        "--epochs",
        "40",
    ]
    words += ["--output", str(tmp_path), "--threads", "1", "--device", "cpu", "--log-interval", "5"]
    words += ["--checkpoint-every", "2", "--no-tensorboard"]
    with subprocess.Popen(
        [*words, "--name", "stopped"], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 100
        while not list_checkpoints(tmp_path / "stopped" / "checkpoints"):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, text = process.communicate(timeout=100)
    assert process.returncode == 143, text
    assert out == ""
    assert "stopped: SIGTERM at step" in text
    assert "Traceback" not in text
    assert 2 <= newest(tmp_path / "stopped").shared["position"]["step"] < 5 * 2

    torch_threads = torch.get_num_threads()
    assert main(["--resume", str(tmp_path / "stopped")]) == 0
    assert main([*words[3:], "--name", "whole"]) == 0
    torch.set_num_threads(torch_threads)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"amp_dtype": "fp16", "clip_grad": 1.0, "grad_accum_steps": 2},
        {"loss": "ac2", "alpha_dtype": "bf16", "drop_last": True, "schedule": "constant"},
        {"loss": "ce", "amp_dtype": "bf16"},
        {"update": "forward", "dynamics": False},
        {"alpha_history": "folded", "momentum": 0.0, "nesterov": False},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_kind_of_state_goes_on_to_the_same_bits(tmp_path, changes):
    run(config(tmp_path, name="whole", **changes))
    run(config(tmp_path, name="cut", max_steps=5, **changes))
    assert final_state(tmp_path / "cut")["position"]["step"] == 5
    run(config(tmp_path, name="cut", **changes), resume=True)
    one, other = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert differences(one, other) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_max_steps_in_mid_epoch_writes_its_row_and_resume_replaces_it(tmp_path):
    run(config(tmp_path, name="run", max_steps=8))
    assert [(row["epoch"], row["step"]) for row in metrics(tmp_path / "run")] == [("1", "6"), ("2", "8")]
    run(config(tmp_path, name="run", max_steps=0), resume=True)
    assert [row["step"] for row in metrics(tmp_path / "run")] == ["6", "12", "18"]


def test_resume_auto_starts_what_is_not_there_and_goes_on_with_what_is(tmp_path, capsys, whole):
    started = config(tmp_path, name="run", checkpoint_every=2)
    run(started.with_values(max_steps=4), resume=True)
    assert "going on" not in capsys.readouterr().err
    run(started, resume=True)
    assert "step 4 of 18" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", whole)
    before = final_state(tmp_path / "run")
    run(started, resume=True)  # a finished run: its results are written again
    assert differences(before, final_state(tmp_path / "run")) == []
    assert_same_run(tmp_path / "run", whole)


def test_a_folder_without_a_checkpoint_starts_over(tmp_path, monkeypatch, capsys, whole):
    started = config(tmp_path, name="run")
    monkeypatch.setattr(fastac.train, "train_step", kill_at(1))
    assert killed(lambda: run(started)) == -signal.SIGKILL
    monkeypatch.undo()
    without_pictures(monkeypatch)
    run(started.with_values(checkpoint_every=2), resume=True)
    assert "there is no checkpoint in" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", whole)


def test_environment_keeps_the_first_stamp_and_lists_the_resumes(tmp_path):
    import json

    started = config(tmp_path, name="run", max_steps=2)
    run(started)
    first = json.loads((tmp_path / "run" / "environment.json").read_text())
    for steps in (3, 4):
        run(started.with_values(max_steps=steps), resume=True)
    stamp = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(stamp.pop("resumed")) == 2
    assert stamp == first


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def begun(tmp_path):
    """A run of 4 steps, to be gone on with."""
    run(config(tmp_path, name="run", max_steps=4))
    return tmp_path / "run"


def refused(folder, message, **changes):
    """Going on with the changes is refused, and nothing in the folder changes."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        run(config(folder.parent, name="run").with_values(**changes), resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_settings_that_change_the_result_are_refused(begun):
    refused(begun, "lr was 0.05 and the run .* was started with 0.1; it should stay the same", lr=0.05)
    refused(begun, "seed was 3 and the run", seed=3)


def test_another_global_batch_is_refused(begun):
    refused(begun, r"batch_size was 16 on 1 rank\(s\), 16 together; it should be 32 together", batch_size=16)


def edit_config(folder, old, new):
    path = folder / "config.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_other_labels_are_refused(begun):
    edit_config(begun, "noise_seed = 0", "noise_seed = 1")
    refused(begun, "the training labels are not the checkpoint's", noise_seed=1)


@pytest.mark.parametrize(
    ("old", "new", "changes", "message"),
    [
        ('loss = "ac1"', 'loss = "ac2"', {"loss": "ac2"}, "form is 'ac1', not 'ac2'"),
        (
            'alpha_history = "exact"',
            'alpha_history = "folded"',
            {"alpha_history": "folded"},
            "history is 'exact'",
        ),
        ('loss = "ac1"', 'loss = "ce"', {"loss": "ce"}, "table"),
    ],
)
def test_a_checkpoint_of_another_table_is_refused(begun, old, new, changes, message):
    edit_config(begun, old, new)
    refused(begun, message, **changes)


def test_a_refused_checkpoint_changes_nothing_in_the_job(tmp_path):
    from fastac.engine import create_engine
    from fastac.job import Job
    from fastac.training_data import load_data

    first = config(tmp_path)
    job = Job(first, create_engine(first), load_data(first), with_dropout)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(1, job.shared_state(), job.own_states())
        saved = checkpoints.load_newest()
    other_config = config(tmp_path, loss="ac2", seed=1)
    other = Job(other_config, create_engine(other_config), load_data(other_config), with_dropout)
    before = {name: value.clone() for name, value in other.network.state_dict().items()}
    with pytest.raises(ValueError, match="form"):
        other.load(saved)
    assert differences(before, dict(other.network.state_dict())) == []
    assert other.position.step == 0
    assert other.table.clock.steps == 0


def test_a_full_disk_ends_the_run_and_the_older_checkpoint_goes_on(tmp_path, monkeypatch, capsys, whole):
    started = config(tmp_path, name="run", checkpoint_every=2)
    real = FileSystemWriter.write_data

    def write_data(self, plan, planner):
        if self.step == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, plan, planner)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", write_data)
        with pytest.raises(CheckpointError, match=r"step-00000008: No space left .*step-00000006 is left"):
            run(started)
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-00000004", "step-00000006"]
    run(started, resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resume {folder} --lr 0.5", "lr was 0.5 and the run"),
        ("--resume {folder} --name other", "--name can't be given with --resume"),
        ("--resume {folder} --recipe digits", "--recipe can't be given with --resume"),
        ("--resume {folder}/nowhere", "is not a run folder"),
        ("--resume auto", "--resume auto needs --name"),
    ],
)
def test_the_commands_errors_are_one_line(begun, capsys, words, message):
    capsys.readouterr()
    assert main(words.format(folder=begun).split()) == 2
    text = capsys.readouterr().err
    assert text.startswith("fastac.train: error: ")
    assert message in text
    assert text.count("\n") == 1
