"""The policies' operations on batches of uint8 images, on their device: Pillow's results, bit for bit.

Images are (B, C, H, W) uint8, C 1 or 3. No operation waits for the device, and an image's result does not depend on
those beside it. What Pillow computes in C floats or Python doubles is computed in float32 or float64 here, by the same
operations in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "affine_nearest",
    "apply_tables",
    "autocontrast_tables",
    "blank",
    "blend",
    "contrast_tables",
    "equalize_tables",
    "grey",
    "inside",
    "smooth",
]

_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 16 bits of fraction


def affine_nearest(images: Tensor, fixed: Tensor, fill: Tensor) -> Tensor:
    """Each image's pixels by an affine map of its own, nearest neighbour: Image.transform(AFFINE).

    fixed: (B, 6) int32, of `geometry.fixed_point`: the map from a target pixel to its source, in 1/65536 of a pixel.
    fill: (C,) uint8, the colour of what lies outside.
    """
    batch, channels, height, width = images.shape
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device).view(-1, 1)
    a, b, c, d, e, f = fixed.view(batch, 6, 1, 1).unbind(1)
    source_x = (a * x + (b * y + c)) >> 16  # (B, H, W)
    source_y = (d * x + (e * y + f)) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    place = torch.where(inside, source_y * width + source_x, 0).view(batch, 1, -1).long()
    moved = images.reshape(batch, channels, -1).gather(2, place.expand(-1, channels, -1)).view_as(images)
    return torch.where(inside.unsqueeze(1), moved, fill.view(-1, 1, 1))


def apply_tables(images: Tensor, tables: Tensor) -> Tensor:
    """Replace every pixel by its entry in the table of its image and channel. tables: (B, C, 256) uint8."""
    rows = images.reshape(images.shape[0] * images.shape[1], -1)
    return tables.reshape(-1, 256).gather(1, rows.long()).view_as(images)


def autocontrast_tables(images: Tensor) -> Tensor:
    """(B, C, 256) uint8: each channel stretched to 0 to 255, as ImageOps.autocontrast does; flat ones stay."""
    pixels = images.flatten(2)
    low, high = (t.to(torch.float64).unsqueeze(2) for t in (pixels.amin(2), pixels.amax(2)))
    scale = torch.full_like(high, 255.0) / (high - low)  # 255.0 / tensor would round the reciprocal first
    value = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = value * scale + -low * scale
    return torch.where(high > low, stretched, value).clamp_(0, 255).to(torch.uint8)


def equalize_tables(images: Tensor) -> Tensor:
    """(B, C, 256) uint8: each channel's histogram made flat, as ImageOps.equalize does."""
    counts = _histograms(images)
    total = images.shape[2] * images.shape[3]
    value = torch.arange(256, device=images.device)
    last = images.flatten(2).amax(2, keepdim=True).long()
    step = (total - counts.gather(2, last)) // 255  # (B, C, 1); 0 also where the channel has one value only
    below = counts.cumsum(2) - counts
    flat = (step // 2 + below) // step.clamp(min=1)
    return torch.where(step > 0, flat, value).clamp_(max=255).to(torch.uint8)


def _histograms(images: Tensor) -> Tensor:
    """(B, C, 256) int32: how often each channel has each value."""
    batch, channels = images.shape[:2]
    first = torch.arange(0, batch * channels * 256, 256, dtype=torch.int32, device=images.device)
    place = (images.reshape(batch * channels, -1) + first.view(-1, 1)).view(-1)
    counts = torch.zeros(batch * channels * 256, dtype=torch.int32, device=images.device)
    counts.index_add_(0, place, torch.ones_like(place))  # bincount would wait for a GPU
    return counts.view(batch, channels, 256)


def contrast_tables(images: Tensor, factor: Tensor) -> Tensor:
    """(B, C, 256) uint8: away from or towards the image's mean grey, as ImageEnhance.Contrast. factor: (B,) float32."""
    count = images.shape[2] * images.shape[3]
    total = grey(images).flatten(1).sum(1, dtype=torch.int64)
    mean = (2 * total + count) // (2 * count)  # rounded half up
    value = torch.arange(256, dtype=torch.uint8, device=images.device).view(1, 1, 1, 256)
    table = blend(mean.to(torch.uint8).view(-1, 1, 1, 1), value, factor)
    return table.view(-1, 1, 256).expand(-1, images.shape[1], -1)


def grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) uint8: Image.convert("L"); grey images as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, k : k + 1].to(torch.int32) * weight for k, weight in enumerate(_LUMA))
    return ((red + green + blue + 0x8000) >> 16).to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """ImageFilter.SMOOTH: a 3x3 mean with weight 5 in the middle, over 13. The pixels at the border stay."""
    if min(images.shape[2:]) < 3:
        return images.clone()
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    out = images.clone()
    # Pillow rounds in floats of other steps; total/13 + 0.5 is at least 1/26 from a whole number, so it is the same.
    out[:, :, 1:-1, 1:-1] = (total * (1 / 13) + 0.5).to(torch.uint8)
    return out


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Image.blend, broadcast: degenerate + factor · (images - degenerate), cut off to uint8. factor: (B,) float32."""
    base = degenerate.to(torch.float32)
    mixed = (images.to(torch.float32) - base) * factor.view(-1, 1, 1, 1) + base
    return mixed.clamp_(0, 255).to(torch.uint8)


def blank(images: Tensor, rectangles: Tensor, colour: Tensor) -> Tensor:
    """Fill a rectangle of each image, of `inside`. colour: (C,) uint8."""
    return torch.where(inside(rectangles, *images.shape[2:]), colour.view(-1, 1, 1), images)


def inside(rectangles: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W) bool. rectangles: (B, 4) int64: left, top, right, bottom, the last two excluded, empty where they
    are not greater."""
    x = torch.arange(width, device=rectangles.device)
    y = torch.arange(height, device=rectangles.device).view(-1, 1)
    left, top, right, bottom = rectangles.view(-1, 4, 1, 1, 1).unbind(1)
    return ((x >= left) & (x < right)) & ((y >= top) & (y < bottom))
