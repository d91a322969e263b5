"""bench/loader.py at sizes that say nothing about speed."""

from __future__ import annotations

import json

import pytest
from test_bench import bench  # noqa: F401 - a fixture

import fastac.data

pytest.importorskip("nvidia.dali")
pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

TINY = ["--images", "24", "--image-size", "16", "--batch", "4", "--batches", "3", "--untimed", "2"]
TINY += ["--rounds", "2", "--threads", "1", "--device", "cpu"]


def test_loaders_as_a_user_runs_it(bench, tmp_path, capsys, monkeypatch):  # noqa: F811
    loader = bench("loader")
    monkeypatch.setattr(loader, "_CLASSES", 2)
    assert loader.main([*TINY, "--workers", "0", "1", "--policies", "none", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "loader-cpu.json").read_text(encoding="utf-8"))
    names = ["synthetic", "torch, 0 workers", "torch, 1 workers", "DALI on the CPU, 1 threads"]
    assert [(row["loader"], row["aa"]) for row in record["results"]] == [(name, "none") for name in names]
    out = capsys.readouterr().out
    for row in record["results"]:
        assert row["skipped"] is None
        seconds, rate = row["seconds"], row["images_per_second"]
        assert seconds["rounds"] == 2
        assert rate["median"] == pytest.approx(12 / seconds["median"])
        assert rate["low"] <= rate["median"] <= rate["high"]
        assert f"{rate['median']:,.0f}" in out
    settings = record["settings"]
    assert (settings["files"], settings["image_size"], settings["batch"]) == (24, 16, 4)
    assert 5_000 < settings["mean_file_bytes"] < 500_000
    assert record["environment"]["dali"] is not None
    assert (tmp_path / "loader-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_loader_that_is_not_installed_is_said(bench, tmp_path, capsys, monkeypatch):  # noqa: F811
    loader = bench("loader")

    def create_loader(kind, *arguments, **options):
        if kind == "dali":
            raise ImportError("fastac needs nvidia for this and it is not installed")
        return fastac.data.create_loader(kind, *arguments, **options)

    monkeypatch.setattr(loader, "_CLASSES", 2)
    monkeypatch.setattr(loader, "time_batches", lambda *args: 1.0)
    monkeypatch.setattr(loader, "create_loader", create_loader)
    assert loader.main([*TINY, "--workers", "--policies", "none", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "loader-cpu.json").read_text(encoding="utf-8"))
    assert [row["skipped"] is None for row in record["results"]] == [True, False]
    assert not (tmp_path / "loader-cpu.png").exists()  # nothing to show
    assert "skipped: fastac needs nvidia" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown aa 'autoaugmint'"):
        loader.main([*TINY, "--workers", "0", "--policies", "autoaugmint", "--out", str(tmp_path)])


def test_wrong_options(bench, tmp_path, capsys):  # noqa: F811
    loader = bench("loader")
    with pytest.raises(SystemExit):
        loader.parse(["--batches", "0"])
    assert "--batches must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has 4 images; there should be at least 20"):
        loader.main([*TINY, "--images", "8", "--data-dir", str(small(tmp_path))])


def small(root):
    from shard_files import jpegs

    for number, content in enumerate(jpegs(4)):
        path = root / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
