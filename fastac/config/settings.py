"""All settings of a run, and what they must be to each other."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from fastac.config.fields import Section, nearest, require_that
from fastac.config.sections import DataConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig
from fastac.data.policies import check_policy

__all__ = ["SECTIONS", "Config", "entries", "key_types", "known_keys"]

SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Made by `load_config`, or directly from the sections."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """What the fields must be to each other."""
        data, loss, opt = self.data, self.loss, self.optimizer
        require_that(
            (data.noise == "none") == (data.noise_rate == 0),
            f"noise_rate was {data.noise_rate:g} with noise {data.noise!r}; it should be above 0 with a kind "
            "of noise, and 0 without",
        )
        require_that(
            data.label_truth == "none" or data.labels is not None,
            "label_truth was 'dataset' without labels; it should come with a label file in labels",
        )
        require_that(
            data.threshold_set == 0 or data.exclude is None,
            f"threshold_set was {data.threshold_set} with exclude {data.exclude!r}; it should be 0 there: a threshold "
            "sample that is left out gives no threshold",
        )
        require_that(
            (opt.schedule == "multistep") == bool(opt.milestones),
            f"milestones was {list(opt.milestones)} with schedule {opt.schedule!r}; it should be a list of "
            "epochs with multistep, and none without",
        )
        require_that(
            list(opt.milestones) == sorted(set(opt.milestones)),
            f"milestones was {list(opt.milestones)}; it should be in ascending order",
        )
        require_that(
            not opt.milestones or opt.milestones[-1] < opt.epochs,
            f"milestones was {list(opt.milestones)} with epochs {opt.epochs}; each should be below epochs: "
            "a later one never comes",
        )
        require_that(
            opt.warmup_epochs < opt.epochs,
            f"warmup_epochs was {opt.warmup_epochs:g}; it should be below epochs ({opt.epochs})",
        )
        require_that(
            not opt.nesterov or opt.momentum > 0,
            "nesterov was true with momentum 0; it should come with a momentum above 0",
        )
        if loss.update == "forward" and loss.loss != "ce":
            require_that(
                opt.grad_accum_steps == 1 and opt.amp_dtype != "fp16",
                f"update was 'forward' with grad_accum_steps {opt.grad_accum_steps} and amp_dtype "
                f"{opt.amp_dtype!r}; it should be 'step' where batches are accumulated or the loss is scaled",
            )
            require_that(
                data.on_bad_image == "stop",
                "update was 'forward' with on_bad_image 'skip'; it should be 'step' there: a batch that lacks images "
                "has a smaller share of the step, which is known only afterwards",
            )

        check_policy(data.aa, data.dataset)
        self._check_graphs()
        self._check_engine()

    def _check_graphs(self) -> None:
        """A graph replays one batch shape, and leaves gradients where the next replay puts its own: they can't be
        accumulated."""
        if not self.optimizer.cuda_graphs:
            return
        for name, value, good in (
            ("torchcompile", self.optimizer.torchcompile, False),
            ("grad_accum_steps", self.optimizer.grad_accum_steps, 1),
            ("drop_last", self.data.drop_last, True),
            ("on_bad_image", self.data.on_bad_image, "stop"),
            ("engine", self.run.engine, "ddp"),
            ("device", self.run.device, "cuda" if self.run.device == "cpu" else self.run.device),
        ):
            require_that(value == good, f"{name} was {value!r} with cuda_graphs; it should be {good!r} there")

    def _check_engine(self) -> None:
        run = self.run
        if run.engine != "deepspeed":
            for name in ("zero_stage", "deepspeed_config"):
                value = getattr(run, name)
                require_that(
                    value is None,
                    f"{name} was {value!r} with engine {run.engine!r}; it should come with --engine deepspeed",
                )
            return
        require_that(
            run.zero_stage is None or run.deepspeed_config is None,
            f"zero_stage was {run.zero_stage} with deepspeed_config {run.deepspeed_config!r}; it should be in that "
            "file, as zero_optimization.stage",
        )
        for name in ("model_ema", "sync_bn", "channels_last"):
            require_that(
                not getattr(self.model, name),
                f"{name} was true with engine 'deepspeed'; it should be false there: ZeRO keeps parameters in pieces, "
                "or flat, and takes the network as it is",
            )
        require_that(
            self.optimizer.amp_dtype != "fp16",
            "amp_dtype was 'fp16' with engine 'deepspeed'; it should be 'bf16' or 'none' there: DeepSpeed's fp16 "
            "autocast clips gradients before the loss scale is divided out",
        )
        require_that(
            not self.optimizer.torchcompile,
            "torchcompile was true with engine 'deepspeed'; it should be false there: DeepSpeed's hooks on modules run "
            "outside of what is compiled",
        )
        require_that(
            self.loss.update != "forward" or self.loss.loss == "ce",
            "update was 'forward' with engine 'deepspeed'; it should be 'step' there: DeepSpeed skips steps whose "
            "gradient is not finite",
        )

    def values(self) -> dict[str, Any]:
        """All keys in one flat dict."""
        sections = (getattr(self, name) for name in SECTIONS)
        return {entry.name: getattr(part, entry.name) for part in sections for entry in fields(part)}

    def with_values(self, **values: Any) -> Config:
        """A copy with some keys changed, checked like a new one."""
        parts = {name: replace(getattr(self, name), **part) for name, part in by_section(values).items()}
        return replace(self, **parts)


def entries() -> dict[str, Field[Any]]:
    return {entry.name: entry for kind in SECTIONS.values() for entry in fields(typing.cast(Any, kind))}


def known_keys() -> dict[str, str]:
    """Every key's section."""
    return {
        entry.name: section for section, kind in SECTIONS.items() for entry in fields(typing.cast(Any, kind))
    }


def key_types() -> dict[str, Any]:
    return {name: kind for part in SECTIONS.values() for name, kind in typing.get_type_hints(part).items()}


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known_keys():
            raise ValueError(f"there is no key {name}{nearest(name, known_keys())}")
        parts.setdefault(known_keys()[name], {})[name] = value
    return parts
