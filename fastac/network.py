"""The network that a config asks for: made, checked against the data, with its first weights, where it will train."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastac.config import Config
from fastac.data import Dataset, EncodedImages, Samples
from fastac.engine import Engine
from fastac.graphs import capture_network
from fastac.weights import load_weights

__all__ = ["capture", "check_network", "in_format", "make_network"]


def make_network(
    config: Config, engine: Engine, dataset: Dataset, create: Callable[..., nn.Module], *, resumed: bool
) -> nn.Module:
    """The network on the engine's device. create: makes it from the config's model name and the keywords num_classes
    and in_channels. resumed: a checkpoint will be loaded, so that initial_checkpoint is not."""
    name, train, test = config.model.model, dataset.train, dataset.test
    network = create(name, num_classes=train.num_classes, in_channels=train.channels)
    for samples in (train,) if test is None else (train, test):
        check_network(network, name, samples)
    if config.model.initial_checkpoint is not None and not resumed:
        load_weights(network, config.model.initial_checkpoint)
    return _placed(network, config, engine)


def _placed(network: nn.Module, config: Config, engine: Engine) -> nn.Module:
    """The network on the engine's device, in the memory format and with the batch norm that the config asks for."""
    if config.optimizer.cuda_graphs and (engine.device.type != "cuda" or engine.world_size > 1):
        raise ValueError(
            f"cuda_graphs was true on {engine.world_size} × {engine.device.type}; it should be false there: the "
            "network's passes are captured on one CUDA device"
        )
    if config.model.sync_bn and engine.world_size > 1:
        if engine.device.type != "cuda":
            raise ValueError(
                f"sync_bn was true on {engine.device.type}; it should be false there: SyncBatchNorm needs CUDA"
            )
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(engine.device)
    if config.model.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    return network


def image_shape(samples: Samples) -> tuple[int, int]:
    """Height and width of what the network sees."""
    images = samples.images
    return (images.image_size,) * 2 if isinstance(images, EncodedImages) else images.shape[1:3]


def check_network(network: nn.Module, name: str, samples: Samples) -> None:
    """Raise ValueError unless the network makes (1, K) logits of an image of this size."""
    height, width = image_shape(samples)
    network.eval()
    with torch.no_grad():
        try:
            logits = network(torch.zeros(1, samples.channels, height, width))
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # the latter from timm's and torchvision's transformers
            raise ValueError(
                f"model was {name!r}, which can't take images of {height}×{width} pixels: {error}"
            ) from error
    network.train()
    if logits.shape != (1, samples.num_classes):
        raise ValueError(
            f"model was {name!r}, whose logits of an image are {tuple(logits.shape)}; they should be "
            f"(1, {samples.num_classes}), one a class"
        )


def in_format(images: Tensor, config: Config) -> Tensor:
    """The images in the network's memory format; as they are where they have it."""
    return images.contiguous(memory_format=torch.channels_last) if config.model.channels_last else images


def capture(network: nn.Module, config: Config, engine: Engine, samples: Samples) -> None:
    """The network as CUDA graphs, for the shape and format of every training batch. ValueError where it can't be."""
    size = (config.data.batch_size, samples.channels, *image_shape(samples))
    images = in_format(torch.zeros(size, device=engine.device), config)
    try:
        capture_network(network, images, engine.autocast)
    except RuntimeError as error:
        raise ValueError(
            f"cuda_graphs was true with model {config.model.model!r}, which can't be captured ({error}); it should be "
            "false there"
        ) from error
