"""Batches with ids: drawn on the device or gathered or decoded on the host, augmented on the device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastac.data.augment import channel_stats, check_augmentation
from fastac.data.decode import CROP_DRAWS, UnreadableImageError, centre_crop, random_resized_crop
from fastac.data.draws import AUGMENT, sample_draws
from fastac.data.policies import Policy, find_policy
from fastac.data.resident import hold_images
from fastac.data.sampler import EpochSampler
from fastac.data.samples import EncodedImages, Samples, check_labels
from fastac.data.transform import BatchTransform

__all__ = ["Batch", "Loader", "loader_statistics"]

# Pixel values of small images that a GPU augments at a time, of several batches together: some 300 kernels are launched
# for a policy, which takes the host longer than a step of a small network. In float32 they are 16 MB.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Batch:
    """One step's samples of one rank."""

    images: Tensor
    """(B, C, H, W) float32, normalised."""
    target: Tensor
    """(B,) int64."""
    index: Tensor
    """(B,) int64: the samples' ids."""
    host_index: Tensor
    """The same in host memory."""
    global_size: int
    """Rows that the sampler planned for all ranks together."""
    bad: tuple[int, ...] = ()
    """Ids that were planned here and left out because their image could not be decoded."""


@dataclass(frozen=True)
class _Pixels:
    """A batch as the host makes it: (B, H, W, C) uint8 of the samples `ids`, (B,) int64; no pixels where the device
    holds the images."""

    pixels: Tensor | None
    ids: Tensor
    global_size: int
    bad: tuple[tuple[int, str], ...] = ()  # id and reason

    def pin_memory(self) -> _Pixels:  # the name that torch's DataLoader calls
        pixels = None if self.pixels is None else self.pixels.pin_memory()
        return _Pixels(pixels, self.ids.pin_memory(), self.global_size, self.bad)


class Loader:
    """Iterates over `samples` in the sampler's order.

    samples: the split. labels: (N,) int64, the labels to train on (they may differ from samples.labels).
    augment: `none`, `crop`, `crop-flip` (see `augment_batch`), or for folders `imagenet` (random resized
    crop and mirror; without it, and for tests, the centre crop). seed: of the augmentation. device: where
    batches end up. workers: processes that decode a folder's images, 0 to decode in this one; arrays are
    drawn in this process whatever it says, from the device's memory where that is a GPU with room for them
    (`hold_images`). mean, std: a number a channel, of pixels in [0, 1]; both or none, and then `channel_stats`
    of these samples, so give the test loader the training loader's. aa: the policy that comes after the crop, by
    name or of `find_policy` (which knows the data set's name and the run's epochs). cutout, reprob: see `erase`.

    Nothing depends on the number of workers or on what was drawn before: `epoch(e, start=s)` yields what
    `epoch(e)` yields from its batch s on. torch's global random state is neither read nor changed.
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
        workers: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        aa: str | Policy = "none",
        cutout: int = 0,
        reprob: float = 0.0,
    ) -> None:
        check_labels(labels, "labels", len(samples), samples.num_classes)
        check_augmentation(augment, samples.images)
        if sampler.num_samples != len(samples):
            raise ValueError(f"sampler is for {sampler.num_samples} samples; it should be for {len(samples)}")
        if workers < 0:
            raise ValueError(f"workers is {workers}; it should be at least 0")
        self.samples, self.sampler = samples, sampler
        self.augment, self.seed, self.workers = augment, seed, workers
        self.device = torch.device(device)
        self.mean, self.std = loader_statistics(samples, mean, std)
        self._labels = torch.from_numpy(labels.copy())
        self.transform = BatchTransform(
            augment=augment,
            policy=find_policy(aa) if isinstance(aa, str) else aa,
            mean=self.mean,
            std=self.std,
            cutout=cutout,
            reprob=reprob,
            seed=seed,
            device=self.device,
        )
        self._held, self._together = None, 1
        if self.device.type == "cuda":
            self._held = hold_images(samples, self.device)
            self._together = max(1, _AT_ONCE // (sampler.batch_size * _values(samples)))

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on.

        With on_bad_image="stop" an unreadable image raises UnreadableImageError (a ValueError) with its path;
        with "skip" the batch comes without it, with no rows at all where every image of it is bad.
        """
        plan = self.sampler.batches(epoch, start)
        if isinstance(self.samples.images, EncodedImages):
            return (self._finish(raw, epoch) for raw in self._decoded(self.samples.images, plan, epoch))
        return self._drawn(self.samples.images, plan, epoch)

    def _drawn(
        self, array: np.ndarray, plan: Iterator[tuple[np.ndarray, int]], epoch: int
    ) -> Iterator[Batch]:
        """Batches of an array, `_together` of them finished at a time."""
        while group := list(islice(plan, self._together)):
            ids = np.concatenate([own for own, _ in group])
            pixels = torch.from_numpy(array[ids]) if self._held is None else None
            whole, end = self._finish(_Pixels(pixels, torch.from_numpy(ids), 0), epoch), 0
            for own, global_size in group:
                part, end = slice(end, end + len(own)), end + len(own)
                images, target = whole.images[part], whole.target[part]
                yield Batch(images, target, whole.index[part], whole.host_index[part], global_size)

    def _decoded(
        self, images: EncodedImages, plan: Iterator[tuple[np.ndarray, int]], epoch: int
    ) -> Iterator[_Pixels]:
        batches = _FolderBatches(images, self.augment == "imagenet", self.seed, epoch)
        loader: DataLoader[Any] = DataLoader(
            batches,
            sampler=plan,
            batch_size=None,  # a worker makes a whole batch
            num_workers=self.workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else each epoch draws from the global state, and a resume differs
        )
        for raw in loader:
            if raw.bad and images.on_bad_image == "stop":
                raise UnreadableImageError(raw.bad[0][1])
            yield raw

    def _finish(self, raw: _Pixels, epoch: int) -> Batch:
        target = self._labels[raw.ids]
        if self.device.type == "cuda":
            target = target.pin_memory()
            raw = raw if raw.ids.is_pinned() else raw.pin_memory()
        index, target = (t.to(self.device, non_blocking=True) for t in (raw.ids, target))
        if raw.pixels is not None:
            pixels = raw.pixels.to(self.device, non_blocking=True)
        else:
            assert self._held is not None
            pixels = self._held.index_select(0, index)
        images = self.transform(pixels, index, raw.ids, epoch)
        bad = tuple(sample for sample, _ in raw.bad)
        return Batch(images, target, index, raw.ids, raw.global_size, bad)


def _values(samples: Samples) -> int:
    """Numbers that an image has."""
    images = samples.images
    return 3 * images.image_size**2 if isinstance(images, EncodedImages) else images[:1].size


def loader_statistics(
    samples: Samples, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if mean is None and std is None:
        return channel_stats(samples)
    if mean is None or std is None:
        raise ValueError("one of mean and std is given; give both or none")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != samples.channels:
            raise ValueError(
                f"{name} has {len(values)} numbers; it should have {samples.channels}, one a channel"
            )
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}; it should be positive")
    return tuple(mean), tuple(std)


class _FolderBatches(Dataset[_Pixels]):
    """Decodes a batch: the data set to which torch's DataLoader hands the plan's items."""

    def __init__(self, images: EncodedImages, random_crop: bool, seed: int, epoch: int) -> None:
        self.images, self.random_crop, self.seed, self.epoch = images, random_crop, seed, epoch

    def __getitem__(self, item: tuple[np.ndarray, int]) -> _Pixels:
        ids, global_size = item
        size = self.images.image_size
        pixels = np.empty((len(ids), size, size, 3), dtype=np.uint8)
        draws = sample_draws(CROP_DRAWS, ids, self.seed, AUGMENT, self.epoch).tolist()
        kept: list[int] = []
        bad: list[tuple[int, str]] = []
        for position, sample in enumerate(ids.tolist()):
            try:
                image = self.images.decode(sample)
            except UnreadableImageError as error:
                bad.append((sample, str(error)))
                continue
            if self.random_crop:
                pixels[len(kept)] = random_resized_crop(image, size, draws[position])
            else:
                pixels[len(kept)] = centre_crop(image, size)
            kept.append(sample)
        kept_ids = torch.tensor(kept, dtype=torch.int64)
        return _Pixels(torch.from_numpy(pixels[: len(kept)]), kept_ids, global_size, tuple(bad))


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(_worker: int) -> None:
    """A Ctrl-C or a scheduler's SIGTERM reaches all processes of a run: workers live on until the parent, which
    may save first, ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere the sender of a signal is not to be had
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_at_the_parents_sigterm, daemon=True).start()


def _exit_at_the_parents_sigterm() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
