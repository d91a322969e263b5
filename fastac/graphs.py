"""The network's forward and backward pass as CUDA graphs: one launch each in place of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["capture_network"]


def capture_network(
    network: nn.Module, images: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Make the network replay graphs in training; in eval mode its forward stays as it is.

    network: on the device, in training mode; its forward is replaced in place. images: (B, C, H, W), a batch of the
    one shape, dtype and memory format that training will have. autocast: makes the context that training runs in.

    The capture runs the network a few times on `images`; batch norm's statistics are put back, and so is the state of
    the device's random number generator. Raises RuntimeError for a network that can't be captured: one that waits for
    the device, or whose course depends on values.
    """
    if not network.training:
        raise ValueError("network was in eval mode; it should be in training mode while it is captured")
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    random_state = torch.cuda.get_rng_state(images.device)
    # Autocast keeps casts of weights within a context: a replay would go on reading those of the capture.
    cache = torch.is_autocast_cache_enabled()
    try:
        with autocast():
            torch.set_autocast_cache_enabled(False)
            torch.cuda.make_graphed_callables(network, (images,))
    finally:
        torch.set_autocast_cache_enabled(cache)
        torch.cuda.set_rng_state(random_state, images.device)
        with torch.no_grad():
            for buffer, before in buffers:  # in place: the graphs hold their addresses
                buffer.copy_(before)
