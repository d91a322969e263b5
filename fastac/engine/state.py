"""The state that engines exchange: the network and its momentum by name, whatever shares them out among ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Names"]


class Names:
    """A network's parameters and buffers by name, with their shapes before an engine cuts them up."""

    def __init__(self, network: nn.Module):
        whole = network.state_dict(keep_vars=True)
        self.model: dict[str, Tensor] = dict(whole)
        self.parameters: dict[str, nn.Parameter] = dict(network.named_parameters())
        self._shapes = {name: tuple(value.shape) for name, value in self.model.items()}
        self._parameter_shapes = {name: tuple(value.shape) for name, value in self.parameters.items()}

    def check(self, state: Mapping[str, Any]) -> None:
        """ValueError unless `state` is an engine's state of such a network."""
        missing = [key for key in ("model", "momentum", "scaler") if key not in state]
        if missing:
            raise ValueError(f"this is no engine's state: it has no {missing[0]!r}")
        model, momentum = state["model"], state["momentum"]
        absent = sorted(self._shapes.keys() - model.keys())
        foreign = sorted(model.keys() - self._shapes.keys())
        if absent or foreign:
            raise ValueError(
                "the state is of another network: "
                + " and ".join(
                    [f"it has no {name!r}" for name in absent[:1]]
                    + [f"its {name!r} is not in this one" for name in foreign[:1]]
                )
            )
        unknown = sorted(momentum.keys() - self._parameter_shapes.keys())
        if unknown:
            raise ValueError(
                f"the state has a momentum for {unknown[0]!r}, which is no parameter of this network"
            )
        for kind, values, shapes in (
            ("", model, self._shapes),
            ("the momentum of ", momentum, self._parameter_shapes),
        ):
            for name, value in values.items():
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                if found != shapes[name]:
                    raise ValueError(
                        f"the state is of another network: {kind}{name!r} in it is {found}; it should be {shapes[name]}"
                    )
