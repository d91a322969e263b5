"""Training on batches from DALI: to the same bits after a resume, on several ranks, on real JPEGs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from shard_files import jpegs, write_tar
from test_data_real import real
from test_distributed import finish, torchrun
from training_runs import assert_same_run, config, final_state, metrics, without_pictures

from fastac.data.synthetic import Settings, write_tree
from fastac.train import train

pytest.importorskip("nvidia.dali")
pytest.importorskip("PIL.Image")

FOLDER = {
    "dataset": "folder",
    "train_limit": None,
    "image_size": 24,
    "on_bad_image": "skip",
    "batch_size": 8,
    "noise": "none",
    "noise_rate": 0.0,
    "workers": 1,
    "loader": "dali",
    "augment": "imagenet",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """48 training images, four of them unreadable, in four classes."""
    root = tmp_path_factory.mktemp("tree") / "images"
    write_tree(root, Settings(classes=4, images=40, val_images=8, size="40x32", bad=1), workers=0)
    return root


def folder_config(output, tree, **changes):
    return config(output, **{**FOLDER, "data_dir": str(tree), "epochs": 2, "model": "cnn", **changes})


def test_a_run_cut_off_in_mid_epoch_goes_on_to_the_same_bits(tmp_path, tree):
    policy = {"aa": "randaugment-n2-m9", "cutout": 6, "reprob": 0.3}
    train(folder_config(tmp_path, tree, name="whole", **policy))
    train(folder_config(tmp_path, tree, name="cut", max_steps=8, **policy))
    assert final_state(tmp_path / "cut")["position"]["batch"] == 2
    train(folder_config(tmp_path, tree, name="cut", **policy), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_unreadable_images_are_listed_and_their_rows_never_updated(tmp_path, tree):
    result = train(folder_config(tmp_path, tree, name="run"))
    names = sorted(Path(path).name for path in result["unreadable_images"])
    assert names == ["bad_huge_0.png", "bad_text_0.jpg", "bad_truncated_0.JPEG", "bad_zero-byte_0.JPEG"]
    state = final_state(tmp_path / "run")
    issues = pd.read_csv(tmp_path / "run" / "issues.csv")
    bad = issues["index"][issues["path"].isin(result["unreadable_images"])].tolist()
    assert len(bad) == 4
    good = [i for i in range(48) if i not in bad]
    count = state["dynamics"]["count"]
    assert count[bad].tolist() == [0] * 4
    assert count[good].tolist() == [2] * 44
    alpha = state["table"]["alpha"]
    assert torch.count_nonzero(alpha[bad]) == 0
    assert (alpha[good].abs().amax(dim=1) > 0).all()


def test_the_run_is_nearly_the_torch_loaders(tmp_path, tree):
    runs = {}
    for loader in ("dali", "torch"):
        train(folder_config(tmp_path, tree, name=loader, loader=loader, max_steps=2))
        runs[loader] = metrics(tmp_path / loader)
    for ours, theirs in zip(runs["dali"], runs["torch"], strict=True):
        assert (ours["epoch"], ours["step"], ours["lr"]) == (theirs["epoch"], theirs["step"], theirs["lr"])
        assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=0.005)


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_shards(tmp_path, loader):
    """A run on tar files, with its unreadable image and its issues by shard and key."""
    images = [b"no image" if i == 5 else image for i, image in enumerate(jpegs(24))]
    rows = [{"jpg": image, "cls": b"%d" % (i % 3)} for i, image in enumerate(images)]
    write_tar(tmp_path / "data/train/a.tar", rows[:10])
    write_tar(tmp_path / "data/train/b.tar", rows[10:], 10)
    write_tar(tmp_path / "data/val/v.tar", rows[:4])
    options = {"dataset": "webdataset", "loader": loader, "epochs": 1}
    result = train(folder_config(tmp_path, tmp_path / "data", name="run", **options))
    assert result["unreadable_images"] == ["a.tar#part/000005"]
    assert (result["train_images"], result["test_images"], result["classes"]) == (24, 4, 3)
    issues = pd.read_csv(tmp_path / "run" / "issues.csv").sort_values("index")
    expected = [f"{'a' if i < 10 else 'b'}.tar#part/{i:06d}" for i in range(24)]
    assert issues["path"].tolist() == expected
    assert final_state(tmp_path / "run")["dynamics"]["count"].tolist() == [int(i != 5) for i in range(24)]


def test_noise_in_the_images_place(tmp_path, tree):
    options = {"loader": "synthetic", "on_bad_image": "stop"}
    train(folder_config(tmp_path, tree, name="run", **options))
    assert final_state(tmp_path / "run")["dynamics"]["count"].tolist() == [2] * 48
    assert json.loads((tmp_path / "run/result.json").read_text())["unreadable_images"] == []


@pytest.mark.dist
def test_two_ranks_train_on_every_readable_image_once_an_epoch(tmp_path, tree):
    options = {"batch_size": 4, "alpha_placement": "aligned", "aa": "trivialaugment", "image_size": 8}
    finish(torchrun(tmp_path, 2, folder_config(tmp_path, tree, name="run", **options)))
    state = final_state(tmp_path / "run")
    assert state["dynamics"]["count"].sum() == 2 * 44
    assert state["dynamics"]["count"].max() == 2
    assert len(state["unreadable"]) == 4
    assert state["dynamics"]["count"][state["unreadable"]].tolist() == [0] * 4
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["ranks"], len(result["unreadable_images"])) == (2, 4)


def test_tiny_imagenet(tmp_path):
    """Real JPEGs of 40 classes, a ResNet with ImageNet's stem, AutoAugment: six training images a class."""
    whole = real("tiny-imagenet-40")
    for split, count in (("train", 6), ("val", 1)):
        for folder in sorted((whole / split).iterdir()):
            (tmp_path / "data" / split / folder.name).mkdir(parents=True)
            images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:count]
            for path in images:
                os.symlink(path, tmp_path / "data" / split / folder.name / path.name)
    options = {"image_size": 64, "batch_size": 40, "model": "resnet20-imagenet", "aa": "autoaugment"}
    options |= {"drop_last": True, "on_bad_image": "stop", "epochs": 1}
    result = train(folder_config(tmp_path, tmp_path / "data", name="run", **options))
    assert (result["train_images"], result["test_images"], result["classes"]) == (240, 40, 40)
    assert result["unreadable_images"] == []
    assert final_state(tmp_path / "run")["dynamics"]["count"].tolist() == [1] * 240
    row = metrics(tmp_path / "run")[-1]
    assert 3.0 < float(row["train_loss"]) < 5.0  # log 40 is 3.7
