import itertools

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
