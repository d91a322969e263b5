"""The operator as torch sees it: opcheck, gradcheck, torch.compile."""

import contextlib

import pytest
import torch
from dense import relative_error
from torch.utils._python_dispatch import TorchDispatchMode

import fastac
from fastac.functional import ac_cross_entropy

K, N, B = 5, 30, 6


def make(form="ac1", dtype=torch.float32, follow=True, **loss_options):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, K)).to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    table = fastac.AlphaTable(N, K, form=form, dtype=dtype)
    table.follow(optimizer)
    return net, optimizer, table, fastac.AutoCleansingLoss(table, **loss_options)


def op_inputs(form, update, dynamics=False):
    _, _, table, _ = make(form)
    recorder = fastac.TrainingDynamics(N, K) if dynamics else None
    handle = recorder.handle if recorder else 0
    logits = torch.randn(B, K, requires_grad=True)
    target, index = torch.arange(B) % K, torch.arange(B)
    state = (
        table.anchor,
        table.alpha,
        table.momentum_buffer,
        table.last,
        table.clock.steps,
        table.checks.flags,
    )
    options = (torch.rand(K), form, -100, "mean", 0.1, N, table.handle, handle, True)
    tail = (1.0,) if update == "forward" else ()
    return (logits, target, index, *state, *options, *tail), (table, recorder)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_opcheck(form):
    inputs, keep = op_inputs(form, "step")
    torch.library.opcheck(torch.ops.fastac.cross_entropy.default, inputs)
    del keep


def test_the_updating_op_writes_what_its_schema_says():
    """(opcheck runs an op several times on the same state, which this one refuses without a step between.)"""
    inputs, (table, _) = op_inputs("ac1", "forward")
    alpha = table.alpha.clone()
    versions = [x._version for x in inputs if isinstance(x, torch.Tensor)]
    torch.ops.fastac.cross_entropy_update(*inputs)
    moved = [x._version for x in inputs if isinstance(x, torch.Tensor)]
    written = [a != b for a, b in zip(versions, moved, strict=True)]
    assert written == [False, False, False, False, True, True, True, False, False, False]
    assert not torch.equal(table.alpha, alpha)


class Names(TorchDispatchMode):
    """Notes the operators of this package that pass through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastac":
            self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("update", ["step", "forward"])
def test_who_looks_on_sees_the_operators(form, update):
    """Where nobody does, their kernels are called without them: the same bits."""
    results = []
    for mode in (contextlib.nullcontext(), Names()):
        net, optimizer, table, criterion = make(form, update=update)
        for _ in range(3):
            optimizer.zero_grad()
            logits = net(torch.randn(B, 4, generator=torch.Generator().manual_seed(1)))
            with mode:
                loss = criterion(logits, torch.arange(B) % K, torch.arange(B))
                (2 * loss).backward()
            optimizer.step()
        results.append((loss.detach(), net[0].weight.detach(), table.dense()))
    both = ["cross_entropy", "cross_entropy_backward"]
    assert mode.seen == (both if update == "step" else ["cross_entropy_update", "scale_gradient"]) * 3
    assert results[0][2].abs().max() > 0
    for plain, seen in zip(*results, strict=True):
        assert torch.equal(plain, seen)


def test_gradcheck():
    table = fastac.AlphaTable(N, K, dtype=torch.float64)
    table.lr = 0.1
    logits = torch.randn(B, K, dtype=torch.float64, requires_grad=True)
    target, index = torch.tensor([0, 1, 2, -100, 4, 1]), torch.arange(B)
    weight = torch.rand(K, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        torch.autograd.gradcheck(
            lambda x, r=reduction: ac_cross_entropy(
                x, target, index, table, weight=weight, reduction=r, label_smoothing=0.2
            ),
            logits,
        )


def run_steps(compiled, form="ac1", backend="inductor", steps=6, whole=False, **loss_options):
    torch._dynamo.reset()
    net, optimizer, table, criterion = make(form, **loss_options)
    generator = torch.Generator().manual_seed(2)
    inputs, labels = torch.randn(N, 4, generator=generator), torch.randint(K, (N,), generator=generator)

    def forward(x, y, index):
        return criterion(net(x), y, index)

    def training_step(x, y, index):
        optimizer.zero_grad()
        loss = criterion(net(x), y, index)
        loss.backward()
        optimizer.step()
        return loss

    if compiled and whole:
        training_step = torch.compile(training_step, backend=backend)
    elif compiled:
        forward = torch.compile(forward, backend=backend, fullgraph=True)
    losses = []
    for step in range(steps):
        index = torch.randint(N, (B if step % 3 else B - 1,), generator=generator)
        batch = inputs[index], labels[index], index
        if whole:
            losses.append(training_step(*batch).detach())
        else:
            optimizer.zero_grad()
            loss = forward(*batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), table.dense(), net[0].weight.detach()


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("update", ["step", "forward"])
def test_compiled_forward_without_graph_break(form, update):
    eager = run_steps(False, form, update=update)
    compiled = run_steps(True, form, update=update)
    assert eager[1].abs().max() > 0
    for mine, theirs in zip(compiled, eager, strict=True):
        assert relative_error(mine, theirs) < 1e-5


def test_compiled_training_step():
    eager, compiled = run_steps(False, whole=True), run_steps(True, backend="aot_eager", whole=True)
    for mine, theirs in zip(compiled, eager, strict=True):
        assert relative_error(mine, theirs) < 1e-5


def test_compiled_backward_passes_that_wait_for_each_other():
    """Two compiled forwards before their backwards, and the same loss twice: none is merged or dropped."""
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net, optimizer, table, criterion = make()
        x, y, index = (
            torch.randn(B, 4, generator=torch.Generator().manual_seed(3)),
            torch.arange(B) % K,
            torch.arange(B),
        )

        def twice(x, y, index, net=net, criterion=criterion):
            logits = net(x)
            return criterion(logits, y, index) + criterion(logits, y, index)

        forward = torch.compile(twice, fullgraph=True) if compiled else twice
        first, second = forward(x, y, index), forward(2 * x, y, index)
        second.backward()
        first.backward()
        optimizer.step()
        results.append(table.dense())
    assert relative_error(results[1], results[0]) < 1e-5


@pytest.mark.parametrize("update", ["step", "forward"])
def test_the_compiled_graph_does_not_clone_the_table(update):
    """Read from the code that Inductor generates: no buffer of α's size is made."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    net, optimizer, table, criterion = make(update=update)
    big = fastac.AlphaTable(12_345, K)
    big.follow(optimizer)
    criterion.table = big
    step = torch.compile(lambda x, y, i: criterion(net(x), y, i), fullgraph=True)
    index = torch.arange(B)

    def forward_backward():
        step(torch.randn(B, 4), index % K, index).backward()

    _, codes = run_and_get_code(forward_backward)
    code = "\n".join(codes)
    assert "fastac" in code
    allocations = [line for line in code.splitlines() if "empty_strided" in line and "12345" in line]
    assert not allocations
    optimizer.step()
    assert big.rows(index).abs().max() > 0


def test_compile_recompiles_for_no_new_learning_rate():
    torch._dynamo.reset()
    net, optimizer, table, criterion = make()
    step = torch.compile(lambda x, y, i: criterion(net(x), y, i), backend="eager", fullgraph=True)
    index = torch.arange(B)
    torch._dynamo.utils.counters.clear()
    for k in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        step(torch.randn(B, 4), index % K, index).backward()
        optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert int(table.clock.steps) == 5


def test_a_step_by_hand_in_compiled_code_runs_outside_the_graph():
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        table = fastac.AlphaTable(N, K, momentum=0.9)
        table.lr = 0.1

        def whole(logits, index, table=table):
            ac_cross_entropy(logits, index % K, index, table).backward()
            table.step()

        step = torch.compile(whole, backend="aot_eager") if compiled else whole
        for seed in range(4):
            logits = torch.randn(B, K, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            step(logits, torch.arange(B))
        results.append(table.dense())
        assert int(table.clock.steps) == 4
    assert relative_error(results[1], results[0]) < 1e-6
