"""Files by sample: labels that replace a data set's own (CIFAR-10N's, a person's corrections), and lists of ids."""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["label_file_path", "labels_digest", "read_id_file", "read_label_file"]

_WITH_NAME = re.compile(r"(?P<path>.+\.(npz|pt)):(?P<name>[^:/\\]+)", re.IGNORECASE)


def labels_digest(labels: np.ndarray) -> str:
    """The fingerprint of (N,) int64 labels in the order of the ids: SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def read_label_file(spec: str, *, num_samples: int, num_classes: int, limit: int | None = None) -> np.ndarray:
    """Read one label a sample, (num_samples,) int64 in [0, num_classes).

    limit: a file of the first so many samples' labels is right too; the answer is then (limit,).

    spec, by suffix:
        labels.npy: (N,) integers, in the order of the ids.
        labels.npz or labels.npz:NAME: such an array; NAME may be left out where the file has one array.
        labels.pt or labels.pt:NAME: such an array or tensor, or a dict of them, as CIFAR-10N is published;
            loaded with weights_only, so that nothing in it is run.
        labels.csv: a header with the columns index and label (others are ignored), every id exactly once, in
            any order.

    Raises FileNotFoundError, or ValueError that names the file, what it has and what it should have.
    """
    path, name = _path_and_name(spec)
    readers = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_pt}
    if path.suffix.lower() not in (*readers, ".csv"):
        raise ValueError(f"{spec}: a label file should end in .npy, .npz, .npz:NAME, .pt, .pt:NAME or .csv")
    if not path.is_file():
        raise FileNotFoundError(f"there is no label file {path}")
    if path.suffix.lower() == ".csv":
        labels = _read_csv(path, num_samples, limit)
    else:
        labels = np.asarray(readers[path.suffix.lower()](path, name))
    return _checked(spec, labels, limit if len(labels) == limit else num_samples, num_classes)


def label_file_path(spec: str) -> Path:
    """The file that read_label_file(spec) reads."""
    return _path_and_name(spec)[0]


def _path_and_name(spec: str) -> tuple[Path, str | None]:
    match = None if Path(spec).exists() else _WITH_NAME.fullmatch(spec)
    return (Path(match["path"]), match["name"]) if match else (Path(spec), None)


def read_id_file(path: Path, *, num_samples: int) -> np.ndarray:
    """Read sample ids, (n,) int64 in [0, num_samples), ascending; n may be 0.

    path: a .csv file with a header that has the column index (others are ignored), or an .npy file of integers (n,);
    no id twice. Raises FileNotFoundError, or ValueError that names the file, what it has and what it should have.
    """
    if path.suffix.lower() not in (".npy", ".csv"):
        raise ValueError(f"{path}: a file of ids should end in .npy or .csv")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of ids {path}")
    if path.suffix.lower() == ".csv":
        return np.array(sorted(_read_rows(path, num_samples, ("index",))), dtype=np.int64)
    ids = np.asarray(_read_npy(path, None))
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise ValueError(f"{path} has {ids.dtype} {ids.shape}; it should have integers (n,)")
    outside = np.flatnonzero((ids < 0) | (ids >= num_samples))
    if outside.size:
        raise ValueError(f"{path} has the id {ids[outside[0]]}; ids should be in [0, {num_samples})")
    ids, count = np.unique(ids.astype(np.int64), return_counts=True)
    if (count > 1).any():
        raise ValueError(
            f"{path} has the id {ids[count > 1][0]} twice; every id should be there at most once"
        )
    return ids


def _checked(spec: str, labels: np.ndarray, num_samples: int, num_classes: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"{spec} has {labels.dtype} {labels.shape}; it should have integers ({num_samples},)"
        )
    if len(labels) != num_samples:
        raise ValueError(
            f"{spec} has {len(labels)} labels; it should have {num_samples}, one a training sample"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise ValueError(
            f"{spec} has the label {labels[outside[0]]} at id {outside[0]} ({outside.size} such); "
            f"labels should be in [0, {num_classes})"
        )
    return labels.astype(np.int64)


def _read_npy(path: Path, name: str | None) -> Any:
    content = _unwrapped(path, lambda: np.load(path, allow_pickle=False))
    if not isinstance(content, np.ndarray):
        raise ValueError(f"{path} is an .npz file by another name; call it .npz")
    return content


def _read_npz(path: Path, name: str | None) -> Any:
    content = _unwrapped(path, lambda: np.load(path, allow_pickle=False))
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is a .npy file by another name; call it .npy")
    with content:
        key = _pick(path, name, list(content))
        return _unwrapped(path, lambda: content[key])


def _unwrapped(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} should be a NumPy file of integers: {error}") from error


def _read_pt(path: Path, name: str | None) -> Any:
    multiarray = getattr(np, "_core", None) or np.core  # NumPy 1.26 has the old name only
    reconstruct = multiarray.multiarray._reconstruct
    admitted: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQfd"}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        admitted.append((reconstruct, f"{module}._reconstruct"))
    try:
        with torch.serialization.safe_globals(admitted):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything
        raise ValueError(f"{path} should be a torch file of label arrays alone: {error}") from error
    if isinstance(content, dict):
        content = content[_pick(path, name, list(content))]
    elif name is not None:
        raise ValueError(f"{path} holds one array and has no {name!r}")
    if not isinstance(content, np.ndarray | torch.Tensor):
        raise ValueError(f"{path} holds a {type(content).__name__}; it should hold an array of labels")
    return content


def _pick(path: Path, name: str | None, names: list[str]) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        asked = "which of them is not said" if name is None else f"not {name!r}"
        raise ValueError(f"{path} has {', '.join(names) or 'nothing'}, {asked}; write {path.name}:NAME")
    return name


def _read_csv(path: Path, num_samples: int, limit: int | None) -> np.ndarray:
    labels = {index: label for index, (label,) in _read_rows(path, num_samples, ("index", "label")).items()}
    if len(labels) == limit and max(labels) < limit:
        num_samples = limit
    if len(labels) != num_samples:
        missing = next(i for i in range(num_samples) if i not in labels)
        raise ValueError(
            f"{path} has {len(labels)} of {num_samples} ids, index {missing} is missing; "
            "every id should be there exactly once"
        )
    return np.array([labels[i] for i in range(num_samples)], dtype=np.int64)


def _read_rows(path: Path, num_samples: int, columns: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    """The integers of `columns`, of which the first is index, by index."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if not set(columns) <= set(header):
                found = ",".join(map(str, header))
                wanted = "columns index and label" if len(columns) > 1 else "column index"
                raise ValueError(f"{path} starts with {found!r}; its header should have the {wanted}")
            rows: dict[int, tuple[int, ...]] = {}
            for row in reader:
                index, *others = (_csv_integer(path, reader, row, column) for column in columns)
                if not 0 <= index < num_samples:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: index {index}; it should be in [0, {num_samples})"
                    )
                if index in rows:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: index {index} for the second time; "
                        f"every id should be there {'exactly' if others else 'at most'} once"
                    )
                rows[index] = tuple(others)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} should be a CSV file in UTF-8: {error}") from error
    return rows


def _csv_integer(path: Path, reader: Any, row: dict[str, Any], column: str) -> int:
    text = row[column]
    if not isinstance(text, str) or not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text):
        raise ValueError(f"{path}, line {reader.line_num}: {column} is {text!r}; it should be an integer")
    return int(text)
