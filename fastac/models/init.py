"""The initialisation that the papers' networks share."""

from __future__ import annotations

from torch import nn

__all__ = ["init_weights"]


def init_weights(network: nn.Module) -> None:
    """Convolutions normal with variance 2/(k²·outputs) (He et al. 2015), batch norm 1 and 0, linear bias 0.

    The outputs' side of the paper's rule, as the authors' own code for both networks has it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
