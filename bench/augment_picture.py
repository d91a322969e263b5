"""A picture of what the augmentation policies do: a row a policy, a column an image.

python bench/augment_picture.py docs/images/augment-policies.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from fastac.data.policies import apply_policy, find_policy
from fastac.data.synthetic_images import class_looks, draw_picture

ROWS = (
    "none",
    "autoaugment-cifar10",
    "autoaugment-svhn",
    "autoaugment-imagenet",
    "fast-autoaugment-cifar10",
    "fast-autoaugment-svhn",
    "fast-autoaugment-imagenet",
    "pba-cifar10",
    "pba-svhn",
    "randaugment-n2-m9",
    "trivialaugment",
)
MARGIN = 170  # pixels for the names


def pictures(count: int, side: int) -> torch.Tensor:
    """(count, 3, side, side) uint8: invented images, one a class."""
    rng = np.random.default_rng(5)
    drawn = [draw_picture(look, (3 * side, 3 * side), rng) for look in class_looks(count, 1)]
    small = [np.asarray(image.convert("RGB").resize((side, side))) for image in drawn]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--side", type=int, default=64, help="of an image in pixels")
    options = parser.parse_args(arguments)

    images = pictures(options.columns, options.side)
    index = torch.arange(options.columns)
    mean = images.float().mean((0, 2, 3)).to(torch.uint8)
    step = options.side + 2
    sheet = Image.new("RGB", (MARGIN + options.columns * step, len(ROWS) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(ROWS):
        policy = find_policy(name, epochs=100)
        augmented = images
        if policy is not None:  # epoch 75 of 100: where PBA's schedules are at their fullest
            augmented = apply_policy(images, index, policy, mean=mean, seed=0, epoch=75)
        draw.text((4, row * step + options.side // 2 - 5), name, "black")
        for column, image in enumerate(augmented.permute(0, 2, 3, 1).numpy()):
            sheet.paste(Image.fromarray(image), (MARGIN + column * step, row * step))
    sheet.quantize(256, dither=Image.Dither.NONE).save(options.file, optimize=True)
    print(f"{len(ROWS)} policies on {options.columns} images: {options.file}")


if __name__ == "__main__":
    main()
