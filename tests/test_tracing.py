"""fastac.tracing and --profile-steps: which steps a trace holds."""

import gzip
import json

import torch
import training_runs
from training_runs import config, without_pictures

from fastac.tracing import StepTrace
from fastac.train import train


def test_a_trace_holds_its_steps_after_the_first_ones(tmp_path):
    trace = StepTrace(tmp_path / "profile", 2, torch.device("cpu"))
    for step in range(12):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(3).sum()
        trace.step()
    trace.close()
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {name for name in names if str(name).startswith("step ")} == {"step 5", "step 6"}
    assert "aten::sum" in (tmp_path / "profile" / "operators.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "operators.txt",
        "trace.json.gz",
    ]


def test_a_training_that_is_too_short_leaves_what_there_was(tmp_path):
    trace = StepTrace(tmp_path / "profile", 100, torch.device("cpu"))
    for _ in range(6):
        torch.ones(3).sum()
        trace.step()
    trace.close()
    trace.close()
    assert (tmp_path / "profile" / "trace.json.gz").is_file()


def test_only_the_first_epoch_is_recorded(tmp_path):
    trace = StepTrace(tmp_path / "profile", 2, torch.device("cpu"))
    for _ in range(5):  # the record is started, and no step comes after
        trace.step()
    trace.close()
    for _ in range(8):
        trace.step()
    trace.close()
    assert not (tmp_path / "profile").exists()


def test_no_steps_leave_nothing(tmp_path):
    trace = StepTrace(tmp_path / "profile", 0, torch.device("cpu"))
    for _ in range(8):
        trace.step()
    trace.close()
    assert not (tmp_path / "profile").exists()


def test_a_run_writes_its_trace(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    train(
        config(tmp_path, name="run", profile_steps=2, batch_size=20, max_steps=9), create=training_runs.linear
    )
    assert "aten::" in (tmp_path / "run" / "profile" / "operators.txt").read_text()
