"""The networks: the papers' parameter counts, input sizes, and initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastac.models import MODELS, create_model


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cnn", 241_898 + 2 * 9 * 32),
        ("resnet20", 269_722),  # He et al. 2016, Table 6: 0.27M
        ("resnet32", 464_154),  # 0.46M
        ("resnet44", 658_586),  # 0.66M
        ("resnet56", 853_018),  # 0.85M
        ("wrn-40-2", 2_243_546),  # Zagoruyko & Komodakis 2016, Table 4: 2.2M
        ("wrn-16-8", 10_961_370),  # 11.0M
        ("wrn-28-10", 36_479_194),  # 36.5M
    ],
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        network = create_model(name, num_classes=10, in_channels=3)
    assert parameters(network) == count


def test_more_classes_and_fewer_channels():
    with torch.device("meta"):
        network = create_model("resnet32", num_classes=100, in_channels=1)
    assert parameters(network) == 464_154 + 90 * 65 - 2 * 9 * 16


@pytest.mark.parametrize("name", ["cnn", "resnet20", "wrn-10-2"])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (64, 64), (9, 13)])
@pytest.mark.parametrize("channels", [1, 3])
def test_input_sizes(name, size, channels):
    network = create_model(name, num_classes=7, in_channels=channels)
    images = torch.randn(2, channels, *size, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert images.grad is not None


@pytest.mark.parametrize("name", [n for n in MODELS if n != "cnn"])
def test_depth_is_the_number_of_layers_with_weights(name):
    with torch.device("meta"):
        network = create_model(name, num_classes=10, in_channels=3)
    depth = int(name.replace("resnet", "").replace("wrn-", "").split("-")[0])
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    # Zagoruyko & Komodakis count the shortcut convolutions of the three stages in N: 6n+4.
    assert len(convolutions) + 1 == (depth if name.startswith("resnet") else depth - 2)


def test_option_a_shortcuts():
    """With the residual branches silenced, a ResNet is its stem, subsampled and padded with zero channels."""
    network = create_model("resnet20", num_classes=10, in_channels=3).eval()
    for block in network.blocks:
        nn.init.zeros_(block.bn2.weight)
    images = torch.randn(2, 3, 32, 32)
    stem = network.stem(images)
    features = network.blocks(stem)
    assert features.shape == (2, 64, 8, 8)
    torch.testing.assert_close(features[:, 24:40], stem[:, :, ::4, ::4])
    assert features[:, :24].abs().max() == 0 == features[:, 40:].abs().max()
    torch.testing.assert_close(network(images), network.classifier(features.mean((2, 3))))


def test_pre_activation_shortcuts():
    """Where shapes agree a block adds its untouched input; else a 1x1 convolution of the activated one."""
    network = create_model("wrn-16-2", num_classes=10, in_channels=3).eval()
    for block in network.blocks:
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    first, second, third = network.blocks[0], network.blocks[1], network.blocks[2]
    torch.testing.assert_close(first(x), first.shortcut(torch.relu(first.bn1(x))))
    assert torch.equal(second(first(x)), first(x))
    assert third(first(x)).shape == (2, 64, 4, 4)
    assert [block.shortcut is not None for block in network.blocks] == [True, False] * 3


@pytest.mark.parametrize("name", ["cnn", "resnet20", "wrn-16-2"])
def test_initialisation(name):
    network = create_model(name, num_classes=10, in_channels=3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(
                expected, rel=4 / math.sqrt(module.weight.numel())
            )
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            assert (module.bias == 0).all()
            assert module.weight.std() > 0


def test_the_seed_decides_the_weights():
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(create_model("cnn", num_classes=10, in_channels=1).state_dict())
    assert all(torch.equal(networks[0][k], networks[1][k]) for k in networks[0])
    assert not torch.equal(networks[0]["features.0.weight"], networks[2]["features.0.weight"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-32", "unknown model 'resnet-32'; did you mean 'resnet32'"),
        ("resnet33", "did you mean 'resnet"),
        ("CNN", "unknown model 'CNN'"),
        ("wrn40-2", "did you mean 'wrn-40-2'"),
        ("wrn-41-2", "depth is 41; it should be 6n[+]4"),
        ("wrn-4-2", "depth is 4"),
        ("wrn-16-0", "widen is 0"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=10, in_channels=3)


@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
def test_wrong_sizes(argument):
    with pytest.raises(ValueError, match=f"{argument} is 0; it should be at least 1"):
        create_model("cnn", **{"num_classes": 10, "in_channels": 3, argument: 0})


def test_the_small_cnn_learns():
    network = create_model("cnn", num_classes=4, in_channels=1)
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(64) % 4
    images = torch.randn(64, 1, 8, 8, generator=generator)
    for k in range(4):  # a bright quadrant a class
        rows, columns = slice(4 * (k // 2), 4 * (k // 2) + 4), slice(4 * (k % 2), 4 * (k % 2) + 4)
        images[target == k, :, rows, columns] += 2
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        loss = nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
