"""Batches with ids from NVIDIA's DALI: decoded, cropped, augmented and normalised on the GPU or the CPU."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastac.data.augment import check_augmentation
from fastac.data.dali_input import Reader, Sample, Step
from fastac.data.dali_pipeline import Inputs, PipelineSpec, build_decoder, build_pipeline
from fastac.data.dali_policies import create_dali_policy, in_dali
from fastac.data.draws import AUGMENT, integers_below
from fastac.data.erasing import check_erasing, erased_boxes
from fastac.data.loader import Batch, loader_statistics
from fastac.data.policies import Policy, find_policy
from fastac.data.sampler import EpochSampler
from fastac.data.samples import EncodedImages, Samples, check_labels
from fastac.data.transform import BatchTransform
from fastac.extras import require
from fastac.rng import hash_bits

__all__ = ["DaliLoader"]

_LOGGER = logging.getLogger("fastac")


class DaliLoader:
    """Iterates over image files or shards in the sampler's order, as `fastac.data.Loader`, by DALI.

    samples, labels, sampler, augment, seed, device, mean, std: as for Loader. workers: DALI's threads on this rank, 0:
    one for each of this rank's cores. aa: the policy that comes after the crop. One of `DALI_POLICIES` is made of
    DALI's operations; others, by name or of `find_policy`, are Loader's, applied to the batch on `device`. cutout: side
    in pixels of the square that Cutout blanks; reprob: probability of random erasing (both: with the mean colour, see
    `erased_boxes`). dali_device: where images are decoded and DALI augments: gpu, cpu, or auto, as `device`.

    Every draw is a function of (seed, epoch, id) made outside of DALI. So what becomes of a sample depends on nothing
    else: `epoch(e, start=s)` yields what `epoch(e)` yields from its batch s on, to the bit on one device, and the crops
    are Loader's. Plain JPEGs (`fastac.data.jpeg`) are decoded by DALI, on a GPU by its hardware or hybrid decoder;
    everything else, and what DALI fails on, by Pillow; in later epochs DALI is not asked for it again.
    Images are (B, 3, size, size) float32, channels-last views where the policy is none or DALI's.
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
        dali_device: str = "auto",
    ) -> None:
        images = samples.images
        if not isinstance(images, EncodedImages):
            raise ValueError(
                "loader is 'dali', which is for image files and shards; it should be 'torch' for arrays"
            )
        check_labels(labels, "labels", len(samples), samples.num_classes)
        check_augmentation(augment, images)
        if sampler.num_samples != len(samples):
            raise ValueError(f"sampler is for {sampler.num_samples} samples; it should be for {len(samples)}")
        check_erasing(cutout, reprob)
        if workers < 0:
            raise ValueError(f"workers is {workers}; it should be at least 0")
        self.samples, self.sampler, self.augment, self.seed = samples, sampler, augment, seed
        self.cutout, self.reprob = cutout, reprob
        self.device = torch.device(device)
        self.mean, self.std = loader_statistics(samples, mean, std)
        self.workers = workers or _cores()
        self._images = images
        self._labels = torch.from_numpy(labels.copy())
        self._reader = Reader(images, random_crop=augment == "imagenet", seed=seed)
        dali_policy = isinstance(aa, str) and (aa == "none" or in_dali(aa))
        self._transform: BatchTransform | None = None
        if not dali_policy:  # the crop is DALI's all the same
            self._transform = BatchTransform(
                augment="none",
                policy=find_policy(aa) if isinstance(aa, str) else aa,
                mean=self.mean,
                std=self.std,
                cutout=cutout,
                reprob=reprob,
                seed=seed,
                device=self.device,
            )
        self._spec = PipelineSpec(
            image_size=images.image_size,
            max_batch_size=sampler.batch_size + 2,  # a last batch that took in a smaller one
            num_threads=self.workers,
            device_id=_device_id(dali_device, self.device),
            mean=self.mean,
            std=self.std,
            crop=augment in ("crop", "crop-flip"),
            policy=create_dali_policy(aa, images.image_size) if isinstance(aa, str) and dali_policy else None,
            erase=dali_policy and bool(cutout or reprob),
            pixels=not dali_policy,
        )
        self._idle: list[tuple[Any, _Source]] = []  # pipelines of epochs that are over
        self._said: set[int] = set()

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on.

        With on_bad_image="stop" an unreadable image raises UnreadableImageError (a ValueError) with its path;
        with "skip" the batch comes without it, with no rows at all where every image of it is bad.
        """
        plan = self.sampler.batches(epoch, start)
        return (self._finish(*made) for made in self._made(plan, epoch))

    def _made(
        self, plan: Iterator[tuple[np.ndarray, int]], epoch: int
    ) -> Iterator[tuple[Step, Tensor | None]]:
        """Each step with the pipeline's output, (b, H, W, C) on its device, None where it has none."""
        reading = self._reader.steps(plan, epoch)
        steps: Iterator[Step] = reading
        pipeline, source = self._taken()
        source.begin(steps)
        works = True
        try:
            while True:
                yield from _without_samples(source.waiting)
                try:
                    works = False
                    images = self._run(pipeline)
                except StopIteration:
                    works = True
                    break
                except RuntimeError as error:  # a pipeline that has failed is of no use any more
                    steps = itertools.chain(self._repaired(list(source.waiting), error), steps)
                    pipeline, source = self._build()
                    source.begin(steps)
                    continue
                works = True
                yield from _without_samples(source.waiting)
                yield source.waiting.popleft(), images
            yield from _without_samples(source.waiting)
        finally:  # also where the epoch is left in the middle
            reading.close()
            source.begin(iter(()))
            if works:
                self._idle.append((pipeline, source))

    def _taken(self) -> tuple[Any, _Source]:
        """A pipeline ready for an epoch."""
        if not self._idle:
            return self._build()
        pipeline, source = self._idle.pop()
        try:
            while True:  # what was under way in an epoch that was left
                self._run(pipeline)
        except StopIteration:
            pipeline.reset()
            return pipeline, source
        except RuntimeError:  # among it was what can't be decoded
            return self._build()

    def _build(self) -> tuple[Any, _Source]:
        source = _Source(self)
        return build_pipeline(self._spec, source), source

    def _run(self, pipeline: Any) -> Tensor:
        if self._spec.device_id is None:
            (out,) = pipeline.run()
        else:
            (out,) = pipeline.run(torch.cuda.current_stream(self._spec.device_id))
        return from_dlpack(out.as_tensor())  # the memory stays the tensor's as long as it lives

    def _finish(self, step: Step, images: Tensor | None) -> Batch:
        ids = torch.from_numpy(step.ids)
        target = self._labels[ids]
        if images is None:
            size = self._images.image_size
            images = torch.zeros(
                (0, size, size, 3), dtype=torch.uint8 if self._spec.pixels else torch.float32
            )
        on_gpu = self.device.type == "cuda"
        images, index, target = (
            (t.pin_memory() if on_gpu and not t.is_cuda else t).to(self.device, non_blocking=True)
            for t in (images, ids, target)
        )
        if self._transform is None:
            images = images.permute(0, 3, 1, 2)
        else:
            images = self._transform(images, index, ids, step.epoch)
        return Batch(images, target, index, ids, step.global_size, step.bad)

    def inputs(self, step: Step) -> Inputs:
        """What the pipeline is handed for a step, in `PipelineSpec`'s order."""
        region = np.array([s.region for s in step.samples], dtype=np.int32)
        box = np.array([s.box for s in step.samples], dtype=np.float32)
        mirror = np.array([s.mirror for s in step.samples], dtype=np.int32)
        encoded = [s.encoded for s in step.samples]
        extra: list[np.ndarray] = []
        if self._spec.crop:
            start, flipped = self._padded_crops(step)
            extra.append(start)
            mirror = flipped if self.augment == "crop-flip" else mirror
        if self._spec.policy is not None:
            extra.append(self._spec.policy.choices(step.ids, self.seed, step.epoch))
        if self._spec.erase:
            size = self._images.image_size
            boxes = erased_boxes(
                step.ids, size, cutout=self.cutout, reprob=self.reprob, seed=self.seed, epoch=step.epoch
            ).astype(np.float32)
            extra += [
                np.ascontiguousarray(part.reshape(len(boxes), -1))
                for part in (boxes[..., :2], boxes[..., 2:])
            ]
        return (
            encoded,
            region[:, :2].copy(),
            region[:, 2:].copy(),
            box[:, :2].copy(),
            box[:, 2:].copy(),
            mirror,
            *extra,
        )

    def _padded_crops(self, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Where the crops of `augment_batch` start, (b, 2) int32, and which it mirrors, (b,) int32."""
        pad = max(1, self._images.image_size // 8)
        draws = hash_bits(
            self.seed, AUGMENT, step.epoch, torch.arange(3).view(3, 1), torch.from_numpy(step.ids)
        )
        start = torch.stack(
            [integers_below(2 * pad + 1, draws[0]), integers_below(2 * pad + 1, draws[1])], dim=1
        )
        mirror = integers_below(2, draws[2])
        return (start - pad).to(torch.int32).numpy(), mirror.to(torch.int32).numpy()

    def _repaired(self, steps: list[Step], error: RuntimeError) -> list[Step]:
        """The steps that were in a pipeline that failed, with what DALI can't decode decoded by Pillow."""
        samples = [s for step in steps for s in step.samples if not s.by_pillow]
        culprits = self._undecodable(samples)
        if not culprits:
            raise error
        self._remember([s for s in samples if s.id in culprits])
        repaired = [self._reader.by_pillow(step, culprits) if step.samples else step for step in steps]
        read = {s.id for step in repaired for s in step.samples} & culprits
        for sample in sorted(read - self._said):
            path = self._images.root / self._images.name(sample)
            _LOGGER.warning("DALI can't decode %s, which Pillow decodes: taken from there", path)
        self._said |= read
        return repaired

    def _remember(self, samples: list[Sample]) -> None:
        """Have Pillow decode these in the epochs to come, so that no other pipeline fails on them.

        Only those of which DALI can't even decode the first pixel: the region is another one in each epoch, and a run
        that was resumed, which remembers nothing, is to have the pixels of one that was not.
        """
        self._reader.refused |= self._undecodable([replace(s, region=(0, 0, 1, 1)) for s in samples])

    def _undecodable(self, samples: list[Sample]) -> set[int]:
        """Which of the samples DALI fails on, one by one."""
        current: list[Sample] = []

        def source() -> Inputs:
            if not current:
                raise StopIteration
            sample = current.pop()
            region = np.array([sample.region], dtype=np.int32)
            return [sample.encoded], region[:, :2].copy(), region[:, 2:].copy()

        found = set()
        decoder = None
        for sample in samples:
            decoder = decoder or build_decoder(self._spec, source)
            current.append(sample)
            try:
                decoder.run()
            except RuntimeError:
                found.add(sample.id)
                decoder = None
        return found


class _Source:
    """What a pipeline calls for its next batch."""

    def __init__(self, loader: DaliLoader) -> None:
        self._loader = loader
        self._steps: Iterator[Step] = iter(())
        self.waiting: deque[Step] = deque()
        """Steps that were handed over, or passed because they have no samples, and did not come out yet."""

    def begin(self, steps: Iterator[Step]) -> None:
        self._steps, self.waiting = steps, deque()

    def __call__(self) -> Inputs:
        for step in self._steps:
            self.waiting.append(step)
            if step.error is not None:
                self._steps = iter(())
            elif step.samples:
                return self._loader.inputs(step)
        raise StopIteration


def _without_samples(waiting: deque[Step]) -> Iterator[tuple[Step, None]]:
    """Take the first steps that have no samples; raises the error of one that has one."""
    while waiting and not waiting[0].samples:
        step = waiting.popleft()
        if step.error is not None:
            raise step.error
        yield step, None


def _cores() -> int:
    """Of this process among those that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _device_id(name: str, device: torch.device) -> int | None:
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"dali_device is {name!r}; it should be auto, cpu or gpu")
    require("nvidia.dali", "dali")
    if name == "cpu" or (name == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda":
        raise ValueError(f"dali_device is 'gpu' and batches go to {device}; it should be cpu or auto there")
    return torch.cuda.current_device() if device.index is None else device.index
