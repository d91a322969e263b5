"""The policies' operations against Pillow's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastac.data.policies import ops
from fastac.data.policies.apply import apply_policy
from fastac.data.policies.geometry import fixed_point, inverse_maps
from fastac.data.policies.levels import OPERATIONS
from fastac.data.policies.sampling import Draws, Policy

Image = pytest.importorskip("PIL.Image")
ImageEnhance = pytest.importorskip("PIL.ImageEnhance")
ImageFilter = pytest.importorskip("PIL.ImageFilter")
ImageOps = pytest.importorskip("PIL.ImageOps")

SIZES = [(32, 32), (28, 28), (33, 47), (8, 8), (5, 3), (2, 9), (1, 1)]
FILL = (128, 7, 250)


def pictures(height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Noise, noise of few values, a ramp, flat images, two values: what histograms can look like."""
    rng = np.random.default_rng([seed, height, width, channels])
    shape = (height, width, channels)
    ramp = np.linspace(0, 255, height * width * channels).reshape(shape)
    images = [
        *rng.integers(0, 256, (4, *shape)),
        rng.integers(90, 140, shape),
        rng.integers(0, 4, shape) * 85,
        rng.normal(128, 30, shape).clip(0, 255),
        ramp,
        np.full(shape, 77),
        np.zeros(shape),
        np.full(shape, 255),
        rng.integers(0, 2, shape) * 255,
        np.where(rng.random(shape) < 0.02, 200, 13),
    ]
    return torch.from_numpy(np.stack(images).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def by_pillow(images: torch.Tensor, operation: Callable) -> torch.Tensor:
    """`operation` on each image as Pillow's, RGB or L."""
    results = []
    for image in images.permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        results.append(np.asarray(operation(picture)).reshape(image.shape))
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


class Fixed(Policy):
    """One operation with one value for every image."""

    def draw(self, ids, size, *, seed, epoch):
        code = np.full((1, len(ids)), OPERATIONS.index(self.name))
        return Draws(code, np.full(code.shape, float(self.levels)), np.zeros((1, 2, len(ids))))


def ours(images: torch.Tensor, name: str, value: float) -> torch.Tensor:
    before = images.clone()
    policy = Fixed(name, str(value), 128)
    out = apply_policy(
        images,
        torch.arange(len(images)),
        policy,
        mean=torch.zeros(images.shape[1], dtype=torch.uint8),
        seed=0,
        epoch=0,
    )
    assert torch.equal(images, before)
    return out


def affine(picture, data):
    colour = (128,) * 3 if picture.mode == "RGB" else 128
    return picture.transform(picture.size, Image.Transform.AFFINE, data, fillcolor=colour)


def rotated(picture, degrees):
    return picture.rotate(degrees, fillcolor=(128,) * 3 if picture.mode == "RGB" else 128)


PILLOW = {
    "ShearX": lambda p, v: affine(p, (1, v, 0, 0, 1, 0)),
    "ShearY": lambda p, v: affine(p, (1, 0, 0, v, 1, 0)),
    "TranslateX": lambda p, v: affine(p, (1, 0, v, 0, 1, 0)),
    "TranslateY": lambda p, v: affine(p, (1, 0, 0, 0, 1, v)),
    "Rotate": rotated,
    "AutoContrast": lambda p, v: ImageOps.autocontrast(p),
    "Equalize": lambda p, v: ImageOps.equalize(p),
    "Invert": lambda p, v: ImageOps.invert(p),
    "Solarize": lambda p, v: ImageOps.solarize(p, v),
    "Posterize": lambda p, v: ImageOps.posterize(p, int(v)),
    "Contrast": lambda p, v: ImageEnhance.Contrast(p).enhance(v),
    "Color": lambda p, v: ImageEnhance.Color(p).enhance(v),
    "Brightness": lambda p, v: ImageEnhance.Brightness(p).enhance(v),
    "Sharpness": lambda p, v: ImageEnhance.Sharpness(p).enhance(v),
}
FACTORS = [0.0, 0.01, 0.1, 0.28, 0.55, 0.999, 1.0, 1.18, 1.37, 1.72, 1.9, 2.0]
VALUES = {
    "ShearX": [s * v for v in (0.0, 0.03, 0.1, 0.213, 0.3, 0.99) for s in (1, -1)],
    "TranslateX": [s * v for v in (0, 1, 2.5, 7.875, 9, 0.45 * 32, 150 / 331 * 28, 32) for s in (1, -1)],
    "Rotate": [s * v for v in (0, 3, 6.3, 12, 27, 30, 45, 90, 110, 135, 180) for s in (1, -1)],
    "AutoContrast": [0],
    "Equalize": [0],
    "Invert": [0],
    "Solarize": [0, 1, 26, 77, 128, 179.2, 230, 255, 256],
    "Posterize": range(1, 9),
    "Contrast": FACTORS,
    "Color": FACTORS,
    "Brightness": FACTORS,
    "Sharpness": FACTORS,
}
VALUES |= {"ShearY": VALUES["ShearX"], "TranslateY": VALUES["TranslateX"]}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", sorted(PILLOW))
def test_operations_are_pillows(name, channels):
    for height, width in SIZES:
        images = pictures(height, width, channels)
        for value in VALUES[name]:
            expected = by_pillow(images, lambda p, v=value: PILLOW[name](p, v))
            assert torch.equal(ours(images, name, value), expected), (height, width, value)


def test_every_operation_has_its_pillow():
    assert set(OPERATIONS) == {*PILLOW, "Identity", "Cutout"}
    images = pictures(9, 9, 3)
    assert torch.equal(ours(images, "Identity", 0), images)


def test_random_magnitudes_are_pillows():
    """Values that nobody chose, at a size of ImageNet's kind."""
    rng = np.random.default_rng(1)
    images = pictures(64, 80, 3)[:6]
    ranges = {"Shear": 0.99, "Translate": 40, "Rotate": 180}
    for name in PILLOW:
        for _ in range(6):
            kind = name.rstrip("XY")
            value = rng.uniform(-ranges[kind], ranges[kind]) if kind in ranges else rng.uniform(0, 2)
            value = (
                value * 128 if name == "Solarize" else 1 + int(value * 4) if name == "Posterize" else value
            )
            expected = by_pillow(images, lambda p, n=name, v=value: PILLOW[n](p, v))
            assert torch.equal(ours(images, name, value), expected), (name, value)


def test_the_fill_has_a_colour():
    images = pictures(16, 16, 3)
    maps = inverse_maps("Rotate", np.full(len(images), 20.0), 16, 16)
    moved = ops.affine_nearest(
        images, torch.from_numpy(fixed_point(maps)), torch.tensor(FILL, dtype=torch.uint8)
    )
    expected = by_pillow(images, lambda p: p.rotate(20, fillcolor=FILL))
    assert torch.equal(moved, expected)
    assert moved[0, :, 0, 0].tolist() == list(FILL)


def test_each_image_has_its_own_value():
    images = pictures(12, 20, 3)
    factor = torch.linspace(0, 2, len(images))
    expected = torch.cat(
        [
            by_pillow(image[None], lambda p, f=f: ImageEnhance.Contrast(p).enhance(f))
            for image, f in zip(images, factor.tolist(), strict=True)
        ]
    )
    assert torch.equal(ops.apply_tables(images, ops.contrast_tables(images, factor)), expected)
    degrees = np.linspace(-50, 50, len(images))
    fixed = torch.from_numpy(fixed_point(inverse_maps("Rotate", degrees, 12, 20)))
    moved = ops.affine_nearest(images, fixed, torch.full((3,), 128, dtype=torch.uint8))
    for image, angle, result in zip(images, degrees, moved, strict=True):
        assert torch.equal(by_pillow(image[None], lambda p, a=angle: rotated(p, a))[0], result)


def test_grey_and_smooth_are_pillows():
    for size in SIZES:
        images = pictures(*size, 3)
        gray = by_pillow(images, lambda p: p.convert("L").convert("RGB"))
        assert torch.equal(ops.grey(images).expand(-1, 3, -1, -1), gray)
        assert torch.equal(ops.smooth(images), by_pillow(images, lambda p: p.filter(ImageFilter.SMOOTH)))


def test_all_values_of_a_blend_are_pillows():
    """Every pair of pixel values, at factors around which floats round."""
    rng = np.random.default_rng(2)
    first, second = (part.astype(np.uint8) for part in np.meshgrid(np.arange(256), np.arange(256)))
    factors = [0.1 * k for k in range(1, 20)] + [1 / 3, 0.9999999] + rng.uniform(-1, 3, 20).tolist()
    for factor in factors:
        expected = np.asarray(Image.blend(Image.fromarray(first), Image.fromarray(second), factor))
        mixed = ops.blend(
            torch.from_numpy(first)[None, None], torch.from_numpy(second)[None, None], torch.tensor([factor])
        )
        np.testing.assert_array_equal(mixed[0, 0], expected, err_msg=str(factor))


def test_blank():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    boxes = torch.tensor([[1, 2, 3, 4], [2, 0, 2, 4]])
    colour = torch.tensor([251, 252, 253], dtype=torch.uint8)
    expected = images.clone()
    expected[0, :, 2:4, 1:3] = colour.view(3, 1, 1)
    assert torch.equal(ops.blank(images, boxes, colour), expected)


@pytest.mark.gpu
def test_on_a_gpu_the_operations_are_the_cpus():
    images = pictures(33, 47, 3)
    mean = torch.tensor(FILL, dtype=torch.uint8)
    index = torch.arange(len(images))
    for name in PILLOW:
        policy = Fixed(name, str(list(VALUES[name])[-1]), 128)
        cpu = apply_policy(images, index, policy, mean=mean, seed=0, epoch=0)
        gpu = apply_policy(images.cuda(), index.cuda(), policy, mean=mean.cuda(), seed=0, epoch=0)
        assert torch.equal(cpu, gpu.cpu()), name
