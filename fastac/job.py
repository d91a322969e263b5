"""The parts of a training run: all that a step needs and a checkpoint holds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fastac.checkpoint import Loaded, restore_rng, rng_state
from fastac.config import Config
from fastac.data import (
    Batch,
    BatchLoader,
    EpochSampler,
    Samples,
    create_loader,
)
from fastac.data.dali_policies import in_dali
from fastac.data.policies import Policy, find_policy
from fastac.dynamics import TrainingDynamics
from fastac.ema import WeightAverage
from fastac.engine import Engine
from fastac.loss import AutoCleansingLoss
from fastac.metrics import Meter
from fastac.models import create_model
from fastac.network import capture, in_format, make_network
from fastac.optim import create_optimizer, lr_factor
from fastac.parts import held_rows, overlaps
from fastac.sharded import ShardedAlphaTable
from fastac.sharded_dynamics import ShardedTrainingDynamics
from fastac.storage import create_dynamics, create_table
from fastac.table import AlphaTable
from fastac.training_data import TrainingData

__all__ = ["Job", "Position"]


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

    def add_seconds(self, seconds: float) -> None:
        """Time of steps that are counted already."""
        self.seconds += seconds
        self.epoch_seconds += seconds

    def next_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.epoch_images, self.epoch_seconds = 0, 0.0

    @property
    def images_per_second(self) -> float:
        """Of the epoch under way."""
        return self.epoch_images / max(self.epoch_seconds, 1e-9)


class Job:
    """Network, loss, α table, optimizer and loaders of one run: what a step needs and a checkpoint holds.

    average: of the network's weights, None where none is kept. resumed: a checkpoint will be loaded, so that the
    config's initial_checkpoint is not.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        data: TrainingData,
        create: Callable[..., nn.Module] = create_model,
        *,
        resumed: bool = False,
    ):
        self.config, self.engine, self.data = config, engine, data
        self._check_batches()
        train, test, device = data.dataset.train, data.dataset.test, engine.device
        _seed_everything(config.run.seed)
        self.network = make_network(config, engine, data.dataset, create, resumed=resumed)
        self.parameters = sum(p.numel() for p in self.network.parameters())  # before an engine cuts them up
        self.optimizer = create_optimizer(self.network, config.optimizer, device)
        decay = config.model.model_ema_decay
        self.average = WeightAverage(self.network, decay) if config.model.model_ema else None
        if config.optimizer.cuda_graphs:
            capture(self.network, config, engine, train)
        self.model = engine.prepare(self.network, self.optimizer)
        _seed_everything(config.run.seed + engine.rank)  # so that ranks drop out different units

        self.train_loader = self._loader(train, data.given, training=True)
        self.given_loader = self._loader(train, data.given)
        self.test_loader = None if test is None else self._loader(test, test.labels)
        self.steps_per_epoch = math.ceil(len(self.train_loader) / config.optimizer.grad_accum_steps)
        planned = config.optimizer.trained_epochs * self.steps_per_epoch
        self.last_step = min(planned, config.run.max_steps or planned)

        self._lr_factor = lr_factor(config.optimizer, self.steps_per_epoch)
        self.scheduler = LambdaLR(self.optimizer, self._lr_factor)
        group = engine.new_group()
        self.table = create_table(config, len(train), train.num_classes, engine, group)
        if self.table is not None:
            engine.follow(self.table)
        self.dynamics = create_dynamics(config, len(train), train.num_classes, engine, group)
        self.criterion = AutoCleansingLoss(
            self.table,
            label_smoothing=config.loss.label_smoothing,
            update=config.loss.update,
            dynamics=self.dynamics,
        )
        self.forward = torch.compile(self._forward) if config.optimizer.torchcompile else self._forward
        self.meter = Meter(device)
        self.position = Position()
        self._unreadable: set[int] = set()

    def _check_batches(self) -> None:
        """ValueError where this number of ranks can't make the batches that the config asks for."""
        config, ranks = self.config, self.engine.world_size
        forward = config.loss.update == "forward" and config.loss.loss != "ce"
        if forward and ranks > 1 and not config.data.drop_last:
            raise ValueError(
                f"update was 'forward' on {ranks} ranks with --no-drop-last; it should be 'step' there: ranks with "
                "fewer rows of a last batch have a smaller share of its step"
            )
        rows = config.data.batch_size * ranks
        used = len(self.data.given) - len(self.data.excluded)
        if config.data.drop_last and rows > used:
            raise ValueError(
                f"batch_size was {config.data.batch_size} on {ranks} rank(s), {rows} together; it should be at most "
                f"{used} together, the training images, or come with --no-drop-last"
            )

    def _loader(self, samples: Samples, labels: np.ndarray, *, training: bool = False) -> BatchLoader:
        """training: shuffled and augmented. Else each sample once, as it is, by the training set's means."""
        c, engine = self.config, self.engine
        return create_loader(
            c.data.loader,
            samples,
            labels,
            self._sampler(len(samples), engine.world_size, engine.rank, training=training),
            augment=c.data.augment if training else "none",
            seed=c.run.seed,
            device=engine.device,
            workers=c.data.workers,
            mean=None if training else self.train_loader.mean,
            std=None if training else self.train_loader.std,
            aa=self._policy() if training else "none",
            cutout=c.data.cutout if training else 0,
            reprob=c.data.reprob if training else 0.0,
            dali_device=c.data.dali_device,
        )

    def _policy(self) -> Policy | str:
        c = self.config
        if c.data.loader == "dali" and in_dali(c.data.aa):
            return c.data.aa
        return find_policy(c.data.aa, c.data.dataset, epochs=c.optimizer.trained_epochs) or "none"

    def _sampler(self, num_samples: int, ranks: int, rank: int = 0, *, training: bool) -> EpochSampler:
        """Of this run's global batch on so many ranks."""
        c = self.config
        return EpochSampler(
            num_samples,
            c.data.batch_size * self.engine.world_size // ranks,
            rank=rank,
            world_size=ranks,
            seed=c.run.seed,
            shuffle=training,
            drop_last=training and c.data.drop_last,
            aligned=training and c.loss.alpha_placement == "aligned" and ranks > 1,
            exclude=self.data.excluded if training else None,
        )

    def _forward(self, images: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss () and logits (B, K) of a batch."""
        logits = self.model(self.in_format(images))
        return self.criterion(logits, target, index), logits

    def in_format(self, images: Tensor) -> Tensor:
        """The images in the network's memory format."""
        return in_format(images, self.config)

    @property
    def lr(self) -> float:
        """The network's learning rate at the last step."""
        step = max(self.position.step - 1, 0)
        return self.config.optimizer.lr * self._lr_factor(step)

    def __str__(self) -> str:
        """What the run is about to do, on one line."""
        train, table, c = self.data.dataset.train, self.table, self.config
        alpha = "no α"
        if table is not None:
            stored = [table.alpha] + ([] if table.momentum_buffer is None else [table.momentum_buffer])
            size = sum(part.numel() * part.element_size() for part in stored) / 1e6
            alpha = f"α {'×'.join(map(str, table.alpha.shape))} with {table.history} history, {size:,.1f} MB"
            if isinstance(table, ShardedAlphaTable):
                alpha += f" a rank ({table.placement}, {table.storage} memory)"
        left_out = f", {len(self.data.excluded):,} of them left out" if self.data.excluded.size else ""
        return (
            f"{c.data.dataset}, {len(train):,} images of {train.num_classes} classes{left_out}; {c.model.model}, "
            f"{self.parameters:,} parameters; {c.loss.loss}, {alpha}; {self.steps_per_epoch} steps an epoch on "
            f"{self.engine.world_size} × {self.engine.device.type}"
        )

    def prefetch(self, batches: list[Batch]) -> None:
        """Ask for α's rows of the step to come, which travel while the network runs."""
        if isinstance(self.table, ShardedAlphaTable):
            for batch in batches:
                self.table.prefetch(batch.host_index)

    def note_unreadable(self, batch: Batch) -> None:
        """Remember which images a training batch came without."""
        self._unreadable.update(batch.bad)

    def unreadable(self) -> list[int]:
        """Ids of the images that training could not read, on any rank, ascending. All ranks call it."""
        return sorted(set().union(*self.engine.gather(self._unreadable, "unreadable images")))

    def sync_dynamics(self) -> None:
        """Bring what the ranks saw of each other's samples to their owners. All ranks call it."""
        if isinstance(self.dynamics, ShardedTrainingDynamics):
            self.dynamics.sync()

    def shared_state(self) -> dict[str, Any]:
        """What the next steps depend on and all ranks have alike. All ranks call it; between optimizer steps only."""
        return {
            "config": self.config.values(),
            "position": asdict(self.position),
            "global_batch": self.config.data.batch_size * self.engine.world_size,
            "ranks": self.engine.world_size,
            "labels": self.data.digest(),
            "has": {name: part is not None for name, part in self._checked().items()},
            "network": self.engine.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "meter": self.engine.sum(self.meter.totals, "the running figures"),
            "unreadable": self.unreadable(),
        }

    def _checked(self) -> dict[str, AlphaTable | TrainingDynamics | WeightAverage | None]:
        """What a run and its checkpoint must both have, or both not."""
        return {**self._parts(), "average": self.average}

    def _parts(self) -> dict[str, AlphaTable | TrainingDynamics | None]:
        return {"table": self.table, "dynamics": self.dynamics}

    def own_states(self) -> dict[str, dict[str, Any]]:
        """What only this rank has: its rows of α and of the dynamics, its random number generators. As shared_state."""
        states = {"rng": {"rank": self.engine.rank, **rng_state(self.engine.device)}}
        return states | {name: part.state_dict() for name, part in self._parts().items() if part is not None}

    def load(self, checkpoint: Loaded) -> None:
        """Go on from a checkpoint of any number of ranks. ValueError, and nothing changed, where it is of other data,
        of another network, table or global batch."""
        state, engine = checkpoint.shared, self.engine
        self._check(state)
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(checkpoint.own(name, _reads(part.num_samples, part.held)))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        engine.load_state_dict(state["network"])
        self.scheduler.load_state_dict(state["scheduler"])
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        self.meter.reset()
        if engine.rank == 0:  # the sum over the ranks goes on here
            self.meter.totals.copy_(state["meter"])
        self.position = Position(**state["position"])
        self._unreadable = set(state.get("unreadable", ()))  # older checkpoints have none
        for rng in checkpoint.own("rng", lambda plain: plain["rank"] == engine.rank):
            restore_rng(rng, engine.device)

    def _check(self, state: dict[str, Any]) -> None:
        """ValueError unless the checkpoint's shared state is of this run's data, batches and network."""
        self.engine.names.check(state["network"])
        if self.average is not None and state.get("average") is not None:
            self.average.check(state["average"])
        ranks, rows = self.engine.world_size, self.config.data.batch_size * self.engine.world_size
        if state["labels"] != self.data.digest():
            raise ValueError(
                "the training labels are not the checkpoint's; data_dir and labels should give the same ones"
            )
        for name, part in self._checked().items():
            has = state["has"].get(name, state.get(name) is not None)
            if has != (part is not None):
                there = "has a" if has else "has no"
                raise ValueError(f"the checkpoint {there} {name}, and this run's is {part}")
        if state["global_batch"] != rows:
            raise ValueError(
                f"batch_size was {self.config.data.batch_size} on {ranks} rank(s), {rows} together; it should be "
                f"{state['global_batch']} together, as in the checkpoint"
            )
        steps = len(self._sampler(len(self.data.given), state["ranks"], training=True))
        if steps != len(self.train_loader):
            raise ValueError(
                f"an epoch has {len(self.train_loader)} batches on {ranks} rank(s) and had {steps} on the checkpoint's "
                f"{state['ranks']}: a last batch of less than two rows a rank joins the one before it. Go on with as "
                "many ranks"
            )
        aligned = self.config.loss.alpha_placement == "aligned"
        if aligned and state["ranks"] != ranks and state["position"]["batch"] not in (0, steps):
            raise ValueError(
                f"the run is on {ranks} rank(s) and the checkpoint is of {state['ranks']}, in the middle of an epoch, "
                "whose order belongs to the number of ranks with alpha_placement 'aligned': go on with as many ranks, "
                "or from a checkpoint at an epoch's end"
            )


def _reads(num_samples: int, held: range) -> Callable[[dict[str, Any]], bool]:
    """Which of the ranks' states a part that holds these rows needs."""
    return lambda plain: not held or overlaps(held_rows(plain, num_samples), held)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
