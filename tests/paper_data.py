"""Made-up images in the files of CIFAR-10, CIFAR-100 and SVHN: a coloured stripe for each class, in noise."""

import pickle
from pathlib import Path

import numpy as np


def images_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N, 32, 32, 3) uint8. Class k has a stripe at a place and of a colour of its own."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 120, (len(labels), 32, 32, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row = 2 + 3 * (label % 10)
        image[row : row + 2, :, label % 3] = 255 - 2 * (label // 10)
    return images


def _rows(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar10(folder: Path, train: int = 200, test: int = 100) -> None:
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = np.arange(train + test) % 10
    images = _rows(images_of(labels, 0))
    parts = [*np.array_split(np.arange(train), 5), np.arange(train, train + test)]
    for name, part in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], parts, strict=True):
        content = {b"data": images[part], b"labels": labels[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [f"class {k}".encode() for k in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))


def write_cifar100(folder: Path, train: int = 200, test: int = 100) -> None:
    folder = folder / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, size, seed in (("train", train, 1), ("test", test, 2)):
        labels = np.arange(size) % 100
        content = {
            b"data": _rows(images_of(labels, seed)),
            b"fine_labels": labels.tolist(),
            b"coarse_labels": (labels % 20).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [f"class {k}".encode() for k in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))


def write_svhn(folder: Path, extra: bool = True) -> None:
    from scipy import io

    folder.mkdir(parents=True, exist_ok=True)
    for name, size in (("train", 100), ("test", 40), *([("extra", 60)] if extra else [])):
        labels = np.arange(size) % 10
        pixels = images_of(labels, 3).transpose(1, 2, 3, 0)
        io.savemat(folder / f"{name}_32x32.mat", {"X": pixels, "y": labels + 1})


def write_human_labels(folder: Path, train: int = 200) -> None:
    """CIFAR-10N's file: every fifth label wrong, in the majority's none."""
    clean = np.arange(train) % 10
    noisy = np.where(np.arange(train) % 5 == 0, (clean + 1) % 10, clean)
    names = ("random_label1", "random_label2", "random_label3", "worse_label")
    np.savez(
        folder / "cifar10n_labels.npz", clean_label=clean, aggre_label=clean, **dict.fromkeys(names, noisy)
    )
