"""CIFAR-10 and CIFAR-100 from their "python version": folders of pickles, read without trusting them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fastac.data.samples import Dataset, Samples

__all__ = ["load_cifar10", "load_cifar100", "read_pickle"]

_CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def load_cifar10(data_dir: Path) -> Dataset:
    """50,000 training and 10,000 test images, (N, 32, 32, 3) uint8, ids in the order of data_batch_1 to 5.

    data_dir: the folder cifar-10-batches-py or the one that holds it.
    """
    folder = _folder(data_dir, "cifar-10-batches-py", (*_CIFAR10_TRAIN, "test_batch", "batches.meta"))
    names = _names(folder / "batches.meta", "label_names")
    train = [_batch(path, read_pickle(path), "labels") for path in (folder / n for n in _CIFAR10_TRAIN)]
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    test_path = folder / "test_batch"
    test_images, test_labels = _batch(test_path, read_pickle(test_path), "labels")
    return Dataset(
        "cifar10",
        _samples(folder, images, labels, names, None),
        _samples(folder, test_images, test_labels, names, None),
    )


def load_cifar100(data_dir: Path) -> Dataset:
    """50,000 training and 10,000 test images, (N, 32, 32, 3) uint8; `class_groups` holds the 20 superclasses.

    data_dir: the folder cifar-100-python or the one that holds it.
    """
    folder = _folder(data_dir, "cifar-100-python", ("train", "test", "meta"))
    names = _names(folder / "meta", "fine_label_names")
    train_path, test_path = folder / "train", folder / "test"
    content = read_pickle(train_path)
    images, labels = _batch(train_path, content, "fine_labels")
    groups = _groups(train_path, content, labels, len(names))
    test_images, test_labels = _batch(test_path, read_pickle(test_path), "fine_labels")
    return Dataset(
        "cifar100",
        _samples(folder, images, labels, names, groups),
        _samples(folder, test_images, test_labels, names, groups),
    )


def _folder(data_dir: Path, name: str, files: tuple[str, ...]) -> Path:
    folder = data_dir / name if (data_dir / name).is_dir() else data_dir
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}: --data-dir should be the folder {name} "
            "of CIFAR's python version, or the folder that holds it"
        )
    return folder


def _samples(
    folder: Path, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...], groups: np.ndarray | None
) -> Samples:
    try:
        return Samples(images, labels, names, groups)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = _field(path, read_pickle(path), key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"{path}: {key} should be a list of names")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _batch(path: Path, content: Any, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64 of one file."""
    data = _field(path, content, "data")
    labels = _integers(path, content, label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3 * 32 * 32):
        what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise ValueError(f"{path}: data is {what}; it should be uint8 ({len(labels)}, 3072)")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _groups(path: Path, content: Any, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) int64: the coarse label that goes with each fine label."""
    coarse = _integers(path, content, "coarse_labels")
    if len(coarse) != len(labels):
        raise ValueError(f"{path} has {len(coarse)} coarse_labels; it should have {len(labels)}")
    pairs = sorted(set(zip(labels.tolist(), coarse.tolist(), strict=True)))
    if [fine for fine, _ in pairs] != list(range(num_classes)):
        raise ValueError(f"{path}: each of the {num_classes} classes should have exactly one coarse label")
    return np.array([group for _, group in pairs], dtype=np.int64)


def _field(path: Path, content: Any, key: str) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it should hold a dict")
    for name in (key, key.encode()):  # Python 2 wrote byte strings
        if name in content:
            return content[name]
    raise ValueError(f"{path} has no {key!r}; it has {', '.join(map(repr, content)) or 'nothing'}")


def _integers(path: Path, content: Any, key: str) -> np.ndarray:
    values = _field(path, content, key)
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values.astype(np.int64)
    if isinstance(values, list) and all(type(value) is int and 0 <= value < 2**31 for value in values):
        return np.array(values, dtype=np.int64)
    raise ValueError(f"{path}: {key} should be a list of labels")


class _ArrayType:
    """Stands in for numpy.dtype: a name out of three, byte order little or none."""

    def __init__(self, code: bytes | str, align: Any = False, copy: Any = True) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if code not in ("u1", "i4", "i8"):
            raise pickle.UnpicklingError(f"an array of type {code!r}, which such files don't hold")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state[1] in (">", b">"):
            raise pickle.UnpicklingError("a big-endian array, which such files don't hold")


class _Array:
    """Stands in for numpy.ndarray: takes the pickled shape, type and bytes, and is converted afterwards."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, column_major, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _ArrayType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not made of numbers")
        flat = np.frombuffer(raw, "<" + kind.code)
        self.value = flat.reshape(shape, order="F" if column_major else "C")


def _reconstruct(_type: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode, as Python 3's protocol 2 writes bytes: latin1 and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """bytes(), as Python 3's protocol 2 writes b""."""
    return b""


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ArrayType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which such files don't hold")
        return _ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """Read a pickle of dicts, lists, strings, numbers and plain number arrays; nothing that it names is run.

    The few names that such files refer to (NumPy's array reconstruction, bytes) are answered with
    stand-ins of this module, so that no code of another module is reached. Raises ValueError, which names the
    file, for anything else and for torn files.
    """
    with path.open("rb") as file:
        try:
            content = _Unpickler(file, encoding="bytes").load()
            if isinstance(content, dict):
                content = {k: v.value if isinstance(v, _Array) else v for k, v in content.items()}
        except Exception as error:  # a broken pickle may raise anything
            raise ValueError(f"{path} is not a file of CIFAR's python version: {error}") from error
    return content
