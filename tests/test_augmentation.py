"""The loader's augmentation from the crop to random erasing, and images that the device holds."""

from __future__ import annotations

import gc
import logging

import numpy as np
import pytest
import torch
from training_runs import config, linear, metrics, without_pictures

from fastac.data import EpochSampler, Loader, Samples, load_dataset
from fastac.data.augment import augment_batch, normalise
from fastac.data.erasing import erase, random_rectangles
from fastac.data.policies import apply_policy, find_policy
from fastac.data.policies.geometry import square
from fastac.data.resident import _held, hold_images
from fastac.engine import create_engine
from fastac.job import Job
from fastac.train import train
from fastac.training_data import load_data

N = 60
CPU = torch.device("cpu")


def samples(channels: int = 3, size: int = 16) -> Samples:
    rng = np.random.default_rng(channels)
    return Samples(
        rng.integers(0, 256, (N, size, size, channels), dtype=np.uint8),
        rng.integers(0, 3, N),
        ("a", "b", "c"),
    )


def loader(data: Samples, *, device="cpu", augment="crop-flip", aa="trivialaugment", **options) -> Loader:
    sampling = {key: options.pop(key) for key in ("rank", "world_size", "shuffle") if key in options}
    sampler = EpochSampler(len(data), options.pop("batch_size", 8), **sampling)
    options = {"cutout": 5, "reprob": 0.5, **options}
    return Loader(data, data.labels, sampler, augment=augment, seed=4, device=device, aa=aa, **options)


def by_id(*loaders: Loader, epoch: int = 1) -> dict[int, torch.Tensor]:
    images = {}
    for each in loaders:
        for batch in each.epoch(epoch):
            images.update(zip(batch.index.tolist(), batch.images, strict=True))
    return images


# ---------------------------------------------------------------------------------------------------- the loader


@pytest.mark.parametrize("aa", ["none", "autoaugment-cifar10", "fast-autoaugment-svhn", "randaugment-n2-m9"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_samples_image_depends_on_its_id_alone(aa, channels):
    data = samples(channels)
    one = by_id(loader(data, aa=aa))
    assert sorted(one) == list(range(N))
    others = [
        by_id(loader(data, aa=aa, batch_size=1)),
        by_id(loader(data, aa=aa, batch_size=N, shuffle=False)),
        by_id(*(loader(data, aa=aa, rank=rank, world_size=3) for rank in range(3))),
    ]
    for other in others:
        assert all(torch.equal(one[sample], other[sample]) for sample in range(N))
    later = by_id(loader(data, aa=aa), epoch=2)
    assert sum(not torch.equal(one[sample], later[sample]) for sample in range(N)) > 0.9 * N


def test_the_order_is_crop_policy_normalisation_and_erasing():
    data = samples()
    batch = next(loader(data, shuffle=False).epoch(3))
    index, draws = batch.index, {"seed": 4, "epoch": 3}
    each = loader(data)
    colour = torch.tensor([round(255 * value) for value in each.mean], dtype=torch.uint8)
    pixels = torch.from_numpy(data.images[:8]).permute(0, 3, 1, 2)
    pixels = augment_batch(pixels, index, name="crop-flip", border=colour, **draws)
    pixels = apply_policy(pixels, index, find_policy("trivialaugment"), mean=colour, **draws)
    images = normalise(pixels.permute(0, 2, 3, 1), torch.tensor(each.mean), torch.tensor(each.std))
    assert not torch.equal(images, batch.images)
    assert torch.equal(erase(images, index, cutout=5, reprob=0.5, **draws), batch.images)
    np.testing.assert_array_equal(batch.target, data.labels[:8])


def test_a_crops_border_has_the_mean_colour():
    images = torch.full((40, 3, 16, 16), 255, dtype=torch.uint8)
    border = torch.tensor([9, 8, 7], dtype=torch.uint8)
    index = torch.arange(40)
    out = augment_batch(images, index, name="crop-flip", seed=0, epoch=0, border=border)
    plain = augment_batch(images.float(), index, name="crop-flip", seed=0, epoch=0)
    outside = plain[:, 0] == 0
    assert outside.any()
    assert (out.permute(0, 2, 3, 1)[outside] == border).all()
    assert (out.permute(0, 2, 3, 1)[~outside] == 255).all()


def test_without_policy_only_erasing_is_new():
    data = samples()
    plain = by_id(loader(data, aa="none", cutout=0, reprob=0.0))
    erased = by_id(loader(data, aa="none", reprob=0.0))
    for sample in range(N):
        cut = erased[sample] != plain[sample]
        assert cut.any()
        assert (erased[sample][cut] == 0).all()
        assert cut.any(0).sum() <= 25


def test_image_folders_are_augmented_alike(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            image_module.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    data = load_dataset("folder", tmp_path, image_size=16).train
    options = {"augment": "imagenet", "cutout": 4, "batch_size": 4}
    plain = by_id(loader(data, **options | {"aa": "none", "cutout": 0, "reprob": 0.0}))
    one = by_id(loader(data, **options))
    workers = by_id(loader(data, **options, workers=1))
    for sample in range(12):
        assert torch.equal(one[sample], workers[sample])
        assert not torch.equal(one[sample], plain[sample])


def test_wrong_arguments():
    data = samples()
    with pytest.raises(ValueError, match="unknown aa 'trivial'; did you mean 'trivialaugment'"):
        loader(data, aa="trivial")
    with pytest.raises(ValueError, match="cutout is -1; it should be a side in pixels"):
        loader(data, cutout=-1)
    with pytest.raises(ValueError, match=r"reprob is 1.5; it should be a probability"):
        loader(data, reprob=1.5)


# -------------------------------------------------------------------------------------------------------- erasing


def test_cutouts_square():
    place = np.array([[0.0, 0.5, 0.999], [0.0, 0.25, 0.999]])
    boxes = square(place, np.array([4, 5, 4]), 16, 8)
    assert boxes.tolist() == [[0, 0, 2, 2], [0, 6, 5, 11], [5, 13, 8, 16]]
    images = torch.ones(20_000, 1, 8, 8)
    out = erase(images, torch.arange(20_000), cutout=4, reprob=0.0, seed=0, epoch=0)
    share = (out == 0).float().mean((0, 1))
    # A pixel is blanked by as many of the 64 centres as lie in its reach: -1 to 2 pixels away, down and across.
    reach = torch.tensor([3.0, 4, 4, 4, 4, 4, 3, 2])
    expected = reach.view(-1, 1) * reach / 64
    assert (share - expected).abs().max() < 5 * 0.5 / 20_000**0.5


def test_random_erasings_rectangles():
    drawn = np.random.default_rng(0).random((23, 20_000))
    boxes = random_rectangles(drawn, 0.25, 32, 48)
    left, top, right, bottom = boxes.T
    happened = right > left
    assert abs(happened.mean() - 0.25) < 5 * 0.43 / 20_000**0.5
    assert np.array_equal(happened, bottom > top)
    high, wide = (bottom - top)[happened], (right - left)[happened]
    assert (left.min(), top.min()) == (0, 0)
    assert (right.max(), bottom.max()) == (48, 32)
    share = high * wide / (32 * 48)
    assert 0.015 < share.min() < 0.03
    assert 0.32 < share.max() < 0.36
    ratio = high / wide
    assert 0.25 < ratio.min() < 0.35
    assert 2.8 < ratio.max() < 4.0  # of whole pixels
    assert (high < 32).all()
    assert (wide < 48).all()


def test_a_rectangle_that_never_fits_erases_nothing():
    drawn = np.full((23, 4), 0.5)
    drawn[3::2] = 1.0  # a third of the area at every attempt
    drawn[4::2] = [0.0, 0.0, 1.0, 0.5]  # wide, wide, high, square
    boxes = random_rectangles(drawn, 1.0, 16, 16)
    assert (boxes[:3, 2] <= boxes[:3, 0]).all()
    assert boxes[3].tolist() == [4, 4, 13, 13]


def test_an_erased_image_depends_on_its_id_alone():
    images = torch.randn(50, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    index = torch.arange(100, 150)

    def erased(part: slice = slice(50), **changes) -> torch.Tensor:
        options = {"cutout": 3, "reprob": 0.6, "seed": 1, "epoch": 2, **changes}
        return erase(images[part].clone(), index[part], **options)

    whole = erased()
    assert torch.equal(erased(slice(7, 9)), whole[7:9])
    assert not torch.equal(erased(epoch=3), whole)
    assert torch.equal(erased(cutout=0, reprob=0.0), images)
    assert erased(slice(0)).shape == (0, 3, 12, 12)


# -------------------------------------------------------------------------------------- images that the device holds


def test_images_are_held_once_and_let_go():
    data = samples()
    held = hold_images(data, CPU, free=1 << 30)
    np.testing.assert_array_equal(held, data.images)
    assert hold_images(data, CPU, free=0) is held
    others = len(_held) - 1
    del data
    gc.collect()
    assert len(_held) == others


def test_images_that_take_too_much_stay_on_the_host(caplog):
    data = samples()
    with caplog.at_level(logging.WARNING, logger="fastac"):
        for _ in range(2):
            assert hold_images(data, CPU, free=2 * data.images.nbytes - 1) is None
    assert len(caplog.records) == 1
    assert "more than half of the 0.0 GB free on cpu: they stay in host memory" in caplog.text
    assert hold_images(samples(), CPU, free=2 * data.images.nbytes) is not None


@pytest.mark.parametrize("aa", ["none", "trivialaugment"])
def test_batches_of_held_images_are_the_hosts(aa):
    data = samples()
    host, device = loader(data, aa=aa), loader(data, aa=aa)
    device._held = hold_images(data, CPU, free=1 << 30)
    for a, b in zip(host.epoch(2, 1), device.epoch(2, 1), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.index, b.index)


@pytest.mark.parametrize(("aa", "together"), [("none", 3), ("randaugment-n2-m9", 4), ("trivialaugment", 100)])
def test_batches_that_are_augmented_together_are_the_same(aa, together):
    data = samples()
    one, more = (loader(data, aa=aa, rank=1, world_size=2) for _ in range(2))
    more._together = together
    for start in (0, 2, len(one)):
        pairs = list(zip(one.epoch(1, start), more.epoch(1, start), strict=True))
        assert len(pairs) == len(one) - start
        for a, b in pairs:
            assert a.global_size == b.global_size
            for name in ("images", "target", "index", "host_index"):
                assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.gpu
@pytest.mark.parametrize("held", [True, False])
def test_on_a_gpu_the_batches_are_the_cpus(held):
    data = samples()
    cpu, gpu = loader(data), loader(data, device="cuda")
    assert gpu._held.is_cuda
    assert gpu._together > 1
    assert loader(data, device="cuda")._held is gpu._held
    if not held:
        gpu._held = None
    for a, b in zip(cpu.epoch(0), gpu.epoch(0), strict=True):
        torch.testing.assert_close(a.images, b.images.cpu(), atol=2e-6, rtol=0)
        assert torch.equal(a.index, b.index.cpu())
        assert torch.equal(a.target, b.target.cpu())


# --------------------------------------------------------------------------------------------------------- training


def test_a_run_augments_its_training_batches_only(tmp_path, monkeypatch):
    options = {"aa": "pba-cifar10", "cutout": 2, "reprob": 0.25, "short": 0.5, "epochs": 6}
    configuration = config(tmp_path, name="run", **options)
    job = Job(configuration, create_engine(configuration), load_data(configuration), linear)
    each = job.train_loader.transform
    assert (each.policy.name, each.policy.epochs, each.cutout, each.reprob) == ("pba-cifar10", 3, 2, 0.25)
    for other in (job.given_loader.transform, job.test_loader.transform):
        assert (other.policy, other.cutout, other.reprob) == (None, 0, 0.0)
    without_pictures(monkeypatch)
    result = train(configuration, create=linear)
    assert result["test_accuracy"] > 0.2
    plain = train(config(tmp_path, name="plain", short=0.5, epochs=6), create=linear)
    assert metrics(tmp_path / "run")[1]["train_loss"] != metrics(tmp_path / "plain")[1]["train_loss"]
    assert plain["test_accuracy"] > 0.2


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("aa", ["none", "autoaugment-cifar10", "pba-cifar10", "randaugment-n3-m9"])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_needs_a_value_from_the_device(aa, channels, held):
    """On a device without values: an operation that read one, or that mixed devices, would raise."""
    data = samples(channels)
    mean, std = (0.5,) * channels, (0.25,) * channels
    each = loader(data, aa=aa, device="meta", mean=mean, std=std)
    if held:
        each._held, each._together = torch.from_numpy(data.images).to("meta"), 3
    batches = list(each.epoch(150))
    assert sorted(sample for batch in batches for sample in batch.host_index.tolist()) == list(range(N))
    for batch in batches:
        assert batch.images.shape == (len(batch.host_index), channels, 16, 16)
        assert batch.images.dtype == torch.float32
        assert {batch.images.device.type, batch.target.device.type, batch.index.device.type} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        batches[0].images.max().item()
