"""How long is an epoch of the trainer with CIFAR's recipes, for one run, and for several side by side on one device?

On invented images of CIFAR's size, so that no data is needed: an epoch takes as long as on real ones. Each run is a
process, `python -m fastac.train`; a run's figure is the median over its epochs but the first, of the training alone.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import stamp, write_record

from fastac.config import Config, load_config

TARGETS = {"cifar10-wrn40-2": 2.5, "cifar10-resnet32": 1.5}  # seconds an epoch of one run on an H200
_RECIPES = ("cifar10-wrn40-2+ac1-aa", "cifar10-resnet32+ac1")
_CLASSES, _SIDE = 10, 32


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    rows: list[dict[str, Any]] = []
    failed = []
    record = {"environment": stamp(torch.device(options.device)), "settings": settings(options), "rows": rows}
    name = options.name or f"epoch-{options.device}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "images.npz", options.samples)
        for recipe in options.recipes:
            for jobs in options.jobs:
                try:
                    rows.append(measure(recipe, jobs, folder, options))
                except RuntimeError as error:  # the others may fit
                    failed.append(str(error))
                    continue
                print(line(rows[-1]), flush=True)
                place = write_record(
                    options.out, name, record
                )  # of all so far: a run that is stopped leaves it
    if rows:
        print(f"record: {place}")
    failed += misses(rows, record["environment"]["device"]) if options.check else []
    for text in failed:
        print(f"FAILED: {text}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--recipes", nargs="+", help="default: WRN-40-2 with AutoAugment and ResNet-32; on a GPU +fast-step")
    add("--jobs", nargs="+", type=int, default=[1], help="runs side by side (default 1)")
    add("--samples", type=int, help="images of an epoch (default 50,000; on a CPU 512)")
    add("--epochs", type=int, default=4, help="of each run; the first is not counted (default %(default)s)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings of the trainer")
    add("--check", action="store_true", help="exit with 1 where an H200 takes longer than the targets")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    add("--name", help="of the record (default epoch-DEVICE)")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.recipes = options.recipes or [r + "+fast-step" * on_gpu for r in _RECIPES]
    options.samples = (50_000 if on_gpu else 512) if options.samples is None else options.samples
    for key, value, low in (("--samples", options.samples, _CLASSES), ("--epochs", options.epochs, 2)):
        if value < low:
            parser.error(f"{key} was {value}; it should be at least {low}")
    if min(options.jobs) < 1:
        parser.error(f"--jobs was {min(options.jobs)}; it should be at least 1")
    return options


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("samples", "epochs", "set")}


def write_images(path: Path, samples: int) -> None:
    """Noise, with every class in it."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (samples, _SIDE, _SIDE, 3), dtype=np.uint8)
    labels = np.arange(samples) % _CLASSES
    test = slice(0, max(_CLASSES, samples // 5))
    np.savez(path, images=images, labels=labels, test_images=images[test], test_labels=labels[test])


def measure(recipe: str, jobs: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs of one recipe side by side. RuntimeError, with the end of what it said, for one that fails."""
    config = settle(recipe, options.set)
    steps = options.samples // config.data.batch_size
    names = [f"{recipe}-{jobs}-{number}" for number in range(jobs)]
    runs = [
        subprocess.Popen(
            command(recipe, config, folder, name, steps * options.epochs, seed, options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed, name in enumerate(names)
    ]
    said = [run.communicate()[0] for run in runs]
    for run, text in zip(runs, said, strict=True):
        if run.returncode != 0:
            raise RuntimeError(f"a run of {recipe} ended with {run.returncode}:\n{text[-2000:]}")
    seconds = float(np.median([epoch_seconds(folder / name / "metrics.csv") for name in names]))
    return {
        "recipe": recipe,
        "jobs": jobs,
        "epoch_seconds": seconds,
        "epoch_seconds_a_run": seconds / jobs,
        "images_per_second": jobs * steps * config.data.batch_size / seconds,
    }


def settle(recipe: str, given: Sequence[str]) -> Config:
    """The recipe with the settings that change what a step is."""
    batch = [int(word.partition("=")[2]) for word in given if word.startswith("batch_size=")]
    config = load_config(recipe)
    return config.with_values(batch_size=batch[-1]) if batch else config


def command(
    recipe: str, config: Config, folder: Path, name: str, steps: int, seed: int, options: argparse.Namespace
) -> list[str]:
    words = [sys.executable, "-m", "fastac.train", "--recipe", recipe, "--dataset", "npz"]
    words += ["--data-dir", str(folder / "images.npz"), "--output", str(folder), "--name", name]
    words += ["--device", options.device, "--seed", str(seed), "--max-steps", str(steps), "--no-tensorboard"]
    if config.data.aa == "autoaugment":  # the data set's own, of which npz has none
        words += ["--aa", "autoaugment-cifar10"]
    for word in options.set:
        key, _, value = word.partition("=")
        words += [f"--{key}", value]
    return words


def epoch_seconds(metrics: Path) -> float:
    """The median of a run's epochs but the first."""
    with open(metrics, newline="", encoding="utf-8") as file:
        ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    return float(np.median(np.diff(ends)))


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['recipe']}, {row['jobs']} side by side: {row['epoch_seconds']:.2f} s an epoch, "
        f"{row['epoch_seconds_a_run']:.2f} s an epoch and run, {row['images_per_second']:,.0f} images/s"
    )


def misses(rows: Sequence[dict[str, Any]], device: str) -> list[str]:
    """The rows above their targets, which are an H200's."""
    return [
        f"{row['recipe']}: {row['epoch_seconds']:.2f} s an epoch; it should be at most {target} s"
        for row in rows
        for base, target in TARGETS.items()
        if "H200" in device and row["jobs"] == 1 and row["recipe"].split("+")[0] == base
        if row["epoch_seconds"] > target
    ]


if __name__ == "__main__":
    sys.exit(main())
