"""What does it cost to record each sample's margin (AUM) while a network trains?

An epoch of 60,000 samples: the loss with TrainingDynamics beside the loss without (recording in the loss's own pass),
TrainingDynamics.update, fastac.compat.AUMCalculator with ids as a tensor and as a list, and the package aum; beside
the training steps of a network of CIFAR's size. On a CPU in processor time, which other work on the machine disturbs
little; on a GPU in seconds that pass. What the host does is counted too, the same on any device: operators that are
called, and values that are read back, for each of which a GPU's host waits. Exits with 1 where recording in the loss
costs more than --limit of the steps.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Timing, stamp, write_record
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastac
from fastac.compat import AUMCalculator
from fastac.extras import require
from fastac.models import create_model

Batch = tuple[
    Tensor, Tensor, Tensor, list[int]
]  # logits (B, K), target (B,), index (B,), the same on the host
SAMPLES = 60_000  # of an epoch
_PART = 20  # batches that the loss is timed with at once


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    package = require("aum", "bench")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = measure(options, package.AUMCalculator)
    print(text(record))
    print(f"record: {write_record(options.out, f'recording-{options.device}', record)}")
    if record["share_of_steps"]["recording in the loss"] > options.limit:
        print(
            f"FAILED: recording in the loss takes more than {options.limit:.2%} of the steps", file=sys.stderr
        )
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="resnet32")
    add("--batch", type=int, default=128)
    add("--classes", type=int, default=10)
    add("--rounds", type=int, default=15, help="epochs of each way to record (default %(default)s)")
    add("--steps", type=int, default=10, help="training steps that are timed (default %(default)s)")
    add("--limit", type=float, default=1e-3, help="greatest share of the steps (default %(default)s)")
    add("--threads", type=int)
    add("--device", default="cpu")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, theirs: Callable[..., Any]) -> dict[str, Any]:
    device = torch.device(options.device)
    made_by = stamp(device)
    batches = draw(options, device)
    step = Timing.of(
        time_in_turn({"step": training_step(options, device)}, batches[:1], options.steps)["step"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        runs = epochs(options, device, lambda: theirs(scratch))
        work = count_work(runs, batches)
        # A small difference of two long times: many short parts of an epoch, each pair close together.
        losses = {name: runs.pop(name) for name in ("loss", "loss with dynamics")}
        part = batches[:_PART]
        bare, recorded = time_in_turn(losses, part, 20 * options.rounds).values()
        timings = time_in_turn(runs, batches, options.rounds)
    scale = len(batches) / len(part)
    bare = [scale * seconds for seconds in bare]
    pairs = [scale * after - before for after, before in zip(recorded, bare, strict=True)]
    timings = {"recording in the loss": pairs, **timings}
    cost = {name: Timing.of(seconds) for name, seconds in timings.items()}
    steps = step.median * len(batches)
    return {
        "environment": made_by,
        "settings": {
            "samples": SAMPLES,
            **{
                name: getattr(options, name)
                for name in ("model", "batch", "classes", "rounds", "steps", "limit")
            },
        },
        "step_seconds": step.record(),
        "loss_seconds": Timing.of(bare).record(),
        "cost_seconds": {name: timing.record() for name, timing in cost.items()},
        "host_work": work,
        "share_of_steps": {name: timing.median / steps for name, timing in cost.items()},
    }


def draw(options: argparse.Namespace, device: torch.device) -> list[Batch]:
    """An epoch's logits, targets and ids, in random order."""
    torch.manual_seed(0)
    return [
        (
            torch.randn(len(ids), options.classes, device=device, requires_grad=True),
            torch.randint(options.classes, (len(ids),), device=device),
            ids.to(device),
            ids.tolist(),
        )
        for ids in torch.randperm(SAMPLES).split(options.batch)
    ]


def epochs(
    options: argparse.Namespace, device: torch.device, theirs: Callable[[], Any]
) -> dict[str, Callable[[list[Batch]], object]]:
    """What takes an epoch's batches, by name."""
    table = fastac.AlphaTable(SAMPLES, options.classes, momentum=0.9, device=device)
    table.lr = 0.1
    dynamics = fastac.TrainingDynamics(SAMPLES, options.classes, device=device)

    def loss(batches: list[Batch], recorded: fastac.TrainingDynamics | None) -> None:
        criterion = fastac.AutoCleansingLoss(table, update="forward", dynamics=recorded)
        for logits, target, index, _ in batches:
            criterion(logits, target, index).backward()
            table.step()

    def update(batches: list[Batch]) -> None:
        for logits, target, index, _ in batches:
            dynamics.update(logits, target, index)

    def calculate(batches: list[Batch], make: Callable[[], Any], listed: bool) -> object:
        calculator = make()
        for logits, target, index, ids in batches:
            calculator.update(logits, target, ids if listed else index)
        return calculator.sums

    ours = functools.partial(AUMCalculator, "unused")
    return {
        "loss": functools.partial(loss, recorded=None),
        "loss with dynamics": functools.partial(loss, recorded=dynamics),
        "TrainingDynamics.update": update,
        "compat.AUMCalculator, ids in a tensor": functools.partial(calculate, make=ours, listed=False),
        "compat.AUMCalculator, ids in a list": functools.partial(calculate, make=ours, listed=True),
        "package aum": functools.partial(calculate, make=theirs, listed=True),
    }


class _Operators(TorchDispatchMode):
    """How many operators the code in this context calls."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """How often the code in this context brings a tensor's values to the host, where a GPU would be waited for."""

    count = 0
    functions = {
        getattr(Tensor, name)
        for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__")
    }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func in self.functions
        return func(*args, **(kwargs or {}))


def count_work(
    runs: dict[str, Callable[[list[Batch]], object]], batches: list[Batch]
) -> dict[str, dict[str, int]]:
    """Operators and reads of an epoch by the ways to record it; in the loss, those that recording adds. Of the second
    epoch: the first one also makes what is kept."""
    counted = {}
    for name, run in runs.items():
        run(batches[:1])
        with _Operators() as operators, _Reads() as reads:
            run(batches)
        counted[name] = {"operators": operators.count, "reads": reads.count}
    bare, recorded = counted.pop("loss"), counted.pop("loss with dynamics")
    return {"recording in the loss": {key: recorded[key] - bare[key] for key in bare}, **counted}


def time_in_turn(
    runs: dict[str, Callable[[list[Batch]], object]], batches: list[Batch], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round. Each once a round, every second round backwards, after one that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    on_gpu = batches[0][0].is_cuda
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    clock = time.perf_counter if on_gpu else time.process_time
    for number in range(1 + rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            wait()
            start = clock()
            runs[name](batches)
            wait()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def training_step(options: argparse.Namespace, device: torch.device) -> Callable[[list[Batch]], object]:
    """Forward, cross entropy, backward, SGD, on images of 32x32."""
    torch.manual_seed(0)
    model = create_model(options.model, num_classes=options.classes, in_channels=3).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(options.batch, 3, 32, 32, device=device)

    def run(batches: list[Batch]) -> None:
        for _, target, *_ in batches:
            torch.nn.functional.cross_entropy(model(images), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def text(record: dict[str, Any]) -> str:
    settings, step = record["settings"], record["step_seconds"]
    lines = [
        f"{record['environment']['device']}, torch {record['environment']['packages']['torch']}, "
        f"{record['environment']['threads']} threads; {settings['model']}, batch {settings['batch']}: "
        f"{1e3 * step['median']:.0f} ms a step ({1e3 * step['low']:.0f} to {1e3 * step['high']:.0f})",
        f"{'an epoch of 60,000 samples':<42}{'ms':>9}{'quartiles':>20}{'share of steps':>16}{'of aum':>9}"
        f"{'operators':>11}{'reads':>9}",
    ]
    costs = record["cost_seconds"]
    for name, cost in costs.items():
        spread = f"{1e3 * cost['low']:.2f} to {1e3 * cost['high']:.2f}"
        share, of_aum = record["share_of_steps"][name], cost["median"] / costs["package aum"]["median"]
        work = record["host_work"][name]
        lines.append(
            f"{name:<42}{1e3 * cost['median']:>9.2f}{spread:>20}{share:>16.4%}{of_aum:>9.2%}"
            f"{work['operators']:>11,}{work['reads']:>9,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
