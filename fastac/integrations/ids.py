"""Sample ids inside labels, for trainers that hand a loss the logits and the labels and nothing else.

A sample with label y and id n carries K·(n + 1) + y in place of y. It is one int64 like any label, so collators,
samplers, workers, prefetchers and device transfers take it as it is; labels below K are those without an id.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["WithIds", "decode", "encode"]


def encode(target: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Labels that carry ids: target (B,) int64 in [0, K), or negative where it is to be ignored, which it then stays;
    index (B,) int64, 0 or more."""
    return torch.where(target < 0, target, num_classes * (index + 1) + target)


def decode(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(target, index) of labels that carry ids. index is −1 for a label without one, 0 for an ignored label."""
    ignored = labels < 0
    target = torch.where(ignored, labels, labels % num_classes)
    return target, torch.where(ignored, 0, labels // num_classes - 1)


class WithIds(torch.utils.data.Dataset[Any]):
    """A map-style dataset whose labels carry each item's position as its id.

    base: its items are dicts with `label` or `labels`, as transformers takes them, or tuples (input, label, …). A label
    is an integer in [0, K), or negative where it is to be ignored. A subset or a sampler over this keeps the ids.
    Attributes are those of base, for trainers that set `transform` on a dataset.
    """

    def __init__(self, base: Any, num_classes: int):
        if isinstance(base, torch.utils.data.IterableDataset) or not hasattr(base, "__len__"):
            raise TypeError(
                f"base must be a map-style dataset, with __len__ and __getitem__, got {type(base).__name__}; for "
                "another, put ids into its labels with fastac.integrations.encode"
            )
        self.base, self.num_classes = base, num_classes

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        position = int(index)
        return self._with_id(self.base[position], position % len(self.base))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if not hasattr(self.base, "__getitems__"):
            return [self[index] for index in indices]
        return [
            self._with_id(item, index)
            for item, index in zip(self.base.__getitems__(indices), indices, strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        if name == "base" or name.startswith("__"):  # asked for by copy and pickle, before base is there
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def transform(self) -> Any:
        """That of base."""
        return self.base.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.base.transform = value

    def _with_id(self, item: Any, index: int) -> Any:
        if isinstance(item, tuple | list):
            parts = [item[0], self._coded(item[1], index), *item[2:]]
            return parts if isinstance(item, list) else tuple(parts)
        for key in ("labels", "label"):
            if key in item:
                return {**item, key: self._coded(item[key], index)}
        raise KeyError(f"item {index} has neither 'labels' nor 'label', only {sorted(item)}")

    def _coded(self, label: Any, index: int) -> Any:
        value = int(label)
        if value != label or value >= self.num_classes:
            raise ValueError(f"the label of item {index} must be in [0, {self.num_classes}), got {label!r}")
        coded = value if value < 0 else self.num_classes * (index + 1) + value
        return torch.tensor(coded) if isinstance(label, Tensor) else coded
