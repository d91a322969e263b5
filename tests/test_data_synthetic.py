"""The generator of image folders: what lies where, that it repeats, goes on, and says what is wrong."""

from __future__ import annotations

import collections
import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastac.data import EpochSampler, Loader, load_dataset, read_label_file
from fastac.data.bad_files import BAD_KINDS
from fastac.data.synthetic import Settings, main, write_tree
from fastac.data.synthetic_images import MAX_CLASSES, class_looks, draw_picture, draw_quality, draw_size

Image = pytest.importorskip("PIL.Image")

SMALL = dict(classes=3, images=20, val_images=5, size="40x32")


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------- the tree


def test_the_tree_is_an_image_folder(tmp_path):
    assert write_tree(tmp_path, Settings(**SMALL)) == 25
    assert sorted(os.listdir(tmp_path)) == ["synthetic.json", "train", "val"]
    data = load_dataset("folder", tmp_path, image_size=16)
    assert np.bincount(data.train.labels).tolist() == [7, 7, 6]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 1]
    looks = class_looks(3, 0)
    assert data.train.class_names == tuple(f"c{k}-{looks[k].name}" for k in range(3))
    for index in range(20):
        assert data.train.image(index).shape == (32, 40, 3)
        with Image.open(data.train.images.path(index)) as image:
            assert image.format == "JPEG"


def test_files_depend_on_the_seed_and_not_on_the_workers(tmp_path):
    settings = Settings(**SMALL, noise_rate=0.3, bad=1)
    write_tree(tmp_path / "one", settings)
    write_tree(tmp_path / "two", settings, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    write_tree(tmp_path / "other", Settings(**SMALL, seed=1))
    pictures = [c for root in ("one", "other") for p, c in files(tmp_path / root).items() if "_0000" in p]
    assert len(set(pictures)) == len(pictures) == 50


def test_the_truth_is_where_the_same_picture_lies_without_noise(tmp_path):
    write_tree(tmp_path / "noisy", Settings(**SMALL, noise_rate=0.3, bad=1))
    write_tree(tmp_path / "clean", Settings(**SMALL))
    noisy = load_dataset("folder", tmp_path / "noisy", image_size=16).train
    clean = load_dataset("folder", tmp_path / "clean", image_size=16).train
    lies = {clean.images.path(i).read_bytes(): clean.labels[i] for i in range(len(clean))}
    rows = table(tmp_path / "noisy" / "truth.csv")
    assert [row["path"] for row in rows] == list(noisy.images.paths)
    assert [int(row["given_label"]) for row in rows] == noisy.labels.tolist()
    truth = read_label_file(str(tmp_path / "noisy/truth.csv"), num_samples=28, num_classes=3)
    shown = [lies.get(noisy.images.path(i).read_bytes(), noisy.labels[i]) for i in range(28)]
    assert truth.tolist() == shown
    assert (truth != noisy.labels).sum() == 6  # 0.3 of 20; bad files lie right
    assert not (tmp_path / "clean" / "truth.csv").exists()


# ------------------------------------------------------------------------------------------------ going on


class StoppedError(Exception):
    pass


def test_an_interrupted_tree_goes_on(tmp_path):
    settings = Settings(**SMALL, noise_rate=0.3)
    write_tree(tmp_path / "whole", settings)
    out = tmp_path / "cut"

    def stop(done, total):
        assert total == 25
        if done == 9:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_tree(out, settings, report=stop)
    (out / ".part" / "new" / "77-train_00000009.JPEG").write_bytes(b"half")  # what a killed process leaves
    with pytest.raises(FileNotFoundError, match="train is not a folder"):
        load_dataset("folder", out, image_size=16)
    counts = []
    assert write_tree(out, settings, report=lambda *c: counts.append(c)) == 16
    assert counts == [(k, 25) for k in range(10, 26)]
    assert files(out) == files(tmp_path / "whole")
    assert write_tree(out, settings) == 0
    next((out / "train").rglob("*.JPEG")).unlink()
    assert write_tree(out, settings) == 1
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.dist
def test_a_killed_run_leaves_whole_files_and_no_workers(tmp_path):
    settings = Settings(classes=3, images=3000, val_images=0, size="64")
    command = [
        sys.executable,
        "-m",
        "fastac.data.synthetic",
        str(tmp_path),
        "--classes",
        "3",
        "--images",
        "3000",
    ]
    command += ["--val-images", "0", "--size", "64", "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / ".part").rglob("train/*/*"))) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("workers live on after their parent")
    done = list((tmp_path / ".part").rglob("train/*/*"))
    assert 10 <= len(done) < settings.images
    for path in done:
        with Image.open(path) as image:
            image.load()


def test_a_killed_worker_is_said(tmp_path):
    def kill(_done, _total):
        for child in multiprocessing.active_children():
            child.kill()

    settings = Settings(classes=3, images=300, val_images=0, size="40x32")
    with pytest.raises(OSError, match="a worker process was killed"):
        write_tree(tmp_path, settings, workers=1, report=kill)
    assert not (tmp_path / "train").exists()


# ------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, f"classes is 1; it should be 2 to {MAX_CLASSES}"),
        ({"classes": MAX_CLASSES + 1}, "classes is 31105"),
        ({"images": 2}, "images is 2; it should be 3 to 10000000, one for each of the 3 classes"),
        ({"val_images": -1}, "val_images is -1; it should be 0 to"),
        ({"bad": -1}, "bad is -1; it should be 0 to 1000"),
        ({"seed": -1}, "seed is -1"),
        ({"noise_rate": 1.0}, r"noise_rate is 1.0; it should be in \[0, 1\)"),
        ({"noise_rate": float("nan")}, "noise_rate is nan"),
        ({"size": "large"}, "size is 'large'; it should be imagenet, a side in pixels, or WIDTHxHEIGHT"),
        ({"size": "15"}, "size is '15'; its sides should be 16 to 4096 pixels"),
        ({"size": "500x5000"}, "size is '500x5000'; its sides"),
    ],
)
def test_bad_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{**SMALL, **change})


def test_noise_that_empties_a_class(tmp_path):
    with pytest.raises(ValueError, match=r"noise_rate is 0.9, which leaves class \d without an image"):
        write_tree(tmp_path / "x", Settings(classes=3, images=3, val_images=0, noise_rate=0.9))
    assert not (tmp_path / "x").exists()


def test_folders_that_are_taken(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file; it should be a folder, new or empty"):
        write_tree(tmp_path / "file", Settings(**SMALL))
    with pytest.raises(FileExistsError, match="is not empty; it should be a folder, new or empty"):
        write_tree(tmp_path, Settings(**SMALL))
    out = tmp_path / "out"
    write_tree(out, Settings(**SMALL))
    before = files(out)
    with pytest.raises(
        FileExistsError, match=r"was begun with images 20, seed 0, not images 21, seed 4; OUT"
    ):
        write_tree(out, Settings(**{**SMALL, "images": 21}, seed=4))
    assert files(out) == before
    (out / "synthetic.json").write_text("{")
    with pytest.raises(ValueError, match=r"synthetic.json should be this command's record of a tree"):
        write_tree(out, Settings(**SMALL))
    with pytest.raises(ValueError, match="workers is -1"):
        write_tree(tmp_path / "new", Settings(**SMALL), workers=-1)


def test_no_space(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
        with pytest.raises(OSError, match=r"x/y needs about 0.1 GB, and 0.0 GB are free there"):
            write_tree(tmp_path / "x" / "y", Settings(classes=3, images=1000, val_images=0))
    assert not (tmp_path / "x").exists()

    written = []

    def full(self, content):
        written.append(self)
        if len(written) == 8:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        with self.open("wb") as file:
            file.write(content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="no space is left for .*; the same call goes on from here"):
            write_tree(tmp_path / "x", Settings(**SMALL))
    assert write_tree(tmp_path / "x", Settings(**SMALL)) == 25 - 7


def test_the_command(tmp_path, capsys):
    words = [str(tmp_path / "x"), "--classes", "2", "--images", "8", "--size", "16", "--workers", "0"]
    handler = signal.getsignal(signal.SIGTERM)
    assert main([*words, "--noise-rate", "0.25", "--bad"]) == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    out = capsys.readouterr().out
    assert "8 training and 0 validation images of 2 classes" in out
    assert "--image-size 16" in out
    record = json.loads((tmp_path / "x" / "synthetic.json").read_text())
    assert (record["bad"], record["noise_rate"], record["val_images"]) == (1, 0.25, 0)
    assert main([*words, "--bad", "2"]) == 2
    error = capsys.readouterr().err
    assert "fastac.data.synthetic: error:" in error
    assert "was begun with noise_rate 0.25, bad 1, not noise_rate 0.0, bad 2" in error


# ------------------------------------------------------------------------------------------------ pictures


def test_looks_are_different_and_do_not_depend_on_their_number():
    looks = class_looks(5000, 3)
    assert len(set(looks)) == 5000
    assert class_looks(10, 3) == looks[:10]
    assert class_looks(10, 4) != looks[:10]
    assert len(set(class_looks(MAX_CLASSES, 0))) == MAX_CLASSES


def test_sizes_and_bytes_are_about_imagenets():
    """Medians of 200 images of ImageNet: 500x375, 113 kB; quartiles of the bytes 60 and 141 kB."""
    rng = np.random.default_rng(0)
    sizes = np.array([draw_size(rng) for _ in range(4000)])
    assert np.median(sizes, axis=0).tolist() == [500, 375]
    assert np.mean(sizes[:, 0] > sizes[:, 1]) == pytest.approx(0.75, abs=0.06)
    assert sizes.min() >= 50
    assert sizes.max() <= 1600
    assert np.mean([draw_quality(rng) == 96 for _ in range(2000)]) == pytest.approx(0.72, abs=0.04)


def test_a_pictures_bytes_follow_its_size(tmp_path):
    write_tree(tmp_path, Settings(classes=2, images=24, val_images=0, size="500x375"))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.JPEG")]
    assert 80_000 < np.median(sizes) < 150_000
    assert np.std(sizes) > 20_000


@pytest.mark.parametrize("number", range(0, 40, 4))
def test_every_picture_is_other_and_has_contrast(number):
    look = class_looks(40, 0)[number]
    pair = [draw_picture(look, (64, 48), np.random.default_rng([s])) for s in (1, 2)]
    pixels = [np.array(image.convert("RGB")).astype(float) for image in pair]
    assert pixels[0].shape == (48, 64, 3)
    assert np.abs(pixels[0] - pixels[1]).mean() > 10
    assert min(p.std() for p in pixels) > 15


def test_classes_can_be_learned(tmp_path):
    """The nearest neighbour by means and deviations of colour is far above chance: 1 in 6."""
    write_tree(tmp_path, Settings(classes=6, images=300, val_images=120, size="32"))
    data = load_dataset("folder", tmp_path, image_size=32)

    def features(samples):
        pixels = np.stack([samples.image(i).reshape(-1, 3) for i in range(len(samples))]) / 255
        return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)

    distance = np.linalg.norm(features(data.test)[:, None] - features(data.train), axis=2)
    accuracy = np.mean(data.train.labels[distance.argmin(axis=1)] == data.test.labels)
    assert 0.4 < accuracy < 0.95


# ------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_listed_and_get_their_treatment(tmp_path, workers):
    write_tree(tmp_path, Settings(**SMALL, bad=2))
    rows = table(tmp_path / "bad.csv")
    assert sorted(row["kind"] for row in rows) == sorted(2 * [kind.name for kind in BAD_KINDS])
    train = load_dataset("folder", tmp_path, image_size=16, on_bad_image="skip").train
    assert len(train) == 20 + 16
    for row in rows:
        assert train.images.paths[int(row["index"])] == row["path"]
        assert row["kind"] in row["path"]
    sampler = EpochSampler(len(train), batch_size=6, drop_last=False, shuffle=True, seed=0)
    loader = Loader(train, train.labels, sampler, augment="imagenet", seed=0, device="cpu", workers=workers)
    batches = list(loader.epoch(0))
    bad = {sample for batch in batches for sample in batch.bad}
    assert bad == {int(row["index"]) for row in rows if row["readable"] == "false"}
    assert len(bad) == 8
    read = [sample for batch in batches for sample in batch.index.tolist()]
    assert sorted(read) == sorted(set(range(36)) - bad)
