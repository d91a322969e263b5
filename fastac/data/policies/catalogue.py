"""The policies by name, and the published numbers that they are made of."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from fastac.data.policies.sampling import Operation, Policy, RandomOperations, Schedule, SubPolicies

__all__ = ["POLICY_NAMES", "check_policy", "find_policy"]

_FAMILIES = ("autoaugment", "fast-autoaugment", "pba")
_PUBLISHED = (
    "autoaugment-cifar10",
    "autoaugment-cifar10-95",
    "autoaugment-svhn",
    "autoaugment-imagenet",
    "fast-autoaugment-cifar10",
    "fast-autoaugment-cifar100",
    "fast-autoaugment-svhn",
    "fast-autoaugment-imagenet",
    "pba-cifar10",
    "pba-svhn",
)
POLICY_NAMES = ("none", *_FAMILIES, *_PUBLISHED, "randaugment-nN-mM", "trivialaugment")
"""What the key `aa` may be; N and M stand for numbers."""

# A family's policy for a data set: the one that the family's authors train it with.
_BY_DATASET = {
    "cifar10": "cifar10",
    "cifar100": "cifar10",
    "svhn": "svhn",
    "svhn-extra": "svhn",
    "folder": "imagenet",
    "webdataset": "imagenet",
    "tfrecord": "imagenet",
}
_RANDAUGMENT = re.compile(r"randaugment-n(\d+)-m(\d+)")
_MOST_OPERATIONS, _HIGHEST_LEVEL = 14, 30


def check_policy(name: str, dataset: str | None = None) -> None:
    """Raise ValueError unless `name` is a policy, for this data set where the name leaves it open."""
    find_policy(name, dataset)


def find_policy(name: str, dataset: str | None = None, *, epochs: int | None = None) -> Policy | None:
    """The policy of the key `aa`; None for `none`.

    name: one of `POLICY_NAMES`. dataset: the data set's name, which completes autoaugment, fast-autoaugment and pba.
    epochs: of the run, over which PBA's schedule is spread. Raises ValueError for an unknown name, and for a family
    that has no policy for this data set.
    """
    if name == "none":
        return None
    if name == "trivialaugment":
        return RandomOperations(name, "trivialaugment", 0, 1, range(31), symmetric=False)
    if name.startswith("randaugment"):
        return _randaugment(name)
    full = _of_dataset(name, dataset) if name in _FAMILIES else name
    if full not in _PUBLISHED:
        nearest = difflib.get_close_matches(name, POLICY_NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown aa {name!r}; did you mean {nearest!r}? Known: {', '.join(POLICY_NAMES)}, with numbers "
            "in place of N and M"
        )
    policy = _published()[full.replace("-cifar100", "-cifar10")]
    return replace(policy, epochs=epochs) if isinstance(policy, Schedule) else policy


def _of_dataset(family: str, dataset: str | None) -> str:
    full = f"{family}-{_BY_DATASET.get(dataset or '')}"
    if full not in _PUBLISHED:
        own = [name for name in _PUBLISHED if name.startswith(family + "-")]
        raise ValueError(
            f"aa is {family!r}, which has no policy of its own for the data set {dataset!r}; name one of "
            f"{', '.join(own)}"
        )
    return full


def _randaugment(name: str) -> Policy:
    found = _RANDAUGMENT.fullmatch(name)
    n, m = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= n <= _MOST_OPERATIONS or m > _HIGHEST_LEVEL:
        raise ValueError(
            f"aa is {name!r}; it should be randaugment-nN-mM with N operations an image, 1 to {_MOST_OPERATIONS}, at "
            f"level M, 0 to {_HIGHEST_LEVEL}, such as randaugment-n2-m9"
        )
    return RandomOperations(name, "randaugment", 128, n, range(m, m + 1), symmetric=True)


@cache
def _published() -> dict[str, SubPolicies | Schedule]:
    policies: dict[str, SubPolicies | Schedule] = {}
    for family in _FAMILIES:
        path = resources.files("fastac.data.policies") / f"{family}.toml"
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            policies[name] = _schedule(name, table) if family == "pba" else _sub_policies(name, table)
    return policies


def _sub_policies(name: str, table: dict[str, Any]) -> SubPolicies:
    listed = tuple(
        tuple(_operation(*words.split()) for words in entry.split(","))
        for entry in table["sub_policies"].split(";")
    )
    return SubPolicies(name, table["levels"], table.get("fill"), listed)


def _operation(name: str, probability: str, level: str = "0") -> Operation:
    return Operation(name, float(probability), float(level))


def _schedule(name: str, table: dict[str, Any]) -> Schedule:
    names = table["operations"].split() * 2
    phases = []
    for entry in table["phases"].split(";"):
        end, _, pairs = entry.partition(":")
        numbers = [pair.split() for pair in pairs.split(",")]
        listed = tuple(
            Operation(op, int(tenths) / 10, int(level))
            for op, (tenths, level) in zip(names, numbers, strict=True)
        )
        phases.append((int(end), listed))
    return Schedule(name, table["levels"], table.get("fill"), table["epochs"], tuple(phases))
