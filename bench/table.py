"""Does a training step with the α table cost more when there are more samples?

It times what α adds to a step (the loss forward and backward, and the optimizer's step; no network: the logits are
a leaf) with the table and with α as a dense parameter of torch.optim.SGD, at several numbers of samples N. It exits
with 1 where the table's step at the largest N takes more than --limit times that at the smallest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Case, Timing, copy_bandwidth, copy_case, free_memory, stamp, time_cases, write_record
from torch import Tensor

import fastac
from fastac.extras import require
from fastac.reference import DenseAlpha
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, write_png

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-5  # the paper's for CIFAR
_RESERVE = 2 << 30  # bytes left to the process itself, the copy's buffers and a sweep's chunk


class Kind(NamedTuple):
    """A way to hold α: form "ac1" or "ac2"; the table's history, or None for a dense parameter."""

    name: str
    form: str
    history: str | None

    def bytes_needed(self, num_samples: int, num_classes: int) -> int:
        """While it steps. Dense: α, momentum, gradient, and the gradient with the weight decay in it."""
        copies = {"exact": 2, "folded": 1, None: 4}[self.history]
        return 4 * num_samples * (copies * (num_classes if self.form == "ac1" else 1) + 1)


KINDS = (
    Kind("table AC1", "ac1", "exact"),
    Kind("table AC1 folded", "ac1", "folded"),
    Kind("table AC2", "ac2", "exact"),
    Kind("dense AC1", "ac1", None),
    Kind("dense AC2", "ac2", None),
)

Batch = tuple[Tensor, Tensor, Tensor]  # logits (B, K), target (B,), index (B,), as a criterion takes them


class Batches:
    """Random batches: ids without repeats, as a sampler gives them; logits as a leaf, in place of a network."""

    def __init__(self, num_classes: int, batch: int, device: torch.device):
        self.num_classes, self.batch, self.device = num_classes, batch, device
        self.random = np.random.default_rng(0)

    def __call__(self, num_samples: int) -> Batch:
        logits = self.random.standard_normal((self.batch, self.num_classes), dtype=np.float32)
        target = self.random.integers(self.num_classes, size=self.batch)
        index = self.random.choice(num_samples, self.batch, replace=False)
        return (
            torch.tensor(logits, device=self.device, requires_grad=True),
            torch.tensor(target, device=self.device),
            torch.tensor(index, device=self.device),
        )


@dataclass(frozen=True)
class Subject:
    """α of N samples, ready to be stepped. state: the tensors that it keeps between steps."""

    step: Callable[[Batch], None]
    state: Callable[[], list[Tensor]]
    gradient_bytes: int
    sweep: Callable[[object], None] | None = None
    steps_a_sweep: int = 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    require("matplotlib.figure", "bench")  # now, not after the measurement
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = measure(options)
    print(text(record))
    name = f"table-{options.device}"
    print(f"record: {write_record(options.out, name, record)}")
    plot(record, options.out / f"{name}.png")
    for failure in record["growth"]["failures"]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if record["growth"]["failures"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sizes = [10**4, 10**5, 10**6]
    add(
        "--samples",
        type=int,
        nargs="+",
        default=sizes,
        metavar="N",
        help=f"sizes, two at least (default: {sizes})",
    )
    add("--classes", type=int, default=100, metavar="K", help="(default: 100)")
    add("--batch", type=int, default=128, metavar="B", help="(default: 128)")
    add("--rounds", type=int, default=40, help="timed steps of each case, in turn (default: 40)")
    add("--limit", type=float, default=1.5, help="largest allowed growth of the table's step (default: 1.5)")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(default: cuda where there is one)",
    )
    add("--threads", type=int, help="torch's threads on the CPU (default: torch's own choice)")
    add(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of the record and the plot",
    )
    options = parser.parse_args(arguments)
    options.samples = sorted(set(options.samples))
    if len(options.samples) < 2:
        parser.error(f"--samples must name two sizes or more, got {options.samples}")
    if not 1 <= options.batch <= options.samples[0]:
        parser.error(f"--batch must be in [1, {options.samples[0]}], the least N, got {options.batch}")
    for name, least in (("classes", 2), ("rounds", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every kind at every size, timed in the same rounds: the record."""
    device = torch.device(options.device)
    made_by = stamp(device)
    planned = plan(options.samples, options.classes, free_memory(device))
    subjects = [
        build(kind, n, options.classes, options.batch, device) if reason is None else None
        for kind, n, reason in planned
    ]
    draw = Batches(options.classes, options.batch, device)
    cases = [copy_case(device), Case(plain_step(device), partial(draw, options.samples[0]))]
    sweeps = []
    for (_, n, _), subject in zip(planned, subjects, strict=True):
        if subject is not None:
            cases.append(Case(subject.step, partial(draw, n)))
            sweeps += [Case(subject.sweep)] if subject.sweep else []
    copy, plain, *steps = time_cases(cases, device, options.rounds)
    step_times, sweep_times = iter(steps), iter(time_cases(sweeps, device, max(3, options.rounds // 8)))
    results = []
    for (kind, n, reason), subject in zip(planned, subjects, strict=True):
        row = {"alpha": kind.name, "num_samples": n, "skipped": reason}
        if subject is not None:
            row |= figures(subject, n, next(step_times), next(sweep_times) if subject.sweep else None)
        results.append(row)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    return {
        "benchmark": "table",
        "environment": made_by,
        "settings": settings | {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY},
        "copy_bytes_per_second": copy_bandwidth(copy),
        "cross_entropy": {"step_seconds": plain.record()},
        "results": results,
        "growth": growth(results, options.samples, options.limit),
    }


def plan(samples: Sequence[int], num_classes: int, free: int) -> list[tuple[Kind, int, str | None]]:
    """Every kind at every size, small sizes first, with the reason to skip it where memory (bytes) is short."""
    planned: list[tuple[Kind, int, str | None]] = []
    left = max(0, free - _RESERVE)
    for n in samples:
        for kind in KINDS:
            need = kind.bytes_needed(n, num_classes)
            reason = None
            if need > left:
                reason = (
                    f"needs {need / 1e9:.1f} GB of memory, {left / 1e9:.1f} GB are left beside the others"
                )
            else:
                left -= need
            planned.append((kind, n, reason))
    return planned


def figures(subject: Subject, num_samples: int, step: Timing, sweep: Timing | None) -> dict[str, Any]:
    """What a result holds; seconds and bytes. A sweep is shared by the steps from one to the next."""
    share = 0.0 if sweep is None else sweep.median / subject.steps_a_sweep
    return {
        "step_seconds": step.record(),
        "sweep_seconds": None if sweep is None else sweep.record(),
        "sweep_seconds_per_row": None if sweep is None else sweep.median / num_samples,
        "sweep_seconds_per_step": share,
        "total_seconds_per_step": step.median + share,
        "state_bytes": sum(t.numel() * t.element_size() for t in subject.state()),
        "gradient_bytes": subject.gradient_bytes,
    }


def growth(results: list[dict[str, Any]], samples: Sequence[int], limit: float) -> dict[str, Any]:
    """Total time a step at the largest N over that at the smallest, and where a table's is over the limit."""
    seconds = {(r["alpha"], r["num_samples"]): r.get("total_seconds_per_step") for r in results}
    ratios, failures = {}, []
    for kind in KINDS:
        small, large = seconds[kind.name, samples[0]], seconds[kind.name, samples[-1]]
        ratio = None if small is None or large is None else large / small
        ratios[kind.name] = ratio
        if kind.history is None:
            continue
        if ratio is None:
            failures.append(f"{kind.name}: not measured at both N = {samples[0]:,} and N = {samples[-1]:,}")
        elif not ratio <= limit:
            failures.append(
                f"{kind.name}: a step at N = {samples[-1]:,} takes {ratio:.2f} times that at N = {samples[0]:,}, "
                f"more than {limit}"
            )
    return {"limit": limit, "ratios": ratios, "failures": failures}


def build(kind: Kind, num_samples: int, num_classes: int, batch: int, device: torch.device) -> Subject:
    if kind.history is None:
        return dense_subject(kind.form, num_samples, num_classes, device)
    return table_subject(kind.form, kind.history, num_samples, num_classes, batch, device)


def table_subject(
    form: str, history: str, num_samples: int, num_classes: int, batch: int, device: torch.device
) -> Subject:
    table = fastac.AlphaTable(
        num_samples, num_classes, form=form, history=history, weight_decay=WEIGHT_DECAY, device=device
    )
    optimizer = sgd(device)
    table.follow(optimizer)
    criterion = fastac.AutoCleansingLoss(table)
    # As in the middle of training: rows were last touched anywhere in the epoch before.
    epoch = min(num_samples // batch, table.clock.sweep_every // 2)
    for _ in range(epoch):
        optimizer.step()
    table.last.random_(0, epoch + 1)

    def step(batch: Batch) -> None:
        criterion(*batch).backward()
        optimizer.step()

    def state() -> list[Tensor]:
        own = [table.alpha, table.last, table.clock.within, table.clock.tail]
        return own if table.momentum_buffer is None else [*own, table.momentum_buffer]

    width = num_classes if form == "ac1" else 1
    return Subject(step, state, 4 * batch * width, lambda _: table.sweep(), table.clock.sweep_every)


def dense_subject(form: str, num_samples: int, num_classes: int, device: torch.device) -> Subject:
    criterion = DenseAlpha(num_samples, num_classes, form).to(device)
    optimizer = sgd(device)
    optimizer.add_param_group({"params": [criterion.alpha], "weight_decay": WEIGHT_DECAY})

    def step(batch: Batch) -> None:
        criterion(*batch).backward()
        optimizer.step()
        criterion.alpha.grad = None

    def state() -> list[Tensor]:
        return [criterion.alpha, optimizer.state[criterion.alpha]["momentum_buffer"]]

    return Subject(step, state, 4 * criterion.alpha.numel())


def plain_step(device: torch.device) -> Callable[[Batch], None]:
    """A step without α: what the loss costs anyway."""
    optimizer = sgd(device)

    def step(batch: Batch) -> None:
        logits, target, _ = batch
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()

    return step


def sgd(device: torch.device) -> torch.optim.SGD:
    """The network's optimizer, with one number for a network."""
    parameter = torch.nn.Parameter(torch.zeros(1, device=device))
    parameter.grad = torch.zeros_like(parameter)
    return torch.optim.SGD([parameter], lr=LR, momentum=MOMENTUM)


def text(record: dict[str, Any]) -> str:
    """The record as a person reads it."""
    settings = record["settings"]
    lines = [
        f"{machine(record)}; copies at {record['copy_bytes_per_second']['median'] / 1e9:.1f} GB/s",
        f"K = {settings['classes']}, batch {settings['batch']}, {settings['rounds']} rounds; "
        "median and quartiles of a step, the network left out",
        "",
        f"{'α':<17}{'N':>11}{'step, ms':>12}{'quartiles':>20}{'sweep, ns/row':>15}{'µs/step':>9}"
        f"{'state, MB':>11}{'gradient, MB':>14}",
        f"{'none':<17}{'':>11}{step_text(record['cross_entropy']['step_seconds'])}",
    ]
    for row in record["results"]:
        start = f"{row['alpha']:<17}{row['num_samples']:>11,}"
        if row["skipped"] is not None:
            lines.append(f"{start}  skipped: {row['skipped']}")
            continue
        sweep = " " * 24
        if row["sweep_seconds"] is not None:
            sweep = f"{row['sweep_seconds_per_row'] * 1e9:>15.1f}{row['sweep_seconds_per_step'] * 1e6:>9.2f}"
        size = f"{row['state_bytes'] / 1e6:>11.4g}{row['gradient_bytes'] / 1e6:>14.4g}"
        lines.append(f"{start}{step_text(row['step_seconds'])}{sweep}{size}")
    lines += [
        "",
        f"a step with its share of the sweep, N = {settings['samples'][-1]:,} over {settings['samples'][0]:,}:",
    ]
    for name, ratio in record["growth"]["ratios"].items():
        lines.append(f"{name:<17}{'not measured' if ratio is None else format(ratio, '.2f')}")
    return "\n".join(lines)


def step_text(seconds: dict[str, Any]) -> str:
    quartiles = f"{seconds['low'] * 1e3:.3f} to {seconds['high'] * 1e3:.3f}"
    return f"{seconds['median'] * 1e3:>12.3f}{quartiles:>20}"


def machine(record: dict[str, Any]) -> str:
    made_by = record["environment"]
    parts = [made_by["device"], f"torch {made_by['packages']['torch']}"]
    if record["settings"]["device"] == "cpu":
        parts.append("1 thread" if made_by["threads"] == 1 else f"{made_by['threads']} threads")
    return ", ".join(parts)


def plot(record: dict[str, Any], out: Path) -> None:
    """Time and memory by N, both axes logarithmic."""
    settings = record["settings"]
    with drawing():
        figure = new_figure(11, 5.2, layout="constrained")
        time, memory = figure.subplots(1, 2)
        for kind in KINDS:
            rows = [row for row in record["results"] if row["alpha"] == kind.name and row["skipped"] is None]
            if not rows:
                continue
            n = [row["num_samples"] for row in rows]
            middle = np.array([row["step_seconds"]["median"] for row in rows])
            low = middle - [row["step_seconds"]["low"] for row in rows]
            high = [row["step_seconds"]["high"] for row in rows] - middle
            look = look_of(kind)
            time.errorbar(n, middle * 1e3, 1e3 * np.array([low, high]), capsize=3, label=kind.name, **look)
            memory.plot(n, [(row["state_bytes"] + row["gradient_bytes"]) / 1e6 for row in rows], **look)
        plain = record["cross_entropy"]["step_seconds"]["median"]
        time.axhline(plain * 1e3, color="0.45", linestyle="--", label="without α: F.cross_entropy")
        for axes, quantity in ((time, "time a step (ms)"), (memory, "state and gradient (MB)")):
            axes.set(xscale="log", yscale="log", xlabel="samples N", ylabel=quantity)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(
            f"What α costs a step: K = {settings['classes']}, batch {settings['batch']}, the network left out\n"
            f"{machine(record)}; median and quartiles of {settings['rounds']} rounds",
            parse_math=False,
        )
        figure.legend(loc="outside lower center", ncols=3)
        write_png(figure, out)


def look_of(kind: Kind) -> dict[str, Any]:
    """The table and the dense parameter differ in colour, their forms in marker and line."""
    marker, line = {"ac1": ("o", "-"), "ac2": ("s", ":")}[kind.form]
    if kind.history == "folded":
        marker, line = "^", "--"
    return {"color": VERMILLION if kind.history is None else BLUE, "marker": marker, "linestyle": line}


if __name__ == "__main__":
    sys.exit(main())
