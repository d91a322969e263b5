"""Whole steps of training on a CUDA device, on every backend that is made for it: the values of the CPU, no wait for
the device, one graph under torch.compile, CUDA graphs whose replay follows the learning rate; the trainer's steps."""

import pytest
import torch
from training_runs import config, without_pictures

import fastac
from fastac import backends
from fastac.engine import create_engine
from fastac.job import Job
from fastac.metrics import Reading
from fastac.train import grouped, train_step
from fastac.train import train as run_training
from fastac.training_data import load_data

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


# ---------------------------------------------------------------- the trainer


def trainer_job(tmp_path, **options):
    values = {
        "device": "cuda",
        "model": "resnet20",
        "drop_last": True,
        "epochs": 2,
        "warmup_epochs": 0.0,
        **options,
    }
    configuration = config(tmp_path, **values)
    return Job(configuration, create_engine(configuration), load_data(configuration))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("options", [{}, {"amp_dtype": "bf16", "channels_last": True, "model_ema": True}])
def test_the_trainers_step_does_not_wait_for_the_device(tmp_path, options):
    job = trainer_job(tmp_path, **options)
    job.model.train()
    batches = grouped(job.train_loader.epoch(0), 1)
    for _ in range(3):
        train_step(job, next(batches))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(job, next(batches))
        reading = Reading(job.meter.totals)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reading.figures().rows == 4 * 32


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("amp_dtype", ["none", "bf16"])
def test_a_captured_network_trains_as_the_network_does(tmp_path, monkeypatch, amp_dtype):
    # In TF32 the two may choose kernels that differ in the third decimal, and a dozen steps apart from there.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ends = []
    for graphs in (False, True):
        job = trainer_job(tmp_path, cuda_graphs=graphs, amp_dtype=amp_dtype)
        job.model.train()
        for epoch in range(2):
            for group in grouped(job.train_loader.epoch(epoch), 1):
                train_step(job, group)
        with torch.no_grad():
            logits = job.network.eval()(next(job.test_loader.epoch(0)).images)
        counts = {int(b) for name, b in job.network.named_buffers() if name.endswith("num_batches_tracked")}
        ends.append((logits, job.table.dense(), counts))
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if amp_dtype == "none" else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(ends[1][0], ends[0][0], **tolerance)
    torch.testing.assert_close(ends[1][1], ends[0][1], **tolerance)
    assert ends[1][2] == ends[0][2] == {12}


@pytest.mark.usefixtures("as_users_run_it")
def test_a_run_with_graphs_resumes(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    options = {
        "device": "cuda",
        "drop_last": True,
        "model": "resnet20",
        "cuda_graphs": True,
        "model_ema": True,
    }
    whole = run_training(config(tmp_path, name="whole", **options))
    run_training(config(tmp_path, name="parts", max_steps=8, **options))
    parts = run_training(config(tmp_path, name="parts", **options), resume=True)
    assert parts["steps"] == whole["steps"]
    assert parts["test_loss"] == pytest.approx(whole["test_loss"], rel=0.05)
    assert parts["ema_test_accuracy"] == pytest.approx(whole["ema_test_accuracy"], abs=0.05)
