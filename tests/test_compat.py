"""fastac.compat beside the package that it stands in for."""

import gc
import pickle

import numpy as np
import pytest
import torch

import fastac
from fastac import compat

pd = pytest.importorskip("pandas")
N, K = 30, 5


def batches(count=12, size=16, dtype=torch.float32):
    """Logits, targets and ids, with ids twice in a batch and tied logits."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        logits = torch.randn(size, K, generator=generator).to(dtype)
        logits[0] = 0.5
        yield (
            logits,
            torch.randint(K, (size,), generator=generator),
            torch.randint(N, (size,), generator=generator),
        )


def by_hand(updates):
    """Margins, one sample and one measurement at a time."""
    margins = {}
    for logits, target, ids in updates:
        for row, y, name in zip(logits, target.tolist(), ids, strict=True):
            rest = torch.cat([row[:y], row[y + 1 :]])
            margins.setdefault(name, []).append(float(row[y] - rest.max()))
    return margins


def named(ids):
    return [f"image {i}.png" for i in ids.tolist()]


@pytest.mark.parametrize("ids", [torch.Tensor.tolist, named, lambda i: i, lambda i: i.numpy()])
def test_the_mean_of_each_samples_margins(tmp_path, ids):
    calculator = compat.AUMCalculator(tmp_path)
    for logits, target, index in batches():
        calculator.update(logits.requires_grad_(), target, ids(index))
    key = named if ids is named else torch.Tensor.tolist
    truth = by_hand((logits, target, key(index)) for logits, target, index in batches())
    assert list(calculator.counts) == list(truth)  # in the order in which they were first seen
    assert calculator.counts == {name: len(values) for name, values in truth.items()}
    assert calculator.sums == {name: sum(values) for name, values in truth.items()}  # to the last bit
    calculator.finalize()
    written = pd.read_csv(tmp_path / "aum_values.csv").set_index("sample_id")["aum"]
    assert written.is_monotonic_decreasing
    assert written.to_dict() == {name: sum(values) / len(values) for name, values in truth.items()}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ids", [torch.Tensor.tolist, named])
def test_the_same_files_as_the_package(tmp_path, compressed, dtype, ids):
    package = pytest.importorskip("aum", reason="needs the package aum")
    folders = tmp_path / "theirs", tmp_path / "ours"
    theirs = package.AUMCalculator(str(folders[0]), compressed=compressed)
    ours = compat.AUMCalculator(str(folders[1]), compressed=compressed)
    for logits, target, index in batches(dtype=dtype):
        expected, got = (c.update(logits, target, ids(index)) for c in (theirs, ours))
        assert {name: vars(r) for name, r in got.items()} == {name: vars(r) for name, r in expected.items()}
    theirs.finalize()
    ours.finalize()
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["aum_values.csv", "full_aum_records.csv"][: 1 if compressed else 2]
    assert sorted(path.name for path in folders[1].iterdir()) == names
    for name in names:
        assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes()
    assert (ours.counts, ours.sums) == (theirs.counts, theirs.sums)
    if not compressed:
        assert [vars(r) for r in ours.records] == [vars(r) for r in theirs.records]
        assert ours.records_to_df(ours.records).equals(theirs.records_to_df(theirs.records))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_result_says_what_was_true_at_its_update(tmp_path, compressed):
    package = pytest.importorskip("aum", reason="needs the package aum")
    theirs = package.AUMCalculator(tmp_path, compressed=compressed)
    ours = compat.AUMCalculator(tmp_path, compressed=compressed)
    pairs = [
        tuple(c.update(logits, target, index.tolist()) for c in (theirs, ours))
        for logits, target, index in batches()
    ]
    for expected, got in pairs:  # all read after the last update
        assert {name: vars(r) for name, r in dict(got).items()} == {
            name: vars(r) for name, r in expected.items()
        }


def test_what_is_not_read_stays_on_the_device(tmp_path, monkeypatch):
    calculator = compat.AUMCalculator(tmp_path)
    transfers = []
    monkeypatch.setattr(
        compat, "_on_host", lambda parts, real=compat._on_host: transfers.append(1) or real(parts)
    )
    for logits, target, index in batches(count=50):
        calculator.update(logits, target, index)
    gc.collect()
    assert not transfers
    assert sum(calculator.counts.values()) == 800
    assert len(transfers) == 2  # ids and margins of 50 updates


def test_it_settles_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "_SETTLE_AT", 40)
    for compressed in (True, False):
        calculator = compat.AUMCalculator(tmp_path, compressed)
        for logits, target, index in batches():
            calculator.update(logits, target, index)
            assert calculator._num_waiting < 40
        truth = by_hand((logits, target, index.tolist()) for logits, target, index in batches())
        assert calculator.sums == {name: sum(values) for name, values in truth.items()}
        if not compressed:
            assert [r.num_measurements for r in calculator.records if r.sample_id == 3] == [
                *range(1, len(truth[3]) + 1)
            ]


def test_tensors_and_lists_of_ids_may_be_mixed(tmp_path):
    calculator = compat.AUMCalculator(tmp_path)
    for number, (logits, target, index) in enumerate(batches()):
        calculator.update(logits, target, index if number % 2 else index.tolist())
    truth = by_hand((logits, target, index.tolist()) for logits, target, index in batches())
    assert list(calculator.counts) == list(truth)
    assert calculator.sums == {name: sum(values) for name, values in truth.items()}


@pytest.mark.parametrize("compressed", [True, False])
def test_a_buffer_that_the_next_batch_overwrites(tmp_path, compressed):
    calculator = compat.AUMCalculator(tmp_path, compressed)
    logits, target = torch.tensor([[1.0, 3.0, 2.5], [0.0, 0.5, 4.0]]), torch.tensor([1, 0])
    index = torch.tensor([7, 4])
    result = calculator.update(logits, target, index)
    for buffer in (logits, target, index):
        buffer.fill_(2)
    assert result[7] == compat.AUMRecord(7, 1, 1, 3.0, 2, 2.5, 0.5, 0.5)
    assert result[4] == compat.AUMRecord(4, 1, 0, 0.0, 2, 4.0, -4.0, -4.0)


@pytest.mark.parametrize(
    "ids", [lambda: map(str, range(3)), lambda: (str(i) for i in range(3)), lambda: "012"]
)
def test_ids_that_come_one_by_one_and_targets_in_a_column(tmp_path, ids):
    calculator = compat.AUMCalculator(tmp_path)
    logits, target = torch.randn(3, K), torch.tensor([4, 0, 2])
    result = calculator.update(logits, target[:, None], ids())
    expected = by_hand([(logits, target, ["0", "1", "2"])])
    assert {name: [record.margin] for name, record in result.items()} == expected
    assert [record.target_logit for record in result.values()] == [4, 0, 2]


def test_what_it_returns_is_a_copy(tmp_path):
    calculator = compat.AUMCalculator(tmp_path, compressed=False)
    for _ in range(2):
        result = calculator.update(torch.zeros(1, 3), torch.tensor([1]), ["a"])
        for held in (calculator.counts, calculator.sums, calculator.records):
            held.clear()
    assert (calculator.counts, len(calculator.records)) == ({"a": 2}, 2)
    assert dict(result)["a"].num_measurements == 2


def test_a_batch_of_one_and_none(tmp_path):
    calculator = compat.AUMCalculator(tmp_path)
    (record,) = calculator.update(torch.tensor([[1.0, 3.0, 2.5]]), torch.tensor([1]), ["a"]).values()
    assert record == compat.AUMRecord("a", 1, 1, 3.0, 2, 2.5, 0.5, 0.5)
    assert len(calculator.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), [])) == 0
    assert calculator.counts == {"a": 1}


def test_pickled(tmp_path):
    calculator = compat.AUMCalculator(tmp_path, compressed=False)
    parts = list(batches())
    for logits, target, index in parts[:6]:
        kept = calculator.update(logits, target, index)
    again = pickle.loads(pickle.dumps(calculator))
    assert len(kept)
    for c in (calculator, again):
        for logits, target, index in parts[6:]:
            c.update(logits, target, index)
    assert again.sums == calculator.sums
    assert again.records == calculator.records


def test_the_loss_records_the_same(tmp_path):
    """TrainingDynamics, in the loss's own pass and by update(), beside the package's arithmetic."""
    calculator = compat.AUMCalculator(tmp_path)
    fused, own = fastac.TrainingDynamics(N, K), fastac.TrainingDynamics(N, K)
    table = fastac.AlphaTable(N, K, momentum=0.9)
    table.lr = 1.0
    criterion = fastac.AutoCleansingLoss(table, dynamics=fused, update="forward")
    for logits, target, index in batches():
        calculator.update(logits, target, index)
        own.update(logits, target, index)
        criterion(logits.requires_grad_(), target, index).backward()
        table.step()
    aum = np.full(N, np.nan)
    for name, total in calculator.sums.items():
        aum[name] = total / calculator.counts[name]
    for dynamics in (fused, own):
        np.testing.assert_allclose(dynamics.aum.numpy(), aum, rtol=1e-6, atol=1e-7)


def test_dataset_with_index():
    inner = torch.utils.data.TensorDataset(torch.arange(3.0), torch.arange(3))
    assert [tuple(int(x) for x in item) for item in compat.DatasetWithIndex(inner)][2] == (2, 2, 2)
    assert len(compat.DatasetWithIndex(inner)) == 3


def test_bad_input(tmp_path):
    calculator = compat.AUMCalculator(tmp_path / "new")
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="no sample was measured"):
        calculator.finalize()
    assert not (tmp_path / "new").exists()
    for arguments, message in (
        ((logits, target, ["a"]), r"got \(2, 3\), \(2,\) and 1"),
        ((logits, target[:1], ["a", "b"]), r"got \(2, 3\), \(1,\) and 2"),
        ((logits, target[None], ["a", "b"]), r"got \(2, 3\), \(1, 2\) and 2"),
        ((logits, target, map(str, [1, 2, 3])), r"got \(2, 3\), \(2,\) and 3"),
        ((logits[0], target, ["a", "b"]), r"got \(3,\)"),
        ((logits, target, torch.zeros(2)), "sample_ids must hold B integers, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            calculator.update(*arguments)
    with pytest.raises(RuntimeError, match="index 3 is out of bounds"):
        calculator.update(logits, torch.tensor([0, 3]), ["a", "b"])
    with pytest.raises(TypeError, match="unhashable"):
        calculator.update(logits, target, ["a", ["b"]])
    with pytest.raises(AttributeError, match="compressed=False"):
        _ = calculator.records
    calculator.update(logits, target, ["b", "c"])
    assert calculator.counts == {"b": 1, "c": 1}
    calculator.finalize()
    assert set(pd.read_csv(tmp_path / "new" / "aum_values.csv")["sample_id"]) == {"b", "c"}
