"""A policy on a batch: drawn and planned on the host, sent in one copy, applied on the images' device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastac.data.policies import ops
from fastac.data.policies.geometry import GEOMETRIC, fixed_point, inverse_maps, square
from fastac.data.policies.levels import OPERATIONS
from fastac.data.policies.parcel import Parcel
from fastac.data.policies.sampling import Draws, Policy

__all__ = ["apply_policy"]

_CACHED = 1 << 19  # pixel values that a CPU works on at a time: their int64 indices, 4 MB, stay in its caches
_CODE = {name: code for code, name in enumerate(OPERATIONS)}
_Step = Callable[[Tensor, list[Tensor]], Tensor]
"""On the images of its rows, with what was sent for them."""


def apply_policy(
    images: Tensor,
    index: Tensor,
    policy: Policy,
    *,
    mean: Tensor,
    seed: int,
    epoch: int,
    host_index: Tensor | None = None,
) -> Tensor:
    """Apply a policy to (B, C, H, W) uint8 images, C 1 or 3. What a sample undergoes depends on (seed, epoch, its id).

    index: (B,) int64, the samples' ids. mean: (C,) uint8 on the images' device, the data set's mean colour. host_index:
    the ids in host memory; without it the call waits for the device to bring them. Returns new images. On gray
    images Color is the identity.

    Raises ValueError for images of another type or shape, or as many ids as there are not images.
    """
    _check(images, index, mean)
    ids = (index.cpu() if host_index is None else host_index).numpy()
    size = (images.shape[2], images.shape[3])
    draws = policy.draw(ids, size, seed=seed, epoch=epoch)
    fill = mean if policy.fill is None else torch.full_like(mean, policy.fill)
    parcel, plan = Parcel(), []
    for stage in range(len(draws.operation)):
        plan += _plan(draws, stage, size, images.shape[1], fill, mean, parcel)
    parts = parcel.send(images.device)
    images = images.clone()
    cached = _CACHED // (images.shape[1] * size[0] * size[1])
    many = max(1, cached if images.device.type == "cpu" else len(images))
    for step, slots in plan:
        for rows, *sent in zip(*(parts[slot].split(many) for slot in slots), strict=True):
            images.index_copy_(0, rows, step(images.index_select(0, rows), sent))
    return images


def _check(images: Tensor, index: Tensor, mean: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images is {images.dtype} {tuple(images.shape)}; it should be torch.uint8 (B, C, H, W) with C 1 or 3"
        )
    if index.shape != images.shape[:1]:
        raise ValueError(f"index has the shape {tuple(index.shape)}; it should be ({images.shape[0]},)")
    if mean.dtype != torch.uint8 or mean.shape != images.shape[1:2]:
        raise ValueError(
            f"mean is {mean.dtype} {tuple(mean.shape)}; it should be torch.uint8 ({images.shape[1]},)"
        )


def _plan(
    draws: Draws,
    stage: int,
    size: tuple[int, int],
    channels: int,
    fill: Tensor,
    mean: Tensor,
    parcel: Parcel,
) -> list[tuple[_Step, list[int]]]:
    """A stage's steps, each with the numbers of its parts in the parcel, the rows that it is for first."""
    code, value = draws.operation[stage], draws.value[stage]
    rows = {name: np.flatnonzero(code == _CODE[name]) for name in OPERATIONS}

    def joined(*names: str) -> np.ndarray:
        return np.concatenate([rows[name] for name in names])

    steps: list[tuple[_Step, np.ndarray, list[np.ndarray]]] = []
    maps = [inverse_maps(name, value[rows[name]], *size) for name in GEOMETRIC]
    steps.append((_move(fill), joined(*GEOMETRIC), [fixed_point(np.concatenate(maps))]))
    tables = np.concatenate([_tables(name, value[rows[name]]) for name in _TABULATED])
    steps.append((_look_up, joined(*_TABULATED), [tables]))
    steps.append((_look_up_autocontrast, rows["AutoContrast"], []))
    steps.append((_look_up_equalize, rows["Equalize"], []))
    steps.append((_look_up_contrast, rows["Contrast"], [value[rows["Contrast"]]]))
    if channels == 3:
        steps.append((_colour, rows["Color"], [value[rows["Color"]]]))
    steps.append((_sharpen, rows["Sharpness"], [value[rows["Sharpness"]]]))
    cut = rows["Cutout"]
    squares = square(draws.place[stage][:, cut], value[cut].astype(np.int64), *size)
    steps.append((_cut(mean), cut, [squares]))
    return [(step, [parcel.add(part) for part in (own, *parts)]) for step, own, parts in steps if own.size]


_TABULATED = ("Invert", "Solarize", "Posterize", "Brightness")
_VALUES = np.arange(256)


def _tables(name: str, values: np.ndarray) -> np.ndarray:
    """(n, 256) uint8: what becomes of each pixel value by an operation that looks at nothing else."""
    value = values[:, None]
    if name == "Brightness":  # Image.blend with black, in float32
        scaled = _VALUES.astype(np.float32) * value.astype(np.float32)
        return scaled.clip(0, 255).astype(np.uint8)
    if name == "Posterize":
        return (_VALUES & ~((1 << (8 - value.astype(np.int64))) - 1)).astype(np.uint8)
    threshold = 0 * value if name == "Invert" else value
    return np.where(threshold > _VALUES, _VALUES, 255 - _VALUES).astype(np.uint8)


def _move(fill: Tensor) -> _Step:
    return lambda images, sent: ops.affine_nearest(images, sent[0], fill)


def _cut(colour: Tensor) -> _Step:
    return lambda images, sent: ops.blank(images, sent[0], colour)


def _look_up(images: Tensor, sent: list[Tensor]) -> Tensor:
    return ops.apply_tables(images, sent[0].unsqueeze(1).expand(-1, images.shape[1], -1))


def _look_up_autocontrast(images: Tensor, sent: list[Tensor]) -> Tensor:
    return ops.apply_tables(images, ops.autocontrast_tables(images))


def _look_up_equalize(images: Tensor, sent: list[Tensor]) -> Tensor:
    return ops.apply_tables(images, ops.equalize_tables(images))


def _look_up_contrast(images: Tensor, sent: list[Tensor]) -> Tensor:
    return ops.apply_tables(images, ops.contrast_tables(images, sent[0].float()))


def _colour(images: Tensor, sent: list[Tensor]) -> Tensor:
    return ops.blend(ops.grey(images), images, sent[0].float())


def _sharpen(images: Tensor, sent: list[Tensor]) -> Tensor:
    return ops.blend(ops.smooth(images), images, sent[0].float())
