"""Pictures of invented classes: an outline and its ground, each with a texture and a colour, under varying light."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastac.data.draws import permutation
from fastac.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_CLASSES", "Look", "class_looks", "draw_picture", "draw_quality", "draw_size"]

_OUTLINES = ("disc", "triangle", "square", "star", "flower", "ring", "cross", "crescent")
_TEXTURES = ("plain", "stripes", "checks", "dots", "rings", "waves")
_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
_FINENESS = (7.0, 12.0, 20.0)  # waves of the ground's texture across the shorter side
_FACTORS = (len(_OUTLINES), len(_TEXTURES), len(_TEXTURES), len(_HUES), len(_HUES), len(_FINENESS))

_GRAIN = 10.0  # grey levels; with `draw_quality` it makes 500x375 JPEGs of about 110 kB, as ImageNet has them

MAX_CLASSES = math.prod(_FACTORS)
"""As many looks as there are."""


@dataclass(frozen=True)
class Look:
    """What the pictures of one class have in common."""

    outline: str
    texture: str
    ground: str
    hue: int
    ground_hue: int
    fineness: int

    @property
    def name(self) -> str:
        return f"{_HUES[self.hue]}-{self.texture}-{self.outline}-on-{_HUES[self.ground_hue]}-{self.ground}"


def class_looks(classes: int, seed: int) -> tuple[Look, ...]:
    """The first `classes` looks of the seed's order, all different; more classes leave the first ones as they are."""
    looks = []
    for code in permutation(MAX_CLASSES, seed)[:classes].tolist():
        digits = []
        for factor in _FACTORS:
            code, digit = divmod(code, factor)
            digits.append(digit)
        looks.append(Look(_OUTLINES[digits[0]], _TEXTURES[digits[1]], _TEXTURES[digits[2]], *digits[3:]))
    return tuple(looks)


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels, distributed about as in ImageNet.

    The shares are those of 200 images of ImageNet's training set, one a class; the spread beside the usual sizes is
    approximated: longer side 500 or log-normal, sides' ratio normal.
    """
    usual = {(500, 375): 0.26, (500, 333): 0.10, (375, 500): 0.06, (333, 500): 0.03}
    draw = rng.random()
    for size, share in usual.items():
        draw -= share
        if draw < 0:
            return size
    longer, ratio, spread = 500, 0.72, 0.08
    if rng.random() < 0.5:
        longer, ratio, spread = (
            int(np.clip(420 * math.exp(0.5 * rng.standard_normal()), 100, 1600)),
            0.75,
            0.1,
        )
    shorter = round(longer * float(np.clip(rng.normal(ratio, spread), 0.5, 1)))
    return (longer, shorter) if rng.random() < 0.7 else (shorter, longer)


def draw_quality(rng: np.random.Generator) -> int:
    """Pillow's JPEG quality: 96 for most, as most of the same 200 images have it by their quantization tables."""
    return 96 if rng.random() < 0.72 else int(rng.integers(60, 93))


def draw_picture(look: Look, size: tuple[int, int], rng: np.random.Generator) -> Image:
    """A picture of the class: 8-bit RGB, or in 1.5 % of the cases grayscale, `size` = (width, height) pixels.

    Position, size, turn, phases, light, hue (by up to 40 degrees, so that neighbouring hues overlap), grain and the
    other things in the picture are drawn from `rng`.
    """
    width, height = size
    side = min(size)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(side)
    ground = _painted(look.ground, look.ground_hue, _FINENESS[look.fineness], x, y, rng)
    thing = _painted(look.texture, look.hue, 10.0, x, y, rng)
    _clutter(size, ground, rng)
    mask = _outline_mask(look.outline, size, side * rng.uniform(0.22, 0.42), rng)
    pixels = ground + (thing - ground) * mask[..., None]
    pixels *= _light(size, rng)[..., None]
    pixels += _grain(size, rng)[..., None]
    image = require("PIL.Image", "report").fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.convert("L") if rng.random() < 0.015 else image


def _painted(
    texture: str, hue: int, waves: float, x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(H, W, 3) float32 in 0 to 255: a texture between a lighter and a darker tone of a hue."""
    angle, waves = rng.uniform(0, math.pi), 2 * math.pi * waves * math.exp(rng.uniform(-0.25, 0.25))
    cos, sin = np.float32(waves * math.cos(angle)), np.float32(waves * math.sin(angle))
    u = cos * x + sin * y + np.float32(rng.uniform(0, 6.3))
    v = cos * y - sin * x + np.float32(rng.uniform(0, 6.3))
    share = (0.5 + 0.5 * _TEXTURE_OF[texture](u, v))[..., None]
    angle = hue / len(_HUES) + rng.uniform(-40, 40) / 360
    tones = [
        255 * np.array(colorsys.hsv_to_rgb(angle % 1, rng.uniform(0.3, 0.9), value), dtype=np.float32)
        for value in (rng.uniform(0.6, 1.0), rng.uniform(0.2, 0.5))
    ]
    return tones[1] + (tones[0] - tones[1]) * share


# Each (u, v) -> [-1, 1]; u and v are in radians of the texture's wave.
_TEXTURE_OF: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, v: 0.4 * np.sin(0.1 * u) + 0.3,
    "stripes": lambda u, v: np.sin(u),
    "checks": lambda u, v: np.clip(4 * np.sin(u) * np.sin(v), -1, 1),
    "dots": lambda u, v: np.clip(2 * (np.cos(u) + np.cos(v)) - 1.5, -1, 1),
    "rings": lambda u, v: np.sin(np.hypot(u - 12, v + 9)),
    "waves": lambda u, v: np.sin(u + 2 * np.sin(0.5 * v)),
}


def _vertices(outline: str) -> np.ndarray:
    """(P, 2) float64: the corners of an outline about the origin, of radius about 1."""
    theta = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    if outline in ("triangle", "square"):
        theta = theta[:: 32 if outline == "triangle" else 24]
        radius = np.full(len(theta), 1.2)
    elif outline == "star":
        theta = np.linspace(0, 2 * math.pi, 10, endpoint=False)
        radius = np.where(np.arange(10) % 2, 0.5, 1.25)
    elif outline == "flower":
        radius = 0.9 + 0.3 * np.cos(6 * theta)
    elif outline == "cross":
        corners = [(1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4)]
        return np.array(corners + [(-x, -y) for x, y in corners])
    else:
        radius = np.ones(len(theta))
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)


def _outline_mask(outline: str, size: tuple[int, int], radius: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 in [0, 1]: 1 inside, the outline turned and a little squeezed, its centre inside the picture."""
    image_module, draw_module = require("PIL.Image", "report"), require("PIL.ImageDraw", "report")
    centre = np.array([rng.uniform(0.3, 0.7) * size[0], rng.uniform(0.3, 0.7) * size[1]])
    angle, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.0)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = radius * turn @ np.diag([1.0, squeeze])
    image = image_module.new("L", size)
    draw = draw_module.Draw(image)

    def polygon(points: np.ndarray, value: int) -> None:
        draw.polygon([(px, py) for px, py in (points @ turn.T + centre).tolist()], fill=value)

    polygon(_vertices(outline), 255)
    if outline == "ring":
        polygon(0.55 * _vertices("disc"), 0)
    elif outline == "crescent":
        polygon(0.85 * _vertices("disc") + [0.5, 0.0], 0)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _clutter(size: tuple[int, int], ground: np.ndarray, rng: np.random.Generator) -> None:
    """Paint up to three small things of any outline and a plain colour over the ground, which tell nothing."""
    for _ in range(int(rng.integers(0, 4))):
        outline = _OUTLINES[int(rng.integers(len(_OUTLINES)))]
        mask = _outline_mask(outline, size, min(size) * rng.uniform(0.04, 0.1), rng)[..., None]
        ground += (rng.uniform(30, 220, 3).astype(np.float32) - ground) * mask


def _light(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 about 1: brighter and darker patches of all sizes, as shadows and surfaces make them."""
    image_module = require("PIL.Image", "report")
    total = np.full((size[1], size[0]), np.float32(rng.uniform(0.7, 1.1)))
    for cells, strength in ((3, 0.16), (9, 0.08), (40, 0.05)):
        patches = strength * rng.standard_normal((cells, cells), dtype=np.float32)
        total += np.asarray(image_module.fromarray(patches).resize(size, image_module.Resampling.BICUBIC))
    return total


def _grain(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32: noise of the sensor, whose strength decides how many bytes a JPEG takes."""
    strength = np.float32(_GRAIN * math.exp(0.6 * rng.standard_normal()))
    return strength * rng.standard_normal((size[1], size[0]), dtype=np.float32)
