"""Small training runs for the trainer's tests: digits, a network that is quick and not too simple."""

import contextlib
import csv
from pathlib import Path

import torch
from torch import nn

import fastac.run
from fastac.checkpoint import Checkpoints, Loaded
from fastac.config import Config

# 193 images in batches of 32: 6 steps an epoch, the last one with 33 rows.
SMALL = {
    "dataset": "digits",
    "train_limit": 193,
    "noise": "uniform",
    "noise_rate": 0.2,
    "batch_size": 32,
    "augment": "crop",
    "drop_last": False,
    "epochs": 3,
    "lr": 0.1,
    "nesterov": True,
    "warmup_epochs": 0.5,
    "device": "cpu",
    "log_interval": 2,
    "tensorboard": False,
}


def config(output, **changes) -> Config:
    return Config().with_values(**{**SMALL, "output": str(output), **changes})


def with_dropout(name, *, num_classes, in_channels):
    """A network whose steps depend on the random state, and whose batch norm has buffers."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * 36, num_classes),
    )


def linear(name, *, num_classes, in_channels):
    """A network without batch norm: its gradient is a sum over rows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))


def without_pictures(monkeypatch):
    """Drawing takes longer than these runs."""
    for name in ("contact_sheet", "plot_alpha", "plot_curves"):
        monkeypatch.setattr(fastac.run, name, lambda *args, **kwargs: None)


def final_state(folder: Path) -> dict:
    """The newest checkpoint of a run, without what a clock decides; what each rank had of α and the dynamics put
    together, the ranks' random states in a list."""
    loaded = newest(folder)
    assert loaded.problems == []
    state = {**loaded.shared, "rng": loaded.own("rng")}
    for name in ("table", "dynamics"):
        if parts := loaded.own(name):
            state[name] = put_together(parts)
    for name in ("seconds", "epoch_seconds"):
        del state["position"][name]
    for name in ("output", "name"):
        del state["config"][name]
    return state


def newest(folder: Path) -> Loaded:
    with contextlib.closing(Checkpoints(Path(folder) / "checkpoints", keep=1)) as checkpoints:
        return checkpoints.load_newest()


def put_together(parts: list[dict]) -> dict:
    """One state of all rows from the ranks' states."""
    whole = dict(parts[0], rows=[parts[0]["rows"][0], parts[-1]["rows"][1]])
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            whole[name] = torch.cat([part[name] for part in parts])
    return whole


def differences(a, b, path="") -> list[str]:
    """Where two nested states are not the same to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for name in a for place in differences(a[name], b[name], f"{path}/{name}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i in range(len(a)) for place in differences(a[i], b[i], f"{path}/{i}")]
    return [] if type(a) is type(b) and a == b else [path]


def metrics(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what a clock decides."""
    with open(Path(folder) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """The same bits in the network, α, momentum, dynamics and random states; the same metrics and issues."""
    assert differences(final_state(one), final_state(other)) == []
    assert metrics(one) == metrics(other)
    names = ["issues.csv", "dynamics.csv", "labels.csv"]
    histories = [sorted(path.name for path in (Path(run) / "history").glob("*")) for run in (one, other)]
    assert histories[0] == histories[1]
    for name in [*names, *(f"history/{name}" for name in histories[0])]:
        assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes()
