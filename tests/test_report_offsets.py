"""α̂ of single samples: of a table as of its dense copy, which is never made."""

import numpy as np
import pytest
import torch

import fastac
from fastac.report.offsets import CenteredRows, centered_rows, top_offsets

N, K = 300, 40
IDS = np.array([299, 0, 7, 150, 7, 31])
NAMED = np.array([[3, 4], [0, -1], [39, 39], [-1, -1], [1, 2], [-1, 5]])
SIZES = {"num_samples": N, "num_classes": K}


def trained(form="ac1", **options) -> fastac.AlphaTable:
    """A table whose rows were last touched at different steps, and read by chunks of two rows."""
    torch.manual_seed(0)
    table = fastac.AlphaTable(N, K, form=form, momentum=0.9, **options)
    table.lr = 0.1
    criterion = fastac.AutoCleansingLoss(table)
    for ids in torch.randperm(N).split(50):
        criterion(torch.randn(50, K, requires_grad=True), ids % K, ids).backward()
        table.step()
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_of_a_table_are_those_of_its_dense_copy(monkeypatch, dtype):
    table = trained(dtype=dtype)
    dense = table.dense()
    monkeypatch.setattr(table, "dense", lambda: pytest.fail("the whole table was copied"))
    read, sizes = table._read, []
    monkeypatch.setattr(table, "_chunk_rows", lambda: 2)
    monkeypatch.setattr(table, "_read", lambda places: sizes.append(len(places)) or read(places))
    expected = dense.double().numpy()[IDS]
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_array_equal(centered_rows(table, IDS, N, K), expected)
    assert sizes == [2, 2, 2]
    found = top_offsets(table, IDS, NAMED, **SIZES)
    assert sizes == [2] * 6
    truth = top_offsets(dense.numpy(), IDS, NAMED, **SIZES)
    for name in ("index", "classes", "values"):
        values = getattr(found, name)
        assert values.dtype == getattr(truth, name).dtype
        np.testing.assert_array_equal(values, getattr(truth, name))
    assert found.classes.shape == (6, 6)
    assert all(set(named[named >= 0]) <= set(row) for named, row in zip(NAMED, found.classes, strict=True))
    assert (np.diff(found.values) <= 0).all()
    assert np.abs(found.values).max() > 0.005


def test_no_rows_and_one_number_a_sample():
    nothing = np.empty(0, np.int64)
    assert centered_rows(trained(), nothing, N, K).shape == (0, K)
    assert top_offsets(trained(), nothing, np.empty((0, 2), np.int64), **SIZES).values.shape == (0, 6)
    for alpha in (trained("ac2"), trained("ac2").dense()):
        assert centered_rows(alpha, IDS, N, K) is None
        assert top_offsets(alpha, IDS, NAMED, **SIZES) is None


def test_rows_that_were_read_before_stand_for_the_table():
    alpha = np.random.default_rng(0).normal(size=(N, K))
    rows = centered_rows(alpha, IDS[:4], N, K)
    read = CenteredRows(IDS[:4], rows)
    np.testing.assert_array_equal(centered_rows(read, IDS[[2, 0, 2]], N, K), rows[[2, 0, 2]])
    with pytest.raises(ValueError, match="alpha must have the rows of all ids, it lacks 31"):
        centered_rows(read, IDS, N, K)
    with pytest.raises(ValueError, match=r"alpha must be of 9 classes, got \(4, 40\) of 4 samples"):
        centered_rows(read, IDS[:4], N, 9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_rows_and_ids_are_named(value):
    table = trained()
    alpha = table.dense()
    for source in (table.alpha, alpha):
        source[31, 5] = value
    for source in (table, alpha, alpha.numpy()):
        with pytest.raises(ValueError, match="alpha must be finite, it is not for sample 31"):
            centered_rows(source, IDS, N, K)
        with pytest.raises(ValueError, match="alpha must be finite, it is not for sample 31"):
            top_offsets(source, IDS, NAMED, **SIZES)
        with pytest.raises(ValueError, match=r"alpha must be \(9, 40\) or \(9,\), got \(300, 40\)"):
            top_offsets(source, IDS, NAMED, num_samples=9, num_classes=K)
    with pytest.raises(IndexError, match=r"index must be in \[0, 300\)"):
        centered_rows(table, np.array([0, 300]), N, K)
