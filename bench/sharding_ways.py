"""The ways to train a network with α on several ranks that bench/sharding.py compares."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from traffic import nbytes

import fastac
from fastac.advice import DENSE
from fastac.costs import Cost, Shape, clock_bytes, dense_cost, table_cost
from fastac.extras import require
from fastac.links import Group, ceil_div
from fastac.partition import shard_bounds
from fastac.reference import DenseAlpha

__all__ = [
    "LR",
    "MOMENTUM",
    "NONE",
    "WAYS",
    "WEIGHT_DECAY",
    "Batch",
    "Batches",
    "Sizes",
    "Subject",
    "Way",
    "build",
]

COPIES = 5  # of a dense α on a rank, at most
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-5  # the paper's for CIFAR


class Sizes(NamedTuple):
    """batch: rows a rank and step. features, hidden: of the network, a perceptron with one hidden layer."""

    num_classes: int
    batch: int
    features: int
    hidden: int
    ranks: int


class Way(NamedTuple):
    """A way to hold α. placement: of a table ("replicated": AlphaTable); None: a dense parameter, or without α.
    stage: of ZeRO, 0 for DDP, that wraps the network, and the dense parameter with it."""

    name: str
    placement: str | None = None
    storage: str = "device"
    wire: str = "float32"
    stage: int = 0

    def planned(self, num_samples: int, sizes: Sizes) -> Cost:
        """As fastac.plan counts it, with all ranks in one node."""
        group, steps = Group(sizes.ranks, sizes.ranks), max(1, num_samples // (sizes.batch * sizes.ranks))
        if self.placement is None:
            return dense_cost(self._shape(num_samples, sizes), group, sizes.batch, self.stage)
        rows = num_samples if self.placement == "replicated" else ceil_div(num_samples, sizes.ranks)
        return table_cost(
            self._shape(rows, sizes), group, sizes.batch, steps, self.placement, self.storage, self.wire
        )

    def planned_memory(self, num_samples: int, sizes: Sizes) -> int:
        """Bytes: of a table what it keeps from one step to the next, of a dense parameter α, gradient and momentum."""
        if self.placement is None:
            memory = self.planned(num_samples, sizes).memory
            return sum(memory[name] for name in ("alpha", "gradient", "momentum"))
        rows = num_samples if self.placement == "replicated" else ceil_div(num_samples, sizes.ranks)
        fetched = 0 if self.placement == "replicated" else clock_bytes(16)
        return sum(self._shape(rows, sizes).memory().values()) + fetched

    def most_needed(self, num_samples: int, sizes: Sizes) -> int:
        """Bytes that it may need while it steps: ZeRO's buckets and gathered parameters are copies too."""
        if self.placement is None:
            return COPIES * 4 * num_samples * sizes.num_classes
        cost = self.planned(num_samples, sizes)
        return sum(cost.memory.values()) + sum(cost.host_memory.values())

    @staticmethod
    def _shape(rows: int, sizes: Sizes) -> Shape:
        return Shape(rows, sizes.num_classes, "ac1", "exact", "float32")


NONE = Way("no α")
WAYS = (
    Way("aligned", "aligned"),
    Way("exchange", "exchange"),
    Way("exchange, bf16 wire", "exchange", wire="bfloat16"),
    Way("exchange, host", "exchange", storage="host"),
    Way("replicated", "replicated"),
    *(Way(name, stage=stage) for stage, name in enumerate(DENSE)),
)


class Batch(NamedTuple):
    """features (B, F), target (B,) and index (B,) on the device; ids: index on the CPU, as a sampler has it."""

    features: Tensor
    target: Tensor
    index: Tensor
    ids: Tensor


class Batches:
    """Random batches, ids without repeats. aligned: the rank's own ids; otherwise equally many of each rank's, as many
    as a shuffle gives on average, so that every step sends alike."""

    def __init__(self, sizes: Sizes, rank: int, num_samples: int, aligned: bool, device: torch.device):
        self.sizes, self.device = sizes, device
        owners = [rank] if aligned else range(sizes.ranks)
        self.shards = [shard_bounds(num_samples, owner, sizes.ranks) for owner in owners]
        self.random = np.random.default_rng(rank)

    def __call__(self) -> Batch:
        sizes, random = self.sizes, self.random
        features = random.standard_normal((sizes.batch, sizes.features), dtype=np.float32)
        target = random.integers(sizes.num_classes, size=sizes.batch)
        count = sizes.batch // len(self.shards)
        drawn = [first + random.choice(stop - first, count, replace=False) for first, stop in self.shards]
        ids = torch.from_numpy(random.permutation(np.concatenate(drawn)))
        return Batch(
            torch.from_numpy(features).to(self.device),
            torch.from_numpy(target).to(self.device),
            ids.to(self.device),
            ids,
        )


@dataclass(frozen=True)
class Subject:
    """step: a training step. optimizer: the one that it calls. table: of ours. alpha: (N, K), all of α; collective;
    None without α."""

    step: Callable[[Batch], None]
    optimizer: torch.optim.Optimizer
    table: fastac.AlphaTable | None = None
    alpha: Callable[[], Tensor] | None = None

    def table_bytes(self) -> int:
        """Of the table's own tensors."""
        table = self.table
        assert table is not None
        owners = (table, table.clock, table.checks, getattr(table, "_still", None))
        return nbytes(
            value
            for owner in owners
            if owner is not None
            for value in vars(owner).values()
            if isinstance(value, Tensor)
        )


def build(way: Way, num_samples: int | None, sizes: Sizes, device: torch.device) -> Subject:
    """num_samples: None for the network without α. Collective."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(sizes.features, sizes.hidden), nn.ReLU(), nn.Linear(sizes.hidden, sizes.num_classes)
    ).to(device)
    if way.placement is not None and num_samples is not None:
        return _table(way, num_samples, sizes, net, device)
    module = _WithLoss(net, None if num_samples is None else DenseAlpha(num_samples, sizes.num_classes)).to(
        device
    )
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if module.alpha is not None:
        groups.append({"params": [module.alpha.alpha], "weight_decay": WEIGHT_DECAY})
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    return _ddp(module, optimizer) if way.stage == 0 else _zero(way.stage, module, optimizer, sizes, device)


def _table(way: Way, num_samples: int, sizes: Sizes, net: nn.Module, device: torch.device) -> Subject:
    """As docs/scaling.md has it: the table beside the network, which DDP wraps."""
    options: dict[str, Any] = {"weight_decay": WEIGHT_DECAY, "device": device}
    if way.placement == "replicated":
        table = fastac.AlphaTable(num_samples, sizes.num_classes, **options)
    else:
        options |= {
            "placement": way.placement,
            "storage": way.storage,
            "wire_dtype": getattr(torch, way.wire),
        }
        table = fastac.ShardedAlphaTable(num_samples, sizes.num_classes, **options)
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    table.follow(optimizer)
    criterion = fastac.AutoCleansingLoss(table)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        if isinstance(table, fastac.ShardedAlphaTable):
            table.prefetch(batch.ids)
        criterion(model(batch.features), batch.target, batch.index).backward()
        optimizer.step()

    return Subject(step, optimizer, table, table.dense)


class _WithLoss(nn.Module):
    """A network and α as one more parameter of it, as one would write it without a table."""

    def __init__(self, net: nn.Module, alpha: DenseAlpha | None):
        super().__init__()
        self.net, self.alpha = net, alpha

    def forward(self, batch: Batch) -> Tensor:
        logits = self.net(batch.features)
        if self.alpha is None:
            return F.cross_entropy(logits, batch.target)
        return self.alpha(logits, batch.target, batch.index)


def _ddp(module: _WithLoss, optimizer: torch.optim.Optimizer) -> Subject:
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()

    alpha = module.alpha
    return Subject(step, optimizer, alpha=None if alpha is None else lambda: alpha.alpha.detach())


def _zero(
    stage: int, module: _WithLoss, optimizer: torch.optim.Optimizer, sizes: Sizes, device: torch.device
) -> Subject:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = require("deepspeed", "deepspeed")
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its shared-memory collectives for CPUs need a compiler, and would hide what is sent.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = {
        "train_micro_batch_size_per_gpu": sizes.batch,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )

    def step(batch: Batch) -> None:
        engine.backward(engine(batch))
        engine.step()

    def alpha() -> Tensor:
        assert module.alpha is not None
        with deepspeed.zero.GatheredParameters([module.alpha.alpha], enabled=stage == 3):
            return module.alpha.alpha.detach().clone()

    return Subject(step, optimizer, alpha=None if module.alpha is None else alpha)
