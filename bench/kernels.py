"""Where does the time of a step's loss go? The kernels of one step, by name, with their calls and times.

For each size, backend and mode: a training step's loss, backward and the table's step under torch's profiler. A trace
of each, to be opened in a browser's trace viewer, lies beside the record.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import stamp, write_record
from loss_ways import Setup, ways
from torch.profiler import ProfilerActivity, profile

STEPS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--sizes", nargs="+", default=["256x1000"], metavar="BxK")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    record = measure(options)
    print(text(record))
    print(f"record: {write_record(options.out, f'kernels-{options.device}', record)}")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    named = os.environ.get("FASTAC_BACKEND")
    results = []
    try:
        for size in options.sizes:
            batch, classes = (int(number) for number in size.split("x"))
            for way in ways(device):
                if way.missing or not way.name.endswith((", step", ", forward", "no α")):
                    continue
                setup = Setup(batch, classes, "ac1", 0.9, options.device, getattr(torch, options.dtype))
                name = way.name.replace(", ", "-").replace(" ", "-").replace("α", "alpha")
                trace = options.out / f"trace-{size}-{name}.json"
                results.append(
                    {"size": size, "way": way.name, "kernels": kernels(setup, way.make(setup), trace)}
                )
    finally:
        os.environ.pop("FASTAC_BACKEND", None)
        if named is not None:
            os.environ["FASTAC_BACKEND"] = named
    return {"benchmark": "kernels", "environment": stamp(device), "steps": STEPS, "results": results}


def kernels(setup: Setup, run: Any, trace: Path) -> list[dict[str, Any]]:
    """Name, calls and microseconds a step of what ran on the device (on a CPU: of the operators themselves)."""
    batches = [setup.draw() for _ in range(STEPS)]
    for batch in batches[:3]:
        run(batch)
    cuda = setup.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for batch in batches:
            run(batch)
        if cuda:
            torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    rows = []
    for event in profiler.key_averages():
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        if on_device != cuda:
            continue
        micros = event.self_device_time_total if cuda else event.self_cpu_time_total
        rows.append({"name": event.key, "calls": event.count / STEPS, "microseconds": micros / STEPS})
    return sorted(rows, key=lambda row: -row["microseconds"])


def text(record: dict[str, Any]) -> str:
    lines = [f"{record['environment']['device']}, torch {record['environment']['packages']['torch']}"]
    for result in record["results"]:
        total = sum(row["microseconds"] for row in result["kernels"])
        lines += ["", f"{result['size']} {result['way']}: {total:.1f} µs a step"]
        for row in result["kernels"][:8]:
            lines.append(f"  {row['microseconds']:>9.2f} µs {row['calls']:>5.1f} ×  {row['name'][:90]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
