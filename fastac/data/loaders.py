"""Loaders by name, and what all of them have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from fastac.data.augment import check_augmentation
from fastac.data.dali import DaliLoader
from fastac.data.loader import Batch, Loader, loader_statistics
from fastac.data.policies import Policy
from fastac.data.sampler import EpochSampler
from fastac.data.samples import EncodedImages, Samples, check_labels

__all__ = ["LOADERS", "BatchLoader", "SyntheticLoader", "create_loader"]

LOADERS = ("torch", "dali", "synthetic")


class BatchLoader(Protocol):
    """What a trainer needs of a loader."""

    samples: Samples
    sampler: EpochSampler
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        """Batches an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on."""
        ...


def create_loader(
    kind: str,
    samples: Samples,
    labels: np.ndarray,
    sampler: EpochSampler,
    *,
    augment: str,
    seed: int,
    device: torch.device | str,
    workers: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    aa: str | Policy = "none",
    cutout: int = 0,
    reprob: float = 0.0,
    dali_device: str = "auto",
) -> BatchLoader:
    """The loader `kind`: torch (`Loader`), dali (`DaliLoader`) or synthetic (`SyntheticLoader`), with those of the
    arguments that it has. synthetic does nothing to its images, so aa, cutout and reprob are not used.

    Raises ValueError for a wrong argument, ImportError where DALI is asked for and not installed.
    """
    if kind not in LOADERS:
        nearest = difflib.get_close_matches(kind, LOADERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown loader {kind!r}; did you mean {nearest!r}? Known: {', '.join(LOADERS)}")
    common: dict[str, Any] = dict(augment=augment, seed=seed, device=device, mean=mean, std=std)
    if kind == "synthetic":
        return SyntheticLoader(samples, labels, sampler, **common)
    policies: dict[str, Any] = dict(aa=aa, cutout=cutout, reprob=reprob)
    if kind != "dali" and dali_device == "gpu":
        raise ValueError(f"dali_device is 'gpu' with loader {kind!r}; it should come with loader 'dali'")
    if kind == "dali":
        return DaliLoader(
            samples, labels, sampler, **common, workers=workers, dali_device=dali_device, **policies
        )
    return Loader(samples, labels, sampler, **common, workers=workers, **policies)


class SyntheticLoader:
    """Noise in the images' place, the same in every batch; targets and ids as the sampler has them, nothing is read.

    To time a training step without the loader, or a loader against the step. Arguments as `Loader`'s, of which augment
    is checked and not used.
    """

    def __init__(
        self,
        samples: Samples,
        labels: np.ndarray,
        sampler: EpochSampler,
        *,
        augment: str,
        seed: int,
        device: torch.device | str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        images = samples.images
        check_labels(labels, "labels", len(samples), samples.num_classes)
        check_augmentation(augment, images)
        if sampler.num_samples != len(samples):
            raise ValueError(f"sampler is for {sampler.num_samples} samples; it should be for {len(samples)}")
        self.samples, self.sampler, self.device = samples, sampler, torch.device(device)
        self.mean, self.std = loader_statistics(samples, mean, std)
        self._labels = torch.from_numpy(labels.copy())
        size = (images.image_size,) * 2 if isinstance(images, EncodedImages) else images.shape[1:3]
        noise = torch.Generator().manual_seed(seed)
        rows = sampler.batch_size + 2  # a last batch that took in a smaller one
        self._images = torch.randn(rows, samples.channels, *size, generator=noise).to(self.device)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on. Their images are one tensor's rows: not to be written to."""
        return (self._batch(ids, size) for ids, size in self.sampler.batches(epoch, start))

    def _batch(self, ids: np.ndarray, global_size: int) -> Batch:
        host = torch.from_numpy(ids)
        target, index = (t.to(self.device, non_blocking=True) for t in (self._labels[host], host))
        return Batch(self._images[: len(ids)], target, index, host, global_size)
