"""The Triton backend beside fastac.eager: on a CUDA device where there is one, else in Triton's interpreter
(see conftest.py)."""

import backend_checks
import numpy as np
import pytest
import torch
from backend_cases import BASE, CASES, Problem, assert_as_good_as_eager, assert_same_state, grid
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton: pip install 'autocleansing[triton]'")
from triton.runtime.interpreter import GridExecutor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

import fastac  # noqa: E402
from fastac import eager, triton  # noqa: E402
from fastac.clock import StepClock  # noqa: E402
from fastac.contract import Objective, Rows, Sgd  # noqa: E402

if DEVICE == "cpu":  # the interpreter copies all arguments; here they lie where it can work on them
    GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    GridExecutor._restore_args_dev = lambda self, *args: None

EXAMPLES = 40 if DEVICE == "cuda" else 25  # on a GPU almost every example compiles its kernels anew


def small(case, batch, classes):
    return case._replace(batch=batch, classes=classes)


CASE = st.builds(small, CASES, st.integers(1, 40), st.integers(2, 70))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(CASE, st.sampled_from([8, 1024]), st.sampled_from([(8, 16, 8), (64, 16, 8), (128, 16, 128)]))
def test_forward_and_forward_update(case, scanned, limits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "SCANNED", scanned)
        for name, value in zip(("RESIDENT", "LONG", "GROUPED"), limits, strict=True):
            patch.setattr(triton, name, value)
        backend_checks.check_forward(triton, Problem(case, DEVICE))
        check_forward_update(case)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("limits", [(16, 16, 16), (16, 16, 8), (8, 16, 8)], ids=["whole", "apart", "chunks"])
def test_every_option(form, limits, monkeypatch):
    for name, value in zip(("RESIDENT", "LONG", "GROUPED"), limits, strict=True):
        monkeypatch.setattr(triton, name, value)
    for case in grid(form):
        backend_checks.check_forward(triton, Problem(case, DEVICE))
        check_forward_update(case)


def check_forward_update(case):
    problem = Problem(case, DEVICE)
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    recorded = [problem.accumulators() for _ in range(3)]
    truth = problem.forward_update(eager, states[0], problem.logits.double(), recorded[0])
    eagers = problem.forward_update(eager, states[1], None, recorded[1])
    mine = problem.forward_update(triton, states[2], None, recorded[2])
    assert torch.equal(mine.ids, eagers.ids)
    assert mine.grad.dtype == case.logits
    assert_as_good_as_eager(mine.loss, eagers.loss, truth.loss)
    rounding = max(2.0**-21, torch.finfo(case.logits).eps)  # of the gradient, which is in the logits' dtype
    assert_as_good_as_eager(mine.grad, eagers.grad, truth.grad, rounding)
    assert_same_state(states[2], states[1], states[0])
    for name in ("visits", "was_correct", "forgetting"):
        assert torch.equal(getattr(recorded[2], name), getattr(recorded[0], name)), name
    for column in range(6):
        assert_as_good_as_eager(*(recorded[i].sums[:, column] for i in (2, 1, 0)))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(CASE, st.sampled_from([8, 1024]), st.sampled_from([16, 4096]))
def test_rows(case, scanned, grouped):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "SCANNED", scanned)
        patch.setattr(triton, "GROUPED", grouped)
        backend_checks.check_rows(triton, Problem(case, DEVICE))
        check_record(case)


def check_record(case):
    problem = Problem(case, DEVICE)
    ids = torch.where(problem.target == case.ignore_index, -1, problem.index.long())
    statistics = problem.forward(eager, None).statistics
    recorded = problem.accumulators(), problem.accumulators()
    eager.record(recorded[0], ids, statistics)
    triton.record(recorded[1], ids, statistics)
    for name, theirs, mine in zip(recorded[0]._fields, *recorded, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-15, atol=1e-15, msg=name)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "folded"),
    [(0.0, False, False), (0.9, False, False), (0.9, True, False), (0.9, False, True)],
)
def test_the_clock(momentum, nesterov, folded):
    """Through blocks and more than once around the window, with skipped steps in it."""
    clocks = [StepClock(torch.device(DEVICE), 16) for _ in range(2)]
    sgd = Sgd(momentum, 1e-2, nesterov, folded, 0)
    for step in range(50):
        skip = None if step % 3 else torch.tensor(step % 2 == 0, device=DEVICE)
        for clock, backend in zip(clocks, (eager, triton), strict=True):
            clock.set_lr(0.1 / (1 + step))
            backend.advance(clock, sgd, skip)
        assert clocks[0].steps == clocks[1].steps
        torch.testing.assert_close(clocks[0].within, clocks[1].within, rtol=1e-14, atol=1e-16)
        torch.testing.assert_close(clocks[0].tail, clocks[1].tail, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 0.3, torch.nan, "rows"])
def test_gradients_are_scaled(dtype, factor):
    grad = torch.randn(7, 13, device=DEVICE)
    scale = torch.rand(7, device=DEVICE) if factor == "rows" else torch.tensor(factor, device=DEVICE)
    for incoming in (scale, scale.to(torch.float64), scale.expand(7)):  # stride 0 too
        expected = eager.backward(grad, incoming, dtype)
        mine = triton.backward(grad, incoming, dtype)
        torch.testing.assert_close(mine, expected, rtol=torch.finfo(dtype).eps, atol=0, equal_nan=True)
        theirs, own = grad.to(dtype), grad.to(dtype)
        eager.scale_gradient(theirs, incoming)
        triton.scale_gradient(own, incoming)
        torch.testing.assert_close(own, theirs, rtol=torch.finfo(dtype).eps, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("which", ["target", "index"])
@pytest.mark.parametrize("value", [-1, 62, 2**40, -(2**40)])
def test_values_outside_their_range_are_noted_and_write_nothing(form, which, value, monkeypatch):
    case = BASE._replace(form=form)
    left_out, noted = Problem(case, DEVICE), Problem(case, DEVICE)
    left_out.target[7] = case.ignore_index
    getattr(noted, which)[7] = value
    rows = left_out.rows(), noted.rows()
    expected, mine = left_out.forward_update(triton, rows[0]), noted.forward_update(triton, rows[1])
    assert noted.flags.tolist() == [int(which == "target"), int(which == "index")]
    assert not left_out.flags.any()
    for a, b in zip((*expected, *rows[0][:3]), (*mine, *rows[1][:3]), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setenv("FASTAC_DEBUG", "1")
    with pytest.raises(IndexError, match=rf"{which} {value} is outside"):
        noted.forward(triton, rows[1])


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_rows_that_are_not_finite_are_not_written(form, value, repeated, long, monkeypatch):
    if long:
        monkeypatch.setattr(triton, "RESIDENT", 8)
    backend_checks.check_rows_that_are_not_finite(triton, form, value, repeated, device=DEVICE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("resident", [16384, 8])
def test_confident_rows_keep_their_small_gradient(dtype, smoothing, resident, monkeypatch):
    monkeypatch.setattr(triton, "RESIDENT", resident)
    backend_checks.check_confident_rows(triton, dtype, smoothing, device=DEVICE, rtol=3e-6)


def test_all_ignored_empty_and_plain():
    backend_checks.check_all_ignored_and_empty(triton, DEVICE)


@pytest.mark.parametrize("parts", [1, 1024, 5000, 40000])
def test_partial_losses_are_summed(parts):
    values = torch.rand(parts, device=DEVICE) + 1
    loss, normaliser = torch.empty((), device=DEVICE), torch.tensor(3.0, device=DEVICE)
    for divisor in (None, normaliser):
        triton._reduce(values, divisor, loss)
        expected = values.double().sum() / (1 if divisor is None else 3)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-7, atol=0)


def test_float64_goes_to_eager():
    problem = Problem(BASE, DEVICE)
    for dtype in (torch.float64, torch.float32):
        rows = [problem.rows(dtype), problem.rows(dtype)]
        logits = problem.logits.double()
        results = [problem.forward_update(b, r, logits) for b, r in zip((eager, triton), rows, strict=True)]
        for a, b in zip((*results[0], rows[0].alpha), (*results[1], rows[1].alpha), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("limit", ["SCANNED", "GROUPED", "RESIDENT"])
def test_a_repeat_gives_the_same_bits(limit, monkeypatch):
    monkeypatch.setattr(triton, limit, 8)
    results = []
    for _ in range(2):
        problem = Problem(BASE._replace(batch=40, table=torch.bfloat16, logits=torch.bfloat16), DEVICE)
        rows, recorded = problem.rows(), problem.accumulators()
        results.append((*problem.forward_update(triton, rows, None, recorded), *rows[:3], *recorded))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def untouched(shape):
    """bfloat16 zeros that take memory only where they are touched (on the CPU)."""
    if DEVICE == "cuda":
        return torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)
    return torch.from_numpy(np.zeros(shape, dtype=np.int16)).view(torch.bfloat16)


def test_offsets_past_two_to_the_31():
    """A table of more than 2^31 elements, and logits whose rows lie 2^30 apart."""
    classes = 1000
    n = 2**31 // classes + 100
    table = fastac.AlphaTable(n, classes, form="ac2", device=DEVICE, weight_decay=0.0, seed=1)
    table.lr = 1.0
    table._set_clock_lr(1.0)
    rows = Rows(untouched((n, classes)), None, table.last, table.clock)
    logits = untouched(3 * 2**30 + classes).as_strided((4, classes), (2**30, 1))
    logits.copy_(torch.randn(4, classes))
    index = torch.tensor([n - 1, 3, n - 50, n - 2], device=DEVICE)
    target = torch.tensor([5, 999, 1, 7], device=DEVICE)
    arguments = Objective(None, "ac1", -100, "sum", 0.0), Problem(BASE, DEVICE).flags, n
    mine = triton.forward_update(logits, target, index, rows, *arguments, None, table._sgd(), 1.0)
    expected = logits.double().softmax(1) - torch.nn.functional.one_hot(target, classes)
    rounding = {"rtol": 2**-7, "atol": 0}  # the interpreter cuts where a GPU rounds
    torch.testing.assert_close(mine.grad.double(), expected, **rounding)
    expected[:, 0] = 0
    torch.testing.assert_close(rows.alpha[index].double(), -expected, **rounding)
    assert torch.equal(table.last.nonzero()[:, 0], index.sort()[0])
    triton.advance(table.clock, table._sgd(), None)
    triton.update_rows(rows, index, torch.ones(4, classes, device=DEVICE), None, table._sgd(), None)
    moved = triton.read_rows(rows, index).double() + expected
    torch.testing.assert_close(moved[:, 1:], torch.full_like(moved[:, 1:], -1), rtol=0.02, atol=0)
