"""The parts of a training run: its data, and all that a step needs and a checkpoint holds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fastac.checkpoint import restore_rng, rng_state
from fastac.config import Config
from fastac.data import (
    Dataset,
    EpochSampler,
    FolderImages,
    Loader,
    Samples,
    inject_noise,
    labels_digest,
    load_dataset,
    read_id_file,
    read_label_file,
)
from fastac.dynamics import TrainingDynamics
from fastac.engine import Engine
from fastac.loss import AutoCleansingLoss
from fastac.metrics import Meter
from fastac.models import create_model
from fastac.optim import create_optimizer, lr_factor
from fastac.table import AlphaTable

__all__ = ["Job", "Position", "TrainingData", "load_data"]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A data set with the labels to train on, (N,) int64, the truth, (N,) int64, where it is known, and the ids of
    the samples to leave out of training, (n,) int64."""

    dataset: Dataset
    given: np.ndarray
    truth: np.ndarray | None
    excluded: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def digest(self) -> str:
        """The labels' fingerprint and that of the ids left out, by which a checkpoint knows its data."""
        return labels_digest(self.given) + (labels_digest(self.excluded) if self.excluded.size else "")


def load_data(config: Config) -> TrainingData:
    """Load the data set, put a label file in place of its labels, cut it to train_limit, inject noise, read which
    samples to leave out."""
    c = config.data
    dataset = load_dataset(c.dataset, c.data_dir, image_size=c.image_size, on_bad_image=c.on_bad_image)
    samples = dataset.train
    given, truth = samples.labels, None
    if c.labels is not None:
        given = _read_labels(c.labels, c.data_dir, samples, c.train_limit)
        truth = samples.labels if c.label_truth == "dataset" else None
    if c.train_limit is not None and c.train_limit < len(samples):
        kept = np.arange(c.train_limit)
        samples, given = samples.take(kept), given[: c.train_limit]
        truth = None if truth is None else truth[kept]
        dataset = Dataset(dataset.name, samples, dataset.test)
    if c.noise != "none":
        truth = given if truth is None else truth
        given = inject_noise(
            given,
            samples.num_classes,
            kind=c.noise,
            rate=c.noise_rate,
            seed=c.noise_seed,
            class_groups=samples.class_groups,
            dataset=c.dataset,
        )
    if c.exclude is None:
        return TrainingData(dataset, given, truth)
    excluded = read_id_file(Path(c.exclude), num_samples=len(samples))
    return TrainingData(dataset, given, truth, excluded)


def _read_labels(spec: str, data_dir: str | None, samples: Samples, limit: int | None) -> np.ndarray:
    """The label file as it is named, or else by that name in data_dir; of all samples or of the first `limit`."""
    num_samples, num_classes = len(samples), samples.num_classes
    limit = None if limit is None or limit > num_samples else limit
    try:
        return read_label_file(spec, num_samples=num_samples, num_classes=num_classes, limit=limit)
    except FileNotFoundError as error:
        if data_dir is None or Path(spec).is_absolute():
            raise
        try:
            spec = str(Path(data_dir) / spec)
            return read_label_file(spec, num_samples=num_samples, num_classes=num_classes, limit=limit)
        except FileNotFoundError:
            raise FileNotFoundError(f"{error}, nor is it in data_dir, {data_dir}") from None


@dataclass
class Position:
    """How far a run is."""

    epoch: int = 0  # whole epochs done
    batch: int = 0  # batches done of the epoch under way
    step: int = 0  # optimizer steps done
    images: int = 0  # trained on, on all ranks
    seconds: float = 0.0  # spent on that
    epoch_images: int = 0  # of the epoch under way
    epoch_seconds: float = 0.0

    def advance(self, batches: int, rows: int, seconds: float) -> None:
        """One optimizer step."""
        self.batch += batches
        self.step += 1
        self.images += rows
        self.seconds += seconds
        self.epoch_images += rows
        self.epoch_seconds += seconds

    def next_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.epoch_images, self.epoch_seconds = 0, 0.0

    @property
    def images_per_second(self) -> float:
        """Of the epoch under way."""
        return self.epoch_images / max(self.epoch_seconds, 1e-9)


class Job:
    """Network, loss, α table, optimizer and loaders of one run: what a step needs and a checkpoint holds."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        data: TrainingData,
        create: Callable[..., nn.Module] = create_model,
    ):
        if config.loss.update == "forward" and config.loss.loss != "ce" and engine.world_size > 1:
            raise ValueError(
                f"update was 'forward' on {engine.world_size} ranks; it should be 'step' on several"
            )
        self.config, self.engine, self.data = config, engine, data
        train, test, device = data.dataset.train, data.dataset.test, engine.device
        rows = config.data.batch_size * engine.world_size
        used = len(train) - len(data.excluded)
        if config.data.drop_last and rows > used:
            raise ValueError(
                f"batch_size was {config.data.batch_size} on {engine.world_size} rank(s), {rows} together; it should "
                f"be at most {used} together, the training images, or come with --no-drop-last"
            )
        _seed_everything(config.run.seed)
        network = create(config.model.model, num_classes=train.num_classes, in_channels=train.channels)
        for samples in (train,) if test is None else (train, test):
            _check_network(network, config.model.model, samples)
        self.network = network
        self.model = engine.wrap(network)
        _seed_everything(config.run.seed + engine.rank)  # so that ranks drop out different units

        self.train_loader = self._loader(train, data.given, training=True)
        self.given_loader = self._loader(train, data.given)
        self.test_loader = None if test is None else self._loader(test, test.labels)
        self.steps_per_epoch = math.ceil(len(self.train_loader) / config.optimizer.grad_accum_steps)
        planned = config.optimizer.epochs * self.steps_per_epoch
        self.last_step = min(planned, config.run.max_steps or planned)

        self.optimizer = create_optimizer(network, config.optimizer, device)
        self._lr_factor = lr_factor(config.optimizer, self.steps_per_epoch)
        self.scheduler = LambdaLR(self.optimizer, self._lr_factor)
        self.table = _create_table(config, len(train), train.num_classes, device)
        if self.table is not None:
            self.table.follow(self.optimizer, scaler=engine.scaler)
        self.dynamics: TrainingDynamics | None = None
        if config.loss.dynamics:
            self.dynamics = TrainingDynamics(len(train), train.num_classes, device=device)
        self.criterion = AutoCleansingLoss(
            self.table,
            label_smoothing=config.loss.label_smoothing,
            update=config.loss.update,
            dynamics=self.dynamics,
        )
        self.forward = torch.compile(self._forward) if config.optimizer.torchcompile else self._forward
        self.meter = Meter(device)
        self.position = Position()
        self._visits = torch.zeros(len(train), dtype=torch.int64, device=device)

    def _loader(self, samples: Samples, labels: np.ndarray, *, training: bool = False) -> Loader:
        """training: shuffled and augmented. Else each sample once, as it is, by the training set's means."""
        c, engine = self.config, self.engine
        sampler = EpochSampler(
            len(samples),
            c.data.batch_size,
            rank=engine.rank,
            world_size=engine.world_size,
            seed=c.run.seed,
            shuffle=training,
            drop_last=training and c.data.drop_last,
            exclude=self.data.excluded if training else None,
        )
        return Loader(
            samples,
            labels,
            sampler,
            augment=c.data.augment if training else "none",
            seed=c.run.seed,
            device=engine.device,
            workers=c.data.workers,
            mean=None if training else self.train_loader.mean,
            std=None if training else self.train_loader.std,
        )

    def _forward(self, images: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss () and logits (B, K) of a batch."""
        logits = self.model(images)
        return self.criterion(logits, target, index), logits

    @property
    def lr(self) -> float:
        """The network's learning rate at the last step."""
        step = max(self.position.step - 1, 0)
        return self.config.optimizer.lr * self._lr_factor(step)

    def __str__(self) -> str:
        """What the run is about to do, on one line."""
        train, table, c = self.data.dataset.train, self.table, self.config
        parameters = sum(p.numel() for p in self.network.parameters())
        alpha = "no α"
        if table is not None:
            stored = [table.alpha] + ([] if table.momentum_buffer is None else [table.momentum_buffer])
            size = sum(part.numel() * part.element_size() for part in stored) / 1e6
            alpha = f"α {'×'.join(map(str, table.alpha.shape))} with {table.history} history, {size:,.1f} MB"
        left_out = f", {len(self.data.excluded):,} of them left out" if self.data.excluded.size else ""
        return (
            f"{c.data.dataset}, {len(train):,} images of {train.num_classes} classes{left_out}; {c.model.model}, "
            f"{parameters:,} parameters; {c.loss.loss}, {alpha}; {self.steps_per_epoch} steps an epoch on "
            f"{self.engine.world_size} × {self.engine.device.type}"
        )

    def merge_dynamics(self) -> None:
        """Take each sample's dynamics from the rank that trained on it; every rank then has all of them."""
        if self.dynamics is None or self.engine.world_size == 1:
            return
        state = self.dynamics.state_dict()
        mine = self.dynamics.count > self._visits
        anyone = self.engine.sum(mine.int()) > 0
        for name, values in state.items():
            if isinstance(values, Tensor):
                rows = (-1, *[1] * (values.ndim - 1))
                owned = torch.where(mine.view(rows), values, 0)
                merged = self.engine.sum(owned.int() if values.dtype == torch.bool else owned)
                state[name] = torch.where(anyone.view(rows), merged.to(values.dtype), values)
        self.dynamics.load_state_dict(state)
        self._visits.copy_(self.dynamics.count)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on. All ranks call it; between optimizer steps only."""
        self.merge_dynamics()
        scaler = self.engine.scaler
        totals = self.engine.sum(self.meter.totals)
        return {
            "config": self.config.values(),
            "position": asdict(self.position),
            "global_batch": self.config.data.batch_size * self.engine.world_size,
            "labels": self.data.digest(),
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "table": None if self.table is None else self.table.state_dict(),
            "dynamics": None if self.dynamics is None else self.dynamics.state_dict(),
            "meter": totals,
            "rng": self.engine.gather(rng_state(self.engine.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state. ValueError, and nothing changed, where it is of other data, of
        another table or of another global batch."""
        rows = self.config.data.batch_size * self.engine.world_size
        if state["labels"] != self.data.digest():
            raise ValueError(
                "the training labels are not the checkpoint's; data_dir and labels should give the same ones"
            )
        if state["global_batch"] != rows:
            raise ValueError(
                f"batch_size was {self.config.data.batch_size} on {self.engine.world_size} rank(s), {rows} "
                f"together; it should be {state['global_batch']} together, as in the checkpoint"
            )
        for name, part in (("table", self.table), ("dynamics", self.dynamics)):
            if (state[name] is None) != (part is None):
                raise ValueError(f"the checkpoint's {name} was {state[name]}; this run's is {part}")
        if self.table is not None:
            self.table.load_state_dict(state["table"])
        if self.dynamics is not None:
            self.dynamics.load_state_dict(state["dynamics"])
            self._visits.copy_(self.dynamics.count)
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.engine.scaler is not None:
            self.engine.scaler.load_state_dict(state["scaler"])
        self.meter.reset()
        if self.engine.rank == 0:  # the sum over the ranks goes on here
            self.meter.totals.copy_(state["meter"])
        self.position = Position(**state["position"])
        if self.engine.rank < len(state["rng"]):
            restore_rng(state["rng"][self.engine.rank], self.engine.device)


def _check_network(network: nn.Module, name: str, samples: Samples) -> None:
    """Raise ValueError unless the network makes (1, K) logits of an image of this size."""
    images = samples.images
    height, width = (
        (images.image_size,) * 2 if isinstance(images, FolderImages) else (images.shape[1], images.shape[2])
    )
    network.eval()
    with torch.no_grad():
        try:
            logits = network(torch.zeros(1, samples.channels, height, width))
        except RuntimeError as error:
            raise ValueError(
                f"model was {name!r}, which can't take images of {height}×{width} pixels: {error}"
            ) from error
    network.train()
    if logits.shape != (1, samples.num_classes):
        raise ValueError(
            f"model was {name!r}, whose logits of an image are {tuple(logits.shape)}; they should be "
            f"(1, {samples.num_classes}), one a class"
        )


def _create_table(
    config: Config, num_samples: int, num_classes: int, device: torch.device
) -> AlphaTable | None:
    c = config.loss
    if c.loss == "ce":
        return None
    return AlphaTable(
        num_samples,
        num_classes,
        form=c.loss,
        weight_decay=c.alpha_weight_decay,
        lr_scale=c.alpha_lr_scale,
        history=c.alpha_history,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[c.alpha_dtype],
        device=device,
        seed=config.run.seed,
    )


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
