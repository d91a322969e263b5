"""fastac.optim: parameter groups and the schedules' values at known steps."""

import math
import sys
import types

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import fastac
from fastac.config import OptimizerConfig
from fastac.optim import create_optimizer, lr_factor, parameter_groups


def test_no_weight_decay_on_batch_norm_and_biases():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    model[3].weight.requires_grad_(False)
    decayed, free = parameter_groups(model, 0.01)
    assert decayed["params"] == [model[0].weight]
    assert free["params"] == [model[0].bias, model[1].weight, model[1].bias, model[3].bias]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)


def test_sgd_has_the_configs_settings():
    config = OptimizerConfig(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.02)
    optimizer = create_optimizer(nn.Linear(2, 2), config, torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.SGD)
    for group, decay in zip(optimizer.param_groups, (0.02, 0.0), strict=True):
        assert (group["lr"], group["momentum"], group["nesterov"], group["dampening"]) == (0.3, 0.8, True, 0)
        assert group["weight_decay"] == decay


def test_cosine_with_warm_up():
    factor = lr_factor(OptimizerConfig(epochs=10, warmup_epochs=1.0), steps_per_epoch=20)
    assert [factor(s) for s in (0, 9, 19)] == pytest.approx([1 / 21, 10 / 21, 20 / 21])
    assert factor(20) == 1.0
    assert factor(20 + 45) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(20 + 90) == pytest.approx(0.5)
    assert factor(199) == pytest.approx(0.5 * (1 + math.cos(math.pi * 179 / 180)))
    assert factor(200) == factor(300) == 0.0


def test_cosine_agrees_with_torchs_without_warm_up():
    config = OptimizerConfig(epochs=3, lr=0.7)
    ours = create_optimizer(nn.Linear(2, 2), config, torch.device("cpu"))
    theirs = create_optimizer(nn.Linear(2, 2), config, torch.device("cpu"))
    mine = LambdaLR(ours, lr_factor(config, 7))
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=21)
    for _ in range(21):
        assert mine.get_last_lr() == pytest.approx(reference.get_last_lr(), abs=1e-12)
        for optimizer, scheduler in ((ours, mine), (theirs, reference)):
            optimizer.step()
            scheduler.step()


def test_short_scales_the_whole_schedule():
    """The rate at a share of the training is that of the long one."""
    for values in (
        {"warmup_epochs": 4.0},
        {"schedule": "multistep", "milestones": (15, 30), "warmup_epochs": 5.0},
    ):
        long = OptimizerConfig(epochs=40, **values)
        short = OptimizerConfig(epochs=40, short=0.25, **values)
        assert (short.trained_epochs, long.trained_epochs) == (10, 40)
        one, other = lr_factor(long, 8), lr_factor(short, 8)
        for step in range(10, 80):
            assert other(step) == pytest.approx(one(4 * step), rel=0.02)
    assert OptimizerConfig(epochs=3, short=0.01).trained_epochs == 1


def test_a_warm_up_of_the_whole_training():
    """Rounded to steps, it may leave no step for the cosine."""
    for config, steps in (
        (OptimizerConfig(epochs=10, warmup_epochs=9.99), 10),
        (OptimizerConfig(epochs=90, warmup_epochs=60.0, short=0.01), 1),
    ):
        factor = lr_factor(config, steps)
        total = config.trained_epochs * steps
        assert factor(total - 1) == pytest.approx(total / (total + 1))
        assert factor(total) == 1.0


def test_multistep_changes_at_the_milestones_first_step():
    config = OptimizerConfig(epochs=300, schedule="multistep", milestones=(150, 225), gamma=0.1)
    factor = lr_factor(config, steps_per_epoch=196)
    assert factor(0) == factor(150 * 196 - 1) == 1.0
    assert factor(150 * 196) == factor(225 * 196 - 1) == pytest.approx(0.1)
    assert factor(225 * 196) == factor(300 * 196) == pytest.approx(0.01)


def test_constant_after_a_fractional_warm_up():
    factor = lr_factor(OptimizerConfig(epochs=4, schedule="constant", warmup_epochs=0.5), steps_per_epoch=8)
    assert [factor(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(31) == 1.0


def test_the_state_restores_the_rate_exactly():
    config = OptimizerConfig(epochs=5, warmup_epochs=1.0)

    def start():
        optimizer = create_optimizer(nn.Linear(2, 2), config, torch.device("cpu"))
        return optimizer, LambdaLR(optimizer, lr_factor(config, 9))

    optimizer, scheduler = start()
    rates = []
    for step in range(45):
        if step == 17:
            state = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = start()
            optimizer.load_state_dict(state[0])
            scheduler.load_state_dict(state[1])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    factor = lr_factor(config, 9)
    assert rates == [config.lr * factor(step) for step in range(45)]


@pytest.fixture
def apex(monkeypatch):
    """A stand-in for NVIDIA's apex: FusedSGD has torch's step, and no `maximize`."""

    class FusedSGD(torch.optim.Optimizer):
        wd_after_momentum = False

        def __init__(self, params, lr, **options):
            super().__init__(params, {"dampening": 0.0, "weight_decay": 0.0, "lr": lr, **options})
            self.inner = torch.optim.SGD(self.param_groups)

        def step(self, closure=None):
            self.inner.step()

    FusedSGD.__module__ = "apex.optimizers.fused_sgd"
    module = types.ModuleType("apex.optimizers")
    module.FusedSGD = FusedSGD
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    return FusedSGD


def test_fusedsgd_is_apexs_with_the_configs_settings(apex):
    config = OptimizerConfig(opt="fusedsgd", lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.02)
    optimizer = create_optimizer(nn.Linear(2, 2), config, torch.device("cuda"))
    assert type(optimizer) is apex
    for group, decay in zip(optimizer.param_groups, (0.02, 0.0), strict=True):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.3, 0.8, True)
        assert group["weight_decay"] == decay
    with pytest.raises(ValueError, match=r"opt was 'fusedsgd' on cpu; it should be 'sgd' there"):
        create_optimizer(nn.Linear(2, 2), config, torch.device("cpu"))


def test_alpha_follows_fusedsgd_as_it_follows_sgd(apex):
    tables = []
    for kind in (torch.optim.SGD, apex):
        torch.manual_seed(0)
        model = nn.Linear(2, 3)
        optimizer = kind(model.parameters(), lr=0.3, momentum=0.8, nesterov=True)
        table = fastac.AlphaTable(6, 3)
        table.follow(optimizer)
        criterion = fastac.AutoCleansingLoss(table)
        for _ in range(5):
            index = torch.randint(6, (4,))
            criterion(model(torch.randn(4, 2)), index % 3, index).backward()
            optimizer.step()
            optimizer.zero_grad()
        tables.append(table.dense())
    torch.testing.assert_close(*tables)
    assert tables[0].abs().max() > 0.01
    optimizer.wd_after_momentum = True
    with pytest.raises(ValueError, match="wd_after_momentum=True"):
        table.follow(optimizer)


@pytest.mark.parametrize("installed", [None, types.ModuleType("apex")])  # none, or PyPI's other project
def test_without_apex_the_command_that_builds_it(monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "apex", installed)
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    with pytest.raises(
        ImportError, match=r"git clone https://github.com/NVIDIA/apex .* pip install .*--no-build-iso"
    ):
        create_optimizer(nn.Linear(2, 2), OptimizerConfig(opt="fusedsgd"), torch.device("cuda"))
