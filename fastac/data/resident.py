"""A data set's images on the device, from which batches are drawn by id without the host."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastac.data.samples import EncodedImages, Samples

__all__ = ["hold_images"]

_log = logging.getLogger("fastac")
_SHARE = 0.5  # of the free memory that images may take; the rest is the network's

_held: WeakKeyDictionary[Samples, dict[torch.device, Tensor | None]] = WeakKeyDictionary()


def hold_images(samples: Samples, device: torch.device, free: int | None = None) -> Tensor | None:
    """(N, H, W, C) uint8 on the device; None for image files, and for arrays of more than half its free memory.

    One copy a device, for all who ask with the same samples, as long as these live. Why there is none is logged, once.
    free: bytes, asked of the device where it is None.
    """
    images = samples.images
    if isinstance(images, EncodedImages):
        return None
    by_device = _held.setdefault(samples, {})
    if device not in by_device:
        free = torch.cuda.mem_get_info(device)[0] if free is None else free
        if images.nbytes > _SHARE * free:
            _log.warning(
                "the images take %.1f GB, more than half of the %.1f GB free on %s: they stay in host memory",
                images.nbytes / 1e9,
                free / 1e9,
                device,
            )
            by_device[device] = None
        else:
            by_device[device] = torch.from_numpy(images).to(device)
    return by_device[device]
