"""bench/epoch.py: what a run's epoch took, several runs side by side, and what is judged."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return importlib.import_module("epoch")


def test_runs_side_by_side(bench, tmp_path, capsys):
    words = "--device cpu --recipes cifar10-wrn40-2+ac1-aa --samples 60 --epochs 3 --jobs 2 --check --set model=cnn"
    assert bench.main([*words.split(), "batch_size=20", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "epoch-cpu.json").read_text())
    (row,) = record["rows"]
    assert (row["recipe"], row["jobs"]) == ("cifar10-wrn40-2+ac1-aa", 2)
    assert row["epoch_seconds_a_run"] == row["epoch_seconds"] / 2
    assert row["images_per_second"] == pytest.approx(2 * 60 / row["epoch_seconds"])
    assert record["settings"] == {"samples": 60, "epochs": 3, "set": ["model=cnn", "batch_size=20"]}
    assert "2 side by side" in capsys.readouterr().out


def test_the_first_epoch_is_not_counted(bench, tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,seconds\n1,9.0\n2,10.0\n3,12.0\n4,15.0\n")
    assert bench.epoch_seconds(tmp_path / "metrics.csv") == 2.0


def test_a_run_that_fails_is_told(bench, tmp_path, capsys):
    words = "--device cpu --recipes cifar10-resnet32+ac1 --samples 60 --epochs 2 --set model=nonesuch batch_size=20"
    assert bench.main([*words.split(), "--out", str(tmp_path)]) == 1
    assert re.search(r"FAILED: .* ended with 2:[\s\S]*unknown model 'nonesuch'", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_does_not_lose_the_others(bench, tmp_path, monkeypatch, capsys):
    def measure(recipe, jobs, folder, options):
        if jobs == 2:
            raise RuntimeError("out of memory")
        return {
            "recipe": recipe,
            "jobs": jobs,
            "epoch_seconds": 1.0,
            "epoch_seconds_a_run": 1.0,
            "images_per_second": 9,
        }

    monkeypatch.setattr(bench, "measure", measure)
    words = [
        "--device",
        "cpu",
        "--recipes",
        "cifar10-resnet32+ac1",
        "--samples",
        "60",
        "--jobs",
        "1",
        "2",
        "4",
    ]
    assert bench.main([*words, "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "epoch-cpu.json").read_text())
    assert [row["jobs"] for row in record["rows"]] == [1, 4]
    assert "FAILED: out of memory" in capsys.readouterr().err


def test_targets_are_an_h200s(bench):
    rows = [
        {"recipe": "cifar10-wrn40-2+ac1-aa+fast-step", "jobs": 1, "epoch_seconds": 2.6},
        {"recipe": "cifar10-wrn40-2+ac1-aa+fast-step", "jobs": 2, "epoch_seconds": 5.0},
        {"recipe": "cifar10-resnet32+ac1", "jobs": 1, "epoch_seconds": 1.4},
    ]
    (text,) = bench.misses(rows, "NVIDIA H200")
    assert text == "cifar10-wrn40-2+ac1-aa+fast-step: 2.60 s an epoch; it should be at most 2.5 s"
    assert bench.misses(rows, "NVIDIA A100") == []


@pytest.mark.parametrize("words", ["--epochs 1", "--samples 9", "--jobs 0"])
def test_wrong_arguments(bench, words, capsys):
    with pytest.raises(SystemExit):
        bench.parse(words.split())
    assert "should be at least" in capsys.readouterr().err
