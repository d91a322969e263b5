"""How many images a second do the loaders make of image files?

Pillow in the trainer's process and in worker processes (--loader torch), DALI on the CPU and, where there is one, on
the GPU (--loader dali), each with random resized crops and mirroring, without a policy and with AutoAugment; beside
them noise in the images' place (--loader synthetic), which shows what the sampler and the ids cost alone.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Timing, stamp, write_record

from fastac.data import BatchLoader, EpochSampler, Samples, create_loader, load_dataset
from fastac.data.synthetic import Settings, write_tree
from fastac.extras import require
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, write_png

_CLASSES = 8  # of the invented folder


class Way(NamedTuple):
    """A loader with its arguments."""

    name: str
    kind: str
    workers: int
    aa: str
    dali_device: str = "auto"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    require("matplotlib.figure", "bench")  # now, not after the measurement
    torch.set_num_threads(options.threads)
    record = measure(options)
    print(text(record))
    name = f"loader-{options.device}"
    print(f"record: {write_record(options.out, name, record)}")
    if any(shown(row) for row in record["results"]):
        plot(record, options.out / f"{name}.png")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with train/CLASS/… (default: invented images, as ImageNet's)")
    add("--images", type=int, default=800, help="invented images (default: %(default)s)")
    add("--image-size", type=int, default=224, help="(default: %(default)s)")
    add("--batch", type=int, default=64, help="(default: %(default)s)")
    add("--batches", type=int, default=8, help="timed in each round (default: %(default)s)")
    add(
        "--untimed", type=int, default=4, help="batches of each round that come before (default: %(default)s)"
    )
    add("--rounds", type=int, default=5, help="of all ways, in turn (default: %(default)s)")
    add("--workers", type=int, nargs="*", default=[0, 2], help="of the torch loader (default: 0 2)")
    add("--threads", type=int, default=2, help="of DALI and of torch (default: %(default)s)")
    add(
        "--policies",
        nargs="+",
        default=["none", "autoaugment-imagenet"],
        help="(default: none autoaugment-imagenet)",
    )
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    for name, least in (("batch", 1), ("batches", 1), ("untimed", 1), ("rounds", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    return options


def ways(options: argparse.Namespace) -> list[Way]:
    found = [Way("synthetic", "synthetic", 0, "none")]
    for aa in options.policies:
        found += [Way(f"torch, {w} workers", "torch", w, aa) for w in options.workers]
        found.append(Way(f"DALI on the CPU, {options.threads} threads", "dali", options.threads, aa, "cpu"))
        if options.device == "cuda":
            found.append(Way("DALI on the GPU", "dali", options.threads, aa, "gpu"))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    made_by = stamp(torch.device(options.device))
    with contextlib.ExitStack() as stack:
        samples = load(options, stack)
        loaders, skipped = create(options, samples)
        seconds: dict[Way, list[float]] = {way: [] for way in loaders}
        for number in range(options.rounds):
            for way in list(loaders)[:: -1 if number % 2 else 1]:
                seconds[way].append(time_batches(loaders[way], number, options))
        size = float(np.mean([len(samples.images.read(i)) for i in range(min(200, len(samples)))]))
    count = options.batches * options.batch
    return {
        "benchmark": "loader",
        "environment": {**made_by, "dali": dali_version()},
        "settings": {
            "data": "invented, ImageNet's sizes" if options.data_dir is None else options.data_dir.name,
            "files": len(samples),
            "mean_file_bytes": size,
            **{
                name: getattr(options, name)
                for name in ("image_size", "batch", "batches", "untimed", "rounds", "threads", "device")
            },
        },
        "results": [row(way, seconds.get(way), skipped.get(way), count) for way in ways(options)],
    }


def load(options: argparse.Namespace, stack: contextlib.ExitStack) -> Samples:
    folder = options.data_dir
    if folder is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "images"
        settings = Settings(classes=_CLASSES, images=options.images, val_images=0)
        write_tree(folder, settings, workers=options.threads)
    samples = load_dataset("folder", folder, image_size=options.image_size).train
    needed = options.batch * (options.untimed + options.batches)
    if len(samples) < needed:
        raise ValueError(
            f"{folder} has {len(samples)} images; there should be at least {needed}, for the batches of a round"
        )
    for index in range(len(samples)):  # so that all are read from the system's cache
        samples.images.read(index)
    return samples


def create(options: argparse.Namespace, samples: Samples) -> tuple[dict[Way, BatchLoader], dict[Way, str]]:
    """The loaders, and the reasons why some are not there."""
    loaders, skipped = {}, {}
    for way in ways(options):
        sampler = EpochSampler(len(samples), options.batch, seed=0, drop_last=True)
        try:
            loaders[way] = create_loader(
                way.kind,
                samples,
                samples.labels,
                sampler,
                augment="imagenet",
                seed=0,
                device=options.device,
                workers=way.workers,
                aa=way.aa,
                dali_device=way.dali_device,
            )
        except ImportError as error:  # DALI is not installed
            skipped[way] = str(error)
    return loaders, skipped


def time_batches(loader: BatchLoader, epoch: int, options: argparse.Namespace) -> float:
    """Seconds for the timed batches, behind those in which workers start and queues fill."""
    batches = loader.epoch(epoch)
    draw(batches, options.untimed, options.device)
    start = time.perf_counter()
    draw(batches, options.batches, options.device)
    seconds = time.perf_counter() - start
    if hasattr(batches, "close"):
        batches.close()  # ends its workers before the next way's turn
    return seconds


def draw(batches: Iterator[Any], count: int, device: str) -> None:
    for _ in range(count):
        next(batches)
    if device == "cuda":
        torch.cuda.synchronize()


def row(way: Way, seconds: list[float] | None, skipped: str | None, count: int) -> dict[str, Any]:
    start = {"loader": way.name, "aa": way.aa, "skipped": skipped}
    if seconds is None:
        return {**start, "seconds": None, "images_per_second": None}
    timing = Timing.of(seconds)
    return {
        **start,
        "seconds": timing.record(),
        "images_per_second": {
            "median": count / timing.median,
            "low": count / timing.high,
            "high": count / timing.low,
        },
    }


def dali_version() -> str | None:
    try:
        return str(require("nvidia.dali", "dali").__version__)
    except ImportError:
        return None


def text(record: dict[str, Any]) -> str:
    lines = [headline(record), "", f"{'loader':<30}{'policy':<22}{'images/s':>12}{'quartiles':>24}"]
    for one in record["results"]:
        start = f"{one['loader']:<30}{one['aa']:<22}"
        rate = one["images_per_second"]
        if rate is None:
            lines.append(f"{start}  skipped: {one['skipped']}")
        else:
            spread = f"{rate['low']:,.0f} to {rate['high']:,.0f}"
            lines.append(f"{start}{rate['median']:>12,.0f}{spread:>24}")
    return "\n".join(lines)


def headline(record: dict[str, Any]) -> str:
    made_by, settings = record["environment"], record["settings"]
    return (
        f"{made_by['device']}, torch {made_by['packages']['torch']}, DALI {made_by['dali']}, "
        f"{made_by['threads']} threads; {settings['data']}: {settings['files']} files of "
        f"{settings['mean_file_bytes'] / 1e3:.0f} kB, to {settings['image_size']}×{settings['image_size']}, "
        f"batch {settings['batch']}"
    )


def shown(row: dict[str, Any]) -> bool:
    return row["images_per_second"] is not None and row["loader"] != "synthetic"


def plot(record: dict[str, Any], out: Path) -> None:
    """A bar a way, the policies in two colours; noise, which is far faster, left out."""
    rows = [r for r in record["results"] if shown(r)]
    names = list(dict.fromkeys(r["loader"] for r in rows))
    policies = list(dict.fromkeys(r["aa"] for r in rows))
    with drawing():
        figure = new_figure(9, 1.8 + 0.6 * len(names), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / max(1, len(policies))
        for number, aa in enumerate(policies):
            mine = [r for r in rows if r["aa"] == aa]
            middle = np.array([r["images_per_second"]["median"] for r in mine])
            low = middle - [r["images_per_second"]["low"] for r in mine]
            high = [r["images_per_second"]["high"] for r in mine] - middle
            places = [names.index(r["loader"]) + (number - (len(policies) - 1) / 2) * height for r in mine]
            label = "crop and mirror" if aa == "none" else f"crop, mirror, {aa}"
            colour = (BLUE, VERMILLION)[number % 2]
            axes.barh(places, middle, height * 0.9, xerr=[low, high], capsize=3, color=colour, label=label)
        axes.set(yticks=range(len(names)), yticklabels=names, xlabel="images a second")
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        first, _, rest = headline(record).partition("; ")
        figure.suptitle(f"{first}\n{rest}", parse_math=False)
        figure.legend(loc="outside lower center", ncols=2)
        write_png(figure, out)


if __name__ == "__main__":
    sys.exit(main())
