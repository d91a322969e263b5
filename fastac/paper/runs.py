"""A run of the trainer that an experiment needs: its recipe, what it changes, and the runs that come before it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from fastac.config import SECTIONS, Config, load_config, parse_command_line, read_config, resumed_config
from fastac.data import read_id_file
from fastac.extras import require
from fastac.run import RunFolder

__all__ = ["Run", "Settings", "parse_setting", "plain_runs", "revisions_of", "steps_of"]

# How many training images the data sets have, for an estimate before they are read.
_IMAGES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
    "svhn-extra": 73_257 + 531_131,
    "fashion-mnist": 60_000,
    "digits": 1_347,
}
_IMAGENET = 1_281_167
_OWN = {
    "seed": "--seeds",
    "noise_seed": "--seeds",
    "output": "--output",
    "data_dir": "--data-dir",
    "device": "--device",
    "short": "--short",
}
UNCOMMITTED = " with uncommitted changes"
_MADE = ("recipe", "dataset", "name", "exclude", "threshold_set", "loss")
_STAMP = ("git", "fastac", "device", "started")
# The trainer lets them differ when a run goes on, but not without changing what comes of it.
_NOT_UNSAID = ("max_steps", "initial_checkpoint")


@dataclass(frozen=True)
class Settings:
    """What holds for all runs of a command. values: keys of the trainer's config that replace the recipes'."""

    output: Path
    data_dir: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short(self) -> float:
        return float(self.values.get("short", 1.0))

    def changes(self) -> dict[str, Any]:
        """Those of `values` that make another experiment of it."""
        return {name: v for name, v in self.values.items() if name != "short" and not _without_effect(name)}


def _without_effect(name: str) -> bool:
    """Whether the key may differ when a run goes on, because it can't change the result."""
    if name in _NOT_UNSAID:
        return False
    entries = (entry for kind in SECTIONS.values() for entry in fields(cast(Any, kind)))
    return any(entry.name == name and entry.metadata["on_resume"] for entry in entries)


def parse_setting(text: str) -> tuple[str, Any]:
    """Key and value of `--set KEY=VALUE`. ValueError for what is no key of the trainer's, or one that the experiment
    sets itself."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise ValueError(f"set was {text!r}; it should be KEY=VALUE, a key of python -m fastac.train")
    if name in _OWN:
        raise ValueError(f"set was {text!r}; it should be given as {_OWN[name]}")
    if name in _MADE:
        raise ValueError(f"set was {text!r}; {name} is what the experiment's runs differ in")
    if name == "resume":
        raise ValueError(f"set was {text!r}; interrupted runs go on when the same command is given again")
    option = "--" + name.replace("_", "-")
    if isinstance(Config().values().get(name), bool):
        words = {"true": option, "yes": option, "false": f"--no-{option[2:]}", "no": f"--no-{option[2:]}"}
        if value.lower() not in words:
            raise ValueError(f"set was {text!r}; {name} should be true or false")
        given = [words[value.lower()]]
    else:
        given = [f"{option}={value}"]
    parsed = parse_command_line(given, prog="fastac.paper").values[name]
    if name == "score_history" and not parsed:
        raise ValueError(f"set was {text!r}; it should be true: the column AUM needs each epoch's AUM")
    return name, parsed


@dataclass(frozen=True)
class Run:
    """One training.

    values: keys of the config beside the recipe's. needs: names of runs that must have come to their end before.
    prepare: called then, with their folders by name; writes what `values` point to, the same each time.
    """

    name: str
    recipe: str
    settings: Settings
    values: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Path]], None] | None = None

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.settings.output / self.name)

    @property
    def log(self) -> Path:
        """What the trainer printed."""
        return self.settings.output / "logs" / f"{self.name}.log"

    def config(self) -> Config:
        """The run's settings, checked."""
        return load_config(self.recipe, self._values())

    def _values(self) -> dict[str, Any]:
        values = {**self.settings.values, **self.values}
        data_dir = self.settings.data_dir
        if data_dir is not None:
            dataset = load_config(self.recipe, values).data.dataset
            values["data_dir"] = str(_data_dir(dataset, data_dir))
        return {**values, "name": self.name, "output": str(self.settings.output)}

    def command(self) -> list[str]:
        """What trains it, goes on with it, or finds that it is done."""
        words = [sys.executable, "-m", "fastac.train", "--recipe", self.recipe, "--resume", "auto"]
        for name, value in self._values().items():
            words += _words(name, value)
        return words

    def check(self) -> None:
        """ValueError where the settings are wrong, or where a folder of that name has a run with other settings."""
        config = self.config()
        if not self.folder.config.is_file():
            return
        stored = read_config(self.folder.path)
        try:
            if config.data.batch_size != stored.data.batch_size:
                raise ValueError(f"batch_size was {config.data.batch_size}, not {stored.data.batch_size}")
            values, before = config.values(), stored.values()
            for name in _NOT_UNSAID:
                if values[name] != before[name]:
                    raise ValueError(f"{name} was {values[name]!r}, not {before[name]!r}")
            resumed_config(stored, _with_exclude_of(config, stored).values(), self.folder.path)
        except ValueError as error:
            raise ValueError(
                f"{self.folder.path} is a run with other settings: {error}. Give another --output for these"
            ) from error

    def result(self) -> dict[str, Any] | None:
        """What result.json holds with the stamp of what made it, and those of what went on with it in the list
        `resumed`; None where the run has not come to its end."""
        if not self.folder.result.is_file():
            return None
        result: dict[str, Any] = json.loads(self.folder.result.read_text(encoding="utf-8"))
        made_by = json.loads(self.folder.environment.read_text(encoding="utf-8"))
        first, *others = [
            {name: stamp[name] for name in _STAMP} for stamp in (made_by, *made_by.get("resumed", []))
        ]
        return {**result, **first, "resumed": others, "removed": self._removed()}

    def _removed(self) -> dict[str, int] | None:
        """Of a run that leaves samples out: how many of how many labels, and how many of them are wrong, of how many in
        all, where that is known."""
        exclude = self.values.get("exclude")
        if exclude is None or not Path(exclude).is_file():
            return None
        frame = require("pandas", "report").read_csv(self.folder.labels)
        ids = read_id_file(Path(exclude), num_samples=len(frame))
        counts = {"labels": len(frame), "removed": len(ids)}
        if "true_label" in frame:
            wrong = (frame["given_label"] != frame["true_label"]).to_numpy()
            counts |= {"wrong": int(wrong.sum()), "wrong_removed": int(wrong[ids].sum())}
        return counts


def revisions_of(result: Mapping[str, Any]) -> list[str]:
    """Of what `Run.result` gives: by which revisions the run was trained, in their order, each once; the package's
    version where it was no checkout."""
    return list(dict.fromkeys(_revision(stamp) for stamp in (result, *result["resumed"])))


def _revision(stamp: Mapping[str, Any]) -> str:
    if stamp["git"] is None:
        return f"version {stamp['fastac']}"
    return stamp["git"]["revision"][:7] + (UNCOMMITTED if stamp["git"]["dirty"] else "")


def _with_exclude_of(config: Config, stored: Config) -> Config:
    """A folder that was moved has its list of ids elsewhere, by the same name."""
    names = [None if c.data.exclude is None else Path(c.data.exclude).name for c in (config, stored)]
    return config.with_values(exclude=stored.data.exclude) if names[0] == names[1] else config


def _words(name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if isinstance(value, tuple):
        return [f"{option}={','.join(map(str, value)) or 'none'}"]
    return [f"{option}={'none' if value is None else value}"]


def _data_dir(dataset: str, data_dir: Path) -> Path:
    """CIFAR's readers look for their folder in data_dir themselves; SVHN's and ImageNet's may have one there too."""
    below = {"svhn": "svhn", "svhn-extra": "svhn", "folder": "imagenet"}.get(dataset)
    return data_dir / below if below is not None and (data_dir / below).is_dir() else data_dir


def plain_runs(recipe: str, seed: int, settings: Settings) -> list[Run]:
    """A recipe as it is."""
    return [make_run(f"{recipe}-seed{seed}", recipe, seed, settings)]


def make_run(
    stem: str,
    recipe: str,
    seed: int,
    settings: Settings,
    values: Mapping[str, Any] | None = None,
    needs: tuple[str, ...] = (),
    prepare: Callable[[Mapping[str, Path]], None] | None = None,
) -> Run:
    """A run with the seed for its start, its shuffles and its noise. The name says where it trains a share of the
    epochs only."""
    name = stem if settings.short == 1 else f"{stem}-short{settings.short:g}"
    own: dict[str, Any] = {"seed": seed, **(values or {})}
    if load_config(recipe).data.noise != "none":
        own["noise_seed"] = seed
    return Run(name, recipe, settings, own, needs, prepare)


def steps_of(config: Config) -> int | None:
    """About how many optimizer steps a run takes, None where the data set's size is not known."""
    images = _IMAGES.get(config.data.dataset)
    if images is None and (config.run.recipe or "").startswith("imagenet"):
        images = _IMAGENET
    if images is None:
        return None
    images = min(images, config.data.train_limit or images)
    batches = images / config.data.batch_size
    an_epoch = math.floor(batches) if config.data.drop_last else math.ceil(batches)
    steps = config.optimizer.trained_epochs * math.ceil(an_epoch / config.optimizer.grad_accum_steps)
    return min(steps, config.run.max_steps or steps)


def exclude_path(settings: Settings, name: str) -> Path:
    """Where the ids are listed that a run leaves out; absolute, as the run may be gone on with from elsewhere."""
    return Path(os.path.abspath(settings.output)) / "exclude" / f"{name}.csv"


def write_ids(path: Path, ids: Any) -> None:
    """A file for `--exclude`: the column index, ascending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text("index\n" + "".join(f"{index}\n" for index in sorted(ids)), encoding="utf-8")
    os.replace(draft, path)
