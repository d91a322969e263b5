"""The parsers on the real files, where there are any.

FASTAC_TEST_DATA names a folder with any of cifar-10-batches-py/, cifar10n_labels.npz and tiny-imagenet-40/.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastac.data import EpochSampler, Loader, inject_noise, load_dataset, read_label_file

_BESIDE = Path(__file__).parent.parent.parent / "shared" / "data"


def real(name: str) -> Path:
    for folder in (os.environ.get("FASTAC_TEST_DATA"), _BESIDE):
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    pytest.skip(f"{name} is not in the folder that FASTAC_TEST_DATA names")


def test_fashion_mnist():
    try:
        data = load_dataset("fashion-mnist")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert data.train.images.shape == (60_000, 28, 28, 1)
    assert data.test.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.train.images.mean() == pytest.approx(72.94, abs=0.01)  # 0.2860 of 255, as published


@pytest.fixture(scope="module")
def cifar10():
    return load_dataset("cifar10", real("cifar-10-batches-py"))


def test_cifar10(cifar10):
    train = cifar10.train
    assert train.images.shape == (50_000, 32, 32, 3)
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert train.class_names[9] == "truck"
    loader = Loader(train, train.labels, EpochSampler(50_000, 128), augment="crop-flip", seed=0, device="cpu")
    assert loader.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)  # the figures that everyone uses
    assert loader.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=8e-3)
    batch = next(loader.epoch(0))
    assert batch.images.shape == (128, 3, 32, 32)


def test_cifar10n(cifar10):
    spec = f"{real('cifar10n_labels.npz')}:"
    clean = read_label_file(f"{spec}clean_label", num_samples=50_000, num_classes=10)
    worse = read_label_file(f"{spec}worse_label", num_samples=50_000, num_classes=10)
    np.testing.assert_array_equal(clean, cifar10.train.labels)
    assert (worse != clean).mean() == pytest.approx(0.402, abs=5e-4)


def test_cifar10n_labels_alone():
    spec = f"{real('cifar10n_labels.npz')}:aggre_label"
    labels = read_label_file(spec, num_samples=50_000, num_classes=10)
    assert np.bincount(labels).sum() == 50_000
    with pytest.raises(ValueError, match="has 50000 labels; it should have 10000"):
        read_label_file(spec, num_samples=10_000, num_classes=10)


def test_cifar10_asymmetric(cifar10):
    labels = cifar10.train.labels
    noisy = inject_noise(labels, 10, kind="asymmetric", rate=0.4, seed=0, dataset="cifar10")
    assert (noisy != labels).mean() == 0.2


def test_tiny_imagenet():
    data = load_dataset("folder", real("tiny-imagenet-40"), image_size=64)
    assert (len(data.train), len(data.test), data.train.num_classes) == (20_000, 2_000, 40)
    assert np.bincount(data.train.labels).tolist() == [500] * 40
    sampler = EpochSampler(20_000, 64)
    loader = Loader(
        data.train, data.train.labels, sampler, augment="imagenet", seed=0, device="cpu", workers=1
    )
    batches = loader.epoch(0)
    images = torch.cat([next(batches).images for _ in range(4)])
    assert images.shape == (256, 3, 64, 64)
    assert images.mean().abs() < 0.4
    assert 0.7 < images.std() < 1.5
