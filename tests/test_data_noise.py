"""Injected label noise: how many, which, where to, and that nothing outside decides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastac.data import inject_noise

LABELS = np.repeat(np.arange(10), 500)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 300),
    k=st.integers(2, 12),
    rate=st.floats(0, 0.999),
    seed=st.integers(0, 2**64),
    kind=st.sampled_from(["uniform", "pair"]),
)
def test_exactly_the_rate(n, k, rate, seed, kind):
    labels = np.random.default_rng(0).integers(0, k, n)
    before = labels.copy()
    noisy = inject_noise(labels, k, kind=kind, rate=rate, seed=seed)
    np.testing.assert_array_equal(labels, before)
    assert noisy.dtype == np.int64
    assert noisy is not labels
    assert (noisy != labels).sum() == round(rate * n)
    assert noisy.min() >= 0
    assert noisy.max() < k
    if kind == "pair":
        changed = noisy != labels
        np.testing.assert_array_equal(noisy[changed], (labels[changed] + 1) % k)


def test_uniform_is_uniform():
    noisy = inject_noise(LABELS, 10, kind="uniform", rate=0.4, seed=0)
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (LABELS, noisy), 1)
    wrong = counts[~np.eye(10, dtype=bool)]
    assert wrong.sum() == 2000
    chi2 = ((wrong - 2000 / 90) ** 2 / (2000 / 90)).sum()
    assert 50 < chi2 < 140  # 89 degrees of freedom, deviation 13
    assert np.abs(np.diag(counts) - 300).max() < 50  # every class loses its share


def test_asymmetric_cifar10_is_patrinis_map():
    noisy = inject_noise(LABELS, 10, kind="asymmetric", rate=0.4, seed=1, dataset="cifar10")
    changed = noisy != LABELS
    assert changed.sum() == 1000  # 0.4 of five classes of 500
    assert set(zip(LABELS[changed].tolist(), noisy[changed].tolist(), strict=True)) == {
        (9, 1),  # truck -> automobile
        (2, 0),  # bird -> airplane
        (4, 7),  # deer -> horse
        (3, 5),  # cat -> dog
        (5, 3),  # dog -> cat
    }


def test_asymmetric_by_groups_stays_in_the_group():
    groups = np.array([0, 1, 0, 1, 0], dtype=np.int64)
    labels = np.repeat(np.arange(5), 100)
    noisy = inject_noise(labels, 5, kind="asymmetric", rate=0.3, seed=0, class_groups=groups)
    changed = noisy != labels
    assert changed.sum() == 150
    pairs = set(zip(labels[changed].tolist(), noisy[changed].tolist(), strict=True))
    assert pairs == {(0, 2), (2, 4), (4, 0), (1, 3), (3, 1)}


def test_a_group_of_one_class_is_not_affected():
    groups = np.array([0, 0, 1], dtype=np.int64)
    labels = np.repeat(np.arange(3), 100)
    noisy = inject_noise(labels, 3, kind="asymmetric", rate=0.5, seed=0, class_groups=groups)
    assert (noisy[labels == 2] == 2).all()
    assert (noisy != labels).sum() == 100


def test_neither_reads_nor_changes_the_global_random_states():
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = inject_noise(LABELS, 10, kind="uniform", rate=0.2, seed=7)
    drawn = np.random.random(), torch.rand(()).item()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert drawn == (np.random.random(), torch.rand(()).item())  # noqa: NPY002
    np.testing.assert_array_equal(first, inject_noise(LABELS, 10, kind="uniform", rate=0.2, seed=7))
    assert (first != inject_noise(LABELS, 10, kind="uniform", rate=0.2, seed=8)).any()


def test_the_stream_is_pinned():
    """A change of the draws would silently change every published experiment."""
    noisy = inject_noise(np.zeros(20, dtype=np.int64), 10, kind="uniform", rate=0.5, seed=0)
    assert noisy.tolist() == [0, 0, 0, 3, 1, 0, 2, 4, 0, 0, 0, 0, 0, 0, 3, 7, 3, 6, 6, 3]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "unifrom"}, "unknown kind 'unifrom'; did you mean 'uniform'"),
        ({"rate": 1.0}, "rate is 1.0"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"kind": "asymmetric"}, "not for 'this data'"),
        ({"kind": "asymmetric", "dataset": "svhn"}, "not for 'svhn'"),
        (
            {"kind": "asymmetric", "class_groups": np.zeros(3, dtype=np.int64)},
            r"shape \(3,\); it should be \(10,\)",
        ),
        ({"labels": LABELS.astype(np.int32)}, "labels is int32"),
        ({"labels": LABELS + 1}, r"labels\[4500\] is 10"),
    ],
)
def test_bad_arguments(kwargs, message):
    arguments = {"labels": LABELS, "kind": "uniform", "rate": 0.2, "seed": 0, **kwargs}
    with pytest.raises(ValueError, match=message):
        inject_noise(arguments.pop("labels"), 10, **arguments)


def test_one_class_cannot_be_noisy():
    with pytest.raises(ValueError, match="num_classes is 1"):
        inject_noise(np.zeros(4, dtype=np.int64), 1, kind="uniform", rate=0.5, seed=0)
