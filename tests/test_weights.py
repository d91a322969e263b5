"""fastac.weights: files of weights, from runs and from elsewhere."""

import re

import pytest
import torch
import training_runs
from torch import nn
from training_runs import config, without_pictures

from fastac.job import Job
from fastac.train import create_engine, train
from fastac.training_data import load_data
from fastac.weights import load_weights, save_weights


def network(classes=3):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "ddp", "safetensors"])
def test_weights_come_back(tmp_path, wrap):
    one, other = network(), network()
    state = one.state_dict()
    path = tmp_path / "weights.pt"
    if wrap == "plain":
        save_weights(path, state)
        assert list(tmp_path.iterdir()) == [path]
    elif wrap == "state_dict":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif wrap == "ddp":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        path = tmp_path / "weights.safetensors"
        safetensors.save_file(state, path)
    assert load_weights(other, path) == path
    assert training_runs.differences(dict(one.state_dict()), dict(other.state_dict())) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: network(7).state_dict(), "whose '2.bias' is (7,); it should be (3,)"),
        (lambda: {**network().state_dict(), "more": torch.ones(1)}, "which has a 'more'"),
        (lambda: {"0.weight": torch.ones(5, 4)}, "which has no '0.bias'"),
        (lambda: {"epoch": 3}, "it should hold tensors by name"),
        (lambda: [1, 2], "it should hold tensors by name"),
        (lambda: {1: torch.ones(2)}, "it should hold tensors by name"),
    ],
)
def test_a_file_of_another_network_changes_nothing(tmp_path, content, message):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(content(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(net, tmp_path / "other.pt")
    assert training_runs.differences(before, dict(net.state_dict())) == []


class Harm:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"0.weight": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(ValueError, match=r"harm.pt, which torch can't read"):
        load_weights(network(), tmp_path / "harm.pt")
    assert "unpickled" not in capsys.readouterr().out


def test_a_damaged_file(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no tensors in here")
    with pytest.raises(ValueError, match=r"x.safetensors, which safetensors.torch can't read"):
        load_weights(network(), tmp_path / "x.safetensors")


def test_a_run_goes_on_without_the_weights_that_it_started_from(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    train(config(tmp_path, name="first", max_steps=6), create=training_runs.with_dropout)
    (tmp_path / "first" / "model.pt").rename(tmp_path / "start.pt")
    second = config(tmp_path, name="second", initial_checkpoint=str(tmp_path / "start.pt"))
    train(second.with_values(max_steps=8), create=training_runs.with_dropout)
    (tmp_path / "start.pt").unlink()
    assert train(second, resume=True, create=training_runs.with_dropout)["steps"] == 18
    with pytest.raises(FileNotFoundError, match=r"start.pt'; it should be a file of weights"):
        train(second.with_values(name="third"), resume=True, create=training_runs.with_dropout)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no.pt'; it should be a file of weights"):
        load_weights(network(), tmp_path / "no.pt")
    with pytest.raises(
        FileNotFoundError, match=r"it should be a run's folder, with model_ema.pt or model.pt"
    ):
        load_weights(network(), tmp_path)


def test_a_run_starts_from_another_ones_weights(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    train(config(tmp_path, name="first", max_steps=6), create=training_runs.with_dropout)
    second = config(tmp_path, initial_checkpoint=str(tmp_path / "first"), seed=5)
    job = Job(second, create_engine(second), load_data(second), training_runs.with_dropout)
    saved = torch.load(tmp_path / "first" / "model.pt", weights_only=True)
    assert training_runs.differences(saved, dict(job.network.state_dict())) == []
