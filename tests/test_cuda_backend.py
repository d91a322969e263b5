"""The CUDA backend beside fastac.eager; see backend_cases.

Everywhere the kernels are compiled for the CPU and run there, a block's threads as fibers (cuda_emulation); the same
tests run on the device where there is one.
"""

import math
import subprocess

import backend_checks
import cuda_emulation
import numpy as np
import pytest
import torch
from backend_cases import (
    BASE,
    CASES,
    Problem,
    assert_same_state,
    error,
    grid,
)
from hypothesis import given, settings

from fastac import eager
from fastac.clock import StepClock
from fastac.contract import Objective, Sgd

FLAGS = torch.zeros(2, dtype=torch.int64)
FOUND = cuda_emulation.compiler()


@pytest.fixture(scope="session")
def library():
    if FOUND is None:
        pytest.skip("no C++ compiler")
    return cuda_emulation.build()


@pytest.fixture(scope="session")
def emulated(library):
    return cuda_emulation.load(library)


@pytest.fixture(scope="session", params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def cuda(request):
    if request.param == "emulated":
        return request.getfixturevalue("emulated")[0]
    from fastac import cuda as backend

    return OnDevice(backend, torch.device("cuda"))


class OnDevice:
    """A backend that is handed CPU tensors, and works on copies of them on the device, which are copied back."""

    def __init__(self, backend, device):
        self.backend, self.device = backend, device

    def __getattr__(self, name):
        function = getattr(self.backend, name)

        def call(*arguments):
            moved = []
            result = function(*[self.move(argument, moved) for argument in arguments])
            for original, copy in moved:
                original.copy_(copy)
            if isinstance(result, torch.Tensor):
                return result.cpu()
            return None if result is None else type(result)(*[x.cpu() for x in result])

        return call

    def move(self, value, moved):
        if isinstance(value, torch.Tensor):
            base = value if value._base is None else value._base
            copy = base.to(self.device).as_strided(value.shape, value.stride(), value.storage_offset())
            if 0 not in value.stride():  # an expanded tensor can't be written
                moved.append((value, copy))
            return copy
        if isinstance(value, StepClock):
            clock = StepClock(self.device, value.window)
            for name in ("steps", "lr", "within", "tail"):
                getattr(clock, name).copy_(getattr(value, name))
                moved.append((getattr(value, name), getattr(clock, name)))
            return clock
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*[self.move(item, moved) for item in value])
        return value


def assert_same(mine, others):
    for a, b in zip(mine, others, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


# --- values --------------------------------------------------------------------------------------------------


def check_update(cuda, problem):
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    kept = [problem.accumulators() for _ in range(2)]
    problem.forward_update(eager, states[0], problem.logits.double())
    eagers = problem.forward_update(eager, states[1], None, kept[0])
    mine = problem.forward_update(cuda, states[2], None, kept[1])
    assert torch.equal(mine.ids, eagers.ids)
    assert [x.dtype for x in mine] == [x.dtype for x in eagers]
    alone = problem.forward(cuda, problem.rows())
    assert_close_rounded(mine.grad, alone.grad, problem.case.logits)
    torch.testing.assert_close(mine.loss, alone.loss, rtol=1e-6, atol=1e-30, equal_nan=True)
    assert_same_state(states[2], states[1], states[0])
    for a, b in zip(kept[1], kept[0], strict=True):
        if a.dtype == torch.float64:  # the same numbers, added in float64 in another order
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a, b)
    return (*mine, *states[2][:3], *kept[1])


def assert_close_rounded(mine, grad, dtype):
    """mine is grad rounded to dtype, but where a streamed row's float32 differs in its last bits."""
    rounded = grad.to(dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(mine, rounded, rtol=1e-5, atol=1e-9, equal_nan=True)
    else:
        assert float((mine != rounded).float().mean()) < 0.01
        torch.testing.assert_close(mine, rounded, rtol=2.0**-7, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_every_option(cuda, form):
    for case in grid(form):
        backend_checks.check_forward(cuda, Problem(case))
        check_update(cuda, Problem(case))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
def test_forward(cuda, case):
    backend_checks.check_forward(cuda, Problem(case))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
def test_forward_update(cuda, case):
    check_update(cuda, Problem(case))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(CASES)
def test_update_rows_read_rows_and_sweep(cuda, case):
    backend_checks.check_rows(cuda, Problem(case))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(CASES)
def test_backward_and_scale_gradient(cuda, case):
    problem = Problem(case)
    grad = torch.randn(case.batch, case.classes)
    for scale in (torch.tensor(0.37), torch.rand(case.batch), torch.tensor(0.5).expand(case.batch)):
        assert torch.equal(
            cuda.backward(grad, scale, case.logits), eager.backward(grad, scale, case.logits)
        ), scale.shape
        mine, eagers = grad.to(case.logits), grad.to(case.logits)
        cuda.scale_gradient(mine, scale)
        eager.scale_gradient(eagers, scale)
        assert torch.equal(mine, eagers)
    untouched = grad.to(case.logits)
    cuda.scale_gradient(untouched, torch.tensor(1.0))
    assert torch.equal(untouched, grad.to(case.logits))
    assert problem.num_samples > 0


@pytest.mark.parametrize("batch", [0, 5, 300])
def test_row_gradient(cuda, batch):
    grad = torch.randn(batch, 9)
    target = torch.randint(9, (2 * batch,))[::2]
    target[::7] = -100
    grad[::7] = 0
    target[3::7] = 2**40
    grad[3::7] = 0
    mine = cuda.row_gradient(grad, target, "ac2")
    assert torch.equal(mine, eager.row_gradient(grad, target, "ac2"))
    assert mine.count_nonzero() == batch - len(target[::7]) - len(target[3::7])
    assert torch.equal(cuda.row_gradient(grad, target, "ac1"), grad)
    assert cuda.row_gradient(grad.double(), target, "ac2").dtype == torch.float64


WIDTHS = [2, 8, 10, 100, 127, 256, 264, 1000, 1001, 1032, 4100, 8192, 17000, 17001, 33000]


@pytest.mark.parametrize("classes", WIDTHS)
@pytest.mark.parametrize("capability", [8, 9])
def test_every_layout(emulated, classes, capability):
    """Parts of a warp, warps, blocks, clusters (sm_90), streamed rows; wide and narrow accesses; with what each has to
    share among its threads: smoothing, weights, statistics."""
    backend, emulation = emulated
    emulation.emulation_capability(capability)
    try:
        check_layout(backend, classes)
    finally:
        emulation.emulation_capability(9)


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [*WIDTHS, 70001, 131072, 140000])
def test_every_layout_on_the_device(classes):
    """Clusters of up to 16 blocks among them, and what is wider."""
    from fastac import cuda as backend

    check_layout(OnDevice(backend, torch.device("cuda")), classes)


def test_a_cluster_of_more_blocks_than_every_device_has(emulated):
    check_layout(emulated[0], 70001)


def check_layout(backend, classes):
    for logits, table in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        case = BASE._replace(
            batch=5, classes=classes, logits=logits, table=table, label_smoothing=0.1, weighted=True
        )
        problem = Problem(case)
        backend_checks.check_forward(backend, problem)
        check_update(backend, problem)
        problem = Problem(case._replace(form="ac2", nesterov=True, ignore_index=0))
        backend_checks.check_forward(backend, problem)
        check_update(backend, problem)


@pytest.mark.parametrize("classes", [96, 1000])
@pytest.mark.parametrize(("offset", "gap"), [(0, 8), (8, 0), (1, 0), (0, 3), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_logits_may_lie_anywhere(cuda, classes, offset, gap, dtype):
    problem = Problem(BASE._replace(classes=classes, logits=dtype))
    stride = classes + gap
    base = torch.randn(offset + 12 * stride).to(dtype)
    problem.logits = base[offset:].as_strided((12, classes), (stride, 1), offset)
    backend_checks.check_forward(cuda, problem)
    check_update(cuda, problem)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_repeated_ids_in_large_batches(cuda, classes, form):
    """More than 1024 positions: those whose ids are repeated are marked before."""
    case = BASE._replace(batch=2200, classes=classes, form=form, int32=True, logits=torch.bfloat16)
    problem = Problem(case)
    problem.index[:40] = problem.index[7]
    problem.index[-3:] = problem.index[7]
    backend_checks.check_forward(cuda, problem)
    check_update(cuda, problem)
    ids = problem.index.long()
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    for backend, state in zip((eager, eager, cuda), states, strict=True):
        grad = problem.grad.to(state.alpha.dtype)
        backend.update_rows(state, ids, grad, None, problem.sgd, None)
    assert_same_state(states[2], states[1], states[0])


@pytest.mark.parametrize("batch", [9, 400])
def test_record(cuda, batch):
    problem = Problem(BASE._replace(batch=batch))
    statistics = torch.rand(batch, 5)
    statistics[:, 2] = (statistics[:, 2] < 0.5).float()
    ids = torch.where(problem.target == -100, -1, problem.index)
    ids[-4:] = ids[0].clamp(min=0)
    kept = [problem.accumulators() for _ in range(2)]
    eager.record(kept[0], ids, statistics)
    cuda.record(kept[1], ids, statistics)
    for a, b in zip(kept[1], kept[0], strict=True):
        if a.dtype == torch.float64:
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
        else:
            assert torch.equal(a, b)
    assert int(kept[0].forgetting.sum()) > 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_advance(cuda, momentum, nesterov, folded):
    clocks = [StepClock(torch.device("cpu"), 64) for _ in range(2)]
    sgd = Sgd(momentum, 1e-2, nesterov, folded, 0)
    for step in range(150):
        for backend, clock in zip((eager, cuda), clocks, strict=True):
            clock.set_lr(0.1 * math.cos(step / 100))
            backend.advance(clock, sgd, torch.tensor(step % 7 == 3) if step % 2 else None)
        assert torch.equal(clocks[0].steps, clocks[1].steps)
        for name in ("within", "tail"):
            torch.testing.assert_close(
                getattr(clocks[1], name), getattr(clocks[0], name), rtol=1e-13, atol=1e-15
            )
    assert int(clocks[0].steps) == 139


# --- bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "classes", "form"),
    [(300, 10, "ac1"), (200, 100, "ac2"), (90, 1000, "ac1"), (20, 17000, "ac1"), (1500, 12, "ac1")],
)
def test_the_order_of_blocks_and_threads_changes_no_bit(emulated, batch, classes, form):
    backend, emulation = emulated
    case = BASE._replace(batch=batch, classes=classes, form=form, table=torch.bfloat16, label_smoothing=0.1)
    results = []
    for order in (0, 0, 1, 2, 3):
        emulation.emulation_order(order)
        try:
            problem = Problem(case)
            results.append(check_update(backend, problem))
        finally:
            emulation.emulation_order(0)
    for other in results[1:]:
        assert_same(results[0], other)


# --- traps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("which", ["target", "index"])
@pytest.mark.parametrize("value", [-1, -(2**40), 2**40, 62])
def test_values_outside_their_range_are_noted_and_their_rows_ignored(cuda, form, update, which, value):
    problems = [Problem(BASE._replace(form=form)) for _ in range(2)]
    for problem in problems:
        problem.target = problem.target.clamp(min=1)
    problems[0].target[7] = -100
    getattr(problems[1], which)[7] = value
    states = [problem.rows() for problem in problems]
    results = [
        p.forward_update(cuda, rows) if update else p.forward(cuda, rows, statistics=False)
        for p, rows in zip(problems, states, strict=True)
    ]
    assert problems[0].flags.tolist() == [0, 0]
    assert problems[1].flags.tolist() == [int(which == "target"), int(which == "index")]
    assert_same(*results)
    assert_same(states[0][:3], states[1][:3])
    assert int(results[1].ids[7]) == -1
    assert float(results[1].grad[7].abs().max()) == 0


def test_debug_raises_at_once(cuda, monkeypatch):
    monkeypatch.setenv("FASTAC_DEBUG", "1")
    problem = Problem(BASE)
    problem.target[7] = 37
    for call in (problem.forward, problem.forward_update):
        with pytest.raises(IndexError, match=r"target 37 is outside \[0, 37\)"):
            call(cuda, problem.rows())


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_that_are_not_finite_are_not_written(cuda, form, value, repeated, whole):
    columns = None if whole else 2
    backend_checks.check_rows_that_are_not_finite(cuda, form, value, repeated, columns)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_rows_keep_their_small_gradient(cuda, dtype, smoothing):
    backend_checks.check_confident_rows(cuda, dtype, smoothing)


def test_the_gradient_in_bfloat16_is_that_of_float32_rounded(cuda):
    problem = Problem(BASE._replace(logits=torch.bfloat16, batch=30, classes=100))
    problem.index = torch.arange(30)
    problem.target = torch.arange(30)
    problem.logits[torch.arange(30), problem.target] = 20.0
    updated = problem.forward_update(cuda, problem.rows())
    assert torch.equal(updated.grad, problem.forward(cuda, problem.rows()).grad.to(torch.bfloat16))
    assert 0 < float(updated.grad[torch.arange(30), problem.target].abs().max()) < 1e-6


def test_all_ignored_empty_and_plain(cuda):
    backend_checks.check_all_ignored_and_empty(cuda)


def test_nothing_is_written_where_all_is_ignored_or_empty(cuda):
    for batch in (0, 12):
        problem = Problem(BASE._replace(batch=batch, ignore_index=0))
        problem.target.zero_()
        rows, kept = problem.rows(), problem.accumulators()
        result = problem.forward_update(cuda, rows, None, kept)
        assert bool(result.loss.isnan())
        assert torch.equal(result.ids, torch.full((batch,), -1))
        assert_same(rows[:3], problem.rows()[:3])
        assert_same(kept, problem.accumulators())
    cuda.update_rows(rows, torch.empty(0, dtype=torch.int64), torch.empty(0, 37), None, problem.sgd, None)
    assert cuda.read_rows(rows, torch.empty(0, dtype=torch.int64)).shape == (0, 37)


def test_every_float16_is_read_as_it_is(cuda):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for dtype in (torch.float16, torch.bfloat16):
        x = values.view(torch.int16).view(dtype)
        logits = torch.stack([x, torch.zeros_like(x)], dim=1)
        target = torch.zeros(len(x), dtype=torch.int64)
        objective = Objective(None, "ac1", -100, "none", 0.0)
        mine = cuda.forward(logits, target, target.clone(), None, objective, FLAGS.clone(), 1, True)
        finite = x.isfinite()
        assert torch.equal(mine.ids == 0, finite)
        assert torch.equal(mine.statistics[finite, 0], x[finite].float())


def far_apart(elements):
    """(elements,) int16 zeros of which only the touched pages take memory."""
    return torch.from_numpy(np.zeros(elements, dtype=np.int16)).view(torch.bfloat16)


def test_offsets_past_2_to_the_31(emulated):
    """Elements of the table and of strided logits; 32 bits would reach rows at the other end, or nothing at all."""
    backend, _ = emulated
    classes, samples = 8192, 270_000
    problem = Problem(
        BASE._replace(classes=classes, table=torch.bfloat16, logits=torch.bfloat16, momentum=0.0)
    )
    near = problem.rows()
    shift = samples - problem.num_samples  # the rows' home in the large table: its end
    alpha = far_apart(samples * classes).view(samples, classes)
    assert shift * classes > 2**31
    alpha[shift:] = near.alpha
    last = torch.zeros(samples, dtype=torch.int32)
    last[shift:] = near.last
    far = near._replace(alpha=alpha, last=last)
    logits = far_apart(11 * 2**28 + classes).as_strided((12, classes), (2**28, 1))
    logits.copy_(problem.logits)
    expected = problem.forward_update(backend, near)
    problem.index, problem.num_samples = problem.index + shift, samples
    assert_same_bits_but_noise(problem.forward_update(backend, far, logits), expected, shift)
    torch.testing.assert_close(alpha[shift:].float(), near.alpha.float(), rtol=2.0**-6, atol=1e-6)
    assert torch.equal(last[shift:], near.last)
    ids = torch.arange(shift, samples)
    assert torch.equal(backend.read_rows(far, ids), eager.read_rows(far, ids))


def assert_same_bits_but_noise(mine, others, shift):
    """The ids, which stochastic rounding draws from, are moved."""
    assert torch.equal(mine.loss, others.loss)
    assert torch.equal(mine.grad, others.grad)
    assert torch.equal(mine.ids, torch.where(others.ids >= 0, others.ids + shift, -1))


def test_what_is_not_its_business_goes_to_eager(cuda):
    problem = Problem(BASE)
    for logits, dtype in ((problem.logits.double(), torch.float64), (problem.logits.double(), torch.float32)):
        rows = [problem.rows(dtype), problem.rows(dtype)]
        results = [problem.forward_update(b, r, logits) for b, r in zip((eager, cuda), rows, strict=True)]
        assert results[1].grad.dtype == torch.float64
        for name in ("loss", "grad", "ids"):
            assert error(getattr(results[1], name), getattr(results[0], name))[0] < 1e-12
        assert error(rows[0].alpha, rows[1].alpha)[0] < 1e-6


def test_a_wrong_state_is_refused(cuda):
    problem = Problem(BASE)
    rows = problem.rows()
    with pytest.raises(RuntimeError, match="logits as wide as the table"):
        problem.forward(cuda, rows._replace(alpha=torch.zeros(62, 36), momentum=None))
    with pytest.raises(RuntimeError, match="last .N,. int32"):
        problem.forward(cuda, rows._replace(last=rows.last.long()))
    with pytest.raises(RuntimeError, match="a momentum buffer like α"):
        problem.forward(cuda, rows._replace(momentum=torch.zeros(62, 36)))


# --- launches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "classes", "most"), [(256, 1000, 2), (256, 10, 2), (1024, 100, 2), (4096, 10, 5)]
)
def test_launches_of_a_step(emulated, batch, classes, most):
    backend, emulation = emulated
    problem = Problem(BASE._replace(batch=batch, classes=classes))
    rows, before = problem.rows(), emulation.emulation_launches()
    problem.forward_update(backend, rows)
    assert emulation.emulation_launches() - before <= most
    before = emulation.emulation_launches()
    backend.advance(rows.clock, problem.sgd, None)
    assert emulation.emulation_launches() - before == 1


def test_the_example_runs_without_python(library):
    done = subprocess.run([library.parent / "example"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("OK")


# --- on a device only ----------------------------------------------------------------------------------------


def on_device(problem):
    """The problem's tensors, a table and a clock on the device, as a backend is handed them."""
    mover = OnDevice(None, torch.device("cuda"))
    batch = [mover.move(x, []) for x in (problem.logits, problem.target, problem.index)]
    return batch, mover.move(problem.rows(), []), mover.move(problem.objective, []), problem.flags.cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_a_replayed_graph_follows_learning_rate_and_steps(form):
    from fastac import cuda as backend

    problem = Problem(BASE._replace(batch=256, classes=100, form=form))
    (logits, target, index), rows, objective, flags = on_device(problem)
    truth = problem.rows(torch.float64)

    def step():
        result = backend.forward_update(
            logits, target, index, rows, objective, flags, problem.num_samples, None, problem.sgd, 1.0
        )
        backend.advance(rows.clock, problem.sgd, None)
        return result

    kept = [x.clone() for x in (rows.alpha, rows.momentum, rows.last, rows.clock.steps)]
    kept += [rows.clock.within.clone(), rows.clock.tail.clone()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    places = (rows.alpha, rows.momentum, rows.last, rows.clock.steps, rows.clock.within, rows.clock.tail)
    for place, value in zip(places, kept, strict=True):
        place.copy_(value)
    for number, lr in enumerate((0.1, 0.05, 0.01, 0.2)):
        rows.clock.set_lr(lr)
        truth.clock.set_lr(lr)
        problem.logits = torch.randn(256, 100, generator=torch.Generator().manual_seed(number))
        logits.copy_(problem.logits)
        graph.replay()
        expected = problem.forward_update(eager, truth, problem.logits.double())
        eager.advance(truth.clock, problem.sgd, None)
        torch.testing.assert_close(result.loss.cpu().double(), expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rows.alpha.cpu().double(), truth.alpha, rtol=1e-4, atol=1e-5)
    assert int(rows.clock.steps) == int(truth.clock.steps) == 74


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "classes"), [(256, 1000), (2000, 10)])
def test_nothing_waits_for_the_device(batch, classes):
    from fastac import cuda as backend

    problem = Problem(BASE._replace(batch=batch, classes=classes, weighted=True))
    (logits, target, index), rows, objective, flags = on_device(problem)
    grad, skip = torch.randn(batch, classes, device="cuda"), torch.zeros((), dtype=torch.bool, device="cuda")
    arguments = (logits, target, index, rows, objective, flags, problem.num_samples)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = backend.forward(*arguments, True)
        backend.backward(result.grad, result.loss, torch.float32)
        backend.forward_update(*arguments, None, problem.sgd, 1.0)
        backend.scale_gradient(result.grad, result.loss)
        backend.update_rows(rows, index, grad, result.loss, problem.sgd, skip)
        backend.advance(rows.clock, problem.sgd, skip)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(rows.clock.steps) == 71


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "classes"), [(300, 10), (256, 1000), (64, 33000), (2000, 100)])
def test_repeats_on_the_device_are_the_same_bits(batch, classes):
    from fastac import cuda as backend

    case = BASE._replace(batch=batch, classes=classes, table=torch.bfloat16, logits=torch.bfloat16)
    results = []
    for _ in range(5):
        problem = Problem(case)
        (logits, target, index), rows, objective, flags = on_device(problem)
        results.append(
            (
                *backend.forward_update(
                    logits, target, index, rows, objective, flags, problem.num_samples, None, problem.sgd, 1.0
                ),
                *rows[:3],
            )
        )
    for other in results[1:]:
        assert_same(results[0], other)
