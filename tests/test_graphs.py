"""fastac.graphs: what a capture leaves behind. The capture itself needs a GPU; see also tests/test_gpu.py."""

import contextlib

import pytest
import torch
from torch import nn

from fastac.config import Config
from fastac.graphs import capture_network


@pytest.fixture
def capture(monkeypatch):
    """In CUDA's place: runs the network on the sample, as a capture does, and keeps what was asked for."""
    seen = {"random": torch.arange(4)}

    def make_graphed_callables(network, sample):
        assert not torch.is_autocast_cache_enabled()
        for _ in range(3):
            torch.autograd.grad(network(*sample).sum(), list(network.parameters()))
        seen["random"] = seen["random"] + 1
        seen["shape"] = sample[0].shape

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: seen["random"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: seen.update(random=state))
    return seen


def test_a_capture_leaves_statistics_gradients_and_random_state_as_they_were(capture):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    places = [buffer.data_ptr() for buffer in net.buffers()]
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    capture_network(net, torch.randn(4, 1, 8, 8), autocast)
    assert capture["shape"] == (4, 1, 8, 8)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert places == [buffer.data_ptr() for buffer in net.buffers()]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(capture["random"], torch.arange(4))
    assert torch.is_autocast_cache_enabled()


def test_a_network_in_eval_mode(capture):
    with pytest.raises(ValueError, match="network was in eval mode; it should be in training mode"):
        capture_network(nn.Linear(2, 2).eval(), torch.zeros(1, 2), contextlib.nullcontext)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"torchcompile": True}, "torchcompile was True with cuda_graphs; it should be False there"),
        ({"grad_accum_steps": 2}, "grad_accum_steps was 2 with cuda_graphs; it should be 1 there"),
        ({"drop_last": False}, "drop_last was False with cuda_graphs"),
        ({"on_bad_image": "skip"}, "on_bad_image was 'skip' with cuda_graphs; it should be 'stop' there"),
        ({"engine": "deepspeed"}, "engine was 'deepspeed' with cuda_graphs"),
        ({"device": "cpu"}, "device was 'cpu' with cuda_graphs; it should be 'cuda' there"),
    ],
)
def test_what_does_not_go_with_graphs(values, message):
    with pytest.raises(ValueError, match=message):
        Config().with_values(cuda_graphs=True, **values)
