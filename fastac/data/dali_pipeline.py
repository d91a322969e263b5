"""The DALI pipeline: encoded bytes and what to do with them come in, normalised images go out.

Nothing is drawn in it, so that what becomes of a sample depends on its inputs alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastac.data.dali_policies import DaliPolicy
from fastac.extras import require

__all__ = ["Inputs", "PipelineSpec", "build_decoder", "build_pipeline", "built"]

# What the source hands over for a batch of b samples, in this order; the last three where they are asked for.
# encoded: b arrays (n,) uint8. start, shape: (b, 2) int32, the region to decode, height before width. roi_start,
# roi_end: (b, 2) float32, the part of that region that is resized. mirror: (b,) int32. crop: (b, 2) int32, where the
# padded crop starts. choices: (b, 3, stages) int32, of the policy. erased_start, erased_shape: (b, 2·R) float32.
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class PipelineSpec:
    """What a pipeline does to a batch."""

    image_size: int
    max_batch_size: int
    num_threads: int
    device_id: int | None
    """The GPU that decodes and augments; None: the CPU."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """(3,) each, of pixels in [0, 1]."""
    crop: bool
    """A padded crop at a given place comes after the resize."""
    policy: DaliPolicy | None
    erase: bool
    pixels: bool = False
    """What goes out is uint8, mirrored, neither normalised nor erased: somebody else goes on with it."""

    @property
    def num_inputs(self) -> int:
        return 6 + self.crop + (self.policy is not None) + 2 * self.erase


def build_pipeline(spec: PipelineSpec, source: Callable[[], Inputs]) -> Any:
    """A built pipeline whose run() gives one output, (b, size, size, 3) float32, or uint8 with `pixels`; source raises
    StopIteration at an epoch's end."""
    dali = require("nvidia.dali", "dali")
    fn, types = dali.fn, dali.types

    @dali.pipeline_def(
        batch_size=spec.max_batch_size,
        num_threads=spec.num_threads,
        device_id=spec.device_id,
        enable_conditionals=spec.policy is not None,
    )
    def pipeline() -> Any:
        inputs = list(fn.external_source(source=source, num_outputs=spec.num_inputs, batch=True))
        encoded, start, shape, roi_start, roi_end, mirror = inputs[:6]
        extra = iter(inputs[6:])
        images = _decoded(dali, spec, encoded, start, shape)
        images = fn.resize(
            images,
            size=[spec.image_size] * 2,
            interp_type=types.INTERP_LINEAR,
            antialias=True,  # as Pillow's, which has it always
            roi_start=roi_start,
            roi_end=roi_end,
        )
        if spec.crop:
            images = fn.slice(
                images,
                start=next(extra),
                shape=[spec.image_size] * 2,
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=[round(255 * value) for value in spec.mean],
            )
        if spec.policy is not None:
            images = spec.policy.apply(dali, images, next(extra))
        if spec.pixels:
            return fn.flip(images, horizontal=mirror)
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[255 * value for value in spec.mean],
            std=[255 * value for value in spec.std],
            mirror=mirror,
        )
        if spec.erase:
            images = fn.erase(images, anchor=next(extra), shape=next(extra), axis_names="HW", fill_value=0.0)
        return images

    return built(pipeline)


def build_decoder(spec: PipelineSpec, source: Callable[[], Inputs]) -> Any:
    """A pipeline of the decoder alone, for one sample a run: encoded, start and shape come in."""
    dali = require("nvidia.dali", "dali")

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=spec.device_id, prefetch_queue_depth=1)
    def decoder() -> Any:
        encoded, start, shape = dali.fn.external_source(source=source, num_outputs=3, batch=True)
        return _decoded(dali, spec, encoded, start, shape)

    return built(decoder)


def _decoded(dali: Any, spec: PipelineSpec, encoded: Any, start: Any, shape: Any) -> Any:
    """dali: the module; to import it here would have DALI convert the import for its conditionals."""
    return dali.fn.decoders.image_slice(
        encoded,
        start=start,
        shape=shape,
        axis_names="HW",
        device="cpu" if spec.device_id is None else "mixed",
        output_type=dali.types.RGB,
        adjust_orientation=False,  # an image that has to be turned comes in turned
        jpeg_fancy_upsampling=True,  # as libjpeg does by itself
    )


_FORMER_NAMES = re.compile(r"`nvidia\.dali\.fn\.experimental\.(equalize|filter)` is now deprecated")


def built(define: Callable[[], Any]) -> Any:
    """The pipeline that `define` (from pipeline_def) makes, built."""
    # DALI's library of augmentations calls operators by their former names, and DALI warns of each, filter or not.
    with warnings.catch_warnings(record=True) as caught:
        pipeline = define()
        pipeline.build()
    for warning in caught:
        if _FORMER_NAMES.search(str(warning.message)) is None:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return pipeline
