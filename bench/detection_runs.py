"""What bench/detection.py trains: data with wrong labels, networks, and what each method keeps of its training.

A piece is one method's training on one cell (data, noise, rate, seed). Its arrays and its time go into one file, so an
interrupted benchmark goes on, and rankings can be computed again without training.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fastac
from fastac.config import OptimizerConfig
from fastac.data import EpochSampler, Loader, Samples, inject_noise, load_dataset, read_label_file
from fastac.issues import ThresholdRuns
from fastac.models import create_model
from fastac.optim import create_optimizer, lr_factor

__all__ = ["PIECES", "SETTINGS", "Cell", "Setting", "load_cell", "piece_path", "run_piece"]

FOLDS = 5  # of cross-validation: cleanlab's default


@dataclass(frozen=True)
class Setting:
    """How the networks of a data set are trained, the same for all methods but for α's own learning rate."""

    dataset: str
    model: str
    optimizer: OptimizerConfig
    batch_size: int
    alpha_lr_scale: float
    augment: str = "none"
    train_limit: int | None = None
    bfloat16: bool = False
    """Also on a CPU the network runs in bfloat16, as it does on a GPU."""
    superclasses: tuple[tuple[int, ...], ...] = ()
    """Classes that people confuse, for asymmetric noise: each becomes the next one of its tuple."""


SETTINGS = {
    "digits": Setting(
        "digits",
        "strided",
        OptimizerConfig(epochs=30, lr=0.1, nesterov=True, weight_decay=5e-4, warmup_epochs=1.0),
        batch_size=64,
        alpha_lr_scale=10.0,
        superclasses=((1, 7), (4, 9), (3, 5, 8), (0, 6)),
    ),
    "fashion-mnist": Setting(
        "fashion-mnist",
        "strided",
        OptimizerConfig(epochs=8, lr=0.1, nesterov=True, weight_decay=5e-4, warmup_epochs=1.0),
        batch_size=128,
        alpha_lr_scale=20.0,
        train_limit=10_000,
        superclasses=((0, 6), (2, 4), (5, 7, 9), (1, 3)),
    ),
    "cifar10": Setting(
        "cifar10",
        "resnet32",
        OptimizerConfig(epochs=100, lr=0.1, nesterov=True, weight_decay=1e-4, warmup_epochs=1.0),
        batch_size=256,
        alpha_lr_scale=1.0,
        augment="crop-flip",
    ),
    "cifar10-small": Setting(
        "cifar10",
        "cnn",
        OptimizerConfig(epochs=20, lr=0.1, nesterov=True, weight_decay=5e-4, warmup_epochs=1.0),
        batch_size=128,
        alpha_lr_scale=20.0,
        augment="crop-flip",
        train_limit=10_000,
        bfloat16=True,
    ),
}


class StridedCNN(nn.Sequential):
    """Three strided 3×3 convolutions with batch norm: 24,058 parameters, an epoch of 10,000 images in a second."""

    def __init__(self, num_classes: int, in_channels: int):
        layers: list[nn.Module] = []
        for inputs, outputs in ((in_channels, 16), (16, 32), (32, 64)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


@dataclass(frozen=True)
class Cell:
    """noise: a kind of fastac.data.inject_noise, or the name of a label set of CIFAR-10N, whose rate is its own."""

    data: str
    noise: str
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        rate = "" if self.rate is None else f"-{self.rate:g}"
        return f"{self.data}-{self.noise}{rate}-seed{self.seed}"


@dataclass(frozen=True, eq=False)
class CellData:
    """samples: in their ids' order. given, truth: (N,) int64."""

    setting: Setting
    samples: Samples
    given: np.ndarray
    truth: np.ndarray


def load_cell(cell: Cell, setting: Setting, data_dir: Path | None) -> CellData:
    """The training images with right labels, and the labels given instead."""
    if cell.rate is None:
        train = load_dataset(setting.dataset, data_dir).train
        size = {"num_samples": len(train), "num_classes": train.num_classes}
        given = read_label_file(f"{data_dir}/cifar10n_labels.npz:{cell.noise}", **size)
        kept = np.arange(len(train))[: setting.train_limit]
        return CellData(setting, train.take(kept), given[kept], train.labels[kept])
    train = load_dataset(setting.dataset, data_dir, train_limit=setting.train_limit).train
    groups = None
    if setting.superclasses:
        groups = np.arange(train.num_classes) + train.num_classes  # a class of its own confuses with none
        for number, members in enumerate(setting.superclasses):
            groups[list(members)] = number
    given = inject_noise(
        train.labels,
        train.num_classes,
        kind=cell.noise,
        rate=cell.rate,
        seed=cell.seed,
        class_groups=groups,
        dataset=setting.dataset,
    )
    return CellData(setting, train, given, train.labels)


class Clock:
    """Seconds of this process's own work: on a CPU its processor time, which other programs don't lengthen."""

    def __init__(self, device: torch.device):
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._read = time.perf_counter if device.type == "cuda" else time.process_time
        self.start = self.now()

    def now(self) -> float:
        self._wait()
        return self._read()

    def seconds(self) -> float:
        return self.now() - self.start


Loss = Callable[[list[Tensor], Tensor, Tensor], Tensor]


def fit(
    setting: Setting,
    samples: Samples,
    given: np.ndarray,
    seed: int,
    device: torch.device,
    loss: Loss,
    *,
    outputs: int | None = None,
    networks: int = 1,
    follow: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
) -> list[nn.Module]:
    """Train `networks` networks side by side by `loss` of their logits, the target and the ids."""
    torch.manual_seed(seed)
    size = {"num_classes": outputs or samples.num_classes, "in_channels": samples.channels}
    models = [
        StridedCNN(**size) if setting.model == "strided" else create_model(setting.model, **size)
        for _ in range(networks)
    ]
    both = nn.ModuleList(models).to(device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer(both, setting.optimizer, device)
    follow(optimizer)
    sampler = EpochSampler(len(samples), setting.batch_size, seed=seed)
    loader = Loader(samples, given, sampler, augment=setting.augment, seed=seed, device=device)
    factor = lr_factor(setting.optimizer, len(loader))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for epoch in range(setting.optimizer.trained_epochs):
        for batch in loader.epoch(epoch):
            images = batch.images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(
                device.type, torch.bfloat16, enabled=setting.bfloat16 or device.type == "cuda"
            ):
                logits = [model(images) for model in models]
            loss([part.float() for part in logits], batch.target, batch.index).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return models


@torch.no_grad()
def probabilities(model: nn.Module, samples: Samples, like: Samples, device: torch.device) -> np.ndarray:
    """(N, K) float32 of the network as it is used, on images normalised by the means of the samples `like`."""
    model.eval()
    statistics = Loader(like, like.labels, EpochSampler(len(like), 2), augment="none", seed=0, device=device)
    sampler = EpochSampler(len(samples), 1000, shuffle=False)
    loader = Loader(
        samples,
        samples.labels,
        sampler,
        augment="none",
        seed=0,
        device=device,
        mean=statistics.mean,
        std=statistics.std,
    )
    parts = [model(b.images.contiguous(memory_format=torch.channels_last)) for b in loader.epoch(0)]
    return torch.cat(parts).float().softmax(1).cpu().numpy()


# ---------------------------------------------------------------- the pieces


def alpha_piece(form: str) -> Callable[[CellData, int, torch.device], dict[str, np.ndarray]]:
    """α and the dynamics of one run with AutoCleansing, and what its network predicts."""

    def train(data: CellData, seed: int, device: torch.device) -> dict[str, np.ndarray]:
        size, classes = len(data.samples), data.samples.num_classes
        scale = data.setting.alpha_lr_scale
        clock = Clock(device)
        table = fastac.AlphaTable(size, classes, form=form, lr_scale=scale, device=device)
        dynamics = fastac.TrainingDynamics(size, classes, device=device)
        criterion = fastac.AutoCleansingLoss(table, dynamics=dynamics)

        def loss(logits: list[Tensor], target: Tensor, index: Tensor) -> Tensor:
            return criterion(logits[0], target, index)

        (model,) = fit(data.setting, data.samples, data.given, seed, device, loss, follow=table.follow)
        alpha = table.dense().cpu().numpy()
        seconds = clock.seconds()
        probs = probabilities(model, data.samples, data.samples, device)
        return {"alpha": alpha, "probs": probs, "seconds": np.array(seconds), **dynamics_arrays(dynamics)}

    return train


def dynamics_arrays(dynamics: fastac.TrainingDynamics) -> dict[str, np.ndarray]:
    frame = dynamics.frame()
    return {f"dynamics_{name}": frame[name].to_numpy() for name in frame.columns}


def plain_piece(data: CellData, seed: int, device: torch.device) -> dict[str, np.ndarray]:
    """Cross entropy, with our dynamics and the aum package's calculator on the same logits."""
    from aum import AUMCalculator

    size, classes = len(data.samples), data.samples.num_classes
    clock = Clock(device)
    dynamics = fastac.TrainingDynamics(size, classes, device=device)
    criterion = fastac.AutoCleansingLoss(None, dynamics=dynamics)
    package, package_seconds = AUMCalculator(save_dir=""), 0.0

    def loss(logits: list[Tensor], target: Tensor, index: Tensor) -> Tensor:
        nonlocal package_seconds
        start = clock.now()
        package.update(logits[0].detach(), target, index.tolist())
        package_seconds += clock.now() - start
        return criterion(logits[0], target, index)

    (model,) = fit(data.setting, data.samples, data.given, seed, device, loss)
    seconds = clock.seconds()
    aum = np.array([package.sums[i] / package.counts[i] for i in range(size)])
    return {
        "package_aum": aum,
        "package_seconds": np.array(package_seconds),
        "seconds": np.array(seconds - package_seconds),
        "probs": probabilities(model, data.samples, data.samples, device),
        **dynamics_arrays(dynamics),
    }


def folds_piece(data: CellData, seed: int, device: torch.device) -> dict[str, np.ndarray]:
    """Probabilities of each sample from a network that was trained on the other folds, as cleanlab wants them."""
    from sklearn.model_selection import StratifiedKFold

    clock = Clock(device)
    criterion = nn.CrossEntropyLoss()
    probs = np.empty((len(data.samples), data.samples.num_classes), np.float32)

    def loss(logits: list[Tensor], target: Tensor, index: Tensor) -> Tensor:
        return criterion(logits[0], target)

    split = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(probs, data.given)
    for kept, held_out in split:
        part = data.samples.take(kept)
        (model,) = fit(data.setting, part, data.given[kept], seed, device, loss)
        probs[held_out] = probabilities(model, data.samples.take(held_out), part, device)
    return {"probs": probs, "seconds": np.array(clock.seconds())}


def thresholds_piece(data: CellData, seed: int, device: torch.device) -> dict[str, np.ndarray]:
    """Two networks with threshold samples, side by side."""
    classes = data.samples.num_classes
    clock = Clock(device)
    runs = ThresholdRuns(data.given, classes, seed=seed, device=device)

    def loss(logits: list[Tensor], target: Tensor, index: Tensor) -> Tensor:
        return runs.loss(logits, index)

    fit(data.setting, data.samples, data.given, seed, device, loss, outputs=classes + 1, networks=2)
    aum = np.stack([dynamics.aum.cpu().numpy() for dynamics in runs.dynamics])
    return {"aum": aum, "sets": runs.sets, "seconds": np.array(clock.seconds())}


PIECES: dict[str, Callable[[CellData, int, torch.device], dict[str, np.ndarray]]] = {
    "ac1": alpha_piece("ac1"),
    "ac2": alpha_piece("ac2"),
    "plain": plain_piece,
    "folds": folds_piece,
    "thresholds": thresholds_piece,
}


def piece_path(folder: Path, cell: Cell, name: str) -> Path:
    return folder / f"{cell.name}-{name}.npz"


def run_piece(
    name: str, cell: Cell, data: CellData, device: torch.device, folder: Path
) -> dict[str, np.ndarray]:
    """The piece's arrays, from its file in `folder` where it was trained already by the same setting."""
    path = piece_path(folder, cell, name)
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["setting"]) == repr(data.setting):
                return {key: stored[key] for key in stored.files}
    arrays = PIECES[name](data, cell.seed, device)
    arrays |= {"given": data.given, "truth": data.truth, "setting": np.array(repr(data.setting))}
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with open(draft, "wb") as file:
        np.savez(file, **arrays)
    os.replace(draft, path)
    return arrays
