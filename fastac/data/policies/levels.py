"""What a level means: each lineage's ranges of the operations, in the units of `ops`.

Units: slopes of shears; pixels of translations and of Cutout's side; degrees; the threshold of Solarize; bits that
Posterize keeps; the factor of Contrast, Color, Brightness and Sharpness (1 leaves the image as it is).
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LEVELS", "MIRRORED", "OPERATIONS", "RANDOM_OPERATIONS"]

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Solarize",
    "Posterize",
    "Contrast",
    "Color",
    "Brightness",
    "Sharpness",
    "Cutout",
)
RANDOM_OPERATIONS = tuple(name for name in OPERATIONS if name not in ("Invert", "Cutout"))
"""The 14 of RandAugment and TrivialAugment."""

MIRRORED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
"""Operations of either sign, by a draw."""

_ENHANCE = ("Contrast", "Color", "Brightness", "Sharpness")
_PUBLISHED_SIDE = 32  # pixels of CIFAR's and SVHN's images, which the lineages' pixels are for


def _autoaugment(name: str, level: float, side: int) -> float:
    """Levels of 0 to 10 as in the code that AutoAugment (CIFAR-10, SVHN) and PBA were published with."""
    if name.startswith("Shear"):
        return 0.3 * level / 10
    if name.startswith("Translate"):
        return int(level * 10 / 10) * side / _PUBLISHED_SIDE
    if name in _ENHANCE:
        return level * 1.8 / 10 + 0.1
    return {
        "Rotate": int(level * 30 / 10),
        "Solarize": 256 - int(level * 256 / 10),
        "Posterize": max(1, 4 - int(level * 4 / 10)),  # an image with no bit left would be black
        "Cutout": int(level * 20 / 10) * side // _PUBLISHED_SIDE,
    }.get(name, 0)


def _autoaugment_imagenet(name: str, level: float, side: int) -> float:
    """Levels of 0 to 10 as in the code for ImageNet of AutoAugment's authors, and in DALI: the stronger the level, the
    less Solarize and Posterize do."""
    if name == "Solarize":
        return int(level / 10 * 256)
    if name == "Posterize":
        return max(1, int(level / 10 * 4))
    if name == "Rotate":
        return level / 10 * 30
    return _autoaugment(name, level, side)


def _fast_autoaugment(name: str, level: float, side: int) -> float:
    """Levels of 0 to 1 as in the code that Fast AutoAugment was published with."""
    if name.startswith("Translate"):
        return _between(-0.45, 0.45, level) * side
    if name.startswith("Shear"):
        return _between(-0.3, 0.3, level)
    if name in _ENHANCE:
        return _between(0.1, 1.9, level)
    return {
        "Rotate": _between(-30, 30, level),
        "Solarize": _between(0, 256, level),
        "Posterize": int(_between(4, 8, level)),
        "Cutout": int(_between(0, 0.2, level) * side),
    }.get(name, 0)


def _between(low: float, high: float, share: float) -> float:
    return share * (high - low) + low


def _randaugment(name: str, level: float, side: int) -> float:
    """Levels of 0 to 30 as in torchvision and DALI, where each operation grows with the level."""
    share = level / 30
    if name.startswith("Shear"):
        return 0.3 * share
    if name.startswith("Translate"):
        return 150 / 331 * side * share
    if name in _ENHANCE:
        return 0.9 * share  # added to 1 with either sign
    return {
        "Rotate": 30 * share,
        "Solarize": 256 * (1 - share),
        "Posterize": 8 - round(4 * share),
    }.get(name, 0)


def _trivialaugment(name: str, level: float, side: int) -> float:
    """Levels of 0 to 30 of TrivialAugment's wide space (Müller & Hutter 2021), as in their code."""
    if name.startswith("Shear"):
        return level * 0.99 / 30
    if name.startswith("Translate"):  # 32 pixels, at most the image's side
        return int(level * 32 / 30) * min(1.0, side / _PUBLISHED_SIDE)
    if name in _ENHANCE:
        return level * (2.0 - 0.01) / 30 + 0.01
    return {
        "Rotate": int(level * 135 / 30),
        "Solarize": 256 - int(level * 256 / 30),
        "Posterize": 8 - int(level * (8 - 2) / 30),
    }.get(name, 0)


LEVELS: dict[str, Callable[[str, float, int], float]] = {
    "autoaugment": _autoaugment,
    "autoaugment-imagenet": _autoaugment_imagenet,
    "fast-autoaugment": _fast_autoaugment,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
}
"""By lineage: (operation, level, side of the image in pixels along the operation) to the value in the unit of `ops`."""
