"""What every backend is asked beside fastac.eager, on CPU tensors or a device's; see backend_cases."""

import torch
from backend_cases import BASE, Problem, assert_as_good_as_eager, assert_same_state

from fastac import eager
from fastac.contract import Objective

ROUNDING = 2.0**-21


def check_forward(backend, problem, rounding=ROUNDING):
    """Loss, gradient, ids and statistics; returns what the backend gave."""
    truth = problem.forward(eager, problem.rows(torch.float64), problem.logits.double())
    eagers = problem.forward(eager, problem.rows())
    mine = problem.forward(backend, problem.rows())
    assert [x.dtype for x in mine] == [x.dtype for x in eagers]
    assert [x.shape for x in mine] == [x.shape for x in eagers]
    # The difference of two logits is rounded, which their exponential makes a relative error of.
    spread = float((problem.logits.double().amax(1) - problem.logits.double().amin(1)).max())
    exponential = rounding + spread * 2.0**-24
    assert_as_good_as_eager(mine.loss, eagers.loss, truth.loss, exponential)
    assert_as_good_as_eager(mine.grad, eagers.grad, truth.grad, rounding, problem.largest_target())
    for column in range(5):
        values = [x.statistics[:, column] for x in (mine, eagers, truth)]
        assert_as_good_as_eager(*values, exponential)
    assert torch.equal(mine.ids, truth.ids)
    assert not problem.flags.any()
    return mine


def check_rows(backend, problem, rounding=ROUNDING):
    """Staged gradients into rows, reading and the sweep."""
    case, device = problem.case, problem.logits.device
    ids = torch.where(problem.target == case.ignore_index, -7, problem.index.long())
    problem.grad[0] = torch.nan
    scale = torch.rand(len(ids)) if case.strided else torch.tensor(case.scale)
    scale, no = scale.to(device), torch.tensor(False, device=device)
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    eager.update_rows(states[0], ids, problem.grad.double(), scale, problem.sgd, None)
    eager.update_rows(states[1], ids, problem.grad, scale, problem.sgd, no)
    backend.update_rows(states[2], ids, problem.grad, scale, problem.sgd, no)
    assert_same_state(states[2], states[1], states[0], rounding)

    untouched = problem.rows()
    backend.update_rows(untouched, ids, problem.grad, None, problem.sgd, ~no)
    for before, after in zip(problem.rows()[:3], untouched[:3], strict=True):
        assert before is None or torch.equal(before, after)

    every = torch.arange(problem.num_samples, device=device)
    truth = eager.read_rows(problem.rows(torch.float64), every)
    values = backend.read_rows(problem.rows(), every), eager.read_rows(problem.rows(), every), truth
    assert_as_good_as_eager(*values, rounding)
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    for module, state in zip((eager, eager, backend), states, strict=True):
        module.sweep(state, every, case.seed)
    assert not torch.equal(states[0].last, problem.table.last)
    assert_same_state(states[2], states[1], states[0], rounding)


def check_rows_that_are_not_finite(backend, form, value, repeated, columns=2, device="cpu"):
    """One row of logits holds `value`, in a column or (None) in all: its row of α is not written, others are."""
    problem = Problem(BASE._replace(form=form), device)
    problem.target = (problem.target + 1).clamp(5, 36)
    problem.index = torch.arange(12, device=device)
    if repeated:
        problem.index[5] = 3
    problem.logits[3, slice(None) if columns is None else columns] = value
    states, seen = [problem.rows(), problem.rows()], [problem.accumulators() for _ in range(2)]
    eagers = problem.forward_update(eager, states[0], None, seen[0])
    mine = problem.forward_update(backend, states[1], None, seen[1])
    assert mine.ids[3] == -1
    assert torch.equal(mine.ids, eagers.ids)
    torch.testing.assert_close(mine.grad, eagers.grad, equal_nan=True)
    torch.testing.assert_close(mine.loss, eagers.loss, equal_nan=True)
    torch.testing.assert_close(states[1].alpha, states[0].alpha)
    assert torch.equal(states[1].last, states[0].last)
    assert torch.equal(seen[0].visits, seen[1].visits)


def check_confident_rows(backend, dtype, smoothing, classes=100, device="cpu", rtol=2e-6):
    """p_y → 1: the gradient at y is 1 − p_y, which a sum that holds e_y would round away."""
    gaps = torch.arange(5, 40, dtype=torch.float32)
    logits = torch.zeros(len(gaps), classes)
    target = torch.arange(len(gaps)) % classes
    logits[torch.arange(len(gaps)), target] = gaps
    logits, target = logits.to(device, dtype), target.to(device)
    flags = torch.zeros(2, dtype=torch.int64, device=device)
    arguments = (target, None, None, Objective(None, "ac1", -100, "sum", smoothing), flags, 0, False)
    truth = eager.forward(logits.double(), *arguments)
    grad = truth.grad.scatter(1, target[:, None], 0)
    # float64 cancels too: a row's sum is 0
    grad = grad.scatter(1, target[:, None], -grad.sum(1, keepdim=True))
    mine = backend.forward(logits, *arguments)
    torch.testing.assert_close(mine.grad.double(), grad, rtol=rtol, atol=0)
    torch.testing.assert_close(mine.loss.double(), truth.loss, rtol=1e-6, atol=0)


def check_all_ignored_and_empty(backend, device="cpu"):
    """As F.cross_entropy: a mean over nothing is NaN."""
    flags = torch.zeros(2, dtype=torch.int64, device=device)
    for objective in (Objective(None, "ac1", 0, reduction, 0.1) for reduction in ("mean", "sum", "none")):
        for batch in (0, 4):
            logits = torch.randn(batch, 5, device=device)
            target = torch.zeros(batch, dtype=torch.int64, device=device)
            arguments = (logits, target, None, None, objective, flags, 0, False)
            for a, b in zip(backend.forward(*arguments), eager.forward(*arguments), strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, equal_nan=True)
