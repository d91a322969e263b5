"""The networks: the papers' parameter counts, input sizes, and initialisation."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastac.models import MODELS, create_model


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


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
        ("shake-shake-26-2x32d", 2_923_162),  # Gastaldi 2017, Table 1: 2.9M
        ("shake-shake-26-2x64d", 11_653_978),  # 11.7M
        ("shake-shake-26-2x96d", 26_192_922),  # 26.2M
        ("shake-shake-26-2x112d", 35_640_442),  # no published count: see the test below
        # Han et al. 2017, Table 4, has 26.0M for 272 layers: that is with widths rounded down, as in its equation 2,
        # which gives 26,049,562. The authors' code and AutoAugment's round to the nearest; with that, imgclsmob's table
        # of CIFAR-10 networks has these counts.
        ("pyramidnet-272-200", 26_210_842),
        ("pyramidnet-272-200-shakedrop", 26_210_842),
        ("pyramidnet-236-220", 26_969_046),
        ("pyramidnet-200-240", 26_752_702),
        ("pyramidnet-164-270", 27_216_021),
    ],
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        network = create_model(name, num_classes=10, in_channels=3)
    assert parameters(network) == count


@pytest.mark.parametrize("name", ["resnet50", "resnet50-zero-init"])
def test_parameter_count_of_resnet50(name):
    with torch.device("meta"):
        network = create_model(name, num_classes=1000, in_channels=3)
    assert parameters(network) == 25_557_032  # torchvision's and timm's documentation: 25.56M


def test_parameter_count_of_shake_shake_by_hand():
    """Weights of the paper's Table 3 in place of the missing count: two branches of two 3x3 convolutions with norm."""

    def branch(inputs, outputs):
        return 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs

    count, channels = 3 * 9 * 16 + 2 * 16, 16
    for outputs in (112, 224, 448):
        count += channels * outputs + 2 * outputs  # a shortcut of two halves, and its norm
        count += 2 * branch(channels, outputs) + 3 * 2 * branch(outputs, outputs)
        channels = outputs
    assert count + 448 * 10 + 10 == 35_640_442


def test_more_classes_and_fewer_channels():
    with torch.device("meta"):
        network = create_model("resnet32", num_classes=100, in_channels=1)
    assert parameters(network) == 464_154 + 90 * 65 - 2 * 9 * 16


@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        "resnet20",
        "wrn-10-2",
        "shake-shake-8-2x4d",
        "pyramidnet-11-8-shakedrop",
        "pyramidnet-11-8",
        "wrn-10-2-imagenet",
    ],
)
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


@pytest.mark.parametrize(
    "name", [n for n in MODELS if re.fullmatch(r"resnet[2345]\d|wrn.*", n) and n != "resnet50"]
)
def test_depth_is_the_number_of_layers_with_weights(name):
    with torch.device("meta"):
        network = create_model(name, num_classes=10, in_channels=3)
    depth = int(name.replace("resnet", "").replace("wrn-", "").split("-")[0])
    of_3x3 = [m for m in convolutions(network) if m.kernel_size == (3, 3)]
    # Zagoruyko & Komodakis count the shortcut convolutions of the three stages in N: 6n+4.
    assert len(of_3x3) + 1 == (depth if name.startswith("resnet") else depth - 2)


@pytest.mark.parametrize(
    ("name", "depth", "per_block", "widths"),
    [
        ("shake-shake-26-2x96d", 26, 2, {0: 96, 3: 96, 4: 192, 8: 384}),
        (
            "pyramidnet-272-200",
            272,
            3,
            {0: 4 * 18, 1: 4 * 20, 2: 4 * 23, 29: 4 * 83, 30: 4 * 85, 89: 4 * 216},
        ),
    ],
)
def test_depth_and_widths(name, depth, per_block, widths):
    """Layers with weights from the image to the logits; PyramidNet's block l has 4·round(16 + 200·l/90) channels."""
    with torch.device("meta"):
        blocks = create_model(name, num_classes=10, in_channels=3).blocks
    assert 2 + per_block * len(blocks) == depth
    for number, width in widths.items():
        norms = [module for module in blocks[number].modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms[-1].num_features == width
    strides = [
        number for number, block in enumerate(blocks) if any(m.stride == (2, 2) for m in convolutions(block))
    ]
    assert strides == [len(blocks) // 3, 2 * len(blocks) // 3]


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


def test_shake_shake_shortcuts():
    """The author's shortcut: pixels (2i, 2j), and beside them (2i − 1, 2j − 1) of an image that is zero outside."""
    network = create_model("shake-shake-8-2x16d", num_classes=10, in_channels=3).eval()
    first, second = network.blocks[0], network.blocks[1]
    assert first.shortcut is None  # 16 channels to 16
    x = torch.randn(2, 16, 9, 8)
    outside = torch.zeros(2, 16, 10, 9)
    outside[:, :, 1:, 1:] = x
    halves = [
        torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], pixels)
        for conv, pixels in (
            (second.shortcut.conv1, x[:, :, ::2, ::2]),
            (second.shortcut.conv2, outside[:, :, :9:2, :8:2]),
        )
    ]
    expected = second.shortcut.bn(torch.cat(halves, 1))
    torch.testing.assert_close(second.shortcut(x), expected)
    for branch in (first.branch1, first.branch2, second.branch1, second.branch2):
        nn.init.zeros_(branch[-1].weight)
    assert torch.equal(first(x), x)  # not its relu
    torch.testing.assert_close(second(x), second.shortcut(F.relu(x)))


def test_shake_shake_block():
    """ReLU, 3x3, BN, ReLU, 3x3, BN in both branches (Gastaldi 2017, section 2.1); their mean in evaluation."""
    block = create_model("shake-shake-8-2x16d", num_classes=10, in_channels=3).double().eval().blocks[0]
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    expected = x.clone()
    for branch in (block.branch1, block.branch2):
        first, second = (
            conv.weight / math.sqrt(1 + 1e-5) for conv in convolutions(branch)
        )  # norms at their start
        y = F.conv2d(x.relu(), first, padding=1)
        expected += F.conv2d(y.relu(), second, padding=1) / 2
    torch.testing.assert_close(block(x), expected)


def test_pyramidnet_shortcuts():
    """Zero channels behind the block's own, and means of 2x2 pixels; at an odd edge, of the pixels that are there."""
    network = create_model("pyramidnet-11-9-shakedrop", num_classes=10, in_channels=3).eval()
    first, second = network.blocks[0], network.blocks[1]
    for block in (first, second):
        nn.init.zeros_(block.bn4.weight)
    x = torch.randn(2, 16, 7, 8)
    widened = first(x)
    assert torch.equal(widened[:, :16], x)
    assert widened[:, 16:].shape == (2, 4 * 19 - 16, 7, 8)
    assert not widened[:, 16:].any()
    means = second(widened)[:, :16]
    assert means.shape == (2, 16, 4, 4)
    torch.testing.assert_close(means[:, :, 0, 0], x[:, :, 0:2, 0:2].mean((2, 3)))
    torch.testing.assert_close(means[:, :, 3, 1], x[:, :, 6, 2:4].mean(2))


def test_pyramidnet_block():
    """BN, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, BN (Han et al. 2017, Figure 6 d, as a bottleneck)."""
    block = create_model("pyramidnet-20-24", num_classes=10, in_channels=3).double().train().blocks[2]
    x = torch.randn(4, block.bn1.num_features, 6, 6, dtype=torch.float64)

    def norm(y):
        return (y - y.mean((0, 2, 3), keepdim=True)) / (
            y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
        ).sqrt()

    y = F.conv2d(norm(x), block.conv1.weight)
    y = F.conv2d(norm(y).relu(), block.conv2.weight, stride=2, padding=1)
    y = norm(F.conv2d(norm(y).relu(), block.conv3.weight))
    y[:, : x.shape[1]] += F.avg_pool2d(x, 2)
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("name", ["resnet20", "wrn-10-1", "shake-shake-8-2x4d", "pyramidnet-11-8-shakedrop"])
def test_imagenet_stem(name):
    """The same network behind it, on a quarter of the height and width."""
    large = create_model(f"{name}-imagenet", num_classes=10, in_channels=3).eval()
    small = create_model(name, num_classes=10, in_channels=3).eval()
    blocks = {key: value for key, value in large.state_dict().items() if not key.startswith("stem")}
    small.load_state_dict(blocks, strict=False)
    assert large.stem[0].weight.shape == (16, 3, 7, 7)
    images = torch.randn(2, 3, 64, 64)
    stem = F.conv2d(images, large.stem[0].weight, stride=2, padding=3) / math.sqrt(
        1 + 1e-5
    )  # norm at its start
    stem = F.max_pool2d(stem.relu(), 3, 2, 1)
    assert stem.shape == (2, 16, 16, 16)
    small.stem = nn.Identity()
    torch.testing.assert_close(large(images), small(stem))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return create_model("resnet50", num_classes=7, in_channels=3)


class TestResNet50:
    def test_names_and_shapes_are_torchvisions(self, network):
        expected = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (7, 2048), "fc.bias": (7,)}

        def norm(name, channels):
            for part in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{name}.{part}"] = (channels,)
            expected[f"{name}.num_batches_tracked"] = ()

        norm("bn1", 64)
        inputs = 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            for number in range(blocks):
                block = f"layer{stage}.{number}"
                shapes = ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
                for part, shape in enumerate(shapes, start=1):
                    expected[f"{block}.conv{part}.weight"] = shape
                    norm(f"{block}.bn{part}", shape[0])
                if number == 0:
                    expected[f"{block}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                    norm(f"{block}.downsample.1", 4 * width)
                inputs = 4 * width
        assert len(expected) == 320  # as many as in torchvision's resnet50
        assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected

    def test_strides_are_in_the_3x3(self, network):
        strided = {
            name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)
        }
        stages = {f"layer{n}.0.{part}" for n in (2, 3, 4) for part in ("conv2", "downsample.0")}
        assert strided == {"conv1"} | stages

    @pytest.mark.parametrize("size", [(64, 64), (65, 97)])
    def test_sizes(self, network, size):
        images = torch.randn(2, 3, *size)
        logits = network(images)
        assert logits.shape == (2, 7)
        with torch.no_grad():
            features = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        assert features.shape[2:] == tuple((n + 3) // 4 for n in size)

    def test_block(self, network):
        block = network.layer2[0].eval()
        x = torch.randn(2, 256, 6, 6)
        weights = {
            name: value / math.sqrt(1 + 1e-5) for name, value in block.state_dict().items() if value.ndim == 4
        }
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        y = F.conv2d(x, weights["conv1.weight"]).relu()
        y = F.conv2d(y, weights["conv2.weight"], stride=2, padding=1).relu()
        y = F.conv2d(y, weights["conv3.weight"]) + F.conv2d(x, weights["downsample.0.weight"], stride=2)
        torch.testing.assert_close(block(x), y.relu())

    def test_zero_init(self, network):
        """Every block's last norm, and nothing else, starts at 0."""
        zero = create_model("resnet50-zero-init", num_classes=7, in_channels=3)
        zeros = {name for name, p in zero.named_parameters() if not p.any() and not name.endswith("bias")}
        blocks = {f"layer{n}.{k}.bn3.weight" for n, count in enumerate((3, 4, 6, 3), 1) for k in range(count)}
        assert zeros == blocks
        assert all((network.get_parameter(name) == 1).all() for name in blocks)


@pytest.mark.parametrize(
    "name",
    ["cnn", "resnet20", "wrn-16-2", "shake-shake-8-2x16d", "pyramidnet-20-24-shakedrop", "resnet20-imagenet"],
)
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
        ("shake-shake-26-96d", "did you mean 'shake-shake-26-2x96d'"),
        ("shake-shake-25-2x96d", "unknown model 'shake-shake-25-2x96d': depth is 25; it should be 6n[+]2"),
        ("shake-shake-26-2x33d", "width is 33; it should be even"),
        ("pyramidnet-270-200", "depth is 270; it should be 9n[+]2"),
        ("pyramidnet-272-0-shakedrop", "alpha is 0; it should be at least 1"),
        ("resnet51", "did you mean 'resnet5"),
        ("resnet50-imagenet", "unknown model 'resnet50-imagenet'"),
        ("cnn-imagenet", "unknown model 'cnn-imagenet'"),
        ("wrn-41-2-imagenet", "unknown model 'wrn-41-2-imagenet': depth is 41"),
        ("vit_base_patch16_224", "pyramidnet-D-A.*timm:NAME, torchvision:NAME"),
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
