"""fastac.ema: the average of the weights, by hand, and in a run."""

import contextlib
import copy

import pytest
import torch
import training_runs
from torch import nn
from training_runs import assert_same_run, config, metrics, without_pictures

from fastac.checkpoint import Checkpoints
from fastac.ema import WeightAverage
from fastac.engine import create_engine
from fastac.job import Job
from fastac.train import train, train_step
from fastac.training_data import load_data


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_the_average_is_that_of_the_steps():
    net = network()
    average, decay = WeightAverage(net, 0.3), 0.3
    expected = net[0].weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            net[0].weight.normal_()
        average.update()
        stays = min(decay, (1 + step) / (10 + step))
        expected = stays * expected + (1 - stays) * net[0].weight.detach()
        torch.testing.assert_close(average.read()[0].weight, expected)
    assert stays == 0.3  # the last steps are past the beginning


def test_what_is_read_has_the_networks_buffers_and_is_no_part_of_it():
    net = network()
    average = WeightAverage(net, 0.5)
    net(torch.randn(8, 3)).sum().backward()
    read = average.read()
    assert not read.training
    assert net.training
    assert torch.equal(read[1].running_mean, net[1].running_mean)
    assert int(read[1].num_batches_tracked) == 1
    assert all(not parameter.requires_grad for parameter in read.parameters())


def test_a_state_goes_on_elsewhere():
    net = network()
    one, other = WeightAverage(net, 0.9), WeightAverage(network(), 0.9)
    one.update()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.updates == 1
    assert torch.equal(other.read()[0].weight, one.read()[0].weight)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_wrong_decay(decay):
    with pytest.raises(ValueError, match="decay was .*; it should be above 0 and below 1"):
        WeightAverage(network(), decay)


def test_a_state_of_another_network_changes_nothing():
    average = WeightAverage(network(), 0.9)
    before = copy.deepcopy(average.state_dict())
    state = {"updates": 3, "model": {**before["model"], "0.bias": torch.zeros(5)}}
    with pytest.raises(ValueError, match=r"'0.bias' in it is \(5,\); it should be \(4,\)"):
        average.load_state_dict(state)
    assert training_runs.differences(before, average.state_dict()) == []


@pytest.mark.parametrize("saved", [False, True])
def test_a_checkpoint_with_and_a_run_without_an_average_change_nothing(tmp_path, saved):
    one, other = (
        Job(c, create_engine(c), load_data(c), training_runs.with_dropout)
        for c in (config(tmp_path, model_ema=saved), config(tmp_path, model_ema=not saved))
    )
    for job in (one, other):
        train_step(job, [next(job.train_loader.epoch(0))])
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(1, one.shared_state(), one.own_states())
        loaded = checkpoints.load_newest()
    before = other.table.dense()
    with pytest.raises(ValueError, match=f"the checkpoint has {'a' if saved else 'no'} average"):
        other.load(loaded)
    assert torch.equal(before, other.table.dense())


def test_a_run_tests_the_average_and_goes_on_with_it(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    options = {"model_ema": True, "model_ema_decay": 0.9}
    result = train(config(tmp_path, name="whole", **options), create=training_runs.with_dropout)
    rows = metrics(tmp_path / "whole")
    assert float(rows[-1]["ema_test_accuracy"]) == pytest.approx(result["ema_test_accuracy"], abs=1e-5)
    assert rows[-1]["ema_test_accuracy"] != rows[-1]["test_accuracy"]
    train(config(tmp_path, name="parts", max_steps=8, **options), create=training_runs.with_dropout)
    train(config(tmp_path, name="parts", **options), resume=True, create=training_runs.with_dropout)
    resumed = config(tmp_path, name="parts", **options)
    assert resumed.run.max_steps == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    one, other = (
        torch.load(tmp_path / name / "model_ema.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert training_runs.differences(one, other) == []
    network = torch.load(tmp_path / "whole" / "model.pt", weights_only=True)
    assert training_runs.differences(network, one) != []
