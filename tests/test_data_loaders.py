"""Loaders by name, and the one that reads nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastac.data import EpochSampler, Loader, Samples, SyntheticLoader, create_loader
from fastac.data.samples import EncodedImages

ARRAYS = Samples(
    np.random.default_rng(0).integers(0, 256, (21, 8, 6, 3), dtype=np.uint8),
    np.arange(21, dtype=np.int64) % 4,
    tuple("abcd"),
)
FILES = Samples(  # none of which is there
    EncodedImages("/nowhere", tuple(f"{i}.jpg" for i in range(21)), 16), ARRAYS.labels, ARRAYS.class_names
)


def make(kind, samples=ARRAYS, *, world_size=1, rank=0, **options):
    sampler = EpochSampler(len(samples), 4, seed=1, world_size=world_size, rank=rank)
    return create_loader(
        kind, samples, samples.labels, sampler, **{"augment": "none", "seed": 2, "device": "cpu", **options}
    )


def test_the_torch_loader_is_the_one_by_that_name():
    made = make("torch", augment="crop-flip", workers=1, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert type(made) is Loader
    assert (made.augment, made.workers, made.mean, made.std) == ("crop-flip", 1, (0.1, 0.2, 0.3), (1, 2, 3))
    by_hand = Loader(
        ARRAYS,
        ARRAYS.labels,
        made.sampler,
        augment="crop-flip",
        seed=2,
        device="cpu",
        mean=made.mean,
        std=made.std,
    )
    assert all(torch.equal(a.images, b.images) for a, b in zip(made.epoch(1), by_hand.epoch(1), strict=True))


def test_dali_by_name(tmp_path):
    pytest.importorskip("nvidia.dali")
    made = make("dali", FILES, augment="imagenet", workers=2, cutout=3, reprob=0.2, aa="trivialaugment")
    assert type(made).__name__ == "DaliLoader"
    assert (made.augment, made.workers, made.cutout, made.reprob) == ("imagenet", 2, 3, 0.2)
    assert len(made) == 5
    with pytest.raises(ValueError, match="dali_device is 'gpu'"):
        make("dali", FILES, dali_device="gpu")


@pytest.mark.parametrize(("samples", "shape"), [(ARRAYS, (3, 8, 6)), (FILES, (3, 16, 16))])
def test_synthetic_batches(samples, shape):
    loader = make("synthetic", samples, augment="none" if samples is ARRAYS else "imagenet", workers=3)
    assert type(loader) is SyntheticLoader
    sizes = []
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        plan = list(loader.sampler.batches(epoch))
        assert len(batches) == len(loader) == 5
        for batch, (ids, global_size) in zip(batches, plan, strict=True):
            np.testing.assert_array_equal(batch.index, ids)
            np.testing.assert_array_equal(batch.target, samples.labels[ids])
            assert torch.equal(batch.index, batch.host_index)
            assert batch.global_size == global_size
            assert batch.images.shape == (len(ids), *shape)
            assert torch.equal(batch.images[:4], batches[0].images)  # the same noise in each
            sizes.append(len(ids))
    assert max(sizes) == 5  # the last one has taken in the row that was over
    noise = make("synthetic", samples).epoch(0).__next__().images
    assert torch.equal(noise, batches[0].images)
    assert abs(noise.mean()) < 0.2
    assert 0.8 < noise.std() < 1.2
    assert not torch.equal(noise, make("synthetic", samples, seed=3).epoch(0).__next__().images)


def test_synthetic_batches_begin_where_they_are_asked_to():
    loader = make("synthetic")
    assert [b.index.tolist() for b in loader.epoch(1, 3)] == [b.index.tolist() for b in loader.epoch(1)][3:]
    ids = [
        i
        for rank in range(2)
        for b in make("synthetic", world_size=2, rank=rank).epoch(0)
        for i in b.index.tolist()
    ]
    assert sorted(ids) == list(range(21))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dalli", {}, "unknown loader 'dalli'; did you mean 'dali'\\? Known: torch, dali, synthetic"),
        ("dali", {}, "loader is 'dali', which is for image files and shards"),
        ("torch", {"augment": "imagenet"}, "augment is 'imagenet', which is for image folders"),
        ("synthetic", {"augment": "imagenet"}, "augment is 'imagenet', which is for image folders"),
        ("synthetic", {"augment": "flip"}, "unknown augment 'flip'"),
        ("synthetic", {"mean": (0.5,)}, "one of mean and std is given"),
    ],
)
def test_wrong_arguments(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


def test_synthetic_of_other_samples():
    with pytest.raises(ValueError, match="sampler is for 9 samples; it should be for 21"):
        SyntheticLoader(ARRAYS, ARRAYS.labels, EpochSampler(9, 3), augment="none", seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"labels is int64 \(3,\)"):
        SyntheticLoader(ARRAYS, ARRAYS.labels[:3], EpochSampler(21, 3), augment="none", seed=0, device="cpu")
