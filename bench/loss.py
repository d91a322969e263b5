"""How fast is the loss with α, against the bytes that must move and against what a user would write?

For every size (batch × classes) and form: the loss, its gradient by the logits and the SGD step of the batch's rows,
without a network. One pass must read logits and rows and write gradient and rows; its bytes over the median time are
compared with the bandwidth of a copy in the same rounds. Sizes that fit the caches are timed in them as well, where
little but the host's time counts.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import Case, Timing, copy_bandwidth, copy_case, stamp, time_cases, write_record
from torch import Tensor

import fastac
from fastac import backends
from fastac.contract import Objective, Rows, Sgd
from fastac.extras import require
from fastac.report.plots import drawing, new_figure, write_png

LR, WEIGHT_DECAY = 0.1, 5e-5
SIZES = ("256x10", "65536x10", "4096x100", "4096x1000", "1024x4000", "512x32000")
_WARM_ELEMENTS = 1 << 16

Batch = tuple[Tensor, Tensor, Tensor]  # logits (B, K) float32, a leaf; target (B,); index (B,), no id twice


class Setup:
    """One size and form: a table, and the batches that are drawn for it."""

    def __init__(self, batch: int, classes: int, form: str, momentum: float):
        self.batch, self.classes, self.form, self.momentum = batch, classes, form, momentum
        self.num_samples = 2 * batch if batch * classes > _WARM_ELEMENTS else 50_000
        self.random = np.random.default_rng(0)
        self.logits = torch.randn(batch, classes)

    def draw(self) -> Batch:
        target = self.random.integers(self.classes, size=self.batch)
        index = self.random.choice(self.num_samples, self.batch, replace=False)
        return self.logits.detach().requires_grad_(), torch.from_numpy(target), torch.from_numpy(index)

    def table(self) -> fastac.AlphaTable:
        table = fastac.AlphaTable(
            self.num_samples, self.classes, form=self.form, momentum=self.momentum, weight_decay=WEIGHT_DECAY
        )
        table.lr = LR
        table.step()
        return table

    @property
    def bytes(self) -> int:
        """Read: logits, α, momentum. Written: gradient, α, momentum."""
        state = 4 if self.momentum else 2
        return 4 * self.batch * (2 * self.classes + state * (self.classes if self.form == "ac1" else 1))


class Way(NamedTuple):
    """One way to get loss, gradient and moved rows; None where it has no such form or history."""

    name: str
    make: Callable[[Setup], Callable[[Batch], object] | None]


def cross_entropy(setup: Setup) -> Callable[[Batch], object]:
    return lambda batch: F.cross_entropy(batch[0], batch[1]).backward()


def unfused_step(alpha: Tensor, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """In plain PyTorch, the gradient by hand. α moves by its batch's rows alone, without momentum or catch-up, so
    that this does less than the table."""
    rows = alpha[index]
    z = logits + rows if rows.ndim == 2 else logits.scatter_add(1, target[:, None], rows[:, None])
    log_p = F.log_softmax(z, dim=1)
    loss = F.nll_loss(log_p, target)
    grad = (log_p.exp() - F.one_hot(target, logits.shape[1])) / len(target)
    row_grad = grad if rows.ndim == 2 else grad.gather(1, target[:, None])[:, 0]
    alpha.index_copy_(0, index, rows - LR * (row_grad + WEIGHT_DECAY * rows))
    return loss, grad


def unfused(compiled: bool) -> Callable[[Setup], Callable[[Batch], object] | None]:
    def make(setup: Setup) -> Callable[[Batch], object] | None:
        if setup.momentum:
            return None
        shape = (setup.num_samples, setup.classes)[: 2 if setup.form == "ac1" else 1]
        alpha = torch.zeros(shape)
        step = torch.compile(unfused_step, dynamic=False) if compiled else unfused_step

        def run(batch: Batch) -> object:
            with torch.no_grad():
                return step(alpha, batch[0].detach(), *batch[1:])

        return run

    return make


def one_pass(backend: str) -> Callable[[Setup], Callable[[Batch], object]]:
    """The backend's forward_update by itself."""

    def make(setup: Setup) -> Callable[[Batch], object]:
        table = setup.table()
        module = _backend(backend)
        rows = Rows(table.alpha, table.momentum_buffer, table.last, table.clock)
        objective = Objective(None, setup.form, -100, "mean", 0.0)
        sgd = Sgd(setup.momentum, WEIGHT_DECAY, False, False, 0)
        flags = table.checks.flags
        return lambda batch: module.forward_update(
            batch[0].detach(), *batch[1:], rows, objective, flags, setup.num_samples, None, sgd, 1.0
        )

    return make


def training_step(backend: str, update: str) -> Callable[[Setup], Callable[[Batch], object]]:
    """What a training loop calls: the criterion, backward, the table's step."""

    def make(setup: Setup) -> Callable[[Batch], object]:
        table = setup.table()
        criterion = fastac.AutoCleansingLoss(table, update=update)

        def run(batch: Batch) -> None:
            os.environ["FASTAC_BACKEND"] = backend
            criterion(*batch).backward()
            table.step()

        return run

    return make


def _backend(name: str) -> Any:
    os.environ["FASTAC_BACKEND"] = name
    return backends.select(torch.device("cpu"))


WAYS = (
    Way("F.cross_entropy, no α", cross_entropy),
    Way("eager", unfused(compiled=False)),
    Way("torch.compile", unfused(compiled=True)),
    Way("reference, one pass", one_pass("reference")),
    Way("cpu, one pass", one_pass("cpu")),
    Way("reference, step", training_step("reference", "step")),
    Way("cpu, step", training_step("cpu", "step")),
    Way("reference, forward", training_step("reference", "forward")),
    Way("cpu, forward", training_step("cpu", "forward")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    require("matplotlib.figure", "bench")  # now, not after the measurement
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = measure(options)
    print(text(record))
    print(f"record: {write_record(options.out, options.name, record)}")
    plot(record, options.out / f"{options.name}.png")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--sizes",
        nargs="+",
        default=list(SIZES),
        metavar="BxK",
        help=f"batch and classes (default: {' '.join(SIZES)})",
    )
    add("--forms", nargs="+", choices=("ac1", "ac2"), default=["ac1", "ac2"])
    add("--momentum", type=float, default=0.0, help="of α's SGD; eager and compiled have none (default: 0)")
    add("--rounds", type=int, default=30, help="timed runs of each way, in turn (default: 30)")
    add("--threads", type=int, help="torch's threads (default: torch's own choice)")
    add("--name", default="loss-cpu", help="of the record and the plot (default: loss-cpu)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="their folder")
    options = parser.parse_args(arguments)
    for size in options.sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size) or int(size.split("x")[1]) < 2:
            parser.error(f"--sizes must be BATCHxCLASSES with two classes at least, got {size!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cpu")
    made_by = stamp(device)
    named = os.environ.get("FASTAC_BACKEND")
    results = []
    try:
        for size in options.sizes:
            batch, classes = (int(number) for number in size.split("x"))
            for form in options.forms:
                results.append(measure_size(Setup(batch, classes, form, options.momentum), options.rounds))
                print(f"{size} {form} done", file=sys.stderr)
    finally:
        os.environ.pop("FASTAC_BACKEND", None)
        if named is not None:
            os.environ["FASTAC_BACKEND"] = named
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "name")}
    return {
        "benchmark": "loss",
        "environment": made_by | {"capability": _backend("cpu").capability()},
        "settings": settings | {"lr": LR, "weight_decay": WEIGHT_DECAY, "dtype": "float32"},
        "results": results,
    }


def measure_size(setup: Setup, rounds: int) -> dict[str, Any]:
    torch.compiler.reset()
    ways = [(way.name, run) for way in WAYS if (run := way.make(setup)) is not None]
    cases = [copy_case(torch.device("cpu")), *(Case(run, setup.draw) for _, run in ways)]
    copy, *timings = time_cases(cases, torch.device("cpu"), rounds)
    warm: list[Timing | None] = [None] * len(ways)
    if setup.batch * setup.classes <= _WARM_ELEMENTS:
        warm = list(warm_timings([run for _, run in ways], setup, 10 * rounds))
    bandwidth = copy_bandwidth(copy)
    rows = {}
    for (name, _), timing, hot in zip(ways, timings, warm, strict=True):
        rate = setup.bytes / timing.median
        rows[name] = {
            "seconds": timing.record(),
            "warm_seconds": None if hot is None else hot.record(),
            "bytes_per_second": rate,
            "share_of_copy": rate / bandwidth["median"],
        }
    return {
        "batch": setup.batch,
        "classes": setup.classes,
        "form": setup.form,
        "bytes": setup.bytes,
        "copy_bytes_per_second": bandwidth,
        "ways": rows,
    }


def warm_timings(runs: Sequence[Callable[[Batch], object]], setup: Setup, rounds: int) -> list[Timing]:
    """Back to back, in turn, each the mean of some runs: what stays in the caches stays there."""
    batches = [setup.draw() for _ in range(10)]
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, own in zip(runs, seconds, strict=True):
            run(batches[0])
            start = time.perf_counter()
            for batch in batches:
                run(batch)
            own.append((time.perf_counter() - start) / len(batches))
    return [Timing.of(values) for values in seconds]


def text(record: dict[str, Any]) -> str:
    made_by = record["environment"]
    lines = [f"{made_by['device']}, torch {made_by['packages']['torch']}, {made_by['threads']} threads"]
    for result in record["results"]:
        bandwidth = result["copy_bytes_per_second"]["median"]
        lines += [
            "",
            f"{result['batch']} x {result['classes']} {result['form']}: {result['bytes'] / 1e6:.3g} MB must move, "
            f"copies at {bandwidth / 1e9:.1f} GB/s",
            f"{'':<24}{'ms':>10}{'quartiles':>20}{'GB/s':>8}{'of copy':>9}{'warm, µs':>10}",
        ]
        for name, row in result["ways"].items():
            s = row["seconds"]
            quartiles = f"{s['low'] * 1e3:.3f} to {s['high'] * 1e3:.3f}"
            hot = "" if row["warm_seconds"] is None else f"{row['warm_seconds']['median'] * 1e6:.1f}"
            lines.append(
                f"{name:<24}{s['median'] * 1e3:>10.3f}{quartiles:>20}{row['bytes_per_second'] / 1e9:>8.2f}"
                f"{row['share_of_copy']:>9.1%}{hot:>10}"
            )
    return "\n".join(lines)


def plot(record: dict[str, Any], out: Path) -> None:
    """Time over the time of a copy of the same bytes, by size and form."""
    with drawing():
        forms = record["settings"]["forms"]
        figure = new_figure(12, 4 + 0.4 * len(forms), layout="constrained")
        for axes, form in zip(np.atleast_1d(figure.subplots(1, len(forms), sharey=True)), forms, strict=True):
            results = [r for r in record["results"] if r["form"] == form]
            places = range(len(results))
            for way in WAYS:
                there = [(p, r["ways"].get(way.name)) for p, r in zip(places, results, strict=True)]
                points = [(p, 1 / row["share_of_copy"]) for p, row in there if row is not None]
                if points:
                    style = "-" if way.name.startswith("cpu") else ":"
                    axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=way.name)
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
