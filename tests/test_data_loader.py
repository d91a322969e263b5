"""Batches: right pixels with right labels, the same after a resume and on any number of ranks and workers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from fastac.data import (
    Batch,
    EpochSampler,
    Loader,
    Samples,
    UnreadableImageError,
    channel_stats,
    load_dataset,
)
from fastac.data.augment import augment_batch, normalise
from fastac.data.decode import centre_crop, open_rgb

RNG = np.random.default_rng(0)
N, K = 50, 5


def array_samples(size: int = 32, channels: int = 3) -> Samples:
    images = RNG.integers(0, 256, (N, size, size, channels), dtype=np.uint8)
    return Samples(images, RNG.integers(0, K, N), tuple("abcde"))


def array_loader(samples: Samples, *, augment: str = "none", seed: int = 1, **sampler_options) -> Loader:
    sampler = EpochSampler(N, sampler_options.pop("batch_size", 8), **sampler_options)
    return Loader(samples, samples.labels, sampler, augment=augment, seed=seed, device="cpu")


def same(left: Batch, right: Batch) -> bool:
    tensors = all(torch.equal(getattr(left, k), getattr(right, k)) for k in ("images", "target", "index"))
    return tensors and left.global_size == right.global_size and left.bad == right.bad


# ---------------------------------------------------------------------------------------------------- arrays


def test_pixels_and_labels_belong_to_the_ids():
    samples = array_samples(size=9)
    noisy = (samples.labels + 1) % K
    loader = Loader(samples, noisy, EpochSampler(N, 8), augment="none", seed=0, device="cpu")
    mean, std = channel_stats(samples)
    seen = []
    assert len(loader) == 7
    for batch in loader.epoch(3):
        assert batch.images.dtype == torch.float32
        assert batch.target.dtype == batch.index.dtype == torch.int64
        assert batch.global_size == len(batch.index)
        assert batch.bad == ()
        ids = batch.index.numpy()
        expected = (samples.images[ids] / 255.0 - mean) / std
        np.testing.assert_allclose(batch.images.numpy(), expected.transpose(0, 3, 1, 2), atol=2e-6)
        np.testing.assert_array_equal(batch.target, noisy[ids])
        seen += ids.tolist()
    assert sorted(seen) == list(range(N))


def test_the_loader_keeps_its_own_labels():
    samples = array_samples()
    labels = samples.labels.copy()
    loader = Loader(samples, labels, EpochSampler(N, N), augment="none", seed=0, device="cpu")
    labels[:] = 0
    batch = next(loader.epoch(0))
    np.testing.assert_array_equal(batch.target, samples.labels[batch.index])


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip"])
def test_resume_in_mid_epoch(augment):
    samples = array_samples()
    whole = list(array_loader(samples, augment=augment).epoch(2))
    for start in (0, 1, 4, len(whole)):
        rest = list(array_loader(samples, augment=augment).epoch(2, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_what_happens_to_a_sample_does_not_depend_on_the_ranks():
    samples = array_samples()

    def by_id(world_size: int) -> dict[int, torch.Tensor]:
        images = {}
        for rank in range(world_size):
            loader = array_loader(samples, augment="crop-flip", rank=rank, world_size=world_size)
            for batch in loader.epoch(4):
                images.update(zip(batch.index.tolist(), batch.images, strict=True))
        return images

    one, three = by_id(1), by_id(3)
    assert one.keys() == three.keys() == set(range(N))
    assert all(torch.equal(one[i], three[i]) for i in one)


def test_epochs_and_seeds_differ():
    samples = array_samples()

    def image(seed: int, epoch: int) -> torch.Tensor:
        loader = array_loader(samples, augment="crop-flip", seed=seed, batch_size=N, shuffle=False)
        return next(loader.epoch(epoch)).images

    first = image(1, 0)
    assert torch.equal(first, image(1, 0))
    for other in (image(1, 1), image(2, 0)):
        changed = (first != other).flatten(1).any(1).float().mean()
        assert changed > 0.9  # the same of 162 outcomes is rare


def test_the_global_random_states_are_left_alone(tmp_path):
    write_folder(tmp_path)
    folder = load_dataset("folder", tmp_path, image_size=8).train
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(array_loader(array_samples(), augment="crop-flip").epoch(0))
    for workers in (0, 1):
        list(folder_loader(folder, workers=workers).epoch(0))
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_arguments():
    samples = array_samples()
    sampler = EpochSampler(N, 8)

    def loader(samples=samples, labels=samples.labels, sampler=sampler, augment="none", **kwargs):
        return Loader(samples, labels, sampler, augment=augment, seed=0, device="cpu", **kwargs)

    with pytest.raises(ValueError, match="unknown augment 'flip'; did you mean 'crop-flip'"):
        loader(augment="flip")
    with pytest.raises(ValueError, match="augment is 'imagenet', which is for image folders"):
        loader(augment="imagenet")
    with pytest.raises(ValueError, match="sampler is for 51 samples; it should be for 50"):
        loader(sampler=EpochSampler(51, 8))
    with pytest.raises(ValueError, match=r"labels is int64 \(49,\)"):
        loader(labels=samples.labels[:49])
    with pytest.raises(ValueError, match=r"labels\[0\] is 5"):
        loader(labels=np.full(N, 5))
    with pytest.raises(ValueError, match="workers is -1"):
        loader(workers=-1)
    with pytest.raises(ValueError, match="one of mean and std is given"):
        loader(mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="std has 1 numbers; it should have 3"):
        loader(mean=(0.5, 0.5, 0.5), std=(1.0,))
    with pytest.raises(ValueError, match="it should be positive"):
        loader(mean=(0.5, 0.5, 0.5), std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="start is 8"):
        loader().epoch(0, 8)


# ---------------------------------------------------------------------------------------------- augmentation


def test_channel_stats_are_exact():
    images = RNG.integers(0, 256, (5000, 3, 4, 3), dtype=np.uint8)  # more than one chunk
    images[..., 1] = 77
    samples = Samples(images, np.zeros(5000, dtype=np.int64), ("a", "b"))
    mean, std = channel_stats(samples)
    pixels = images.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.array(std)[[0, 2]], pixels.std(axis=0)[[0, 2]], rtol=1e-12)
    assert std[1] == 1.0  # a constant channel is centred, not divided by zero


def test_normalise():
    pixels = torch.arange(24, dtype=torch.uint8).view(1, 2, 4, 3)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    expected = (pixels.permute(0, 3, 1, 2) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    result = normalise(pixels, mean, std)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous()


def crops_of(images: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    """Every crop of the zero-padded image, each with its mirror image where flip."""
    size = images.shape[-1]
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    windows = range(2 * pad + 1)
    crops = [padded[:, y : y + size, x : x + size] for y in windows for x in windows]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@pytest.mark.parametrize(
    ("name", "size", "pad"), [("crop-flip", 32, 4), ("crop", 8, 1), ("crop", 28, 3), ("crop-flip", 64, 8)]
)
def test_every_crop_is_one_of_the_allowed_and_all_come_up(name, size, pad):
    image = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    allowed = crops_of(image, pad, name == "crop-flip")
    draws = 60 * len(allowed) if pad < 4 else 3000
    index = torch.arange(draws)
    out = augment_batch(image.expand(draws, -1, -1, -1), index, name=name, seed=5, epoch=7)
    fingerprints = {crop.contiguous().numpy().tobytes(): i for i, crop in enumerate(allowed)}
    counts = np.bincount([fingerprints[o.numpy().tobytes()] for o in out], minlength=len(allowed))
    assert len(fingerprints) == len(allowed)
    expected = draws / len(allowed)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = len(allowed) - 1
    assert abs(chi2 - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_rectangular_images_are_padded_by_side():
    images = torch.arange(1.0, 1 + 8 * 24).view(1, 1, 8, 24).expand(500, -1, -1, -1)
    out = augment_batch(images, torch.arange(500), name="crop", seed=0, epoch=0)
    corner = out[:, 0, 4, 12] - images[0, 0, 4, 12]  # 24·dy + dx
    dy, dx = torch.round(corner / 24), corner - 24 * torch.round(corner / 24)
    assert set(dy.tolist()) == {-1, 0, 1}
    assert set(dx.tolist()) == {-3, -2, -1, 0, 1, 2, 3}


def test_an_empty_batch_passes():
    empty = torch.zeros(0, 3, 32, 32)
    out = augment_batch(empty, torch.zeros(0, dtype=torch.int64), name="crop-flip", seed=0, epoch=0)
    assert out.shape == (0, 3, 32, 32)


# --------------------------------------------------------------------------------------------------- folders


def write_folder(root: Path, count: int = 6, bad: tuple[str, ...] = ()) -> None:
    image_module = pytest.importorskip("PIL.Image")
    for name in "ab":
        (root / "train" / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = root / "train" / name / f"{number}.png"
            pixels = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            image_module.fromarray(pixels).save(path)
            if f"{name}/{number}" in bad:
                path.write_bytes(b"not an image")


def folder_loader(samples: Samples, *, augment: str = "imagenet", workers: int = 0, **options) -> Loader:
    sampler = EpochSampler(len(samples), options.pop("batch_size", 4), **options)
    return Loader(samples, samples.labels, sampler, augment=augment, seed=2, device="cpu", workers=workers)


def test_folder_batches(tmp_path):
    write_folder(tmp_path)
    samples = load_dataset("folder", tmp_path, image_size=8).train
    batches = list(folder_loader(samples).epoch(0))
    assert [tuple(b.images.shape) for b in batches] == [(4, 3, 8, 8)] * 3
    assert sorted(i for b in batches for i in b.index.tolist()) == list(range(12))
    for batch in batches:
        np.testing.assert_array_equal(batch.target, samples.labels[batch.index])


def test_test_images_are_normalised_centre_crops(tmp_path):
    write_folder(tmp_path)
    samples = load_dataset("folder", tmp_path, image_size=8).train
    loader = folder_loader(samples, augment="none", shuffle=False)
    assert loader.mean == (0.485, 0.456, 0.406)
    batch = next(loader.epoch(0))
    pixels = np.stack([centre_crop(open_rgb(samples.images.path(i)), 8) for i in range(4)])
    expected = (pixels / 255 - loader.mean) / loader.std
    np.testing.assert_allclose(batch.images.numpy(), expected.transpose(0, 3, 1, 2), atol=2e-6)


@pytest.mark.parametrize("augment", ["imagenet", "crop-flip"])
def test_workers_and_resume_give_the_same_pixels(tmp_path, augment):
    write_folder(tmp_path)
    samples = load_dataset("folder", tmp_path, image_size=8).train
    here = list(folder_loader(samples, augment=augment).epoch(1))
    workers = list(folder_loader(samples, augment=augment, workers=2).epoch(1))
    resumed = list(folder_loader(samples, augment=augment, workers=1).epoch(1, 2))
    assert len(here) == len(workers) == 3
    assert all(same(a, b) for a, b in zip(here, workers, strict=True))
    assert len(resumed) == 1
    assert same(resumed[0], here[2])
    other = list(folder_loader(samples, augment=augment).epoch(2))
    by_id = [
        {int(i): x for b in run for i, x in zip(b.index, b.images, strict=True)} for run in (here, other)
    ]
    assert sum(not torch.equal(by_id[0][i], by_id[1][i]) for i in range(12)) >= 10


def test_a_files_crop_depends_on_its_id_alone(tmp_path):
    write_folder(tmp_path)
    samples = load_dataset("folder", tmp_path, image_size=8).train
    one = {int(b.index[0]): b.images[0] for b in folder_loader(samples, batch_size=1).epoch(0)}
    for rank in range(3):
        for batch in folder_loader(samples, rank=rank, world_size=3).epoch(0):
            for sample, image in zip(batch.index.tolist(), batch.images, strict=True):
                assert torch.equal(one[sample], image)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_the_epoch_with_its_path(tmp_path, workers):
    write_folder(tmp_path, bad=("b/2",))
    samples = load_dataset("folder", tmp_path, image_size=8).train
    loader = folder_loader(samples, workers=workers, shuffle=False)
    batches = loader.epoch(0)
    assert len(next(batches).index) == len(next(batches).index) == 4
    with pytest.raises(UnreadableImageError, match=rf"^cannot decode the image {tmp_path}/train/b/2.png: "):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_images_are_left_out_and_listed(tmp_path, workers):
    write_folder(tmp_path, bad=("a/1", "b/2", "b/3", "b/4", "b/5"))
    samples = load_dataset("folder", tmp_path, image_size=8, on_bad_image="skip").train
    batches = list(folder_loader(samples, augment="none", workers=workers, shuffle=False).epoch(0))
    assert [b.bad for b in batches] == [(1,), (), (8, 9, 10, 11)]
    assert [b.index.tolist() for b in batches] == [[0, 2, 3], [4, 5, 6, 7], []]
    assert [b.global_size for b in batches] == [4, 4, 4]
    assert batches[2].images.shape == (0, 3, 8, 8)
    for batch in batches:
        np.testing.assert_array_equal(batch.target, samples.labels[batch.index])
    expected = (centre_crop(open_rgb(samples.images.path(2)), 8) / 255 - 0.485) / 0.229
    np.testing.assert_allclose(batches[0].images[1, 0], expected[..., 0], atol=2e-6)


def test_a_missing_file_stops_even_where_bad_images_are_skipped(tmp_path):
    write_folder(tmp_path)
    samples = load_dataset("folder", tmp_path, image_size=8, on_bad_image="skip").train
    (tmp_path / "train/a/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        list(folder_loader(samples).epoch(0))


def test_workers_outlive_a_ctrl_c_of_the_whole_group(tmp_path):
    """The trainer finishes its step and saves on a signal: its workers must not die under it, but with it."""
    write_folder(tmp_path, count=20)
    program = f"""
        import os, signal, subprocess
        from fastac.data import EpochSampler, Loader, load_dataset
        samples = load_dataset("folder", {str(tmp_path)!r}, image_size=8).train
        signals = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: signals.append(number))
        sampler = EpochSampler(len(samples), 4)
        loader = Loader(samples, samples.labels, sampler, augment="none", seed=0, device="cpu", workers=2)
        seen = 0
        for step, batch in enumerate(loader.epoch(0)):
            seen += len(batch.index)
            if step < 2:
                subprocess.run(["sh", "-c", f"kill -s {{('INT', 'TERM')[step]}} -- -{{os.getpgid(0)}}"])
        assert signals == [signal.SIGINT, signal.SIGTERM], signals
        print(seen)
        unfinished = loader.epoch(1)  # its workers live when this program ends, and must not hold it up
        next(unfinished)
    """
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=120,
    )
    assert result.stdout.strip() == "40", result.stderr
    assert result.returncode == 0


@pytest.mark.gpu
def test_on_a_gpu_the_batches_are_the_cpus():
    samples = array_samples()
    options = {"augment": "crop-flip", "seed": 1}
    cpu = Loader(samples, samples.labels, EpochSampler(N, 8), device="cpu", **options)
    gpu = Loader(samples, samples.labels, EpochSampler(N, 8), device="cuda", **options)
    for a, b in zip(cpu.epoch(0), gpu.epoch(0), strict=True):
        assert b.images.is_cuda
        assert b.target.is_cuda
        assert b.index.is_cuda
        torch.testing.assert_close(a.images, b.images.cpu(), atol=2e-6, rtol=0)
        assert torch.equal(a.target, b.target.cpu())
        assert torch.equal(a.index, b.index.cpu())
