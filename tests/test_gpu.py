"""Whole steps of training on a CUDA device, on every backend that is made for it: the values of the CPU, no wait for
the device, one graph under torch.compile, and CUDA graphs whose replay follows the learning rate."""

import pytest
import torch

import fastac
from fastac import backends

pytestmark = pytest.mark.gpu
N, K, B = 500, 100, 64


@pytest.fixture(params=["cuda", "triton", "reference"])
def backend(request, monkeypatch):
    monkeypatch.setenv("FASTAC_BACKEND", request.param)
    try:
        backends.select(torch.device("cuda"))
    except (ImportError, OSError, ValueError) as error:
        pytest.skip(f"backend {request.param} is not here: {error}")
    return request.param


@pytest.fixture
def as_users_run_it():
    """In the deterministic mode of the other tests PyTorch's own scatter_add, which `reference` uses, waits."""
    torch.use_deterministic_algorithms(False)


def batches(steps, device):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        logits = torch.randn(B, K, generator=generator)
        target = torch.randint(K, (B,), generator=generator)
        target[3] = -100
        index = torch.randint(N, (B,), generator=generator)  # ids come more than once
        yield logits.to(device), target.to(device), index.to(device)


def train(device, form, update, steps=12, dynamics=False, **options):
    """Logits that are themselves the parameters of one step each; α and the logits' gradients are what is compared."""
    table = fastac.AlphaTable(N, K, form=form, momentum=0.9, weight_decay=1e-2, device=device, **options)
    recorder = fastac.TrainingDynamics(N, K, device=device) if dynamics else None
    criterion = fastac.AutoCleansingLoss(table, update=update, label_smoothing=0.1, dynamics=recorder)
    grads = []
    for step, (logits, target, index) in enumerate(batches(steps, device)):
        table.lr = 0.5 / (1 + step)
        logits.requires_grad_()
        criterion(logits, target, index).backward()
        table.step()
        grads.append(logits.grad)
    return table.dense(), torch.stack(grads), recorder


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("update", ["step", "forward"])
def test_steps_are_those_of_the_cpu(backend, form, update, monkeypatch):
    alpha, grads, recorder = train("cuda", form, update, dynamics=True)
    monkeypatch.setenv("FASTAC_BACKEND", "reference")
    expected, expected_grads, expected_recorder = train(
        "cpu", form, update, dynamics=True, dtype=torch.float64
    )
    torch.testing.assert_close(alpha.cpu().double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grads.cpu(), expected_grads, rtol=1e-4, atol=1e-7)
    for key, value in expected_recorder.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(recorder.state_dict()[key].cpu(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("update", ["step", "forward"])
def test_a_repeat_gives_the_same_bits(backend, form, update):
    first, second = (train("cuda", form, update, dtype=torch.bfloat16) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("update", ["step", "forward"])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_step_waits_for_the_device(backend, update, weighted):
    net = torch.nn.Linear(16, K).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
    table = fastac.AlphaTable(N, K, device="cuda")
    table.follow(optimizer)
    weight = torch.rand(K, device="cuda") if weighted else None
    recorder = fastac.TrainingDynamics(N, K, device="cuda")
    criterion = fastac.AutoCleansingLoss(table, update=update, weight=weight, dynamics=recorder)
    images = torch.randn(B, 16, device="cuda")
    data = [(target, index) for _, target, index in batches(6, "cuda")]
    for number, (target, index) in enumerate(data):
        if number == 2:  # the first steps load kernels and take memory
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            criterion(net(images), target, index).backward()
            optimizer.step()
            optimizer.zero_grad()
        except BaseException:
            torch.cuda.set_sync_debug_mode("default")
            raise
    torch.cuda.set_sync_debug_mode("default")
    assert float(table.dense().abs().max()) > 0


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("update", ["step", "forward"])
def test_a_replayed_graph_follows_the_learning_rate(backend, update):
    """The graph holds loss, gradient, rows and clock; learning rates are set between replays."""
    data = next(batches(1, "cuda"))
    rates = [0.5, 0.5, 0.5, 0.2, 0.05, 0.3]

    def make():
        table = fastac.AlphaTable(N, K, momentum=0.9, weight_decay=1e-2, device="cuda")
        return table, fastac.AutoCleansingLoss(table, update=update)

    def step(table, criterion, logits):
        logits.grad = None
        criterion(logits, *data[1:]).backward()
        table.step()

    table, criterion = make()
    logits = data[0].clone().requires_grad_()
    for rate in rates:
        table.lr = rate
        step(table, criterion, logits)
    expected = table.dense()

    table, criterion = make()
    table.lr = rates[0]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(table, criterion, logits)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(table, criterion, logits)
    for rate in rates[2:]:
        table.lr = rate
        graph.replay()
    torch.testing.assert_close(table.dense(), expected)
    assert int(table.clock.steps) == len(rates)


@pytest.mark.parametrize("update", ["step", "forward"])
def test_compiled_steps_are_one_graph(backend, update):
    def run(compiled):
        torch.manual_seed(0)
        net = torch.nn.Linear(16, K).cuda()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        table = fastac.AlphaTable(N, K, device="cuda")
        table.follow(optimizer)
        criterion = fastac.AutoCleansingLoss(table, update=update)

        def loss(images, target, index):
            return criterion(net(images), target, index)

        loss = torch.compile(loss, fullgraph=True) if compiled else loss
        images = torch.randn(B, 16, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
        for _, target, index in batches(4, "cuda"):
            loss(images, target, index).backward()
            optimizer.step()
            optimizer.zero_grad()
        return table.dense(), net.weight.detach()

    for mine, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_a_step_that_a_grad_scaler_skips_moves_nothing(backend):
    net = torch.nn.Linear(16, K).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=1)
    table = fastac.AlphaTable(N, K, device="cuda")
    table.follow(optimizer, scaler=scaler)
    criterion = fastac.AutoCleansingLoss(table)
    seen = []
    for number, (_, target, index) in enumerate(batches(4, "cuda")):
        images = torch.randn(B, 16, device="cuda") * (torch.inf if number == 2 else 1)
        scaler.scale(criterion(net(images), target, index)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        seen.append((table.dense(), int(table.clock.steps)))
    assert [steps for _, steps in seen] == [1, 2, 2, 3]
    assert torch.equal(seen[1][0], seen[2][0])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_values_outside_their_range_are_reported_at_a_later_step(backend):
    table = fastac.AlphaTable(N, K, device="cuda")
    table.lr = 0.1
    criterion = fastac.AutoCleansingLoss(table)

    def train():
        for logits, target, index in batches(5, "cuda"):
            index[7] = N
            criterion(logits.requires_grad_(), target, index).backward()
            table.step()
            torch.cuda.synchronize()

    with pytest.raises(IndexError, match="index held values outside their range in an earlier batch"):
        train()
    for _ in range(3):  # said once
        table.step()
        torch.cuda.synchronize()


def test_values_outside_their_range_are_reported_without_a_table(backend):
    criterion = fastac.AutoCleansingLoss(None)

    def train():
        for logits, target, _ in batches(5, "cuda"):
            target[7] = K
            criterion(logits.requires_grad_(), target).backward()
            torch.cuda.synchronize()

    with pytest.raises(IndexError, match="target held values outside their range in an earlier batch"):
        train()
