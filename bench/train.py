"""What does AutoCleansing cost a step of training, and where does the time go?

For each network, one step of training (forward, loss, backward, optimizer, α) with `F.cross_entropy`, AC2, AC1 and AC1
with training dynamics, in turn in one process; and with `F.cross_entropy` once more, which shows what the measurement
finds between equals. The overhead over `F.cross_entropy` is in per cent of its step, with its 95 % interval. On noise
in the images' place; with --data-dir also on image files, and what is lost to the loader.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import train_data
import train_targets
import train_text
from common import Timing, stamp, write_record
from paired import Overhead, orders
from train_ways import ALPHA_WEIGHT_DECAY, BASE, LR, MOMENTUM, WAYS, WEIGHT_DECAY, Setup, Size, Trainer

from fastac import backends
from fastac.extras import require

CIFAR, IMAGENET = 50_000, 1_281_167  # training images
SIZES = {
    ("resnet50", "cuda"): Size(256, 224, 1000, IMAGENET),
    ("resnet50", "cpu"): Size(8, 64, 1000, CIFAR),
    ("wrn-40-2", "cuda"): Size(128, 32, 10, CIFAR),
    ("wrn-40-2", "cpu"): Size(32, 32, 10, CIFAR),
}
ROUNDS = {"cpu": (60, 1), "cuda": (30, 10)}  # and steps of a way in each
_WARM_UP = 4  # rounds that are not timed; even
_PART_STEPS = 10  # of each way, for where the time goes


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    require("matplotlib.figure", "bench")  # now, not after the measurement
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = measure(options)
    print(train_text.text(record))
    print("\n" + train_targets.text(record["targets"]))
    print(f"\nrecord: {write_record(options.out, options.name, record)}")
    train_text.plot(record, options.out / f"{options.name}.png")
    return int(options.check and not all(target["met"] for target in record["targets"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    add(
        "--models", nargs="+", default=["resnet50", "wrn-40-2"], metavar="NAME", help="(default: %(default)s)"
    )
    for name, what in (
        ("batch", "rows of a batch"),
        ("image-size", "side of an image in pixels"),
        ("classes", "K"),
        ("samples", "N, of the tables"),
    ):
        add(f"--{name}", type=int, help=f"{what}, of all networks (default: the paper's, smaller on a CPU)")
    add("--rounds", type=int, help=f"timed blocks of each way, in turn; even (default: {ROUNDS}, with steps)")
    add("--steps", type=int, help="steps of a block")
    add("--amp", choices=("float32", "bfloat16"), help="autocast (default: bfloat16 on a GPU, else float32)")
    flag = argparse.BooleanOptionalAction
    add("--channels-last", action=flag, help="default: on a GPU")
    add("--torchcompile", action=flag, default=False, help="compile network and loss, each by itself")
    add("--cuda-graphs", action=flag, default=False, help="replay the network's passes as CUDA graphs")
    add("--update", choices=("step", "forward"), default="step", help="when α moves (default: %(default)s)")
    add("--history", choices=("exact", "folded"), default="exact", help="of α (default: %(default)s)")
    add(
        "--table-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of α (default: %(default)s)",
    )
    add("--data-dir", type=Path, help="folder with train/CLASS/*: times steps on its images as well")
    add("--loader", choices=("torch", "dali"), default="torch", help="of these images (default: %(default)s)")
    add("--workers", type=int, default=0, help="of the torch loader (default: %(default)s)")
    add("--aa", default="none", help="policy that the loader applies (default: %(default)s)")
    add("--loader-steps", type=int, help="steps on image files (default: 10, on a GPU 100)")
    add("--threads", type=int, help="torch's threads (default: torch's own choice)")
    add("--limit", type=float, default=0.5, help="of an overhead's upper end, %% (default: %(default)s)")
    add("--check", action="store_true", help="exit with 1 where an overhead or the speed misses its target")
    add("--name", help="of the record and the plot (default: train-DEVICE)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="their folder")
    options = parser.parse_args(arguments)
    complete(options)
    check(parser, options)
    return options


def complete(options: argparse.Namespace) -> None:
    """Fill in what depends on the device."""
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = options.device == "cuda"
    rounds, steps = ROUNDS[options.device]
    options.rounds = rounds if options.rounds is None else options.rounds
    options.steps = steps if options.steps is None else options.steps
    options.amp = options.amp or ("bfloat16" if on_gpu else "float32")
    options.channels_last = on_gpu if options.channels_last is None else options.channels_last
    if options.loader_steps is None:
        options.loader_steps = 100 if on_gpu else 10
    options.name = options.name or f"train-{options.device}"


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.rounds < 6 or options.rounds % 2:
        parser.error(f"--rounds must be even and at least 6, got {options.rounds}")
    for name, least in (
        ("batch", 2),
        ("image-size", 8),
        ("classes", 2),
        ("samples", 2),
        ("steps", 1),
        ("loader-steps", 1),
        ("workers", 0),
        ("threads", 1),
    ):
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    for model in options.models:
        size = size_of(model, options)
        if size.batch > size.samples:
            parser.error(f"--batch must be at most --samples ({size.samples}), got {size.batch}")
    if options.cuda_graphs and (options.device != "cuda" or options.torchcompile):
        parser.error("--cuda-graphs needs --device cuda, and goes without --torchcompile")
    if options.data_dir is not None and not (options.data_dir / "train").is_dir():
        parser.error(f"--data-dir must have a folder train, got {options.data_dir}")


def size_of(model: str, options: argparse.Namespace) -> Size:
    """A network without a size of its own has that of WRN-40-2."""
    default = SIZES.get((model, options.device), SIZES["wrn-40-2", options.device])
    given = {name: getattr(options, name) for name in Size._fields}
    return default._replace(**{name: value for name, value in given.items() if value is not None})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record, which is also written after each network: a run that is stopped leaves what it has measured."""
    made_by = stamp(torch.device(options.device))
    made_by["backend"] = backends.select(torch.device(options.device)).__name__.rpartition(".")[2]
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("out", "name", "batch", "image_size", "classes", "samples")
    }
    rates = {
        "lr": LR,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "alpha_weight_decay": ALPHA_WEIGHT_DECAY,
    }
    record: dict[str, Any] = {
        "benchmark": "train",
        "environment": made_by,
        "settings": settings | rates,
        "results": [],
        "targets": [],
    }
    for model in options.models:
        torch.compiler.reset()
        record["results"].append(measure_model(model, options))
        record["targets"] = train_targets.verdicts(record)
        write_record(options.out, options.name, record)
        print(f"{model} done", file=sys.stderr)
    return record


def measure_model(model: str, options: argparse.Namespace) -> dict[str, Any]:
    setup = Setup(
        model,
        size_of(model, options),
        torch.device(options.device),
        options.amp,
        options.channels_last,
        options.torchcompile,
        options.cuda_graphs,
        options.update,
        options.history,
        options.table_dtype,
    )
    trainer = Trainer(setup)
    samples = None
    if options.data_dir is not None:
        samples = train_data.load_images(options.data_dir, setup.size.image_size)
        train_data.check_folder(samples, trainer)
    seconds = time_ways(trainer, options.rounds, options.steps)
    rows = {name: figures(trainer, name, seconds, options.steps) for name in trainer.subjects}
    for name, parts in trainer.parts(trainer.draw(_PART_STEPS)).items():
        rows[name]["parts_seconds"] = parts
    result = {
        "model": model,
        **setup.size._asdict(),
        "parameters": trainer.parameters,
        "ways": rows,
        "loader": None,
    }
    if samples is not None:
        way = WAYS[-1].name
        result["loader"] = train_data.measure_loader(
            trainer,
            samples,
            way,
            options.loader,
            options.loader_steps,
            options.workers,
            options.aa,
        )
    return result


def time_ways(trainer: Trainer, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step of each way in each round; in a round all of them see the same batches."""
    names = list(trainer.subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for order in orders(len(names), _WARM_UP, seed=1):
        batches = trainer.draw(steps)
        for place in order:
            trainer.seconds(names[place], batches)
    for order in orders(len(names), rounds):
        batches = trainer.draw(steps)
        gc.collect()  # here rather than in a block
        for place in order:
            seconds[names[place]].append(trainer.seconds(names[place], batches))
    return seconds


def figures(trainer: Trainer, name: str, seconds: dict[str, list[float]], steps: int) -> dict[str, Any]:
    """What a result holds of a way; seconds and bytes."""
    timing = Timing.of(seconds[name])
    overhead = None if name == BASE.name else Overhead.of(seconds[name], seconds[BASE.name]).record()
    return {
        "step_seconds": timing.record(),
        "rounds_seconds": seconds[name],
        "overhead_percent": overhead,
        "images_per_second": trainer.size.batch / timing.median,
        "state_bytes": trainer.subjects[name].state_bytes,
        "peak_bytes": trainer.peak_bytes(name, trainer.draw(steps)),
    }


if __name__ == "__main__":
    sys.exit(main())
