"""The ImageNet recipes in miniature, as docs/imagenet.md gives them, on invented images."""

import json

import pytest
import torch

from fastac import job
from fastac.config import load_config, read_config
from fastac.data.synthetic import Settings, write_tree
from fastac.train import main

SMALL = (
    "--device cpu --loader torch --aa none --model resnet20-imagenet --image-size 64 --batch-size 8 --max-steps 2 "
    "--threads 1 --no-tensorboard"
)


WITH_DALI = SMALL.replace("--loader torch --aa none ", "")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_tree(folder, Settings(classes=4, images=24, val_images=4, size="72x64"))
    return folder


@pytest.mark.parametrize(
    ("recipe", "form", "dtype", "history"),
    [
        ("imagenet-resnet50", "ac2", torch.float32, "exact"),
        ("imagenet-resnet50-fast+ac1-bf16", "ac1", torch.bfloat16, "exact"),
        ("imagenet-resnet50+ac1-folded+ac1-host", "ac1", torch.float32, "folded"),
    ],
)
def test_a_recipe_trains(images, tmp_path, monkeypatch, recipe, form, dtype, history):
    tables = []
    create = job.create_table
    monkeypatch.setattr(job, "create_table", lambda *args: tables.append(create(*args)) or tables[0])
    words = f"--recipe {recipe} --data-dir {images} --output {tmp_path} --name run {SMALL}"
    assert main(words.split()) == 0
    (table,) = tables
    assert (table.form, table.dtype, table.history) == (form, dtype, history)
    assert (table.num_samples, table.num_classes) == (24, 4)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert [result[key] for key in ("steps", "loss", "classes", "test_images")] == [2, form, 4, 4]
    # Two steps of the warm-up, in bf16 and channels_last, as the recipe has them.
    stored, planned = read_config(tmp_path / "run"), load_config(recipe)
    assert stored.optimizer == planned.optimizer
    assert stored.model.channels_last
    assert table.clock.steps == 2
    seen = (table.dense() != 0).reshape(24, -1).any(dim=1)
    assert int(seen.sum()) == 16


def test_the_recipe_as_it_stands_reads_with_dali_and_its_policy(images, tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali")
    loaders = []
    create = job.create_loader

    def create_loader(kind, *arguments, **options):
        loaders.append((kind, options["augment"], options["aa"]))
        return create(kind, *arguments, **options)

    monkeypatch.setattr(job, "create_loader", create_loader)
    words = f"--recipe imagenet-resnet50 --data-dir {images} --output {tmp_path} --name run {WITH_DALI}"
    assert main(words.split()) == 0
    plain = ("dali", "none", "none")
    assert loaders == [("dali", "imagenet", "autoaugment-imagenet"), plain, plain]  # training, ranking, test
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["steps"] == 2
