"""From pixels to what the network sees, on whole batches, on the device that they are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastac.data.augment import augment_batch, normalise
from fastac.data.erasing import check_erasing, erase
from fastac.data.policies import Policy, apply_policy

__all__ = ["BatchTransform"]


class BatchTransform:
    """The crop, the policy, normalisation, Cutout and random erasing, in this order.

    augment: see `augment_batch`. policy: of `find_policy`, None for none. mean, std: a number a channel, of pixels in
    [0, 1]. cutout, reprob: see `erase`. What a sample undergoes depends on (seed, epoch, its id) alone.
    """

    def __init__(
        self,
        *,
        augment: str,
        policy: Policy | None,
        mean: Sequence[float],
        std: Sequence[float],
        cutout: int,
        reprob: float,
        seed: int,
        device: torch.device,
    ) -> None:
        check_erasing(cutout, reprob)
        self.augment, self.policy, self.seed = augment, policy, seed
        self.cutout, self.reprob = cutout, reprob
        self._mean, self._std = (torch.tensor(tuple(values), device=device) for values in (mean, std))
        colour = [round(255 * value) for value in mean]
        self._mean_colour = torch.tensor(colour, dtype=torch.uint8, device=device)

    def __call__(self, pixels: Tensor, index: Tensor, host_index: Tensor, epoch: int) -> Tensor:
        """(B, H, W, C) uint8 to (B, C, H, W) float32. index: (B,) int64, the samples' ids, on the pixels' device;
        host_index: the same in host memory."""
        draws: dict[str, Any] = {"seed": self.seed, "epoch": epoch}
        if self.policy is None:
            images = normalise(pixels, self._mean, self._std)
            images = augment_batch(images, index, name=self.augment, **draws)
        else:  # policies are defined on pixel values, and so the crop comes before the normalisation
            colour = self._mean_colour
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
            pixels = augment_batch(pixels, index, name=self.augment, border=colour, **draws)
            pixels = apply_policy(pixels, index, self.policy, mean=colour, host_index=host_index, **draws)
            images = normalise(pixels.permute(0, 2, 3, 1), self._mean, self._std)
        return erase(images, host_index, cutout=self.cutout, reprob=self.reprob, **draws)
