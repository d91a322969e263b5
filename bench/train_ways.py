"""The training step that bench/train.py times, and the losses that it is timed with.

All ways train the same network, so that memory, algorithms and clock rates are theirs alike. Each has an optimizer of
its own over the network's parameters: an α table moves at every step of the optimizer that it follows, so that on a
common one each way would pay for all tables. The ways' optimizers do the same work, with momentum buffers of their own.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fastac
from fastac.config import OptimizerConfig
from fastac.graphs import capture_network
from fastac.models import create_model
from fastac.optim import create_optimizer

__all__ = ["AGAIN", "BASE", "PARTS", "WAYS", "Batch", "Setup", "Size", "Trainer", "Way"]

LR, MOMENTUM, WEIGHT_DECAY = (
    1e-3,
    0.9,
    1e-4,
)  # a rate at which noise is fitted slowly: the network must stay finite
ALPHA_WEIGHT_DECAY = 5e-5
PARTS = ("forward", "loss", "backward", "optimizer", "α")
_IMAGES = 2  # different batches of pixels; ids and labels are drawn anew for each step
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, 3, S, S), target (B,), index (B,)


class Way(NamedTuple):
    """form: of the table, None for plain cross entropy."""

    name: str
    form: str | None = None
    dynamics: bool = False


BASE = Way("F.cross_entropy")
AGAIN = Way("F.cross_entropy, again")  # what this measurement finds where there is nothing to find
WAYS = (BASE, AGAIN, Way("AC2", "ac2"), Way("AC1", "ac1"), Way("AC1 with dynamics", "ac1", True))


class Size(NamedTuple):
    """Rows of a batch, side of an image in pixels, classes K, samples N."""

    batch: int
    image_size: int
    classes: int
    samples: int


@dataclass(frozen=True)
class Setup:
    """A network and how it is trained. amp: of the forward pass, "float32" for none."""

    model: str
    size: Size
    device: torch.device
    amp: str = "float32"
    channels_last: bool = False
    torchcompile: bool = False
    cuda_graphs: bool = False
    update: str = "step"
    history: str = "exact"
    table_dtype: str = "float32"


class Subject:
    """One way: its criterion, and its optimizer over the common network."""

    def __init__(self, way: Way, setup: Setup, network: torch.nn.Module, mark: Callable[[str], None]):
        config = OptimizerConfig(lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.optimizer = create_optimizer(network, config, setup.device)
        self.optimizer.register_step_post_hook(lambda *_: mark("optimizer"))  # before the table's own
        self.state: list[Tensor] = []
        self.criterion = self._plain if way.form is None else self._cleansing(way, setup)
        if setup.torchcompile:
            self.criterion = torch.compile(self.criterion, dynamic=False)

    @staticmethod
    def _plain(logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    def _cleansing(self, way: Way, setup: Setup) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        size, dynamics = setup.size, None
        table = fastac.AlphaTable(
            size.samples,
            size.classes,
            form=str(way.form),
            weight_decay=ALPHA_WEIGHT_DECAY,
            history=setup.history,
            dtype=DTYPES[setup.table_dtype],
            momentum=MOMENTUM,
            device=setup.device,
        )
        table.lr = LR
        # As in the middle of training: rows were last touched anywhere in the epoch before.
        epoch = min(size.samples // size.batch, table.clock.sweep_every // 2)
        for _ in range(epoch):
            table.step()
        table.last.random_(0, epoch + 1)
        table.follow(self.optimizer)
        self.state += [table.alpha, table.last, table.clock.within, table.clock.tail]
        self.state += [] if table.momentum_buffer is None else [table.momentum_buffer]
        if way.dynamics:
            dynamics = fastac.TrainingDynamics(size.samples, size.classes, device=setup.device)
            self.state += [dynamics.count, dynamics.sums, dynamics.forgetting, dynamics.was_correct]
        return fastac.AutoCleansingLoss(table, update=setup.update, dynamics=dynamics)

    @property
    def state_bytes(self) -> int:
        """What α and dynamics keep between steps."""
        return _nbytes(self.state)

    @property
    def held_bytes(self) -> int:
        """What belongs to this way alone: the same and its optimizer's momentum."""
        return self.state_bytes + _nbytes(
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )


def _nbytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Trainer:
    """The network, the batches, and a step of each way."""

    def __init__(self, setup: Setup, ways: Sequence[Way] = WAYS):
        self.setup, self.size = setup, setup.size
        if setup.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as in fastac.train
        torch.manual_seed(0)
        network = create_model(setup.model, num_classes=self.size.classes, in_channels=3)
        self.parameters = sum(p.numel() for p in network.parameters())
        self._format = torch.channels_last if setup.channels_last else torch.contiguous_format
        network = network.to(setup.device, memory_format=self._format).train()
        self._mark: Callable[[str], None] = _nothing
        self.subjects = {
            way.name: Subject(way, setup, network, lambda part: self._mark(part)) for way in ways
        }
        shape = (self.size.batch, 3, self.size.image_size, self.size.image_size)
        self._images = [self.formatted(torch.randn(shape, device=setup.device)) for _ in range(_IMAGES)]
        self._random = np.random.default_rng(0)
        self._forward: Callable[[Tensor], Tensor] = network
        if setup.cuda_graphs:
            capture_network(network, self._images[0].clone(), self.autocast)
        elif setup.torchcompile:
            self._forward = torch.compile(network, dynamic=False)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.setup.amp == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.setup.device.type, DTYPES[self.setup.amp])

    def formatted(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self._format)

    def wait(self) -> None:
        """For the device."""
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize()

    def draw(self, steps: int) -> list[Batch]:
        """Noise, with ids of which none is twice in a batch, as a sampler gives them."""
        size, batches = self.size, []
        for number in range(steps):
            index = self._random.choice(size.samples, size.batch, replace=False)
            target = self._random.integers(size.classes, size=size.batch)
            ids, labels = (torch.from_numpy(values).to(self.setup.device) for values in (index, target))
            batches.append((self._images[number % _IMAGES], labels, ids))
        return batches

    def step(self, subject: Subject, batch: Batch) -> Tensor:
        """One step of training. Returns the loss."""
        images, target, index = batch
        with self.autocast():
            logits = self._forward(images)
            self._mark("forward")
            loss = subject.criterion(logits, target, index)
        self._mark("loss")
        loss.backward()
        self._mark("backward")
        subject.optimizer.step()  # marks "optimizer", then moves α
        self._mark("α")
        subject.optimizer.zero_grad()
        self._mark("optimizer")
        return loss.detach()

    def seconds(self, name: str, batches: Sequence[Batch]) -> float:
        """Of a step, from an idle device to the end of the last step."""
        subject = self.subjects[name]
        self.wait()
        start = time.perf_counter()
        for batch in batches:
            loss = self.step(subject, batch)
        self.wait()
        elapsed = time.perf_counter() - start
        self.check_finite(loss)
        return elapsed / len(batches)

    def check_finite(self, loss: Tensor) -> None:
        """α skips rows that are not finite: a network that has diverged would flatter it."""
        if not math.isfinite(float(loss)):
            raise RuntimeError(
                f"the loss of {self.setup.model} became {float(loss)}: its times would not count"
            )

    def peak_bytes(self, name: str, batches: Sequence[Batch]) -> int | None:
        """Of the device's memory, at most, if this way were the only one; None on a CPU, where nobody counts it."""
        if self.setup.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.seconds(name, batches)
        others = (subject.held_bytes for other, subject in self.subjects.items() if other != name)
        return torch.cuda.max_memory_allocated() - sum(others)

    def parts(self, batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
        """Median seconds of each part of a step of each way, which take turns on each batch. On a GPU by events on its
        stream: where the device waits for the host, the wait is in the part that it waits for."""
        marks: dict[str, list[Marks]] = {name: [] for name in self.subjects}
        try:
            for batch in batches:
                for name, subject in self.subjects.items():  # without a wait between them: a GPU stays busy
                    own = Marks(self.setup.device)
                    self._mark = own.set
                    own.set("start")
                    self.step(subject, batch)
                    marks[name].append(own)
        finally:
            self._mark = _nothing
        self.wait()
        found = {name: [own.seconds() for own in each] for name, each in marks.items()}
        return {
            name: {part: float(np.median([step[part] for step in steps])) for part in PARTS}
            for name, steps in found.items()
        }


def _nothing(_part: str) -> None:
    pass


class Marks:
    """Moments of one step, each the end of a part."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._moments: list[tuple[str, Any]] = []

    def set(self, part: str) -> None:
        if not self._on_gpu:
            self._moments.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._moments.append((part, event))

    def seconds(self) -> dict[str, float]:
        """By part; a part that ends several times is summed. The device has passed all of them."""
        total = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in zip(self._moments, self._moments[1:], strict=False):
            total[part] += before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
        return total
