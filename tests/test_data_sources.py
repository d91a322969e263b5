"""Data sets that come as arrays: each parser against files that the tests write, right and broken."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from fastac.data import Dataset, Samples, load_dataset
from fastac.data.cifar import read_pickle
from fastac.data.idx import read_idx

RNG = np.random.default_rng(0)


# ---------------------------------------------------------------------------------------------- load_dataset


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown dataset 'cifar-10'; did you mean 'cifar10'"):
        load_dataset("cifar-10")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "cifar10"}, r"cifar10 needs data_dir \(--data-dir\)"),
        ({"name": "digits", "train_limit": 0}, "train_limit is 0"),
        (
            {"name": "digits", "image_size": 32},
            "image_size is 32; it is for folder, webdataset, tfrecord only",
        ),
        ({"name": "digits", "on_bad_image": "ignore"}, "on_bad_image is 'ignore'"),
        ({"name": "folder", "data_dir": "."}, r"folder needs image_size \(--image-size\)"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(**kwargs)


def test_train_limit_keeps_the_first():
    whole, part = load_dataset("digits"), load_dataset("digits", train_limit=100)
    assert len(part.train) == 100
    np.testing.assert_array_equal(part.train.images, whole.train.images[:100])
    np.testing.assert_array_equal(part.train.labels, whole.train.labels[:100])
    assert len(part.test) == len(whole.test)
    assert len(load_dataset("digits", train_limit=10_000).train) == len(whole.train)


# --------------------------------------------------------------------------------------------------- Samples


def samples(**changes) -> Samples:
    arguments = {
        "images": np.zeros((4, 5, 6, 1), dtype=np.uint8),
        "labels": np.array([0, 1, 1, 0], dtype=np.int64),
        "class_names": ("a", "b"),
        **changes,
    }
    return Samples(**arguments)


def test_samples():
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    some = samples(images=images)
    assert (len(some), some.num_classes, some.channels) == (4, 2, 3)
    np.testing.assert_array_equal(some.image(2), images[2])
    part = some.take(np.array([3, 1]))
    np.testing.assert_array_equal(part.images, images[[3, 1]])
    assert part.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 5, 6, 2), dtype=np.uint8)}, r"images is uint8 \(4, 5, 6, 2\)"),
        ({"images": np.zeros((4, 5, 6, 1), dtype=np.float32)}, "images is float32"),
        ({"images": np.zeros((4, 5, 6), dtype=np.uint8)}, r"it should be uint8 \(N, H, W, C\)"),
        ({"images": np.zeros((4, 0, 6, 1), dtype=np.uint8)}, "images is uint8"),
        ({"images": np.zeros((0, 5, 6, 1), dtype=np.uint8)}, "images holds no samples"),
        ({"labels": np.zeros(3, dtype=np.int64)}, r"labels is int64 \(3,\); it should be int64 \(4,\)"),
        ({"labels": np.zeros(4, dtype=np.int32)}, "labels is int32"),
        ({"labels": [0, 1, 1, 0]}, "labels is a list"),
        ({"labels": np.array([0, 2, 5, 0], dtype=np.int64)}, r"labels\[1\] is 2 \(2 such\)"),
        ({"labels": np.array([0, -1, 0, 0], dtype=np.int64)}, r"labels\[1\] is -1"),
        ({"class_names": ("a",)}, "class_names has 1 name"),
        ({"class_names": ["a", "b"]}, "it should be a tuple of str"),
        ({"class_groups": np.zeros(3, dtype=np.int64)}, r"class_groups is int64 \(3,\)"),
    ],
)
def test_wrong_samples(changes, message):
    with pytest.raises(ValueError, match=message):
        samples(**changes)


def test_splits_that_do_not_fit():
    with pytest.raises(ValueError, match="different class_names"):
        Dataset("x", samples(), samples(class_names=("a", "c")))
    with pytest.raises(ValueError, match="test has 3 channels and train 1"):
        Dataset("x", samples(), samples(images=np.zeros((4, 5, 6, 3), dtype=np.uint8)))


# ---------------------------------------------------------------------------------------------------- digits


def test_digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = load_dataset("digits")
    assert (len(data.train), len(data.test)) == (1347, 450)
    assert data.train.images.shape == (1347, 8, 8, 1)
    assert data.train.images.max() == 255
    assert data.train.class_names == tuple("0123456789")
    source = sklearn.load_digits()
    counts = np.bincount(source.target)
    test_counts = np.bincount(data.test.labels)
    assert np.abs(test_counts - counts * 450 / 1797).max() < 1
    np.testing.assert_array_equal(test_counts + np.bincount(data.train.labels), counts)
    # Together the two splits are the source's images with their labels, each once.
    images = np.concatenate([data.train.images, data.test.images]).reshape(-1, 64)
    labels = np.concatenate([data.train.labels, data.test.labels])
    ours = sorted((row.tobytes(), int(label)) for row, label in zip(images, labels, strict=True))
    pixels = np.rint(source.data * 255 / 16).astype(np.uint8)
    theirs = sorted((row.tobytes(), int(label)) for row, label in zip(pixels, source.target, strict=True))
    assert ours == theirs
    again = load_dataset("digits")
    np.testing.assert_array_equal(data.train.images, again.train.images)
    assert int(data.train.labels @ np.arange(1347) % 1_000_003) == 99808  # the split is pinned


# ---------------------------------------------------------------------------------------------------- idx


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, gz: bool) -> dict[str, np.ndarray]:
    arrays = {}
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, n in (("train", 12), ("t10k", 5)):
        arrays[f"{prefix}-images-idx3"] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1"] = RNG.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        path = folder / f"{name}-ubyte{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content) if gz else content)
    return arrays


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path, gz, below):
    arrays = write_fashion(tmp_path / below, gz=gz)
    data = load_dataset("fashion-mnist", tmp_path)
    for split, prefix in ((data.train, "train"), (data.test, "t10k")):
        np.testing.assert_array_equal(split.images[..., 0], arrays[f"{prefix}-images-idx3"])
        np.testing.assert_array_equal(split.labels, arrays[f"{prefix}-labels-idx1"])
    assert data.train.class_names[9] == "Ankle boot"


def test_fashion_mnist_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist, or .* --data-dir"):
        load_dataset("fashion-mnist", tmp_path)


def test_fashion_mnist_with_a_wrong_count_or_label(tmp_path):
    write_fashion(tmp_path, gz=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(11, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte has 11 labels and .* 12 images"):
        load_dataset("fashion-mnist", tmp_path)
    labels.write_bytes(idx_bytes(np.full(12, 10, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: labels\[0\] is 10"):
        load_dataset("fashion-mnist", tmp_path)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with the bytes ;"),
        (b"<html>not found</html>", "starts with the bytes 3c 68 74 6d"),
        (GOOD[:10], "starts with the bytes 00 00 08 03"),
        (GOOD[:-1], r"has 39 bytes; its header \(2, 3, 4\) makes it 40"),
        (GOOD + b"\0", "has 41 bytes"),
        (b"\0\0\x0d\x03" + GOOD[4:], "starts with the bytes 00 00 0d 03"),
        (b"\0\0\x08\x01" + GOOD[4:], "3-dimensional idx files of unsigned bytes start with 00 00 08 03"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "has 16 bytes; its header"),
    ],
)
def test_broken_idx(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:12] + b"\xff" * 20, lambda c: GOOD]
)
def test_broken_gzip(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(ValueError, match=r"images.gz is not a whole gzip file"):
        read_idx(path, 3)


def test_idx_is_read_right(tmp_path):
    (tmp_path / "x").write_bytes(GOOD)
    array = read_idx(tmp_path / "x", 3)
    np.testing.assert_array_equal(array, np.arange(24).reshape(2, 3, 4))
    assert array.flags.writeable


# ----------------------------------------------------------------------------------------------------- CIFAR


def python2_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text  # BINSTRING, which Python 3 doesn't write


def python2_integers(values: list[int]) -> bytes:
    return b"](" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"e"


def python2_pickle(data: np.ndarray, **labels: list[int]) -> bytes:
    """What cPickle of Python 2 wrote for the official files: protocol 2, byte strings, numpy.core."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_string(b"b") + b"\x87R"
    )
    array += b"(K\x01" + b"".join(b"J" + struct.pack("<i", n) for n in data.shape) + b"\x86"
    array += b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R"
    array += b"(K\x03" + python2_string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array += b"\x89" + python2_string(data.tobytes()) + b"tb"
    fields = b"".join(python2_string(key.encode()) + python2_integers(v) for key, v in labels.items())
    return b"\x80\x02}(" + python2_string(b"data") + array + fields + b"u."


def python3_pickle(data: np.ndarray, **labels: list[int]) -> bytes:
    return pickle.dumps(
        {b"batch_label": b"", b"data": data, **{k.encode(): v for k, v in labels.items()}}, protocol=2
    )


def modern_pickle(data: np.ndarray, **labels: list[int]) -> bytes:
    return pickle.dumps({"data": data, **{k: np.array(v) for k, v in labels.items()}}, protocol=4)


WRITERS = [python2_pickle, python3_pickle, modern_pickle]


def cifar_rows(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 3072), dtype=np.uint8)


def write_cifar10(folder: Path, write=python3_pickle) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = cifar_rows(30), RNG.integers(0, 10, 30)
    for number in range(6):
        part = slice(5 * number, 5 * number + 5)
        name = "test_batch" if number == 5 else f"data_batch_{number + 1}"
        (folder / name).write_bytes(write(rows[part], labels=labels[part].tolist()))
    names = [
        b"airplane",
        b"automobile",
        b"bird",
        b"cat",
        b"deer",
        b"dog",
        b"frog",
        b"horse",
        b"ship",
        b"truck",
    ]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return rows, labels


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("inside", [False, True])
def test_cifar10(tmp_path, write, inside):
    folder = tmp_path / "cifar-10-batches-py"
    rows, labels = write_cifar10(folder, write)
    data = load_dataset("cifar10", folder if inside else tmp_path)
    assert (len(data.train), len(data.test)) == (25, 5)
    images = np.concatenate([data.train.images, data.test.images])
    assert images.shape == (30, 32, 32, 3)
    # A row is 1024 reds, greens, blues, each row by row.
    np.testing.assert_array_equal(images[7, 2, 3], [rows[7, c * 1024 + 2 * 32 + 3] for c in range(3)])
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(30, 3072), rows)
    np.testing.assert_array_equal(np.concatenate([data.train.labels, data.test.labels]), labels)
    assert data.train.class_names[:2] == ("airplane", "automobile")


def write_cifar100(folder: Path, write=python3_pickle, coarse_of=lambda fine: fine % 20) -> np.ndarray:
    folder.mkdir(parents=True)
    for name, n in (("train", 300), ("test", 100)):
        fine = [i % 100 for i in range(n)]
        content = write(cifar_rows(n), fine_labels=fine, coarse_labels=[coarse_of(f) for f in fine])
        (folder / name).write_bytes(content)
    names = [f"class {k}".encode() for k in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))
    return np.array([coarse_of(f) for f in range(100)])


@pytest.mark.parametrize("write", WRITERS)
def test_cifar100(tmp_path, write):
    groups = write_cifar100(tmp_path / "cifar-100-python", write)
    data = load_dataset("cifar100", tmp_path)
    assert (len(data.train), len(data.test), data.train.num_classes) == (300, 100, 100)
    np.testing.assert_array_equal(data.train.class_groups, groups)
    np.testing.assert_array_equal(data.train.labels, np.arange(300) % 100)
    assert data.train.class_names[42] == "class 42"


def test_cifar100_with_two_groups_for_a_class(tmp_path):
    folder = tmp_path / "cifar-100-python"
    write_cifar100(folder)
    fine = [i % 100 for i in range(300)]
    coarse = [i % 20 for i in range(299)] + [0]
    (folder / "train").write_bytes(python3_pickle(cifar_rows(300), fine_labels=fine, coarse_labels=coarse))
    with pytest.raises(ValueError, match="each of the 100 classes should have exactly one coarse label"):
        load_dataset("cifar100", tmp_path)


def test_cifar_is_missing(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no data_batch_1, .*: --data-dir should be the folder cifar-10"
    ):
        load_dataset("cifar10", tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no data_batch_3:"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            python3_pickle(cifar_rows(5), labels=[0] * 4),
            r"data is uint8 \(5, 3072\); it should be uint8 \(4, 3072\)",
        ),
        (python3_pickle(cifar_rows(5)[:, 1:], labels=[0] * 5), r"\(5, 3071\)"),
        (python3_pickle(cifar_rows(5).astype(np.int64), labels=[0] * 5), "data is int64"),
        (python3_pickle(cifar_rows(5), labels=[0, 1, 2, 3, 10]), r"labels\[9\] is 10"),
        (python3_pickle(cifar_rows(5), labels=[0, 1, 2, 3, "x"]), "labels should be a list of labels"),
        (python3_pickle(cifar_rows(5), labels=[0, 1, 2, 3, -1]), "labels should be a list of labels"),
        (
            python3_pickle(cifar_rows(5), label=[0] * 5),
            "has no 'labels'; it has b'batch_label', b'data', b'label'",
        ),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"data": [1], "labels": [1]}), "data is a list"),
    ],
)
def test_cifar_batches_that_are_wrong(tmp_path, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("cifar10", tmp_path)
    assert str(tmp_path) in str(error.value)


class Malicious:
    def __init__(self, call, *arguments) -> None:
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def test_malicious_pickles_run_nothing(tmp_path):
    victim = tmp_path / "owned"
    attacks = [
        pickle.dumps({"data": Malicious(os.mkdir, str(victim))}, protocol=2),
        pickle.dumps({"data": Malicious(eval, f"__import__('os').mkdir({str(victim)!r})")}, protocol=4),
        pickle.dumps({"data": Malicious(getattr, 1, "real")}, protocol=4),
        f"cos\nmkdir\n(V{victim}\ntR.".encode(),
        f"(V{victim}\nios\nmkdir\n.".encode(),
        pickle.dumps({"data": np.array([Malicious(os.mkdir, str(victim))], dtype=object)}, protocol=2),
        pickle.dumps({"data": Path("x")}),
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tR.",
        b"Ppersistent\n.",
        b"\x80\x02c__builtin__\nbytes\nJ\x00\x00\x00\x40\x85R.",
    ]
    for number, content in enumerate(attacks):
        path = tmp_path / f"attack{number}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"attack{number} is not a file of CIFAR's python version"):
            read_pickle(path)
        assert not victim.exists()
    pickle.loads(attacks[0])  # the trap works
    assert victim.exists()


def test_torn_pickles(tmp_path):
    content = python3_pickle(cifar_rows(2), labels=[0, 1])
    path = tmp_path / "torn"
    for length in [*range(0, 200, 7), len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="torn is not a file of CIFAR's python version"):
            read_pickle(path)


def test_pickled_arrays_of_other_kinds(tmp_path):
    path = tmp_path / "x"
    for array in (np.zeros(3, dtype=">i4"), np.zeros(3), np.array(["a"]), np.zeros(3, dtype="M8[s]")):
        path.write_bytes(pickle.dumps({"data": array}, protocol=2))
        with pytest.raises(ValueError, match="which such files don't hold"):
            read_pickle(path)
    fortran = np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3))
    path.write_bytes(pickle.dumps({"data": fortran}, protocol=2))
    np.testing.assert_array_equal(read_pickle(path)["data"], fortran)


# ------------------------------------------------------------------------------------------------------ SVHN


def write_svhn(folder: Path, name: str, n: int, **changes) -> tuple[np.ndarray, np.ndarray]:
    io = pytest.importorskip("scipy.io")
    images = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    labels = (np.arange(n, dtype=np.uint8) % 10 + 1).reshape(-1, 1)
    io.savemat(folder / f"{name}_32x32.mat", {"X": images, "y": labels, **changes}, do_compression=True)
    return images, labels


def test_svhn(tmp_path):
    images, labels = write_svhn(tmp_path, "train", 13)
    write_svhn(tmp_path, "test", 4)
    data = load_dataset("svhn", tmp_path)
    assert data.train.images.shape == (13, 32, 32, 3)
    np.testing.assert_array_equal(data.train.images[5], images[..., 5])
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3]
    assert labels[9, 0] == 10
    assert len(data.test) == 4
    with pytest.raises(FileNotFoundError, match=r"extra_32x32.mat is missing: --data-dir"):
        load_dataset("svhn-extra", tmp_path)
    extra, _ = write_svhn(tmp_path, "extra", 6)
    assert len(load_dataset("svhn", tmp_path).train) == 13
    data = load_dataset("svhn-extra", tmp_path)
    assert data.name == "svhn-extra"
    assert len(data.train) == 19
    np.testing.assert_array_equal(data.train.images[13], extra[..., 0])
    np.testing.assert_array_equal(data.train.images[12], images[..., 12])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros((5, 1), dtype=np.uint8)}, "y spans 0 to 0; it should be 1 to 10"),
        ({"y": np.ones((4, 1), dtype=np.uint8)}, "y has 4 labels; it should have 5"),
        ({"X": np.zeros((5, 3, 32, 32), dtype=np.uint8)}, r"X is uint8 \(5, 3, 32, 32\)"),
        ({"X": np.zeros((32, 32, 3, 5))}, "X is float64"),
    ],
)
def test_wrong_svhn(tmp_path, changes, message):
    write_svhn(tmp_path, "train", 5, **changes)
    write_svhn(tmp_path, "test", 5)
    with pytest.raises(ValueError, match=message):
        load_dataset("svhn", tmp_path)


def test_svhn_missing_and_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat is missing: --data-dir"):
        load_dataset("svhn", tmp_path)
    write_svhn(tmp_path, "train", 5)
    path = tmp_path / "train_32x32.mat"
    content = path.read_bytes()
    for broken in (b"", b"hello" * 100, content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"train_32x32.mat is not a MATLAB file with X and y"):
            load_dataset("svhn", tmp_path)


# ------------------------------------------------------------------------------------------------------- npz

GRAY = RNG.integers(0, 256, (6, 9, 7), dtype=np.uint8)
THREE = np.array([0, 1, 2, 0, 1, 2])


def test_npz_gray_without_names(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=GRAY, labels=THREE.astype(np.uint8))
    data = load_dataset("npz", path)
    np.testing.assert_array_equal(data.train.images[..., 0], GRAY)
    assert data.train.labels.dtype == np.int64
    assert data.train.class_names == ("0", "1", "2")
    assert data.test is None


def test_npz_with_everything(tmp_path):
    path = tmp_path / "mine.npz"
    rgb = RNG.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    names = np.array(["cat", "dog", "owl", "yak"])
    np.savez_compressed(
        path, images=rgb, labels=THREE, test_images=rgb[:2], test_labels=THREE[:2], class_names=names, other=3
    )
    data = load_dataset("npz", str(path))
    np.testing.assert_array_equal(data.train.images, rgb)
    np.testing.assert_array_equal(data.test.images, rgb[:2])
    assert data.test.class_names == ("cat", "dog", "owl", "yak")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GRAY}, "it has no labels; it has images"),
        ({"labels": THREE}, "it has no images"),
        (
            {"images": np.zeros((6, 3, 8, 8), dtype=np.uint8)},
            r"uint8 \(N, H, W\) or \(N, H, W, C\) with C 1 or 3",
        ),
        ({"images": GRAY.astype(np.float32)}, r"images is float32 \(6, 9, 7\)"),
        ({"images": GRAY[0]}, r"images is uint8 \(9, 7\)"),
        ({"labels": THREE[:5]}, r"images: labels is int64 \(5,\); it should be int64 \(6,\)"),
        ({"labels": THREE.astype(float)}, "labels is float64"),
        ({"labels": THREE - 1}, r"labels\[0\] is -1"),
        ({"labels": THREE * 10**9}, "without class_names, labels count from 0"),
        ({"labels": np.zeros(6, dtype=int)}, "labels are all 0; there should be at least 2 classes"),
        ({"class_names": np.array(["a", "b"])}, r"labels\[2\] is 2"),
        ({"class_names": np.array([1, 2, 3])}, "class_names is int64"),
        ({"test_images": GRAY}, "has one of test_images and test_labels"),
        ({"test_images": GRAY[:0], "test_labels": THREE[:0]}, "test_labels is int64"),
        (
            {"test_images": GRAY[:1].repeat(3, 0)[..., None].repeat(3, 3), "test_labels": THREE[:3]},
            "3 channels",
        ),
        ({"images": np.array([Path("x")] * 6, dtype=object)}, "images: Object arrays cannot be loaded"),
    ],
)
def test_wrong_npz(tmp_path, arrays, message):
    path = tmp_path / "mine.npz"
    whole = arrays if set(arrays) <= {"images", "labels"} and "no" in message[:9] else None
    np.savez(path, **(whole or {"images": GRAY, "labels": THREE, **arrays}))
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("npz", path)
    assert str(path) in str(error.value)


def test_npz_missing_and_broken(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(FileNotFoundError, match=r"--data-dir should be the \.npz file itself"):
        load_dataset("npz", path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_dataset("npz", tmp_path)
    np.savez_compressed(path, images=GRAY, labels=THREE)
    content = path.read_bytes()
    for broken in (b"", b"hello", content[: len(content) // 2], content[:60] + b"\xff" * 30 + content[90:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"should be an \.npz file with the arrays images and labels"):
            load_dataset("npz", path)
    np.save(tmp_path / "x.npy", GRAY)
    with pytest.raises(ValueError, match=r"it is no \.npz file"):
        load_dataset("npz", tmp_path / "x.npy")
