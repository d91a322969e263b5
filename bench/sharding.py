"""What does α over several ranks cost a training step, with our tables and as a dense parameter, over N samples?

It trains a small network with α: in a ShardedAlphaTable (aligned, exchange, exchange with a bfloat16 wire, rows in host
memory), in an AlphaTable with copies on all ranks, and as a dense nn.Parameter of the module that DDP or DeepSpeed's
ZeRO 1, 2, 3 wraps, as one would do it without a table. For each it times a step, counts the bytes that a rank sends
for it (traffic.py says how) and the memory that it keeps for it, beside what fastac.plan says of the same run.

The script starts the ranks itself, on one machine: gloo on the CPU, or with --device cuda a GPU each and NCCL (which
has not been run yet). With --check it exits with 1 where a table sends or keeps other bytes than planned, sends more
for more samples, or takes more than --limit times as long a step at the largest N as at the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import stamp, write_record
from sharding_rank import RankBench
from sharding_text import plot, text
from sharding_ways import LR, MOMENTUM, NONE, WAYS, WEIGHT_DECAY, Sizes, Way

from fastac.extras import require


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    require("matplotlib.figure", "bench")  # now, not after the measurement
    if options.zero:
        require("deepspeed", "deepspeed")
    record = measure(options)
    print(text(record))
    name = f"sharding-{options.device}"
    print(f"record: {write_record(options.out, name, record)}")
    plot(record, options.out / f"{name}.png")
    for failure in record["checks"]["failures"]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if options.check and record["checks"]["failures"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sizes, gpus = [10**4, 10**5, 10**6], torch.cuda.device_count()
    add("--samples", type=int, nargs="+", metavar="N", help=f"(default: {sizes}, but for less than a batch)")
    add(
        "--ranks",
        type=int,
        nargs="+",
        metavar="W",
        help="(default: 2 and 4; with cuda the largest power of 2 of GPUs)",
    )
    add("--classes", type=int, default=50, metavar="K", help="(default: 50)")
    add("--batch", type=int, default=128, metavar="B", help="of a rank (default: 128)")
    add("--features", type=int, default=64, help="inputs of the network (default: 64)")
    add("--hidden", type=int, default=256, help="its hidden units (default: 256)")
    add("--rounds", type=int, default=10, help="timed steps of each way, in turn (default: 10)")
    add(
        "--longest", type=float, default=3.0, help="a way whose step takes longer, s, ends there (default: 3)"
    )
    add("--limit", type=float, default=1.5, help="of --check: growth of a table's step (default: 1.5)")
    add("--check", action="store_true", help="exit with 1 where a check fails")
    add("--zero", action=argparse.BooleanOptionalAction, default=True, help="DeepSpeed's ZeRO too")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if gpus else "cpu",
        help="(default: cuda where there is one)",
    )
    add("--threads", type=int, default=1, help="of a rank on the CPU (default: 1)")
    add(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of the record and the plot",
    )
    options = parser.parse_args(arguments)
    gpu_ranks = 1 << (max(1, gpus).bit_length() - 1)  # divides the batch
    options.ranks = sorted(set(options.ranks or ([gpu_ranks] if options.device == "cuda" else [2, 4])))
    whole_batch = options.ranks[-1] * options.batch
    large = [n for n in sizes if n >= whole_batch] or sizes[-1:]
    options.samples = sorted(set(options.samples or large))
    for name, least in (
        ("classes", 2),
        ("batch", 1),
        ("features", 1),
        ("hidden", 1),
        ("rounds", 1),
        ("threads", 1),
    ):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    for ranks in options.ranks:
        if ranks < 1 or options.batch % ranks:
            parser.error(f"--ranks must be positive and divide --batch {options.batch}, got {ranks}")
        if options.samples[0] < ranks * options.batch:
            parser.error(
                f"--samples must be at least {ranks * options.batch}, a batch of {options.batch} on {ranks} ranks, "
                f"got {options.samples[0]}"
            )
        if options.device == "cuda" and ranks > gpus:
            parser.error(f"--ranks must be at most {gpus}, the number of GPUs, got {ranks}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every way at every N on every number of ranks: the record."""
    made_by = stamp(torch.device(options.device))
    made_by["threads"], made_by["ranks"] = options.threads, options.ranks
    made_by["packages"]["deepspeed"] = metadata.version("deepspeed") if options.zero else None
    ways = [way for way in WAYS if options.zero or not way.stage]
    rows = []
    for ranks in options.ranks:
        ended: dict[str, str] = {}
        for n in options.samples:
            going = [way for way in ways if way.name not in ended]
            found = {row["alpha"]: row for row in start(options, ranks, n, going)}
            for way in [NONE, *ways]:
                row = found.get(way.name) or {"alpha": way.name, "skipped": ended[way.name]}
                rows.append({"ranks": ranks, "num_samples": n} | row)
            ended |= {
                name: reason for name, row in found.items() if (reason := ends(row, n, options.longest))
            }
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "check")}
    return {
        "benchmark": "sharding",
        "environment": made_by,
        "settings": settings | {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "form": "ac1"},
        "results": rows,
        "checks": checks(rows, options.samples, options.limit),
    }


def ends(row: dict[str, Any], num_samples: int, longest: float) -> str | None:
    """Why a way is not tried with more samples."""
    if row["skipped"] is not None:
        return f"at N = {num_samples:,}: {row['skipped']}"
    if (seconds := row["step_seconds"]["median"]) > longest:
        return f"at N = {num_samples:,}: a step takes {seconds:.2f} s, longer than {longest:g}"
    return None


def start(options: argparse.Namespace, ranks: int, num_samples: int, ways: list[Way]) -> list[dict[str, Any]]:
    """Rows of these ways, and of the network without α, measured in new processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (ranks, num_samples, ways, options, folder), nprocs=ranks)
        return json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))


def work(
    rank: int, ranks: int, num_samples: int, ways: list[Way], options: argparse.Namespace, folder: str
) -> None:
    """One rank's process."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of names that torch.distributed is to lose
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))  # for DeepSpeed
    torch.set_num_threads(options.threads)
    device = torch.device(options.device, rank if options.device == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(f"{folder}/store", ranks),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(minutes=5),
        device_id=device if device.type == "cuda" else None,
    )
    sizes = Sizes(options.classes, options.batch, options.features, options.hidden, ranks)
    smallest, largest = options.samples[0], options.samples[-1]
    other = smallest if num_samples == largest != smallest else None
    rows = RankBench(num_samples, sizes, device, rank).rows(ways, options.rounds, options.longest, other)
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def checks(rows: list[dict[str, Any]], samples: Sequence[int], limit: float) -> dict[str, Any]:
    """Growth of the time from the smallest N to the largest, and what is wrong with the tables."""
    tables = {way.name for way in WAYS if way.placement is not None}
    growth: dict[str, dict[str, float | None]] = {}
    failures = []
    for ranks in dict.fromkeys(row["ranks"] for row in rows):
        growth[str(ranks)] = {}
        for name in dict.fromkeys(row["alpha"] for row in rows):
            own = [row for row in rows if row["ranks"] == ranks and row["alpha"] == name]
            ratio = ratio_of(own, samples)
            growth[str(ranks)][name] = ratio
            if name in tables:
                where = f"{name}, {ranks} ranks"
                failures += [
                    f"{where}, N = {row['num_samples']:,}: {why}" for row in own for why in wrong(row)
                ]
                if len({row["sent_bytes"] for row in own if "sent_bytes" in row}) > 1:
                    failures.append(f"{where}: what it sends depends on N")
                if ratio is None:
                    failures.append(f"{where}: not measured at both N = {samples[0]:,} and {samples[-1]:,}")
                elif not ratio <= limit:
                    failures.append(
                        f"{where}: a step at N = {samples[-1]:,} takes {ratio:.2f} times that at {samples[0]:,}, "
                        f"more than {limit:g}"
                    )
    return {"limit": limit, "growth": growth, "failures": failures}


def ratio_of(rows: list[dict[str, Any]], samples: Sequence[int]) -> float | None:
    """Time at the largest N over that at the smallest: of the same rounds where it was measured so."""
    small, large = (
        next((row for row in rows if row["num_samples"] == n and not row["skipped"]), None)
        for n in (samples[0], samples[-1])
    )
    if small is None or large is None:
        return None
    first = large.get("smallest_step_seconds", small["step_seconds"])
    return large["step_seconds"]["median"] / first["median"]


def wrong(row: dict[str, Any]) -> list[str]:
    """Where a table's counted bytes, on any rank, are not the planned ones."""
    found = []
    for counted, planned in (
        ("sent_bytes", "planned_sent_bytes"),
        ("least_sent_bytes", "planned_sent_bytes"),
        ("table_bytes", "planned_memory_bytes"),
    ):
        if counted in row and row[counted] != row[planned]:
            found.append(f"{counted} is {row[counted]:,}, {planned} is {row[planned]:,}")
    if "table_sent_bytes" in row and row["table_sent_bytes"] != row["sent_bytes"]:
        found.append(
            f"table.traffic says {row['table_sent_bytes']:,} bytes, {row['sent_bytes']:,} were counted"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
