"""The trainer's settings: frozen dataclasses by section, recipes as TOML, and the command line.

A key has one name everywhere: the field below, the TOML key in its section, and `--key value` on the
command line (dashes or underscores). Names are unique across sections. Where timm's train.py has the key, the
name is timm's.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NoReturn

from fastac.data.policies import check_policy
from fastac.extras import require

__all__ = [
    "CommandLine",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "load_config",
    "parse_command_line",
    "read_config",
    "read_recipe",
    "recipe_names",
    "resumed_config",
    "variant_names",
    "write_config",
]


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    on_resume: bool = False,
    stored: bool = True,
) -> Any:
    """A field with its help text and what its value may be.

    low and high include the bound, above and below don't. on_resume: may differ when a run goes on, because
    it can't change the result. stored: written to a run's config.toml.
    """
    limits = {"low": low, "above": above, "high": high, "below": below}
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "limits": limits,
            "on_resume": on_resume,
            "stored": stored,
        },
    )


class Section:
    """Checks every field of a section by its annotation and the limits in its metadata."""

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for entry in fields(typing.cast(Any, self)):
            value = _typed(entry.name, getattr(self, entry.name), types[entry.name])
            _check_limits(entry, value)
            object.__setattr__(self, entry.name, value)


@dataclass(frozen=True)
class DataConfig(Section):
    dataset: str = key(
        "digits",
        "digits, fashion-mnist, cifar10, cifar100, svhn, svhn-extra, folder, webdataset, tfrecord or npz",
    )
    data_dir: str | None = key(None, "where the data set's files are", on_resume=True)
    labels: str | None = key(None, "file that replaces the training labels by id: .npy, .csv or FILE.npz:KEY")
    label_truth: str = key(
        "none",
        "what is true where `labels` replaces the labels: the data set's own labels, or unknown",
        choices=("none", "dataset"),
    )
    exclude: str | None = key(None, "file of the ids of samples to leave out of training: .csv or .npy")
    noise: str = key(
        "none",
        "wrong labels to inject into the training set; the injected truth is kept to score detection",
        choices=("none", "uniform", "pair", "asymmetric"),
    )
    noise_rate: float = key(0.0, "share of the training labels to flip", low=0, below=1)
    noise_seed: int = key(0, "seed of the injected noise", low=0)
    threshold_set: int = key(
        0,
        "1 or 2: a run of AUM's threshold samples, first or second set, which get the label of a class that does not "
        "exist; 0: none",
        low=0,
        high=2,
    )
    train_limit: int | None = key(None, "train on the first so many images only", low=1)
    image_size: int | None = key(None, "side in pixels that image files are brought to", low=4)
    loader: str = key(
        "torch",
        "what makes batches of image files: torch, Pillow in this process or its workers; dali, NVIDIA's DALI; "
        "synthetic, noise in the images' place, to time the rest",
        choices=("torch", "dali", "synthetic"),
    )
    dali_device: str = key(
        "auto",
        "where DALI decodes: gpu (hardware or hybrid JPEG decoder), cpu, or auto, where the network trains",
        choices=("auto", "cpu", "gpu"),
    )
    augment: str = key(
        "none", "crop of the training images", choices=("none", "crop", "crop-flip", "imagenet")
    )
    aa: str = key(
        "none",
        "policy applied after the crop: autoaugment, fast-autoaugment or pba (the data set's own, or another's: "
        "autoaugment-cifar10), randaugment-nN-mM, trivialaugment",
    )
    cutout: int = key(0, "side in pixels of the square that Cutout blanks after the policy; 0: none", low=0)
    reprob: float = key(0.0, "probability of random erasing", low=0, high=1)
    on_bad_image: str = key("stop", "what an unreadable image does", choices=("stop", "skip"))
    batch_size: int = key(128, "images a batch on each rank", low=1)
    drop_last: bool = key(
        True,
        "leave out an epoch's last, smaller batch; its mean would move α of a few rows as far as a batch's",
    )
    workers: int = key(
        0,
        "loader torch: processes that decode image files, 0: the training's own; loader dali: threads, 0: one a core",
        low=0,
        on_resume=True,
    )


@dataclass(frozen=True)
class ModelConfig(Section):
    model: str = key(
        "cnn",
        "cnn; CIFAR's resnet20/32/44/56, wrn-DEPTH-WIDTH, shake-shake-26-2xWIDTHd, pyramidnet-DEPTH-ALPHA[-shakedrop], "
        "and with -imagenet at the end for images from 64x64 on; resnet50, resnet50-zero-init; timm:NAME, "
        "torchvision:NAME",
    )
    initial_checkpoint: str | None = key(
        None,
        "file or run folder whose network's weights training starts from: .safetensors, .pt, or a run",
        on_resume=True,
    )
    channels_last: bool = key(
        False, "memory format of images and weights that tensor cores read", on_resume=True
    )
    sync_bn: bool = key(False, "batch norm over the rows of all ranks (CUDA)")
    model_ema: bool = key(False, "keep a moving average of the weights, and test it beside the network")
    model_ema_decay: float = key(0.9998, "share of the average that stays at each step", above=0, below=1)


@dataclass(frozen=True)
class LossConfig(Section):
    loss: str = key(
        "ac1",
        "ac1: an offset for each sample and class; ac2: one for each sample; ce: plain cross entropy",
        choices=("ce", "ac1", "ac2"),
    )
    alpha_weight_decay: float = key(5e-5, "weight decay of the offsets α", low=0)
    alpha_lr_scale: float = key(1.0, "α's learning rate as a multiple of the network's", above=0)
    alpha_history: str = key(
        "exact",
        "exact: α with its momentum (twice the memory); folded: α alone, an approximation",
        choices=("exact", "folded"),
    )
    alpha_dtype: str = key("fp32", "how α is stored; bf16 rounds stochastically", choices=("fp32", "bf16"))
    alpha_placement: str = key(
        "exchange",
        "several ranks: exchange, any rank draws any sample and α's rows travel; aligned, a rank draws only samples "
        "whose rows it owns, and nothing does",
        choices=("exchange", "aligned"),
    )
    alpha_storage: str = key(
        "device", "where α is kept: device, or host memory", choices=("device", "host"), on_resume=True
    )
    alpha_wire_dtype: str = key(
        "fp32",
        "what α's rows and gradients travel as, and come from host memory",
        choices=("fp32", "bf16"),
    )
    label_smoothing: float = key(0.0, "label smoothing of the training loss", low=0, below=1)
    update: str = key(
        "step",
        "when α moves: with the optimizer's step, or fused into the forward pass",
        choices=("step", "forward"),
    )
    dynamics: bool = key(True, "record training dynamics (AUM, data maps, forgetting)")


@dataclass(frozen=True)
class OptimizerConfig(Section):
    epochs: int = key(10, "passes over the training set", low=1)
    short: float = key(
        1.0,
        "share of the epochs to train, with milestones and warm-up scaled alike; results of less than 1 say so",
        above=0,
        high=1,
    )
    opt: str = key(
        "sgd",
        "torch's SGD, fused on CUDA, or the FusedSGD of NVIDIA's apex",
        choices=("sgd", "fusedsgd"),
        on_resume=True,
    )
    lr: float = key(0.1, "learning rate of SGD", above=0)
    momentum: float = key(0.9, "momentum of SGD", low=0, below=1)
    nesterov: bool = key(False, "Nesterov momentum")
    weight_decay: float = key(1e-4, "weight decay of the network, except batch norm and biases", low=0)
    schedule: str = key("cosine", "learning rate by step", choices=("cosine", "multistep", "constant"))
    milestones: tuple[int, ...] = key((), "multistep: epochs that multiply the rate by gamma", low=1)
    gamma: float = key(0.1, "multistep: the factor", above=0)
    warmup_epochs: float = key(0.0, "epochs of linear warm-up before the schedule", low=0)
    clip_grad: float | None = key(None, "clip the norm of the network's gradient (α is not clipped)", above=0)
    grad_accum_steps: int = key(1, "batches summed into one step of the optimizer", low=1)
    amp_dtype: str = key("none", "autocast the network to this type", choices=("none", "bf16", "fp16"))
    torchcompile: bool = key(False, "torch.compile of the network and the loss")
    cuda_graphs: bool = key(False, "replay the network's passes as CUDA graphs: one launch each (one GPU)")

    @property
    def trained_epochs(self) -> int:
        """`epochs` scaled by `short`."""
        return max(1, round(self.epochs * self.short))

    @property
    def trained_milestones(self) -> tuple[float, ...]:
        """`milestones` in epochs, at the same share of the training as without `short`."""
        return tuple(epoch * self.trained_epochs / self.epochs for epoch in self.milestones)

    @property
    def trained_warmup_epochs(self) -> float:
        """`warmup_epochs`, as trained_milestones."""
        return self.warmup_epochs * self.trained_epochs / self.epochs


@dataclass(frozen=True)
class RunConfig(Section):
    recipe: str | None = key(
        None, "a recipe of the package by name, or the path of a TOML file, and variants: RECIPE+VARIANT"
    )
    seed: int = key(0, "seed of the network's start, the shuffles and the augmentation", low=0)
    device: str = key("auto", "where to train", choices=("auto", "cpu", "cuda"), on_resume=True)
    engine: str = key(
        "ddp",
        "what shares the network's training among ranks: DistributedDataParallel or DeepSpeed's ZeRO",
        choices=("ddp", "deepspeed"),
        on_resume=True,
    )
    zero_stage: int | None = key(
        None,
        "deepspeed: 1 shares out the optimizer's state, 2 gradients too, 3 parameters too (2 where none is given)",
        low=1,
        high=3,
        on_resume=True,
    )
    deepspeed_config: str | None = key(
        None, "deepspeed: a JSON file with more of its settings, in place of zero_stage", on_resume=True
    )
    dist_timeout: float = key(
        600.0, "seconds that a collective may wait for other ranks", above=0, on_resume=True
    )
    threads: int = key(0, "CPU threads of PyTorch; 0: its default", low=0, on_resume=True)
    deterministic: bool = key(False, "only deterministic kernels (the CPU's are)", on_resume=True)
    output: str = key("runs", "folder that holds the run folders", on_resume=True, stored=False)
    name: str | None = key(None, "the run folder's name (made from recipe, loss and seed)", stored=False)
    checkpoint_every: int = key(
        0, "steps between checkpoints; 0: one at each epoch's end", low=0, on_resume=True
    )
    checkpoint_hist: int = key(2, "how many checkpoints are kept", low=1, on_resume=True)
    log_interval: int = key(50, "steps between readings of the running metrics", low=1, on_resume=True)
    profile_steps: int = key(
        0,
        "write a trace of so many steps to the run's folder, of the first epoch after the start or a resume; 0: none",
        low=0,
        on_resume=True,
    )
    max_steps: int = key(0, "stop after so many steps, for trying out; 0: none", low=0, on_resume=True)
    score_history: bool = key(
        True, "keep each sample's AUM as of each epoch (2 bytes each) for the review page", on_resume=True
    )
    issues_percent: float | None = key(
        None, "share of the training set in percent that issues.csv flags", above=0, high=100, on_resume=True
    )
    progress: bool = key(True, "a progress bar where stderr is a terminal", on_resume=True)
    tensorboard: bool = key(True, "write TensorBoard events", on_resume=True)


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
        _require(
            (data.noise == "none") == (data.noise_rate == 0),
            f"noise_rate was {data.noise_rate:g} with noise {data.noise!r}; it should be above 0 with a kind "
            "of noise, and 0 without",
        )
        _require(
            data.label_truth == "none" or data.labels is not None,
            "label_truth was 'dataset' without labels; it should come with a label file in labels",
        )
        _require(
            data.threshold_set == 0 or data.exclude is None,
            f"threshold_set was {data.threshold_set} with exclude {data.exclude!r}; it should be 0 there: a threshold "
            "sample that is left out gives no threshold",
        )
        _require(
            (opt.schedule == "multistep") == bool(opt.milestones),
            f"milestones was {list(opt.milestones)} with schedule {opt.schedule!r}; it should be a list of "
            "epochs with multistep, and none without",
        )
        _require(
            list(opt.milestones) == sorted(set(opt.milestones)),
            f"milestones was {list(opt.milestones)}; it should be in ascending order",
        )
        _require(
            not opt.milestones or opt.milestones[-1] < opt.epochs,
            f"milestones was {list(opt.milestones)} with epochs {opt.epochs}; each should be below epochs: "
            "a later one never comes",
        )
        _require(
            opt.warmup_epochs < opt.epochs,
            f"warmup_epochs was {opt.warmup_epochs:g}; it should be below epochs ({opt.epochs})",
        )
        _require(
            not opt.nesterov or opt.momentum > 0,
            "nesterov was true with momentum 0; it should come with a momentum above 0",
        )
        if loss.update == "forward" and loss.loss != "ce":
            _require(
                opt.grad_accum_steps == 1 and opt.amp_dtype != "fp16",
                f"update was 'forward' with grad_accum_steps {opt.grad_accum_steps} and amp_dtype "
                f"{opt.amp_dtype!r}; it should be 'step' where batches are accumulated or the loss is scaled",
            )
            _require(
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
            _require(value == good, f"{name} was {value!r} with cuda_graphs; it should be {good!r} there")

    def _check_engine(self) -> None:
        run = self.run
        if run.engine != "deepspeed":
            for name in ("zero_stage", "deepspeed_config"):
                value = getattr(run, name)
                _require(
                    value is None,
                    f"{name} was {value!r} with engine {run.engine!r}; it should come with --engine deepspeed",
                )
            return
        _require(
            run.zero_stage is None or run.deepspeed_config is None,
            f"zero_stage was {run.zero_stage} with deepspeed_config {run.deepspeed_config!r}; it should be in that "
            "file, as zero_optimization.stage",
        )
        for name in ("model_ema", "sync_bn", "channels_last"):
            _require(
                not getattr(self.model, name),
                f"{name} was true with engine 'deepspeed'; it should be false there: ZeRO keeps parameters in pieces, "
                "or flat, and takes the network as it is",
            )
        _require(
            self.optimizer.amp_dtype != "fp16",
            "amp_dtype was 'fp16' with engine 'deepspeed'; it should be 'bf16' or 'none' there: DeepSpeed's fp16 "
            "autocast clips gradients before the loss scale is divided out",
        )
        _require(
            not self.optimizer.torchcompile,
            "torchcompile was true with engine 'deepspeed'; it should be false there: DeepSpeed's hooks on modules run "
            "outside of what is compiled",
        )
        _require(
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
        parts = {name: replace(getattr(self, name), **part) for name, part in _by_section(values).items()}
        return replace(self, **parts)


# ---------------------------------------------------------------- recipes and config files


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return _toml_names(resources.files("fastac.recipes"))


def variant_names() -> list[str]:
    """What can be put behind a recipe's name, RECIPE+VARIANT: keys that replace the recipe's."""
    return _toml_names(resources.files("fastac.recipes") / "variants")


def _toml_names(folder: Traversable) -> list[str]:
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The keys of a recipe as one flat dict with `recipe` set.

    name: a recipe of the package, or the path of a TOML file, which ends in .toml; then, each after a "+", variants of
    the package, whose keys replace those before them. Raises ValueError for an unknown name, section or key.
    """
    # A path may hold a + itself; variants come after its .toml, and have no dot.
    base, *variants = [name] if name.endswith(".toml") else _at_pluses(name)
    values = _read_base(base)
    for variant in variants:
        if variant not in variant_names():
            raise ValueError(
                f"recipe was {name!r}; after a + it should be {_one_of(variant_names())}"
                f"{_nearest(variant, variant_names())}"
            )
        text = (
            resources.files("fastac.recipes")
            .joinpath("variants", f"{variant}.toml")
            .read_text(encoding="utf-8")
        )
        values |= _parse_toml(text, f"variant {variant}")
    return {**values, "recipe": "+".join([values["recipe"], *variants])}


def _at_pluses(name: str) -> list[str]:
    path, dot, variants = name.rpartition(".toml+")
    return [path + ".toml", *variants.split("+")] if dot else name.split("+")


def _read_base(name: str) -> dict[str, Any]:
    if not name.endswith(".toml"):
        if name not in recipe_names():
            raise ValueError(
                f"recipe was {name!r}; it should be {_one_of(recipe_names())} or the path of a .toml file"
                f"{_nearest(name, recipe_names())}"
            )
        text = (resources.files("fastac.recipes") / f"{name}.toml").read_text(encoding="utf-8")
        return {"recipe": name, **_parse_toml(text, f"recipe {name}")}
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"recipe was {name!r}; there is no such file")
    values = _parse_toml(path.read_text(encoding="utf-8"), str(path))
    return {"recipe": path.stem, **values}


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    for section, content in document.items():
        if section not in SECTIONS:
            if section in _known_keys():
                raise ValueError(f"{where}: {section} belongs in the section [{_known_keys()[section]}]")
            raise ValueError(
                f"{where}: there is no section [{section}]; the sections are {_one_of(SECTIONS, 'and')}"
                f"{_nearest(section, list(SECTIONS))}"
            )
        if not isinstance(content, dict):
            raise ValueError(f"{where}: {section} was {content!r}; it should be a section [{section}]")
        for name, value in content.items():
            home = _known_keys().get(name)
            if home is None:
                raise ValueError(
                    f"{where}: there is no key {name} in [{section}]{_nearest(name, _known_keys())}"
                )
            if home != section:
                raise ValueError(f"{where}: {name} belongs in the section [{home}], not [{section}]")
            values[name] = value
    return values


def load_config(recipe: str | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The defaults, then the recipe, then the overrides."""
    values = read_recipe(recipe) if recipe is not None else {}
    return Config().with_values(**{**values, **(overrides or {})})


def write_config(config: Config, path: Path) -> None:
    """The resolved config as TOML that `--recipe PATH` reads again. Keys that are None (off) are left out; so
    are `name` and `output`, which are where the file is."""
    tomli_w = require("tomli_w", "train")
    document: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        part = getattr(config, section)
        stored = {f.name: getattr(part, f.name) for f in fields(part) if f.metadata["stored"]}
        document[section] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in stored.items()
            if value is not None
        }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(tomli_w.dumps(document), encoding="utf-8")
    os.replace(temporary, path)


def read_config(folder: Path) -> Config:
    """The config of a run folder, with `output` and `name` set to where it is now."""
    path = folder / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it has no config.toml")
    values = _parse_toml(path.read_text(encoding="utf-8"), str(path))
    place = Path(os.path.abspath(folder))  # "." and ".." have no name of their own
    return Config().with_values(**values, output=str(place.parent), name=place.name)


def resumed_config(stored: Config, given: Mapping[str, Any], folder: Path) -> Config:
    """`stored` with the given keys changed, where they can't change the result of a run that has begun.

    batch_size may change too: the trainer compares the global batch with the checkpoint's.
    """
    old = stored.values()
    changed = {name: value for name, value in given.items() if value != old[name]}
    for name in changed:
        if not _entries()[name].metadata["on_resume"] and name not in ("name", "recipe", "batch_size"):
            raise ValueError(
                f"{name} was {changed[name]!r} and the run {folder} was started with {old[name]!r}; it "
                f"should stay the same on --resume: another value gives another result. For a new run: "
                f"--recipe {folder / 'config.toml'} --{name.replace('_', '-')} …"
            )
    kept = {"name": stored.run.name, "output": stored.run.output, "recipe": stored.run.recipe}
    return stored.with_values(**{**changed, **kept})


# ---------------------------------------------------------------- command line


@dataclass(frozen=True)
class CommandLine:
    recipe: str | None
    resume: str | None
    values: dict[str, Any]  # the other keys given, converted to their types


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_command_line(argv: Sequence[str], prog: str = "fastac.train") -> CommandLine:
    """`--key value` for every key, `--nesterov/--no-nesterov` for the booleans. Raises ValueError; `--help`
    prints the keys by section, with the given recipe's values as defaults, and exits."""
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--recipe NAME] [--key value …]",
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        description="Train a classifier on partly wrong labels and list the wrong labels.",
        epilog=f"recipes: {', '.join(recipe_names())}; variants, RECIPE+VARIANT: {', '.join(variant_names())}",
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this and exit")
    argv = [_with_dashes(word) for word in argv]
    recipe = _value_of("--recipe", argv)
    wants_help = any(word in ("--help", "-h") for word in argv)
    _add_options(parser, Config() if recipe is None or not wants_help else load_config(recipe))
    if wants_help:
        parser.print_help()
        raise SystemExit(0)
    known, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            nearest = _nearest(name, _known_keys(), lambda key: "--" + key.replace("_", "-"))
            raise ValueError(f"there is no option {word.split('=')[0]}{nearest}")
        raise ValueError(f"unexpected {word!r}: every setting is an option, --key value")
    types = _key_types()
    given = vars(known)
    recipe, resume = given.pop("recipe", None), given.pop("resume", None)
    return CommandLine(recipe, resume, {name: _from_text(name, v, types[name]) for name, v in given.items()})


def _add_options(parser: argparse.ArgumentParser, defaults: Config) -> None:
    values, types = defaults.values(), _key_types()
    for section, kind in SECTIONS.items():
        group = parser.add_argument_group(section)
        for entry in fields(typing.cast(Any, kind)):
            option = "--" + entry.name.replace("_", "-")
            default = _as_text(values[entry.name])
            text = f"{entry.metadata['help']} (default: {default})".replace("%", "%%")
            if types[entry.name] is bool:
                group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
            else:
                choices = entry.metadata["choices"]
                metavar = "|".join(choices) if choices else entry.name.split("_")[-1].upper()
                group.add_argument(option, metavar=metavar, help=text)
        if section == "run":
            group.add_argument(
                "--resume",
                metavar="FOLDER|auto",
                help="go on with the run in FOLDER; auto: with --name, go on where that run has a "
                "checkpoint, else start it",
            )


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    for position, word in enumerate(argv):
        if word.startswith(option + "="):
            return word.partition("=")[2]
        if word == option and position + 1 < len(argv):
            return argv[position + 1]
    return None


# ---------------------------------------------------------------- keys, types and limits


def _entries() -> dict[str, Field[Any]]:
    return {entry.name: entry for kind in SECTIONS.values() for entry in fields(typing.cast(Any, kind))}


def _known_keys() -> dict[str, str]:
    """Every key's section."""
    return {
        entry.name: section for section, kind in SECTIONS.items() for entry in fields(typing.cast(Any, kind))
    }


def _key_types() -> dict[str, Any]:
    return {name: kind for part in SECTIONS.values() for name, kind in typing.get_type_hints(part).items()}


def _by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in _known_keys():
            raise ValueError(f"there is no key {name}{_nearest(name, _known_keys())}")
        parts.setdefault(_known_keys()[name], {})[name] = value
    return parts


_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _should_be(kind: Any) -> str:
    inner, optional = _without_none(kind)
    words = "a list of whole numbers" if typing.get_origin(inner) is tuple else _TYPE_WORDS[inner]
    return f"{words} or none" if optional else words


def _without_none(kind: Any) -> tuple[Any, bool]:
    """The type inside `X | None`, and whether it was one."""
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    if type(None) in typing.get_args(kind):
        return members[0], True
    return kind, False


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type, or ValueError."""
    inner, optional = _without_none(kind)
    if value is None and optional:
        return None
    if typing.get_origin(inner) is tuple:
        whole = isinstance(value, list | tuple) and all(type(item) is int for item in value)
        if whole:
            return tuple(value)
    elif inner is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is inner:
        return value
    raise ValueError(f"{name} was {value!r}; it should be {_should_be(kind)}")


def _from_text(name: str, text: Any, kind: Any) -> Any:
    """A command line word as the field's type, or ValueError."""
    inner, optional = _without_none(kind)
    if not isinstance(text, str) or (inner is str and not (optional and text.lower() == "none")):
        return text
    if optional and text.lower() == "none":
        return None
    try:
        if typing.get_origin(inner) is tuple:
            text = "" if text.lower() == "none" else text
            return tuple(int(item) for item in text.replace(",", " ").split())
        return inner(text)
    except ValueError:
        raise ValueError(f"{name} was {text!r}; it should be {_should_be(kind)}") from None


def _check_limits(entry: Field[Any], value: Any) -> None:
    choices, limits = entry.metadata["choices"], entry.metadata["limits"]
    if choices and value not in choices:
        raise ValueError(
            f"{entry.name} was {value!r}; it should be {_one_of(choices)}{_nearest(str(value), choices)}"
        )
    wanted = [
        f"{word} {limit}"
        for word, limit in (
            ("at least", limits["low"]),
            ("above", limits["above"]),
            ("at most", limits["high"]),
            ("below", limits["below"]),
        )
        if limit is not None
    ]
    for item in value if isinstance(value, tuple) else (value,):
        if item is None or not wanted:
            continue
        inside = (
            (limits["low"] is None or item >= limits["low"])
            and (limits["above"] is None or item > limits["above"])
            and (limits["high"] is None or item <= limits["high"])
            and (limits["below"] is None or item < limits["below"])
        )
        _require(inside, f"{entry.name} was {_as_text(value)}; it should be {' and '.join(wanted)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _one_of(names: typing.Iterable[str], word: str = "or") -> str:
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


# What other trainers call a key, where its spelling is nearer to one that is meant for something else.
_ELSEWHERE = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "num_workers": "workers",
    "num_epochs": "epochs",
    "scheduler": "schedule",
    "sched": "schedule",
    "amp": "amp_dtype",
    "compile": "torchcompile",
}


def _nearest(
    name: str, known: typing.Iterable[str], spell: typing.Callable[[str], str] = lambda found: found
) -> str:
    names = list(known)
    found = [_ELSEWHERE[name]] if _ELSEWHERE.get(name) in names else []
    found = found or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {spell(found[0])}?" if found else ""
