"""How many images a second does each augmentation policy make, at 32x32 and at 224x224?

What the loader does with a batch of pixels that is there: crop and mirroring (at 224x224 none: that crop is made when
the file is decoded), policy, normalisation, and in the last row Cutout; random pixels, ids drawn anew each time. On a
GPU the pixels lie there, small images are augmented several batches at a time, as the loader does, and a figure is from
an idle device on, with the host's part. No assertion: how fast is enough is what a network trains at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Case, Timing, stamp, time_cases, write_record

from fastac.data import EpochSampler, Loader, Samples

POLICIES = (
    "none",
    "autoaugment-cifar10",
    "autoaugment-svhn",
    "autoaugment-imagenet",
    "fast-autoaugment-cifar10",
    "fast-autoaugment-imagenet",
    "pba-cifar10",
    "randaugment-n2-m9",
    "trivialaugment",
)
EPOCH = 150  # where PBA's schedule has most to do


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = measure(options)
    print(text(record))
    print(f"record: {write_record(options.out, f'augment-{torch.device(options.device).type}', record)}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", nargs="+", default=["32x128", "224x32"], help="side and batch (default 32x128 224x32)")
    add("--policies", nargs="+", default=POLICIES, choices=POLICIES, metavar="POLICY", help="default: all")
    add("--rounds", type=int, default=20, help="timed runs of each (default %(default)s)")
    add("--threads", type=int)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    try:
        options.sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
        if any(len(size) != 2 or min(size) < 1 for size in options.sizes):
            raise ValueError
    except ValueError:
        parser.error(f"--sizes should be side and batch, such as 32x128, got {options.sizes}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    made_by = stamp(device)
    rows = []
    for side, batch in options.sizes:
        kinds = [(name, 0) for name in options.policies] + [("none", side // 2)]
        cases, images = zip(*(case(side, batch, *kind, device) for kind in kinds), strict=True)
        timings = time_cases(cases, device, options.rounds)
        rows += [row(side, *each) for each in zip(images, kinds, timings, strict=True)]
    settings = {"rounds": options.rounds, "device": options.device, "epoch": EPOCH}
    return {"benchmark": "augment", "environment": made_by, "settings": settings, "results": rows}


def case(side: int, batch: int, policy: str, cutout: int, device: torch.device) -> tuple[Case, int]:
    """A case, and how many images it makes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    samples = Samples(pixels, np.zeros(batch, np.int64), ("a", "b"))
    loader = Loader(
        samples,
        samples.labels,
        EpochSampler(batch, batch),
        augment="crop-flip" if side < 100 else "none",
        aa=policy,
        cutout=cutout,
        seed=0,
        device=device,
    )
    there = torch.from_numpy(pixels).to(device).repeat(loader._together, 1, 1, 1)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(rng.integers(0, 1 << 20, len(there)))
        return ids.to(device), ids

    return Case(lambda ids: loader.transform(there, *ids, EPOCH), draw), len(there)


def row(side: int, images: int, kind: tuple[str, int], timing: Timing) -> dict[str, Any]:
    return {
        "side": side,
        "images": images,
        "policy": kind[0],
        "cutout": kind[1],
        "seconds": timing.record(),
        "images_per_second": images / timing.median,
    }


def text(record: dict[str, Any]) -> str:
    lines = [f"{'images a second':30s} {'size':>9s} {'median':>10s} {'quartiles':>21s}"]
    for entry in record["results"]:
        name = entry["policy"] + (f", Cutout {entry['cutout']}" if entry["cutout"] else "")
        low, high = (entry["images"] / entry["seconds"][end] for end in ("high", "low"))
        lines.append(
            f"{name:30s} {entry['side']:>4d}x{entry['side']:<4d} {entry['images_per_second']:>10,.0f} "
            f"{low:>10,.0f} {high:>10,.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
