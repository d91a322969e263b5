"""Shake-Shake and ShakeDrop: their noise, their gradients, and what the trainer's features make of both."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from training_runs import assert_same_run, config, without_pictures

import fastac.models.shake as shake
from fastac.models import create_model
from fastac.train import train

NETWORKS = ["shake-shake-8-2x4d", "pyramidnet-20-12-shakedrop"]


def network_of(name, *, double=False):
    torch.manual_seed(3)
    network = create_model(name, num_classes=5, in_channels=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # at its start a wrong norm would not show
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.double() if double else network


def batch(rows=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(rows, 3, 12, 12, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.arange(rows) % 5


def gradients(network, images, target, seed):
    torch.manual_seed(seed)
    network.zero_grad()
    logits = network(images)
    F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, target).backward()
    return logits.detach(), [p.grad.clone() for p in network.parameters()]


# ---------------------------------------------------------------- given noise


def test_mix_with_given_noise():
    first, second, upstream = torch.randn(3, 4, 3, 2, 5, dtype=torch.float64)
    first.requires_grad_()
    second.requires_grad_()
    alpha, beta = torch.rand(2, 4, 1, 1, 1, dtype=torch.float64)
    mixed = shake.mix(first, second, alpha, beta)
    mixed.backward(upstream)
    torch.testing.assert_close(mixed, alpha * first + (1 - alpha) * second)
    torch.testing.assert_close(first.grad, beta * upstream)
    torch.testing.assert_close(second.grad, (1 - beta) * upstream)


def test_scale_with_given_noise():
    x, upstream = torch.randn(2, 4, 3, 2, 5, dtype=torch.float64)
    forward, backward = torch.randn(2, 4, 1, 1, 1, dtype=torch.float64)
    x.requires_grad_()
    scaled = shake.scale(x, forward, backward)
    scaled.backward(upstream)
    torch.testing.assert_close(scaled, forward * x)
    torch.testing.assert_close(x.grad, backward * upstream)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_network_against_stopped_gradients(name, monkeypatch):
    """AutoAugment's way to write it: v·backward + stop_gradient(v·forward − v·backward), by autograd alone."""
    network, (images, target) = network_of(name, double=True), batch(dtype=torch.float64)
    ours = gradients(network, images, target, seed=1)

    def stopped(v, forward, backward):
        return v * backward + (v * forward - v * backward).detach()

    def mix(first, second, alpha, beta):
        return stopped(first, alpha, beta) + stopped(second, 1 - alpha, 1 - beta)

    monkeypatch.setattr(shake, "mix", mix)
    monkeypatch.setattr(shake, "scale", stopped)
    torch.testing.assert_close(gradients(network, images, target, seed=1), ours)


# ---------------------------------------------------------------- the noise


def correlation(a, b):
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_shake_shakes_noise():
    """With branches 1 and 0 the mixture is α, and its gradient β. Limits: 5 standard errors of 40,000 images."""
    rows = 40_000
    first = torch.ones(rows, 1, 1, 2, requires_grad=True)
    mixed = shake.shake_shake(first, torch.zeros(rows, 1, 1, 2), training=True)
    mixed.sum().backward()
    for factors in (mixed.detach(), first.grad):
        assert torch.equal(factors[..., 0], factors[..., 1])  # one for each image
        assert 0 <= factors.min() < 0.001
        assert 0.999 < factors.max() < 1.0001
        assert factors[..., 0].mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / rows) ** 0.5)
        assert factors.var().item() == pytest.approx(1 / 12, rel=0.02)
        neighbours = factors[:-1, 0, 0, 0], factors[1:, 0, 0, 0]
        assert abs(correlation(*neighbours)) < 5 / rows**0.5
    assert abs(correlation(mixed.detach()[:, 0, 0, 0], first.grad[:, 0, 0, 0])) < 5 / rows**0.5


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_shakedrops_noise(keep):
    rows = 40_000
    layer = shake.ShakeDrop(keep).train()
    x = torch.ones(rows, 1, 1, 2, requires_grad=True)
    scaled = layer(x)
    scaled.sum().backward()
    assert torch.equal(scaled[..., 0], scaled[..., 1])
    forward, backward = scaled.detach()[:, 0, 0, 0], x.grad[:, 0, 0, 0]
    kept = backward == 1
    assert (forward[kept] == 1).all()  # the same gate both ways
    assert kept.float().mean().item() == pytest.approx(keep, abs=5 * (keep * (1 - keep) / rows) ** 0.5)
    alpha, beta = forward[~kept], backward[~kept]
    error = 5 / len(alpha) ** 0.5
    assert -1 <= alpha.min() < -0.99
    assert 0.99 < alpha.max() < 1
    assert alpha.mean().item() == pytest.approx(0, abs=error / 3**0.5)
    assert alpha.var().item() == pytest.approx(1 / 3, rel=0.05)
    assert 0 <= beta.min() < 0.01
    assert 0.99 < beta.max() < 1
    assert beta.mean().item() == pytest.approx(0.5, abs=error / 12**0.5)
    assert abs(correlation(alpha, beta)) < error
    # Equation 6's expectation is what the evaluation multiplies by.
    assert forward.mean().item() == pytest.approx(keep, abs=5 * forward.std().item() / rows**0.5)
    assert (layer.eval()(x) == keep).all()


def test_keep_falls_linearly():
    """Yamada et al. 2019, equation 4: from 1 − 1/2L in the first block to p_L = 0.5 in the last."""
    with torch.device("meta"):
        network = create_model("pyramidnet-272-200-shakedrop", num_classes=10, in_channels=3)
    keeps = [block.shake.keep for block in network.blocks]
    assert keeps == pytest.approx([1 - n / 180 for n in range(1, 91)])
    with pytest.raises(ValueError, match="keep is 1.5; it should be a probability"):
        shake.ShakeDrop(1.5)


def test_without_shakedrop_nothing_is_random():
    network = network_of("pyramidnet-20-12").train()
    images, _ = batch()
    assert torch.equal(network(images), network(images))


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_deterministic_and_draws_nothing(name):
    network, (images, _) = network_of(name).eval(), batch()
    state = torch.get_rng_state()
    first = network(images)
    assert torch.equal(network(images), first)
    assert torch.equal(torch.get_rng_state(), state)
    network.train()
    assert not torch.equal(network(images), network(images))


def test_shake_shakes_evaluation_is_the_expectation():
    """A block is linear in α: the mean of α = 0 and 1 is the expectation, forward and backward."""
    first, second = torch.randn(2, 4, 3, 2, 5, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(4, 3, 2, 5, dtype=torch.float64)
    evaluated = shake.shake_shake(first, second, training=False)
    torch.testing.assert_close(evaluated, (first + second) / 2)
    torch.testing.assert_close(torch.autograd.grad(evaluated, (first, second), upstream), (upstream / 2,) * 2)


# ---------------------------------------------------------------- random state


@pytest.mark.parametrize("name", NETWORKS)
def test_manual_seed_decides_the_noise(name):
    network, (images, target) = network_of(name), batch()
    one, again, other = (gradients(copy.deepcopy(network), images, target, seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], again[1], strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_retained_graphs_and_recomputed_activations_keep_their_noise(name):
    network, (images, target) = network_of(name), batch()
    _, expected = gradients(network, images, target, seed=1)
    torch.manual_seed(1)
    loss = F.cross_entropy(network(images), target)
    parameters = list(network.parameters())
    for retain in (True, False):
        found = torch.autograd.grad(loss, parameters, retain_graph=retain)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    blocks = network.blocks
    network.blocks = _Recomputed(blocks)
    _, found = gradients(network, images, target, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class _Recomputed(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, x):
        return checkpoint(self.blocks, x, use_reentrant=False)


def test_a_resumed_run_has_the_same_noise(tmp_path, monkeypatch):
    """To the last bit, from the middle of an epoch; the generator's state is all that the layers have to keep."""
    without_pictures(monkeypatch)
    settings = {"model": "pyramidnet-11-4-shakedrop", "epochs": 1, "train_limit": 97}
    train(config(tmp_path, name="whole", **settings))
    train(config(tmp_path, name="cut", max_steps=2, **settings))
    train(config(tmp_path, name="cut", **settings), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


# ---------------------------------------------------------------- with the rest of PyTorch


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_autocast(name):
    """The same noise and, to bfloat16's rounding, the same gradients."""
    network, (images, target) = network_of(name), batch(16)
    exact, expected = gradients(network, images, target, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = gradients(network, images, target, seed=1)
    assert rounded.dtype == torch.bfloat16
    assert F.cosine_similarity(exact.flatten(), rounded.float().flatten(), dim=0) > 0.99
    one, other = (torch.cat([g.flatten() for g in grads]) for grads in (expected, found))
    assert other.dtype == torch.float32
    assert (
        F.cosine_similarity(one, other, dim=0) > 0.9
    )  # 0.95 without noise too; 0.2 to 0.4 with another seed's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_branches_keep_their_dtype(dtype):
    first, second = torch.randn(2, 4, 3, 2, 2, dtype=dtype).requires_grad_()
    for x in (shake.shake_shake(first, second, training=True), shake.ShakeDrop(0.5)(first)):
        assert x.dtype == dtype
        x.sum().backward(inputs=[first])
    assert first.grad.dtype == dtype


@pytest.mark.parametrize("name", [*NETWORKS, "wrn-10-1", "resnet20"])
def test_channels_last(name):
    """No layer falls back to the other layout, forward or backward, and the values are the same."""
    network, (images, target) = network_of(name), batch()
    expected = gradients(network, images, target, seed=1)
    network = network.to(memory_format=torch.channels_last)
    seen = []

    def keep(module, inputs, output):
        seen.append((module, inputs[0]))
        output.register_hook(lambda grad: seen.append((module, grad)))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(keep)
    found = gradients(network, images.to(memory_format=torch.channels_last), target, seed=1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert len(seen) > 20
    # The channels are next to each other in memory; a slice of them, as torch.cat's gradient is, has gaps.
    assert not [(module, x.shape) for module, x in seen if x.stride(1) != 1]


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_as_one_graph(name):
    """torch.compile without a graph break; the traced graph draws the same noise."""
    network, (images, target) = network_of(name), batch(4)  # classes 0 to 3; the block has 4 channels or more
    # Tracing a block takes seconds, so one has to do.
    network = nn.Sequential(network.stem, network.blocks[0], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = gradients(network, images, target, seed=1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled, images, target, seed=1), expected)


def test_an_ensemble_by_vmap():
    """Two networks' branches side by side, each with noise of its own (torch.func)."""
    first, second, upstream = torch.randn(3, 2, 4, 3, 2, 2, dtype=torch.float64)
    alpha, beta = torch.rand(2, 2, 4, 1, 1, 1, dtype=torch.float64)

    def total(first, second, alpha, beta, upstream):
        return (shake.scale(shake.mix(first, second, alpha, beta), beta, alpha) * upstream).sum()

    grads = torch.func.vmap(torch.func.grad(total, argnums=(0, 1)))(first, second, alpha, beta, upstream)
    torch.testing.assert_close(grads[0], beta * alpha * upstream)
    torch.testing.assert_close(grads[1], (1 - beta) * alpha * upstream)


def _rank(rank, store, folder):
    """One step's gradients under DDP; each rank has images and noise of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = {}
    for name in NETWORKS:
        network = network_of(name)
        images, target = batch(8)
        own = slice(4 * rank, 4 * rank + 4)
        wrapped = DistributedDataParallel(network)
        _, results[name] = gradients(wrapped, images[own], target[own], seed=10 + rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_ddp(tmp_path):
    """The mean of what each rank's rows give alone with that rank's noise."""
    arguments = (str(tmp_path / "store"), str(tmp_path))
    mp.start_processes(_rank, arguments, nprocs=2, start_method="fork")  # imports would take most of the time
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    images, target = batch(8)
    for name in NETWORKS:
        alone = [gradients(network_of(name), images[rows], target[rows], seed)[1] for rows, seed in _SHARES]
        expected = [(a + b) / 2 for a, b in zip(*alone, strict=True)]
        for found in ranks:
            torch.testing.assert_close(found[name], expected)


_SHARES = ((slice(0, 4), 10), (slice(4, 8), 11))
