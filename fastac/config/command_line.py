"""Settings on the command line: `--key value` for every key."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from fastac.config.fields import as_text, from_text, nearest
from fastac.config.files import load_config, recipe_names, variant_names
from fastac.config.settings import SECTIONS, Config, key_types, known_keys

__all__ = ["CommandLine", "parse_command_line"]


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
            hint = nearest(name, known_keys(), lambda key: "--" + key.replace("_", "-"))
            raise ValueError(f"there is no option {word.split('=')[0]}{hint}")
        raise ValueError(f"unexpected {word!r}: every setting is an option, --key value")
    types = key_types()
    given = vars(known)
    recipe, resume = given.pop("recipe", None), given.pop("resume", None)
    return CommandLine(recipe, resume, {name: from_text(name, v, types[name]) for name, v in given.items()})


def _add_options(parser: argparse.ArgumentParser, defaults: Config) -> None:
    values, types = defaults.values(), key_types()
    for section, kind in SECTIONS.items():
        group = parser.add_argument_group(section)
        for entry in fields(typing.cast(Any, kind)):
            option = "--" + entry.name.replace("_", "-")
            default = as_text(values[entry.name])
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
