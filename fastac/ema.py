"""A moving average of the network's weights, kept beside it and tested as a network of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The exponential moving average of a network's parameters (Polyak averaging).

    decay: share of the average that stays at each update, in (0, 1). It begins lower, min(decay, (1 + n) / (10 + n)) at
    update n (counted from 0), so that the random start is soon forgotten. Averages are held in the parameters' own
    dtype, on their device; buffers (batch norm's statistics) are the network's of the time of `read`. The average is
    made of the network as it is now: make it before what replaces the network's forward (CUDA graphs).
    """

    def __init__(self, network: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay was {decay!r}; it should be above 0 and below 1")
        self.decay, self.updates = decay, 0
        self._source = network
        self._average = copy.deepcopy(network).requires_grad_(False)
        self._mine: list[torch.Tensor] = list(self._average.parameters())
        self._theirs: list[torch.Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights in: after each step of the optimizer. A launch or two, no wait for the device."""
        stays = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - stays)
        self.updates += 1

    @torch.no_grad()
    def read(self) -> nn.Module:
        """The averaged network, in eval mode, with the buffers of the network."""
        for mine, other in zip(self._average.buffers(), self._source.buffers(), strict=True):
            mine.copy_(other)
        return self._average.eval()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "model": dict(self._average.named_parameters())}

    def check(self, state: dict[str, Any]) -> None:
        """ValueError unless the state is of such a network's average."""
        own = dict(self._average.named_parameters())
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        found = {name: tuple(value.shape) for name, value in state["model"].items()}
        if found != shapes:
            name = next(name for name in {**shapes, **found} if shapes.get(name) != found.get(name))
            raise ValueError(
                f"the state of the weights' average is of another network: {name!r} in it is {found.get(name)}; it "
                f"should be {shapes.get(name)}"
            )

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError, and nothing changed, where the state is of another network."""
        self.check(state)
        for name, value in self._average.named_parameters():
            value.copy_(state["model"][name])
        self.updates = int(state["updates"])
