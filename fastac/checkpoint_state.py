"""Nested states as named tensors: what is no tensor becomes JSON, held in one more tensor. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

__all__ = ["child", "flatten", "parse", "tensor_names", "unflatten"]

_TENSOR, _DICT = "$tensor", "$dict"


def child(name: str, key: str | int) -> str:
    """The name of what a state called `name` holds under a key. Two keys never share one."""
    return f"{name}/{quote(key, safe='') if isinstance(key, str) else f'#{key}'}"


def flatten(name: str, state: Any) -> dict[str, Tensor]:
    """The tensors of a state by name, among them under `name` itself (bytes,) uint8, the JSON of all the rest.

    state: dicts with str or int keys, lists, tuples (which come back as lists), tensors, None, bool, int, float, str.
    Raises TypeError for anything else, with the place where it is.
    """
    tensors: dict[str, Tensor] = {}
    plain = _encode(state, name, tensors)
    text = json.dumps(plain, separators=(",", ":"))  # with NaN and Infinity, which Python's reader takes
    return {name: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), **tensors}


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
            raise TypeError(
                f"{name} was a {value.layout} {type(value).__name__}; it should be a plain dense tensor"
            )
        tensors[name] = value.detach()  # without the attributes that some engines hang on parameters
        return {_TENSOR: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(item, child(name, number), tensors) for number, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise TypeError(f"a key in {name} was {key!r}; it should be a str or an int")
        items = [(key, _encode(item, child(name, key), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(items)
        return {_DICT: items}
    raise TypeError(
        f"{name} was a {type(value).__name__}; it should be a tensor, None, bool, int, float, str, list, tuple or dict"
    )


def parse(text: Tensor) -> Any:
    """The JSON that `flatten` put under the state's own name. ValueError where it is none."""
    return json.loads(text.numpy().tobytes())


def tensor_names(plain: Any) -> Iterator[str]:
    """The names of the tensors that a state from `parse` refers to."""
    if isinstance(plain, dict):
        if plain.keys() == {_TENSOR}:
            yield plain[_TENSOR]
        else:
            for item in plain.values():
                yield from tensor_names(item)
    elif isinstance(plain, list):
        for item in plain:
            yield from tensor_names(item)


def unflatten(plain: Any, tensors: Mapping[str, Tensor] | None) -> Any:
    """The state itself. tensors=None: without them; they are left out of dicts, and are None in lists."""
    if isinstance(plain, list):
        return [unflatten(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {_TENSOR}:
        return None if tensors is None else tensors[plain[_TENSOR]]
    pairs = plain[_DICT] if plain.keys() == {_DICT} else plain.items()
    return {
        key: unflatten(item, tensors)
        for key, item in pairs
        if tensors is not None or not (isinstance(item, dict) and item.keys() == {_TENSOR})
    }
