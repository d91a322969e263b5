"""Fields of a section: their help and limits, their types from TOML and from words, and what is said of a wrong one."""

from __future__ import annotations

import difflib
import math
import typing
from dataclasses import Field, field, fields
from typing import Any

__all__ = [
    "Section",
    "as_text",
    "from_text",
    "key",
    "nearest",
    "one_of",
    "require_that",
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
            value = typed(entry.name, getattr(self, entry.name), types[entry.name])
            check_limits(entry, value)
            object.__setattr__(self, entry.name, value)


_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def should_be(kind: Any) -> str:
    inner, optional = _without_none(kind)
    words = "a list of whole numbers" if typing.get_origin(inner) is tuple else _TYPE_WORDS[inner]
    return f"{words} or none" if optional else words


def _without_none(kind: Any) -> tuple[Any, bool]:
    """The type inside `X | None`, and whether it was one."""
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    if type(None) in typing.get_args(kind):
        return members[0], True
    return kind, False


def typed(name: str, value: Any, kind: Any) -> Any:
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
    raise ValueError(f"{name} was {value!r}; it should be {should_be(kind)}")


def from_text(name: str, text: Any, kind: Any) -> Any:
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
        raise ValueError(f"{name} was {text!r}; it should be {should_be(kind)}") from None


def check_limits(entry: Field[Any], value: Any) -> None:
    choices, limits = entry.metadata["choices"], entry.metadata["limits"]
    if choices and value not in choices:
        raise ValueError(
            f"{entry.name} was {value!r}; it should be {one_of(choices)}{nearest(str(value), choices)}"
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
        require_that(inside, f"{entry.name} was {as_text(value)}; it should be {' and '.join(wanted)}")


def require_that(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def one_of(names: typing.Iterable[str], word: str = "or") -> str:
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


def nearest(
    name: str, known: typing.Iterable[str], spell: typing.Callable[[str], str] = lambda found: found
) -> str:
    names = list(known)
    found = [_ELSEWHERE[name]] if _ELSEWHERE.get(name) in names else []
    found = found or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {spell(found[0])}?" if found else ""
