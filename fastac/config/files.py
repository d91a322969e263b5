"""Settings in files: recipes and their variants, a run's config.toml."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fastac.config.fields import nearest, one_of
from fastac.config.settings import SECTIONS, Config, entries, known_keys
from fastac.extras import require

__all__ = [
    "load_config",
    "read_config",
    "read_recipe",
    "recipe_names",
    "resumed_config",
    "variant_names",
    "write_config",
]


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
                f"recipe was {name!r}; after a + it should be {one_of(variant_names())}"
                f"{nearest(variant, variant_names())}"
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
                f"recipe was {name!r}; it should be {one_of(recipe_names())} or the path of a .toml file"
                f"{nearest(name, recipe_names())}"
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
            if section in known_keys():
                raise ValueError(f"{where}: {section} belongs in the section [{known_keys()[section]}]")
            raise ValueError(
                f"{where}: there is no section [{section}]; the sections are {one_of(SECTIONS, 'and')}"
                f"{nearest(section, list(SECTIONS))}"
            )
        if not isinstance(content, dict):
            raise ValueError(f"{where}: {section} was {content!r}; it should be a section [{section}]")
        for name, value in content.items():
            home = known_keys().get(name)
            if home is None:
                raise ValueError(
                    f"{where}: there is no key {name} in [{section}]{nearest(name, known_keys())}"
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
        if not entries()[name].metadata["on_resume"] and name not in ("name", "recipe", "batch_size"):
            raise ValueError(
                f"{name} was {changed[name]!r} and the run {folder} was started with {old[name]!r}; it "
                f"should stay the same on --resume: another value gives another result. For a new run: "
                f"--recipe {folder / 'config.toml'} --{name.replace('_', '-')} …"
            )
    kept = {"name": stored.run.name, "output": stored.run.output, "recipe": stored.run.recipe}
    return stored.with_values(**{**changed, **kept})
