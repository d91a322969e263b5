"""Which runs an experiment needs, and how they are trained: what is missing, several side by side, and what fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from paper_data import write_cifar10
from paper_process import InProcess
from training_runs import without_pictures

from fastac.config import Config, load_config, parse_command_line, write_config
from fastac.paper import runner
from fastac.paper.__main__ import main
from fastac.paper.runner import InterruptedRunsError, log_tail, run_all, slot_environment, take_lock
from fastac.paper.runs import Run, Settings, parse_setting, plain_runs, steps_of
from fastac.train import train

ROOT = Path(__file__).parent.parent
DIGITS = {
    "train_limit": 100,
    "batch_size": 50,
    "epochs": 2,
    "warmup_epochs": 0.0,
    "device": "cpu",
    "tensorboard": False,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_pictures(monkeypatch)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.01)


def digits(output, name, seed=0, **more) -> Run:
    return Run(name, "digits", Settings(output, None, DIGITS), {"seed": seed}, **more)


# ---------------------------------------------------------------- a run


def test_a_runs_config_and_command(tmp_path):
    settings = Settings(
        tmp_path, None, {"short": 0.5, "nesterov": False, "milestones": (3, 9), "clip_grad": None}
    )
    (run,) = plain_runs("cifar10-resnet32+noise-uniform-40+ac2", 3, settings)
    config = run.config()
    assert run.name == "cifar10-resnet32+noise-uniform-40+ac2-seed3-short0.5"
    assert (config.run.seed, config.data.noise_seed, config.loss.loss) == (3, 3, "ac2")
    assert (config.optimizer.short, config.optimizer.trained_epochs) == (0.5, 150)
    command = run.command()
    assert command[:7] == [
        sys.executable,
        "-m",
        "fastac.train",
        "--recipe",
        "cifar10-resnet32+noise-uniform-40+ac2",
        "--resume",
        "auto",
    ]
    for word in (
        "--short=0.5",
        "--no-nesterov",
        "--milestones=3,9",
        "--clip-grad=none",
        "--seed=3",
        f"--output={tmp_path}",
    ):
        assert word in command
    parsed = parse_command_line(command[3:])
    assert load_config(parsed.recipe, parsed.values) == config  # the command trains what was checked
    assert settings.changes() == {"nesterov": False, "milestones": (3, 9), "clip_grad": None}


def test_data_folders(tmp_path):
    (tmp_path / "svhn").mkdir()
    for recipe, folder in (("svhn-wrn28-10", tmp_path / "svhn"), ("cifar10-wrn40-2", tmp_path)):
        (run,) = plain_runs(recipe, 0, Settings(tmp_path / "out", tmp_path))
        assert run.config().data.data_dir == str(folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train_limit=2000", ("train_limit", 2000)),
        ("train-limit=2000", ("train_limit", 2000)),
        ("tensorboard=false", ("tensorboard", False)),
        ("nesterov=Yes", ("nesterov", True)),
        ("score_history=true", ("score_history", True)),
        ("milestones=1,2", ("milestones", (1, 2))),
        ("labels=a=b.npy", ("labels", "a=b.npy")),
        ("clip_grad=none", ("clip_grad", None)),
    ],
)
def test_settings(text, value):
    assert parse_setting(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_limit", "set was 'train_limit'; it should be KEY=VALUE"),
        ("train_limt=3", "there is no option --train-limt; did you mean --train-limit?"),
        ("batch_size=x", "batch_size was 'x'; it should be a whole number"),
        ("tensorboard=perhaps", "tensorboard should be true or false"),
        ("seed=3", "it should be given as --seeds"),
        ("short=0.5", "it should be given as --short"),
        ("loss=ce", "loss is what the experiment's runs differ in"),
        ("recipe=demo", "set was 'recipe=demo'; recipe is what the experiment's runs differ in"),
        ("resume=auto", "set was 'resume=auto'; interrupted runs go on when the same command is given again"),
        ("score_history=false", "set was 'score_history=false'; it should be true: the column AUM needs"),
    ],
)
def test_wrong_settings(text, message):
    with pytest.raises(ValueError, match=message):
        parse_setting(text)


def test_estimated_steps():
    def steps(**values):
        return steps_of(Config().with_values(**values))

    assert steps(dataset="cifar10", batch_size=128, epochs=200) == 390 * 200
    assert steps(dataset="cifar10", batch_size=128, epochs=200, short=0.1, drop_last=False) == 391 * 20
    assert steps(dataset="svhn-extra", batch_size=128, epochs=1, grad_accum_steps=2) == 2361
    assert steps(dataset="cifar10", batch_size=50, epochs=10, train_limit=500, max_steps=70) == 70
    assert steps(dataset="npz") is None


# ---------------------------------------------------------------- training what is missing


def test_finished_runs_are_left_alone_and_others_go_on(tmp_path):
    told, start = [], InProcess()
    runs = [digits(tmp_path, f"run{seed}", seed) for seed in range(3)]
    outcome = run_all(runs[:1], start=start, say=told.append)
    assert list(outcome.results) == ["run0"]
    assert outcome.results["run0"]["short"] == 1.0
    assert outcome.results["run0"]["git"] is None or "revision" in outcome.results["run0"]["git"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run0").rglob("*")}
    # A run that was cut off after its first epoch, without a result.
    train(runs[1].config().with_values(max_steps=2), create=start.create)
    (tmp_path / "run1" / "result.json").unlink()
    write_config(runs[1].config(), tmp_path / "run1" / "config.toml")
    outcome = run_all(runs, start=start, say=told.append)
    assert start.started == ["run0", "run1", "run2"]
    assert outcome.failed == {}
    assert [outcome.results[run.name]["epochs"] for run in runs] == [2, 2, 2]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run0").rglob("*")} == before
    assert "going on from" in runs[1].log.read_text()
    assert "going on from" not in runs[2].log.read_text()
    assert told[0] == "[0/1] run0: started"
    assert "1 of 3 runs have come to their end before" in told
    assert told[-1].startswith("[3/3] run2: ")


def test_a_failing_run_does_not_stop_the_others(tmp_path):
    told = []
    bad = Run("bad", "digits", Settings(tmp_path, None, {**DIGITS, "batch_size": 200}), {"seed": 0})
    runs = [
        bad,
        digits(tmp_path, "after", needs=("bad",)),
        digits(tmp_path, "last", needs=("after",)),
        digits(tmp_path, "good"),
    ]
    outcome = run_all(runs, start=InProcess(), say=told.append)
    assert list(outcome.results) == ["good"]
    assert "exit status 2" in outcome.failed["bad"]
    assert "batch_size was 200 on 1 rank(s)" in outcome.failed["bad"]
    assert outcome.failed["after"] == "it needs bad, which failed"
    assert outcome.failed["last"] == "it needs after, which failed"
    assert not (tmp_path / "after").exists()


def test_what_a_run_needs_comes_first_and_prepares_it(tmp_path):
    seen = []

    def prepare(folders):
        assert (folders["first"] / "result.json").is_file()
        seen.append(dict(folders))

    def broken(folders):
        raise ValueError("the two runs don't belong together")

    runs = [
        digits(tmp_path, "second", needs=("first",), prepare=prepare),
        digits(tmp_path, "third", needs=("first",), prepare=broken),
        digits(tmp_path, "first"),
    ]
    start = InProcess()
    outcome = run_all(runs, start=start, say=lambda text: None)
    assert start.started == ["first", "second"]
    assert seen == [{"first": tmp_path / "first"}]
    assert outcome.failed == {"third": "the two runs don't belong together"}


def test_runs_side_by_side(tmp_path):
    """Never more than `jobs`; each has a slot of its own."""
    active, most, slots = set(), [], []

    class Slow:
        def __init__(self, run, slot):
            self.run, self.slot, self.polls = run, slot, 0
            active.add(slot)

        def poll(self):
            self.polls += 1
            if self.polls < 3:
                return None
            active.discard(self.slot)
            return 0

    def start(run, slot, lock):
        assert slot not in active
        process = Slow(run, slot)
        slots.append(slot)
        most.append(len(active))
        return process

    runs = [digits(tmp_path, f"run{i}", i) for i in range(5)]
    outcome = run_all(runs, jobs=2, start=start, say=lambda text: None)
    assert max(most) == 2
    assert set(slots) == {0, 1}
    assert len(outcome.failed) == 5  # they left no result


def test_gpus_are_shared_out():
    assert slot_environment({"A": "1"}, 3, 0) == {"A": "1"}
    assert slot_environment({}, 3, 1) == {}
    assert [slot_environment({}, slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    named = {"CUDA_VISIBLE_DEVICES": "4,6"}
    assert [slot_environment(named, slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "6", "4"]
    assert slot_environment({"CUDA_VISIBLE_DEVICES": ""}, 1, 0) == {"CUDA_VISIBLE_DEVICES": ""}


def test_another_commands_run_is_waited_for(tmp_path):
    told = []
    run = digits(tmp_path, "run")
    lock = take_lock(run.log.with_suffix(".lock"))
    assert take_lock(run.log.with_suffix(".lock")) is None

    def other_command():
        while not told:
            time.sleep(0.01)
        train(run.config(), create=InProcess.create)
        lock.close()

    thread = threading.Thread(target=other_command)
    thread.start()
    start = InProcess()
    outcome = run_all([run], start=start, say=told.append)
    thread.join()
    assert told == ["[0/1] run: another command trains it, waiting"]
    assert start.started == []
    assert outcome.results["run"]["epochs"] == 2


@pytest.mark.parametrize(
    "changes",
    [{"train_limit": 90}, {"batch_size": 25}, {"lr": 0.2}, {"short": 0.5}, {"exclude": "x/ids.csv"}],
)
def test_a_folder_with_another_run_is_an_error(tmp_path, changes):
    start = InProcess()
    run_all([digits(tmp_path, "run")], start=start, say=lambda text: None)
    fresh = digits(tmp_path, "fresh")
    other = Run("run", "digits", Settings(tmp_path, None, {**DIGITS, **changes}), {"seed": 0})
    (name,) = changes
    with pytest.raises(ValueError, match=f"run is a run with other settings: {name} was .* another --output"):
        run_all([fresh, other], start=start, say=lambda text: None)
    assert start.started == ["run"]


@pytest.mark.parametrize(("changed", "was"), [({"max_steps": 1}, {}), ({}, {"max_steps": 1})])
def test_a_truncated_run_is_another_run(tmp_path, changed, was):
    """The trainer may go on with a run and other max_steps; an experiment's figures may not come of both."""

    def run(values):
        return Run("run", "digits", Settings(tmp_path, None, {**DIGITS, **values}), {"seed": 0})

    start = InProcess()
    outcome = run_all([run(was)], start=start, say=lambda text: None)
    assert outcome.results["run"]["steps"] == was.get("max_steps", 4)
    steps = (changed.get("max_steps", 0), was.get("max_steps", 0))
    with pytest.raises(ValueError, match=f"other settings: max_steps was {steps[0]}, not {steps[1]}. Give"):
        run_all([run(changed)], start=start, say=lambda text: None)
    assert start.started == ["run"]
    assert run({"max_steps": 1}).settings.changes()["max_steps"] == 1


def test_another_start_is_another_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(digits(tmp_path, "run").config(), folder / "config.toml")
    values = {**DIGITS, "initial_checkpoint": "weights.pt"}
    settings = Settings(tmp_path, None, values)
    with pytest.raises(ValueError, match="initial_checkpoint was 'weights.pt', not None"):
        Run("run", "digits", settings, {"seed": 0}).check()
    assert settings.changes()["initial_checkpoint"] == "weights.pt"
    assert not {"threads", "device", "tensorboard"} & settings.changes().keys()


def test_a_moved_list_of_ids_is_the_same_run(tmp_path):
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "ids.csv").write_text("index\n3\n")
    start = InProcess()
    for place in ("old", "new"):
        values = {"seed": 0, "exclude": str(tmp_path / place / "ids.csv")}
        run = Run("run", "digits", Settings(tmp_path, None, DIGITS), values)
        outcome = run_all([run], start=start, say=lambda text: None)
        assert outcome.results["run"]["left_out"] == 1
    assert start.started == ["run"]


def test_wrong_numbers_of_jobs(tmp_path):
    with pytest.raises(ValueError, match="jobs was 0; it should be at least 1"):
        run_all([digits(tmp_path, "run")], jobs=0)


def test_log_tail(tmp_path):
    path = tmp_path / "log"
    assert log_tail(path) == "(no log)"
    path.write_bytes(b"x" * 50_000 + b"\n" + "\n".join(f"line {i}" for i in range(40)).encode() + b"\n\xff")
    assert log_tail(path, 2) == "line 39\n\N{REPLACEMENT CHARACTER}"
    assert len(log_tail(path).splitlines()) == 15


# ---------------------------------------------------------------- true processes


@pytest.mark.dist
def test_a_signal_stops_the_runs_with_a_checkpoint(tmp_path, capsys):
    """The command, its run in a process of its own, SIGTERM in the middle, and the same command again."""
    write_cifar10(tmp_path / "data", 200, 40)
    words = [sys.executable, "-m", "fastac.paper", "table6", "--rows", "cifar10-resnet32", "--columns", "ac1"]
    words += ["--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--seeds", "1"]
    words += [
        "--device",
        "cpu",
        "--short",
        "0.02",
        "--set",
        "model=cnn",
        "batch_size=20",
        "tensorboard=false",
    ]
    words += ["checkpoint_every=5"]
    folder = tmp_path / "out" / "cifar10-resnet32+ac1-seed0-short0.02"
    log = tmp_path / "out" / "logs" / f"{folder.name}.log"
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: log.is_file() and "epoch 1/6" in log.read_text(), process)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM; the same command goes on from here" in errors
    assert "stopped: SIGTERM at step" in log.read_text()
    assert not (folder / "result.json").exists()
    assert main(words[3:]) == 0
    assert "going on from" in log.read_text()
    assert json.loads((folder / "result.json").read_text())["steps"] == 60
    text = capsys.readouterr().out
    assert "here, × 0.02 of the epochs" in text
    assert "92.75 ± 0.06" in text


@pytest.mark.gpu
@pytest.mark.dist
def test_two_seeds_side_by_side_on_a_gpu(tmp_path, capsys):
    write_cifar10(tmp_path / "data", 200, 40)
    words = ["table6", "--rows", "cifar10-resnet32", "--columns", "ac1", "--seeds", "2", "--jobs", "2"]
    words += ["--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--device", "cuda"]
    words += ["--short", "0.01", "--set", "batch_size=20", "tensorboard=false"]
    assert main(words) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "table6-short0.01.json").read_text())
    names = [run["device"] for cell in record["cells"] for run in cell["runs"]]
    assert names == [torch.cuda.get_device_name()] * 2


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopped_in_process(tmp_path):
    """A signal while runs are under way: they are ended, waited for, and none is started after."""
    ended = []

    class Endless:
        def poll(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return None

        def terminate(self):
            ended.append("terminated")

        def wait(self):
            ended.append("waited")
            return 143

    runs = [digits(tmp_path, f"run{i}", i) for i in range(3)]
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunsError, match="stopped by SIGTERM") as error:
        run_all(runs, jobs=2, start=lambda run, slot, lock: Endless(), say=lambda text: None)
    assert error.value.signum == signal.SIGTERM
    assert ended == ["terminated", "terminated", "waited", "waited"]
    assert signal.getsignal(signal.SIGTERM) == handler
    assert all(take_lock(run.log.with_suffix(".lock")) is not None for run in runs)
