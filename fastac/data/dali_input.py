"""What DALI's pipelines are fed: encoded images read ahead by threads, each with its region, in the sampler's order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from fastac.data.decode import (
    CROP_DRAWS,
    UnreadableImageError,
    centre_box,
    decode_rgb,
    mirrored,
    random_box,
    resized,
)
from fastac.data.decode import MAX_PIXELS as _MAX_PIXELS
from fastac.data.draws import AUGMENT, sample_draws
from fastac.data.jpeg import plain_jpeg_size
from fastac.data.samples import EncodedImages

__all__ = ["Bad", "Reader", "Sample", "Step"]

_THREADS = 8  # that read, and decode what Pillow decodes
_STEPS_AHEAD = 3


@dataclass(frozen=True)
class Sample:
    """One encoded image and what the pipeline is to cut out of it."""

    id: int
    encoded: np.ndarray
    """(n,) uint8: the file as it is, or a PPM of what Pillow has decoded and cut out."""
    region: tuple[int, int, int, int]
    """Top, left, height and width of what is decoded."""
    box: tuple[float, float, float, float]
    """Top, left, bottom and right within the region of what is brought to the network's size."""
    mirror: bool
    by_pillow: bool


@dataclass(frozen=True)
class Bad:
    """An image that is left out."""

    id: int
    reason: str


@dataclass(frozen=True)
class Step:
    """A rank's part of one step."""

    epoch: int
    global_size: int
    found: tuple[Sample | Bad, ...]
    """In the plan's order."""
    error: Exception | None = None
    """What to raise when the step's turn comes; it has no samples then."""
    samples: tuple[Sample, ...] = field(init=False)
    ids: np.ndarray = field(init=False)
    """(b,) int64, of the samples."""

    def __post_init__(self) -> None:
        samples = tuple(item for item in self.found if isinstance(item, Sample) and self.error is None)
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "ids", np.array([s.id for s in samples], dtype=np.int64))

    @property
    def bad(self) -> tuple[int, ...]:
        """Ids of the images that are left out."""
        return tuple(item.id for item in self.found if isinstance(item, Bad))


class Reader:
    """Reads the images of a sampler's plan, a few steps ahead of what is asked for.

    random_crop: a random box a sample and its mirror image, as `random_resized_crop`; else the centre.
    """

    def __init__(self, images: EncodedImages, *, random_crop: bool, seed: int) -> None:
        self.images, self.random_crop, self.seed = images, random_crop, seed
        self.refused: set[int] = set()
        """Ids of plain JPEGs that are decoded by Pillow all the same."""

    def steps(self, plan: Iterator[tuple[np.ndarray, int]], epoch: int) -> Generator[Step, None, None]:
        """The plan's steps. With on_bad_image="stop" the one with an unreadable image, as any whose file the system
        can't read, comes with an error in place of its samples."""
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fastac-reader")
        ahead: deque[tuple[list[Future[list[Sample | Bad]]], int]] = deque()
        try:
            for ids, global_size in plan:
                draws = sample_draws(CROP_DRAWS, ids, self.seed, AUGMENT, epoch).tolist()
                size = max(1, math.ceil(len(ids) / _THREADS))
                parts = [slice(first, first + size) for first in range(0, len(ids), size)]
                futures = [pool.submit(self._read, ids[part].tolist(), draws[part]) for part in parts]
                ahead.append((futures, global_size))
                if len(ahead) > _STEPS_AHEAD:
                    yield self._step(*ahead.popleft(), epoch)
            while ahead:
                yield self._step(*ahead.popleft(), epoch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def by_pillow(self, step: Step, ids: set[int]) -> Step:
        """The step, with the samples `ids` decoded by Pillow."""
        draws = sample_draws(CROP_DRAWS, step.ids, self.seed, AUGMENT, step.epoch).tolist()
        drawn = dict(zip(step.ids.tolist(), draws, strict=True))
        found = [
            self._decode(item.id, self.images.read(item.id), drawn[item.id]) if item.id in ids else item
            for item in step.found
        ]
        return self._sorted_out(found, step.global_size, step.epoch)

    def _step(self, parts: list[Future[list[Sample | Bad]]], global_size: int, epoch: int) -> Step:
        try:
            found = [item for part in parts for item in part.result()]
        except Exception as error:  # whatever a thread met is raised where the step is asked for
            return Step(epoch, global_size, (), error=error)
        return self._sorted_out(found, global_size, epoch)

    def _sorted_out(self, found: list[Sample | Bad], global_size: int, epoch: int) -> Step:
        bad = next((item for item in found if isinstance(item, Bad)), None)
        stops = bad is not None and self.images.on_bad_image == "stop"
        error = UnreadableImageError(bad.reason) if bad is not None and stops else None
        return Step(epoch, global_size, tuple(found), error)

    def _read(self, ids: list[int], draws: list[list[float]]) -> list[Sample | Bad]:
        found: list[Sample | Bad] = []
        for sample, drawn in zip(ids, draws, strict=True):
            content = self.images.read(sample)
            size = plain_jpeg_size(content)
            if size is None or size[0] * size[1] > _MAX_PIXELS or sample in self.refused:
                found.append(self._decode(sample, content, drawn))
                continue
            region, box = _region(self._box(*size, drawn), *size, self.images.image_size)
            encoded = np.frombuffer(content, dtype=np.uint8)
            found.append(Sample(sample, encoded, region, box, self._mirror(drawn), by_pillow=False))
        return found

    def _decode(self, sample: int, content: bytes, drawn: list[float]) -> Sample | Bad:
        images, side = self.images, self.images.image_size
        try:
            image = decode_rgb(content, str(images.root / images.name(sample)))
        except UnreadableImageError as error:
            return Bad(sample, str(error))
        pixels = resized(image, side, self._box(*image.size, drawn))
        encoded = np.frombuffer(b"P6 %d %d 255\n" % (side, side) + pixels.tobytes(), dtype=np.uint8)
        whole = (0, 0, side, side)
        return Sample(sample, encoded, whole, whole, self._mirror(drawn), by_pillow=True)

    def _box(self, width: int, height: int, drawn: list[float]) -> tuple[float, float, float, float]:
        if self.random_crop:
            return random_box(width, height, drawn)
        return centre_box(width, height, self.images.image_size)

    def _mirror(self, drawn: list[float]) -> bool:
        return self.random_crop and mirrored(drawn)


def _region(
    box: tuple[float, float, float, float], width: int, height: int, size: int
) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """What to decode of an image for a box (left, top, right, bottom) of it, and the box within that (top, left,
    bottom, right): with a margin as wide as the resize's filter, which Pillow lets reach out of the box as well."""
    left, top, right, bottom = box
    margin_x, margin_y = (math.ceil(max(1.0, extent / size)) for extent in (right - left, bottom - top))
    first_x, first_y = max(0, math.floor(left) - margin_x), max(0, math.floor(top) - margin_y)
    last_x, last_y = min(width, math.ceil(right) + margin_x), min(height, math.ceil(bottom) + margin_y)
    region = (first_y, first_x, last_y - first_y, last_x - first_x)
    return region, (top - first_y, left - first_x, bottom - first_y, right - first_x)
