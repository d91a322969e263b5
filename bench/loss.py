"""How fast is the loss with α, against the bytes that must move and against what a user would write?

For every size (batch × classes) and form: the loss, its gradient by the logits and the SGD step of the batch's rows,
without a network. One pass must read logits and rows and write gradient and rows; its bytes over the median time are
compared with the bandwidth of a copy in the same rounds. On a GPU that is the device's time, and the host's stands
beside it. Sizes that fit the caches are timed in them as well, back to back, where little but the host's time counts.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loss_targets
import numpy as np
import torch
from common import Case, Timing, copy_bandwidth, copy_case, stamp, time_cases, write_record
from loss_ways import LR, WARM_ELEMENTS, WEIGHT_DECAY, Run, Setup, Way, backend, ways

from fastac.extras import require
from fastac.report.plots import drawing, new_figure, write_png

SIZES = {
    "cpu": "256x10 65536x10 4096x100 4096x1000 1024x4000 512x32000",
    "cuda": "256x10 2097152x10 262144x100 256x1000 32768x1000 8192x4096 2048x16384 1024x32768 256x131072",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    require("matplotlib.figure", "bench")  # now, not after the measurement
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = measure(options)
    record["targets"] = loss_targets.verdicts(record)
    failed = any(result["failed"] for result in record["results"])
    print(text(record))
    if record["targets"]:
        print("\n" + loss_targets.text(record["targets"]))
    print(f"\nrecord: {write_record(options.out, options.name, record)}")
    plot(record, options.out / f"{options.name}.png")
    return int(failed or (options.check and not all(target["met"] for target in record["targets"])))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    add("--sizes", nargs="+", metavar="BxK", help=f"batch and classes (default: {SIZES})")
    add("--forms", nargs="+", choices=("ac1", "ac2"), default=["ac1", "ac2"])
    add("--dtype", choices=DTYPES, help="of the logits (default: bfloat16 on a GPU, else float32)")
    add("--table-dtype", choices=("float32", "bfloat16"), default="float32", help="of α (default: float32)")
    add("--momentum", type=float, default=0.0, help="of α's SGD; the other ways have none (default: 0)")
    add("--rounds", type=int, default=30, help="timed runs of each way, in turn (default: 30)")
    add("--threads", type=int, help="torch's threads (default: torch's own choice)")
    add("--check", action="store_true", help="exit with 1 where one of the design's targets is missed")
    add("--name", help="of the record and the plot (default: loss-DEVICE)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="their folder")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    options.sizes = options.sizes or SIZES[options.device].split()
    options.name = options.name or f"loss-{options.device}"
    for size in options.sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size) or int(size.split("x")[1]) < 2:
            parser.error(f"--sizes must be BATCHxCLASSES with two classes at least, got {size!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record, which is also written after each size: a run that is stopped leaves what it has measured."""
    device = torch.device(options.device)
    made_by = stamp(device)
    named = os.environ.get("FASTAC_BACKEND")
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "name")}
    results: list[dict[str, Any]] = []
    record = {
        "benchmark": "loss",
        "environment": made_by,
        "settings": settings | {"lr": LR, "weight_decay": WEIGHT_DECAY},
        "missing": {},
        "results": results,
    }
    try:
        listed = ways(device)
        record["missing"] = {way.name: way.missing for way in listed if way.missing}
        for size in options.sizes:
            batch, classes = (int(number) for number in size.split("x"))
            for form in options.forms:
                types = DTYPES[options.dtype], DTYPES[options.table_dtype]
                setup = Setup(batch, classes, form, options.momentum, options.device, *types)
                results.append(measure_size(setup, listed, options.rounds))
                write_record(options.out, options.name, record)
                print(f"{size} {form} done", file=sys.stderr)
        if device.type == "cpu":
            made_by["capability"] = backend("cpu", device).capability()
    finally:
        os.environ.pop("FASTAC_BACKEND", None)
        if named is not None:
            os.environ["FASTAC_BACKEND"] = named
    return record


def measure_size(setup: Setup, listed: Sequence[Way], rounds: int) -> dict[str, Any]:
    torch.compiler.reset()
    runs: list[tuple[str, Run]] = []
    failed = {}
    for way in listed:
        try:
            if not way.missing and (run := way.make(setup)) is not None:
                run(setup.draw())
                runs.append((way.name, run))
        except Exception as error:  # one way that refuses a size should not cost the others
            failed[way.name] = f"{type(error).__name__}: {error}"
            print(f"{way.name} failed: {failed[way.name]}", file=sys.stderr)
    cases = [copy_case(setup.device), *(Case(run, setup.draw) for _, run in runs)]
    copy, *timings = time_cases(cases, setup.device, rounds, queued=True)
    warm: list[Timing | None] = [None] * len(runs)
    if setup.batch * setup.classes <= WARM_ELEMENTS:
        warm = list(warm_timings([run for _, run in runs], setup, 10 * rounds))
    bandwidth = copy_bandwidth(copy)
    rows = {}
    for (name, run), timing, hot in zip(runs, timings, warm, strict=True):
        rate = setup.bytes / timing.median
        rows[name] = {
            "seconds": timing.record(),
            "warm_seconds": None if hot is None else hot.record(),
            "bytes_per_second": rate,
            "share_of_copy": rate / bandwidth["median"],
            "peak_bytes": peak_memory(run, setup),
        }
    return {
        "batch": setup.batch,
        "classes": setup.classes,
        "form": setup.form,
        "bytes": setup.bytes,
        "copy_bytes_per_second": bandwidth,
        "ways": rows,
        "failed": failed,
    }


def warm_timings(runs: Sequence[Run], setup: Setup, rounds: int) -> list[Timing]:
    """Back to back, in turn, each the mean of some runs: what stays in the caches stays there."""
    batches = [setup.draw() for _ in range(10)]
    seconds: list[list[float]] = [[] for _ in runs]
    wait = torch.cuda.synchronize if setup.device.type == "cuda" else lambda: None
    for _ in range(rounds):
        for run, own in zip(runs, seconds, strict=True):
            run(batches[0])
            wait()
            start = time.perf_counter()
            for batch in batches:
                run(batch)
            wait()
            own.append((time.perf_counter() - start) / len(batches))
    return [Timing.of(values) for values in seconds]


def peak_memory(run: Run, setup: Setup) -> int | None:
    """Bytes that a run holds at most beyond what was there before; None on a CPU."""
    if setup.device.type != "cuda":
        return None
    batch = setup.draw()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def text(record: dict[str, Any]) -> str:
    made_by, settings = record["environment"], record["settings"]
    versions = f"torch {made_by['packages']['torch']}, {made_by['threads']} threads"
    lines = [f"{made_by['device']}, {versions}, logits {settings['dtype']}, α {settings['table_dtype']}"]
    for result in record["results"]:
        bandwidth = result["copy_bytes_per_second"]["median"]
        lines += [
            "",
            f"{result['batch']} x {result['classes']} {result['form']}: {result['bytes'] / 1e6:.3g} MB must move, "
            f"copies at {bandwidth / 1e9:.1f} GB/s",
            f"{'':<30}{'ms':>10}{'quartiles':>20}{'GB/s':>9}{'of copy':>9}{'warm, µs':>10}{'host, µs':>10}{'MB':>9}",
        ]
        lines += [_line(name, row) for name, row in result["ways"].items()]
        lines += [f"{name:<30}failed: {why[:200]}" for name, why in result["failed"].items()]
    lines += [f"not measured: {name}: {why}" for name, why in record["missing"].items()]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    s, hot = row["seconds"], row["warm_seconds"]
    quartiles = f"{s['low'] * 1e3:.3f} to {s['high'] * 1e3:.3f}"
    warm = "" if hot is None else f"{hot['median'] * 1e6:.1f}"
    host = "" if s["host"] is None else f"{s['host'] * 1e6:.1f}"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
    rate = f"{row['bytes_per_second'] / 1e9:>9.2f}{row['share_of_copy']:>9.1%}"
    return f"{name:<30}{s['median'] * 1e3:>10.3f}{quartiles:>20}{rate}{warm:>10}{host:>10}{peak:>9}"


def times(result: dict[str, Any], name: str) -> float:
    """A way's time over that of a copy of the same bytes; of small sizes that in the caches."""
    row = result["ways"][name]
    seconds = (row["warm_seconds"] or row["seconds"])["median"]
    return seconds * result["copy_bytes_per_second"]["median"] / result["bytes"]


def plot(record: dict[str, Any], out: Path) -> None:
    """`times` by size and form."""
    with drawing():
        forms = record["settings"]["forms"]
        figure = new_figure(12, 4 + 0.4 * len(forms), layout="constrained")
        for axes, form in zip(np.atleast_1d(figure.subplots(1, len(forms), sharey=True)), forms, strict=True):
            results = [r for r in record["results"] if r["form"] == form]
            places = range(len(results))
            for name in dict.fromkeys(name for r in results for name in r["ways"]):
                points = [
                    (p, times(r, name)) for p, r in zip(places, results, strict=True) if name in r["ways"]
                ]
                if points:
                    ours = name.split(",")[0] in ("cuda", "triton", "cpu")
                    style = "-" if ours else ":"
                    axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=name)
            axes.set(yscale="log", title=form.upper(), xlabel="batch × classes")
            axes.set_xticks(list(places), [f"{r['batch']}×{r['classes']}" for r in results], rotation=30)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        first = figure.axes[0]
        first.set_ylabel("time over a copy of the bytes that must move")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        write_png(figure, out)


if __name__ == "__main__":
    sys.exit(main())
