"""Label files: every format read right, every wrong content refused with what it has and should have."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fastac.data import labels_digest, read_id_file, read_label_file

LABELS = np.array([2, 0, 1, 1, 2, 0], dtype=np.int64)


def read(spec: object) -> np.ndarray:
    return read_label_file(str(spec), num_samples=6, num_classes=3)


def check(spec: object) -> None:
    labels = read(spec)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "uint64", ">i4"])
def test_npy(tmp_path, dtype):
    np.save(tmp_path / "labels.npy", LABELS.astype(dtype))
    check(tmp_path / "labels.npy")


def test_npz(tmp_path):
    np.savez(tmp_path / "one.npz", anything=LABELS)
    np.savez_compressed(tmp_path / "many.npz", worse_label=LABELS.astype(np.uint8), clean_label=LABELS * 0)
    check(tmp_path / "one.npz")
    check(f"{tmp_path}/many.npz:worse_label")
    with pytest.raises(
        ValueError,
        match=r"many.npz has worse_label, clean_label, which of them is not said; write many.npz:NAME",
    ):
        read(tmp_path / "many.npz")
    with pytest.raises(ValueError, match="not 'worst'"):
        read(f"{tmp_path}/many.npz:worst")


def test_a_file_with_a_colon_in_its_name(tmp_path):
    np.savez(tmp_path / "a.npz:b.npz", x=LABELS)
    check(tmp_path / "a.npz:b.npz")


@pytest.mark.parametrize("legacy", [False, True])
def test_pt(tmp_path, legacy):
    """CIFAR-10N's official file is a dict of NumPy arrays; a tensor and a bare array do as well."""
    options = {"_use_new_zipfile_serialization": not legacy}
    torch.save({"worse_label": LABELS, "clean_label": LABELS * 0}, tmp_path / "many.pt", **options)
    torch.save(LABELS.astype(np.uint8), tmp_path / "array.pt", **options)
    torch.save(torch.from_numpy(LABELS), tmp_path / "tensor.pt", **options)
    check(f"{tmp_path}/many.pt:worse_label")
    check(tmp_path / "array.pt")
    check(tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="holds one array and has no 'x'"):
        read(f"{tmp_path}/array.pt:x")


class Malicious:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_nothing_in_a_file_is_run(tmp_path):
    victim = tmp_path / "owned"
    torch.save({"label": Malicious(victim)}, tmp_path / "bad.pt")
    np.save(tmp_path / "bad.npy", np.array([Malicious(victim)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "bad.npz", label=np.array([Malicious(victim)], dtype=object))
    for name in ("bad.pt", "bad.npy", "bad.npz"):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(victim)))  # the trap works
    assert victim.exists()


def test_csv(tmp_path):
    rows = [f"{i},{LABELS[i]},name {i}" for i in (3, 1, 0, 5, 4, 2)]
    path = tmp_path / "labels.csv"
    path.write_text("\ufeff" + "\r\n".join(["index,label,comment", *rows]) + "\r\n", encoding="utf-8")
    check(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with ''; its header should have the columns index and label"),
        ("0,2\n1,0\n", "starts with '0,2'"),
        ("index,label\n0,2\n1,0\n2,1\n3,1\n5,0\n", "has 5 of 6 ids, index 4 is missing"),
        ("index,label\n0,2\n1,0\n1,1\n", "line 4: index 1 for the second time"),
        ("index,label\n0,2\n6,0\n", r"line 3: index 6; it should be in \[0, 6\)"),
        ("index,label\n-1,2\n", "line 2: index -1"),
        ("index,label\n0,cat\n", "line 2: label is 'cat'; it should be an integer"),
        ("index,label\n0,1.0\n", "label is '1.0'"),
        ("index,label\n0\n", "label is None"),
        (
            "index,label\n" + "\n".join(f"{i},3" for i in range(6)),
            r"the label 3 at id 0 \(6 such\).*\[0, 3\)",
        ),
    ],
)
def test_wrong_csv(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "labels.csv")
    assert "labels.csv" in str(error.value)


def test_csv_that_is_not_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"index,label\n\xff\xfe\x00\x01,1\n")
    with pytest.raises(ValueError, match=r"labels.csv"):
        read(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LABELS[:5], "has 5 labels; it should have 6, one a training sample"),
        (np.append(LABELS, 0), "has 7 labels; it should have 6"),
        (np.array([0, 1, 2, 3, 0, 9]), r"the label 3 at id 3 \(2 such\); labels should be in \[0, 3\)"),
        (np.array([0, 1, 2, -1, 0, 0]), "the label -1 at id 3"),
        (np.array([0, 1, 2, 2**63, 0, 0], dtype=np.uint64), "the label 9223372036854775808 at id 3"),
        (LABELS.astype(np.float32), r"has float32 \(6,\); it should have integers \(6,\)"),
        (LABELS.reshape(6, 1), r"has int64 \(6, 1\)"),
        (LABELS.astype(bool), "has bool"),
        (np.eye(6, 3, dtype=np.int64), r"\(6, 3\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_wrong_arrays(tmp_path, array, message, suffix):
    path = tmp_path / f"labels.{suffix}"
    if suffix == "pt":
        torch.save(array, path)
    else:
        np.save(path, array) if suffix == "npy" else np.savez(path, x=array)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + b"\0" * 40])
def test_rubbish(tmp_path, suffix, content):
    path = tmp_path / f"labels.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"labels.{suffix}"):
        read(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_truncated(tmp_path, suffix):
    path = tmp_path / f"labels.{suffix}"
    big = np.zeros(5000, dtype=np.int64)
    if suffix == "pt":
        torch.save(big, path)
    else:
        np.save(path, big) if suffix == "npy" else np.savez_compressed(path, x=np.arange(5000))
    content = path.read_bytes()
    for length in (len(content) // 3, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"labels.{suffix}"):
            read(path)


def test_by_another_name(tmp_path):
    np.save(tmp_path / "x.npy", LABELS)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"call it \.npy"):
        read(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", LABELS)
    (tmp_path / "y.npz").rename(tmp_path / "y.npy")
    with pytest.raises(ValueError, match=r"call it \.npz"):
        read(tmp_path / "y.npy")


def test_missing_and_unknown(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no label file .*none\.npy"):
        read(tmp_path / "none.npy")
    with pytest.raises(FileNotFoundError, match=r"none.npz$"):
        read(f"{tmp_path}/none.npz:worse_label")
    with pytest.raises(ValueError, match=r"labels.txt: a label file should end in .npy"):
        read(tmp_path / "labels.txt")


def test_labels_of_the_first_samples_alone(tmp_path):
    (tmp_path / "all.csv").write_text("index,label\n" + "".join(f"{i},{k}\n" for i, k in enumerate(LABELS)))
    (tmp_path / "few.csv").write_text("index,label\n1,0\n0,2\n")
    np.save(tmp_path / "few.npy", LABELS[:2])
    for name, want in (("all.csv", LABELS), ("few.csv", LABELS[:2]), ("few.npy", LABELS[:2])):
        labels = read_label_file(str(tmp_path / name), num_samples=6, num_classes=3, limit=2)
        np.testing.assert_array_equal(labels, want)
    with pytest.raises(ValueError, match="few.npy has 2 labels; it should have 6"):
        read(tmp_path / "few.npy")
    (tmp_path / "few.csv").write_text("index,label\n1,0\n2,2\n")
    with pytest.raises(ValueError, match="has 2 of 6 ids, index 0 is missing"):
        read_label_file(str(tmp_path / "few.csv"), num_samples=6, num_classes=3, limit=2)


def test_digest():
    """As 64-bit little-endian integers, whatever they came as."""
    known = (
        "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8"  # of bytes 01 00 00 00 00 00 00 00
    )
    assert labels_digest(np.array([1])) == known
    assert labels_digest(np.array([1], dtype=">i4")) == known


def test_id_files(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([4, 0, 2], dtype=np.uint8))
    (tmp_path / "ids.csv").write_text("label,index\nx,4\ny,0\nz,2\n")
    for name in ("ids.npy", "ids.csv"):
        ids = read_id_file(tmp_path / name, num_samples=5)
        assert ids.dtype == np.int64
        assert ids.tolist() == [0, 2, 4]
        with pytest.raises(ValueError, match=r"4.*should be in \[0, 4\)"):
            read_id_file(tmp_path / name, num_samples=4)
    (tmp_path / "none.csv").write_text("index\n")
    assert read_id_file(tmp_path / "none.csv", num_samples=5).shape == (0,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.csv", "id\n1\n", "starts with 'id'; its header should have the column index"),
        (
            "ids.csv",
            "index\n1\n1\n",
            "line 3: index 1 for the second time; every id should be there at most once",
        ),
        ("ids.csv", "index\none\n", "line 2: index is 'one'; it should be an integer"),
        ("ids.npy", np.array([1.0]), r"has float64 \(1,\); it should have integers \(n,\)"),
        ("ids.npy", np.array([1, 1]), "has the id 1 twice"),
        ("ids.npy", np.array([-1]), "has the id -1"),
        ("ids.txt", "1", "should end in .npy or .csv"),
    ],
)
def test_wrong_id_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else np.save(path, content)
    with pytest.raises(ValueError, match=message):
        read_id_file(path, num_samples=5)


def test_no_id_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of ids"):
        read_id_file(tmp_path / "ids.csv", num_samples=5)
