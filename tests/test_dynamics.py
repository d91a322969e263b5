import itertools
import sys

import numpy as np
import pytest
import torch

import fastac

N, K = 12, 4


class ByHand:
    """The statistics one sample and one visit at a time, after their papers."""

    def __init__(self):
        self.visits = [[] for _ in range(N)]

    def record(self, logits, target, index):
        for m, y, n in zip(logits.double(), target.tolist(), index.tolist(), strict=True):
            if y == -100:
                continue
            p = m.softmax(0)
            others = torch.cat([m[:y], m[y + 1 :]])
            error = (p - torch.nn.functional.one_hot(torch.tensor(y), K)).norm()
            self.visits[n].append(
                (
                    m[y] - others.max(),
                    p[y],
                    bool(m[y] >= others.max()),
                    error,
                    torch.nn.functional.cross_entropy(m, torch.tensor(y)),
                )
            )

    def frame(self):
        rows = []
        for n, visits in enumerate(self.visits):
            margin, p, correct, el2n, loss = (np.array([float(v[c]) for v in visits]) for c in range(5))
            forgot = sum(bool(a) and not b for a, b in itertools.pairwise(correct)) if visits else 0
            mean = (lambda x: x.mean()) if visits else (lambda x: np.nan)
            p_var = p.var() if visits else np.nan
            rows.append(
                [
                    n,
                    len(visits),
                    mean(margin),
                    mean(p),
                    p_var,
                    int(correct.sum()),
                    forgot,
                    mean(el2n),
                    mean(loss),
                ]
            )
        return np.array(rows)


COLUMNS = ["index", "count", "aum", "p_mean", "p_var", "correct", "forgetting", "el2n", "loss_mean"]


@pytest.mark.parametrize("update", ["step", "forward", None])
def test_against_one_sample_at_a_time(update):
    table = None
    if update:
        table = fastac.AlphaTable(N, K, momentum=0.9)
        table.lr = 5.0  # α grows large: the statistics must not see it
    dynamics, truth = fastac.TrainingDynamics(N, K), ByHand()
    criterion = fastac.AutoCleansingLoss(table, dynamics=dynamics, update=update or "step")
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        index = torch.randint(N - 2, (7,), generator=generator)  # with repeats; two samples are never seen
        logits = 2 * torch.randn(7, K, generator=generator)
        target = index % K
        target[3] = -100
        criterion(logits.requires_grad_(), target, index).backward()
        if table:
            table.step()
        truth.record(logits.detach(), target, index)
    frame = dynamics.frame()
    assert list(frame.columns) == COLUMNS
    np.testing.assert_allclose(frame.to_numpy(dtype=float), truth.frame(), rtol=2e-6, atol=1e-7)
    assert frame.forgetting.sum() > 10
    assert frame.aum.isna().sum() == 2
    assert dynamics.aum.isnan().sum() == 2


def test_no_visit_without_learning():
    dynamics = fastac.TrainingDynamics(N, K)
    criterion = fastac.AutoCleansingLoss(None, dynamics=dynamics)
    index = torch.arange(3)
    with torch.no_grad():
        criterion(torch.randn(3, K), index, index)
    logits = torch.randn(3, K, requires_grad=True)
    criterion.eval()(logits, index, index).backward()
    criterion(logits, index)  # in eval mode the ids may be left out
    logits = torch.full((3, K), torch.nan, requires_grad=True)
    criterion.train()(logits, index, index).backward()
    assert int(dynamics.count.sum()) == 0


def test_state(tmp_path):
    dynamics, other = fastac.TrainingDynamics(N, K), fastac.TrainingDynamics(N, K)
    index = torch.arange(5)
    for k in range(3):
        dynamics.record(index, torch.rand(5, 5, generator=torch.Generator().manual_seed(k)).round())
    torch.save(dynamics.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.frame().equals(dynamics.frame())
    before = dynamics.frame()
    for state, message in (
        (fastac.TrainingDynamics(N + 1, K).state_dict(), "num_samples is 13, not 12"),
        ({**dynamics.state_dict(), "sums": torch.zeros(3)}, "sums in the state"),
    ):
        with pytest.raises(ValueError, match=message):
            dynamics.load_state_dict(state)
    assert dynamics.frame().equals(before)


def test_bad_input():
    with pytest.raises(ValueError, match="num_classes must be"):
        fastac.TrainingDynamics(N, 1)
    criterion = fastac.AutoCleansingLoss(None, dynamics=fastac.TrainingDynamics(N, K))
    index = torch.arange(3)
    with pytest.raises(ValueError, match="K = 5 classes, dynamics has 4"):
        criterion(torch.zeros(3, 5), index, index)
    with pytest.raises(ValueError, match="index is missing"):
        criterion(torch.zeros(3, K), index)
    mixed = fastac.AutoCleansingLoss(fastac.AlphaTable(N + 1, K), dynamics=fastac.TrainingDynamics(N, K))
    with pytest.raises(ValueError, match="dynamics has 12 samples, the table has 13"):
        mixed(torch.zeros(3, K), index, index)


def draw(generator, dtype=torch.float32):
    index = torch.randint(N - 2, (7,), generator=generator)
    target = torch.where(torch.arange(7) == 3, -100, index % K)
    return (2 * torch.randn(7, K, generator=generator)).to(dtype), target, index


def assert_same(dynamics, truth, rtol=2e-6):
    np.testing.assert_allclose(dynamics.frame().to_numpy(dtype=float), truth.frame(), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_loss_of_ones_own(dtype):
    dynamics, truth = fastac.TrainingDynamics(N, K), ByHand()
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        logits, target, index = draw(generator, dtype)
        logits.requires_grad_()
        dynamics.update(logits, target, index.int())
        logits.sum().backward()  # update() kept nothing of the graph
        truth.record(logits.detach(), target, index)
    assert_same(dynamics, truth)
    before = dynamics.frame()
    with torch.no_grad():
        dynamics.update(torch.full((2, K), torch.nan), torch.zeros(2, dtype=torch.int64), torch.arange(2))
        dynamics.update(torch.zeros(0, K), torch.zeros(0, dtype=torch.int64), torch.arange(0))
        dynamics.update(torch.zeros(1, K), torch.tensor([1]), torch.tensor([0]), ignore_index=1)
    assert dynamics.frame().equals(before)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_plain_cross_entropy_with_dynamics(reduction, dtype):
    """Values and gradients are F.cross_entropy's, and options of the loss don't touch what is recorded."""
    options = dict(reduction=reduction, label_smoothing=0.1, weight=torch.rand(K).to(dtype))
    dynamics, truth = fastac.TrainingDynamics(N, K), ByHand()
    criterion = fastac.AutoCleansingLoss(None, dynamics=dynamics, update="forward", **options)
    generator = torch.Generator().manual_seed(2)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for number in range(20):
        logits, target, index = draw(generator, dtype)
        given = logits.clone().requires_grad_()
        same = logits.to(exact, copy=True).requires_grad_()
        loss = criterion(given, target, index)
        options["weight"] = options["weight"].to(exact)
        wanted = torch.nn.functional.cross_entropy(same, target, **options)
        torch.testing.assert_close(loss.to(exact), wanted, rtol=1e-5, atol=1e-6)
        (loss.sum() * 3).backward()
        (wanted.sum() * 3).backward()
        torch.testing.assert_close(
            given.grad.to(exact), same.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )
        truth.record(logits, target, index)
        assert int(dynamics.count.sum()) == 6 * (number + 1)  # one visit a backward pass, but for the ignored
    assert_same(dynamics, truth)


def test_paths_of_a_training_loop():
    """Accumulation, a frozen network, recomputation, a retained graph and a compiled step: a visit a backward pass."""
    dynamics, truth = fastac.TrainingDynamics(N, K), ByHand()
    criterion = fastac.AutoCleansingLoss(None, dynamics=dynamics)
    net = torch.nn.Linear(K, K)
    generator = torch.Generator().manual_seed(4)

    def accumulated(logits, target, index):
        total = criterion(logits, target, index) + criterion(logits, target, index)
        (total / 2).backward()
        return 2

    def frozen(logits, target, index):
        criterion(logits.detach(), target, index).backward()
        return 1

    def recomputed(logits, target, index):
        torch.utils.checkpoint.checkpoint(criterion, logits, target, index, use_reentrant=False).backward()
        return 1

    def retained(logits, target, index):
        loss = criterion(logits, target, index)
        loss.backward(retain_graph=True)
        loss.backward()
        return 2

    compiled_loss = torch.compile(criterion, backend="aot_eager", fullgraph=True)

    def compiled(logits, target, index):
        compiled_loss(logits, target, index).backward()
        return 1

    for path in (accumulated, frozen, recomputed, retained, compiled):
        inputs, target, index = draw(generator)
        logits = net(inputs)
        for _ in range(path(logits, target, index)):
            truth.record(logits.detach(), target, index)
    assert_same(dynamics, truth)


def test_saved(tmp_path):
    import pandas as pd

    dynamics = fastac.TrainingDynamics(N, K)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        dynamics.update(*draw(generator))
    dynamics.save(tmp_path / "dynamics.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "dynamics.csv"), dynamics.frame())
    with pytest.raises(ValueError, match=r"path must end in one of \('.csv', '.parquet'\), got"):
        dynamics.save(tmp_path / "dynamics.txt")
    with pytest.raises(FileNotFoundError):
        dynamics.save(tmp_path / "missing" / "dynamics.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["dynamics.csv"]


def test_saved_as_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pandas as pd

    dynamics = fastac.TrainingDynamics(N, K)
    dynamics.update(*draw(torch.Generator().manual_seed(0)))
    dynamics.save(str(tmp_path / "dynamics.parquet"))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "dynamics.parquet"), dynamics.frame())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    dynamics, path = fastac.TrainingDynamics(N, K), tmp_path / "dynamics.csv"
    dynamics.save(path)
    old = path.read_bytes()
    dynamics.update(*draw(torch.Generator().manual_seed(0)))
    pandas = sys.modules["pandas"]

    def full(self, file, **options):
        file.write(b"half a li")
        raise OSError("no space left")

    monkeypatch.setattr(pandas.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="no space left"):
        dynamics.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"autocleansing\[parquet\]"):
        fastac.TrainingDynamics(N, K).save(tmp_path / "dynamics.parquet")


def test_bad_updates():
    dynamics = fastac.TrainingDynamics(N, K)
    good = torch.zeros(2, K), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    for place, value, error, message in (
        (0, torch.zeros(2, K + 1), ValueError, "logits have K = 5 classes, dynamics has 4"),
        (0, torch.zeros(2), ValueError, r"logits must have shape \(B, K\), got \(2,\)"),
        (1, torch.zeros(2), TypeError, "target must hold class indices as int64"),
        (1, torch.tensor([0, K]), IndexError, r"target 4 is outside \[0, 4\)"),
        (2, torch.tensor([0, N]), IndexError, r"index 12 is outside \[0, 12\)"),
        (2, torch.arange(3), ValueError, r"index must have shape \(2,\), got \(3,\)"),
        (0, torch.zeros(2, K, device="meta"), ValueError, "target is on cpu, logits are on meta"),
    ):
        batch = [value if place == number else part for number, part in enumerate(good)]
        with pytest.raises(error, match=message):
            dynamics.update(*batch)
    assert int(dynamics.count.sum()) == 0
