"""The C++ backend beside fastac.eager; see backend_cases."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import backend_cases
import backend_checks
import pytest
import torch
from backend_cases import BASE, CASES, Problem, cases, grid
from hypothesis import given, settings
from hypothesis import strategies as st

from fastac import eager
from fastac.clock import StepClock
from fastac.contract import Backend, Objective, Sgd

cpu = pytest.importorskip("fastac.cpu", reason="the native CPU backend is not built", exc_type=ImportError)

FLAGS = torch.zeros(2, dtype=torch.int64)
CAPABILITY = os.environ.get("FASTAC_CPU_CAPABILITY")
NARROW = cases(st.integers(2, 70))  # up to 64 classes a row is a lane

# An exponential is right to one unit in the last place, its factor and their product to half of one: two units of the
# largest value, which are at most this of it. (The most that 3000 drawn cases showed was half of it.)
ROUNDING = 2.0**-22
assert_as_good_as_eager = functools.partial(backend_cases.assert_as_good_as_eager, rounding=ROUNDING)
assert_same_state = functools.partial(backend_cases.assert_same_state, rounding=ROUNDING)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("classes", [11, 67])
def test_every_option(form, classes):
    for case in grid(form):
        case = case._replace(classes=classes)
        backend_checks.check_forward(cpu, Problem(case), ROUNDING)
        check_forward_update(case)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(CASES)
def test_forward(case):
    backend_checks.check_forward(cpu, Problem(case), ROUNDING)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NARROW)
def test_forward_of_few_columns(case):
    backend_checks.check_forward(cpu, Problem(case), ROUNDING)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(CASES)
def test_forward_update(case):
    check_forward_update(case)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NARROW)
def test_forward_update_of_few_columns(case):
    check_forward_update(case)


def check_forward_update(case):
    problem = Problem(case)
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    seen = [problem.accumulators() for _ in states]
    problem.forward_update(eager, states[0], problem.logits.double(), seen[0])
    eagers = problem.forward_update(eager, states[1], accumulators=seen[1])
    mine = problem.forward_update(cpu, states[2], accumulators=seen[2])
    assert torch.equal(mine.ids, eagers.ids)
    assert mine.statistics.shape == (0, 5)
    # Written in the logits' dtype: once rounded, from a value that may differ in its last bit.
    ulp = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[case.logits]
    expected = problem.forward(cpu, problem.rows()).grad
    assert mine.grad.dtype == case.logits
    torch.testing.assert_close(mine.grad.float(), expected, rtol=1.01 * ulp, atol=2.0**-24 if ulp else 0.0)
    assert_same_state(states[2], states[1], states[0])
    assert_same_accumulators(seen[2], seen[1], seen[0])
    assert int(seen[2].visits.sum() - problem.accumulators().visits.sum()) == int((mine.ids >= 0).sum())


def assert_same_accumulators(mine, eagers, truth):
    for name in ("visits", "forgetting", "was_correct"):
        assert torch.equal(getattr(mine, name), getattr(eagers, name))
    for column in range(6):
        assert_as_good_as_eager(*(x.sums[:, column] for x in (mine, eagers, truth)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(NARROW)
def test_record(case):
    problem = Problem(case)
    statistics = problem.forward(cpu, None).statistics
    ids = torch.where(problem.target == case.ignore_index, -7, problem.index.long())
    seen = [problem.accumulators() for _ in range(2)]
    eager.record(seen[0], ids, statistics)
    cpu.record(seen[1], ids, statistics)
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(CASES)
def test_update_rows_read_rows_and_sweep(case):
    backend_checks.check_rows(cpu, Problem(case), ROUNDING)


@pytest.mark.parametrize(("form", "classes"), [("ac1", 2), ("ac1", 37), ("ac1", 3000), ("ac2", 37)])
def test_gradients_that_overflow_with_their_scale_are_not_written(form, classes):
    problem = Problem(BASE._replace(form=form, classes=classes, batch=40))
    ids = torch.arange(40).clamp(max=36)  # the last four are one
    for position, value in ((3, 2e38), (8, -torch.inf), (37, 2e38), (38, torch.nan)):
        problem.grad[position] = value
    for scale in (torch.tensor(10.0), torch.linspace(5, 10, 40), torch.tensor(10.0).expand(40)):
        states = [problem.rows(), problem.rows()]
        for backend, rows in zip((eager, cpu), states, strict=True):
            backend.update_rows(rows, ids, problem.grad, scale, problem.sgd, None)
        assert torch.equal(states[1].last, states[0].last)
        assert int((states[1].last == 71).sum()) == 35
        torch.testing.assert_close(states[1].alpha, states[0].alpha)
        torch.testing.assert_close(states[1].momentum, states[0].momentum)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("update", [False, True])
def test_values_outside_their_range_name_themselves_and_write_nothing(form, update):
    for which, value, message in (
        ("target", 37, r"target 37 is outside \[0, 37\) and is not ignore_index \(-100\)"),
        ("target", -1, r"target -1 is outside \[0, 37\) and is not ignore_index \(-100\)"),
        ("index", 62, r"index 62 is outside \[0, 62\)"),
        ("index", -1, r"index -1 is outside \[0, 62\)"),
    ):
        for backend in (eager, cpu):
            problem = Problem(BASE._replace(form=form))
            rows = problem.rows()
            getattr(problem, which)[7] = value
            with pytest.raises(IndexError, match=message):
                problem.forward_update(backend, rows) if update else problem.forward(backend, rows)
            for before, after in zip(problem.rows()[:3], rows[:3], strict=True):
                assert torch.equal(before, after)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("repeated", [False, True])
def test_rows_that_are_not_finite_are_not_written(form, value, repeated):
    backend_checks.check_rows_that_are_not_finite(cpu, form, value, repeated)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_rows_keep_their_small_gradient(dtype, smoothing, classes):
    backend_checks.check_confident_rows(cpu, dtype, smoothing, classes)


def test_all_ignored_empty_and_plain():
    backend_checks.check_all_ignored_and_empty(cpu)


def test_every_float16_is_read_as_it_is():
    """Subnormals, infinities and NaN too: the training logits are seen through the margin of two classes."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for dtype in (torch.float16, torch.bfloat16):
        x = values.view(torch.int16).view(dtype)
        logits = torch.stack([x, torch.zeros_like(x)], dim=1)
        target = torch.zeros(len(x), dtype=torch.int64)
        arguments = (target, target.clone(), None, Objective(None, "ac1", -100, "none", 0.0), FLAGS, 1, True)
        mine = cpu.forward(logits, *arguments)
        assert torch.equal(mine.ids == 0, x.isfinite())
        finite = x.isfinite()
        assert torch.equal(mine.statistics[finite, 0], x[finite].float())
    wide = values.view(64, -1)  # whole vectors of them
    target = torch.zeros(len(wide), dtype=torch.int64)
    arguments = (target, target.clone(), None, Objective(None, "ac1", -100, "none", 0.0), FLAGS, 1, True)
    finite = wide.isfinite().all(1)
    assert torch.equal(cpu.forward(wide, *arguments).ids == 0, finite)
    torch.testing.assert_close(
        cpu.forward(wide, *arguments).grad[finite], eager.forward(wide, *arguments).grad[finite]
    )


@pytest.mark.parametrize("classes", [10, 1000, 5000])
def test_the_number_of_threads_changes_no_bit(classes):
    problem = Problem(
        BASE._replace(classes=classes, batch=2500 if classes == 10 else 300, table=torch.bfloat16)
    )
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        rows, seen = problem.rows(), problem.accumulators()
        try:
            result = problem.forward_update(cpu, rows, accumulators=seen)
            scaled = cpu.backward(result.grad, torch.tensor(0.3), torch.bfloat16)
            cpu.update_rows(rows, result.ids, result.grad, torch.tensor(0.3), problem.sgd, None)
        finally:
            torch.set_num_threads(1)
        results.append((*result, *rows[:3], *seen, scaled))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 10), (300, 37), (1500, 1001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scaled_gradients(shape, dtype):
    """Bit for bit as eager's: one product, one rounding to the logits' dtype."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-9, 6, shape, generator=generator)
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 65519.9, 65520.0, 0.0, -0.0, 2.0**-25])
    if grad.numel() > len(values):
        grad.view(-1)[: len(values)] = values
    rows = torch.randn(shape[0], generator=generator)
    for scale in (
        torch.tensor(1.0),
        torch.tensor(0.3),
        torch.tensor(2.0, dtype=torch.float64),
        rows,
        torch.tensor(0.7).expand(shape[0]),
        torch.stack([rows, rows], 1)[:, 1],
    ):
        expected = eager.backward(grad, scale, dtype)
        before = grad.clone()
        assert same_bits(cpu.backward(grad, scale, dtype), expected)
        assert same_bits(grad, before)
        mine, theirs = grad.to(dtype), grad.to(dtype)
        cpu.scale_gradient(mine, scale)
        eager.scale_gradient(theirs, scale)
        assert same_bits(mine, theirs)


def same_bits(a, b):
    """NaN of any kind is NaN."""
    integers = torch.int32 if a.dtype == torch.float32 else torch.int16
    nan = a.isnan()
    kept = [x.masked_fill(nan, 0).view(integers) for x in (a, b)]
    return a.dtype == b.dtype and torch.equal(nan, b.isnan()) and torch.equal(*kept)


def test_it_has_every_function_of_the_contract():
    names = [name for name in vars(Backend) if not name.startswith("_")]
    assert "row_gradient" in names
    for module in (cpu, eager):
        assert set(names) <= set(module.__all__)


def test_row_gradient():
    grad = torch.randn(50, 9)
    target = torch.randint(9, (50,))
    target[::7] = -100
    grad[::7] = 0
    mine = cpu.row_gradient(grad, target, "ac2")
    assert torch.equal(mine, eager.row_gradient(grad, target, "ac2"))
    assert mine.count_nonzero() == 42
    assert cpu.row_gradient(grad, target, "ac1") is grad


@pytest.mark.parametrize("window", [16, 32, 128])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "folded"),
    [(0.0, False, False), (0.9, False, False), (0.9, True, False), (0.9, False, True)],
)
def test_advance(window, momentum, nesterov, folded):
    """Every product that a row may need, over more steps than the window holds."""
    clocks = [StepClock(torch.device("cpu"), window) for _ in range(2)]
    sgd = Sgd(momentum, 0.05, nesterov, folded, 0)
    for step in range(3 * window):
        skip = None if step % 3 else torch.tensor(step % 2 == 1)
        for backend, clock in zip((eager, cpu), clocks, strict=True):
            clock.set_lr(0.3 / (1 + step % 7))
            backend.advance(clock, sgd, skip)
        theirs, mine = clocks
        now = int(theirs.steps)
        assert int(mine.steps) == now
        last = torch.arange(max(0, now - window + window // 4), now + 2)
        torch.testing.assert_close(
            mine.coefficients(last), theirs.coefficients(last), rtol=1e-12, atol=1e-300
        )
    assert 2 * window < now < 3 * window


def test_large_gradients_are_not_shared():
    """Their memory is reused when they are gone, never before."""
    logits, target = torch.randn(2, 1200, 1000), torch.arange(1200) % 1000
    arguments = (target, None, None, Objective(None, "ac1", -100, "mean", 0.0), FLAGS, 0, False)
    grads = [cpu.forward(x, *arguments).grad for x in logits]
    held = [grad.clone() for grad in grads]
    cpu.forward(logits[0] * 2, *arguments)
    for grad, copy in zip(grads, held, strict=True):
        assert torch.equal(grad, copy)
    address = grads[1].data_ptr()
    del grads[1], grad
    assert cpu.forward(logits[1], *arguments).grad.data_ptr() == address


def test_float64_goes_to_eager():
    problem = Problem(BASE)
    for logits, dtype in ((problem.logits.double(), torch.float64), (problem.logits.double(), torch.float32)):
        rows = [problem.rows(dtype), problem.rows(dtype)]
        results = [problem.forward_update(b, r, logits) for b, r in zip((eager, cpu), rows, strict=True)]
        assert results[1].grad.dtype == torch.float64
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(rows[0].alpha, rows[1].alpha)


def test_a_wrong_state_is_refused():
    problem = Problem(BASE)
    rows = problem.rows()
    with pytest.raises(ValueError, match="logits as wide as the table"):
        problem.forward(cpu, rows._replace(alpha=torch.zeros(62, 36), momentum=None))
    with pytest.raises(ValueError, match="a contiguous table"):
        problem.forward(cpu, rows._replace(last=rows.last.long()))
    with pytest.raises(IndexError, match=r"index 62 is outside \[0, 62\)"):
        cpu.update_rows(rows, torch.tensor([62]), torch.zeros(1, 37), None, problem.sgd, None)


@pytest.mark.skipif(CAPABILITY is not None, reason="this is the run for one capability")
@pytest.mark.parametrize("capability", [name for name in cpu.capabilities() if name != cpu.capability()])
def test_the_other_capabilities(capability):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).resolve())]
    done = subprocess.run(
        command,
        env={**os.environ, "FASTAC_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_the_capability_is_the_one_asked_for():
    assert cpu.capability() == (CAPABILITY or cpu.capabilities()[0])
    code = "from fastac import cpu; cpu.capability()"
    for name, message in (("sse9", "must be default, avx2 or avx512, got 'sse9'"),):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FASTAC_CPU_CAPABILITY": name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert message in done.stderr
