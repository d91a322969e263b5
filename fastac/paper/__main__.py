"""`python -m fastac.paper WHAT`: train what a table or figure of the papers needs; print it beside what they published.

Runs that have come to their end are not trained again, interrupted ones go on; all lie in --output. docs/paper.md says
what each command trains, and what the papers leave open.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastac.config import load_config
from fastac.data import Samples
from fastac.paper.figure3 import plot_trimmed
from fastac.paper.figures4to6 import add_images
from fastac.paper.finished import finished_runs, finished_seeds, runs_of, whole_grid
from fastac.paper.grid import GRIDS, Grid, figure3
from fastac.paper.image_offsets import load_images
from fastac.paper.published import IMAGES, TABLE_7
from fastac.paper.runner import InterruptedRunsError, Outcome, Start, run_all, start_process
from fastac.paper.runs import Run, Settings, parse_setting, steps_of
from fastac.paper.tables import Report, collect
from fastac.paper.theory import table1_text, theorems_text

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, *, start: Start = start_process) -> int:
    """Exit status 1: a run failed, or a check; 2: a user's error; 128 + signal: stopped by it."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        _check_options(options, parser)
        return COMMANDS.get(options.what, _experiment)(options, start)
    except InterruptedRunsError as stop:
        print(f"fastac.paper: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("FASTAC_DEBUG") == "1":
            raise
        print(f"fastac.paper: error: {error}", file=sys.stderr)
        return 2


def _check_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """ValueError for an option that the command has no use for."""
    given = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    del given["what"]
    if not given.pop("train", True):
        given["no_train"] = True
    for name, value in given.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if name == "taus" and options.what != "figure3":
            raise ValueError(f"taus was {text!r}; it is for figure3, not for {options.what}")
        if options.what in COMMANDS:
            raise ValueError(
                f"{name} was {text!r}; it is for experiments that train networks, not for {options.what}"
            )


# ---------------------------------------------------------------- tables and figures


def _experiment(options: argparse.Namespace, start: Start) -> int:
    """Train and print what was asked for, write all that is there of the experiment."""
    grid = GRIDS[options.what] if options.taus is None else figure3(options.taus)
    grid = grid.select(options.rows, options.columns)
    settings = _settings(options)
    runs = runs_of(grid, settings, options.seeds)
    if options.train and not options.dry_run:
        _check_data(runs, options.data_dir)
    for run in runs:
        run.check()
    _whole(grid, settings, options.seeds, Outcome())  # it may refuse: before hours of training, not after
    if options.dry_run:
        print(_dry_run(grid, runs))
        return 0
    figures = options.what == "figures4to6"
    images = load_images(grid, settings, options.seeds, IMAGES) if figures else {}
    outcome = run_all(runs, jobs=options.jobs, start=start) if options.train else Outcome(finished_runs(runs))
    report = collect(grid, settings, options.seeds, outcome.results, outcome.failed)
    print((add_images(report, images) if figures else report).text())
    whole = _whole(grid, settings, options.seeds, outcome)
    paths = (_with_images(whole, images) if figures else whole).write(settings.output)
    if options.what == "figure3":
        _plot_figure3(whole, paths[-1])
    print("in " + ", ".join(map(str, paths)))
    if outcome.failed:
        print(
            f"fastac.paper: {len(outcome.failed)} run(s) failed: {', '.join(outcome.failed)}", file=sys.stderr
        )
    return 1 if outcome.failed else 0


def _whole(part: Grid, settings: Settings, seeds: int, outcome: Outcome) -> Report:
    """The report of the whole experiment: what the command's part gave, and the finished runs beside it. ValueError
    where these are of other settings, since a table is of one experiment."""
    grid = whole_grid(part, settings)
    seeds = max(seeds, finished_seeds(grid, settings))
    done = outcome.results | outcome.failed
    others = finished_runs(run for run in runs_of(grid, settings, seeds) if run.name not in done)
    return collect(grid, settings, seeds, {**outcome.results, **others}, outcome.failed)


def _with_images(report: Report, images: Mapping[str, Samples]) -> Report:
    """The report with its images. images: those at hand, by row; the others are read from where their runs were
    trained from."""
    rest = [row for row in report.grid.rows if row not in images]
    if rest:
        settings = replace(report.settings, data_dir=None)
        images = {
            **images,
            **load_images(report.grid.select(rest, None), settings, report.seeds, IMAGES),
        }
    return add_images(report, images)


def _settings(options: argparse.Namespace) -> Settings:
    """What holds for all runs. ValueError for wrong options."""
    if options.seeds < 1:
        raise ValueError(f"seeds was {options.seeds}; it should be at least 1")
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise ValueError(f"data_dir was {str(options.data_dir)!r}; there is no such folder")
    values: dict[str, Any] = {} if options.short == 1 else {"short": options.short}
    values["device"] = options.device
    values |= dict(parse_setting(text) for text in options.set)
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    if options.jobs > 1 and on_cpu:
        values.setdefault("threads", max(1, (os.cpu_count() or 1) // options.jobs))
    return Settings(options.output, options.data_dir, values)


def _check_data(runs: Sequence[Run], data_dir: Path | None) -> None:
    """ValueError now, not in each run, where the data's folder is not given."""
    for dataset in dict.fromkeys(run.config().data.dataset for run in runs):
        if dataset not in ("digits", "fashion-mnist") and data_dir is None:
            raise ValueError(f"{dataset} needs --data-dir: where its files are")


def _dry_run(grid: Grid, runs: Sequence[Run]) -> str:
    """Each run with its recipe and about how many steps it takes, and the whole."""
    lines, total, unknown = [grid.title, ""], 0, 0
    for run in runs:
        steps = steps_of(run.config())
        done = run.result() is not None
        unknown += steps is None
        total += 0 if done or steps is None else steps
        state = "done" if done else "?" if steps is None else f"{steps:,}"
        after = f"  after {', '.join(run.needs)}" if run.needs else ""
        lines.append(f"{state:>12} steps  {run.name}{after}")
        lines.append(f"{'':20}{shlex.join(['python', *run.command()[1:]])}")
    count = f"{len(runs)} runs, about {total:,} steps to go"
    return "\n".join([*lines, "", count + (f", and {unknown} run(s) of unknown length" if unknown else "")])


def _plot_figure3(report: Report, out: Path) -> None:
    panels = {}
    for row, name in report.grid.rows.items():
        points = [
            (float(column), one)
            for column in report.grid.columns
            if column != "ac1-aa" and (one := report.summary((row, column))) is not None
        ]
        cell = report.grid.cells.get((row, "ac1-aa"))
        published = None if cell is None or cell.published is None else cell.published.accuracy
        panels[name] = (points, report.summary((row, "ac1-aa")), published)
    plot_trimmed(
        panels, out, here=report.here, title=f"Figure 3: trimmed data and AutoCleansing{report.changed}"
    )


# ---------------------------------------------------------------- checks that train nothing


def _table1(options: argparse.Namespace, start: Start) -> int:
    text, holds = table1_text()
    print(text)
    return 0 if holds else 1


def _theorems(options: argparse.Namespace, start: Start) -> int:
    text, holds = theorems_text()
    print(text)
    return 0 if holds else 1


def _table7(options: argparse.Namespace, start: Start) -> int:
    """The recipes' settings beside Table 7's."""
    print("Table 7: the recipes' settings; a published one is named where it differs")
    differ = 0
    for name, published in TABLE_7.items():
        config = load_config(name)
        opt = config.optimizer
        ours = {
            "lr": opt.lr,
            "schedule": opt.schedule,
            "weight_decay": opt.weight_decay,
            "batch_size": config.data.batch_size,
            "epochs": opt.epochs,
            "milestones": opt.milestones,
        }
        other = {
            key: getattr(published, key) for key, value in ours.items() if getattr(published, key) != value
        }
        differ += bool(other)
        steps = f" at {', '.join(map(str, opt.milestones))}" if opt.milestones else ""
        print(
            f"{name:32} lr {opt.lr:<6g} {opt.schedule}{steps}, weight decay {opt.weight_decay:g}, "
            f"batch {config.data.batch_size}, {opt.epochs} epochs"
            + (f"; published: {other}" if other else "")
        )
    return 1 if differ else 0


def _list(options: argparse.Namespace, start: Start) -> int:
    """All experiments with their rows and columns."""
    for grid in GRIDS.values():
        print(f"{grid.name}: {grid.title}")
        print(f"    rows: {', '.join(grid.rows)}")
        print(f"    columns: {', '.join(grid.columns)}")
    for name, what in _CHECKS.items():
        print(f"{name}: {what}")
    return 0


_CHECKS = {
    "table1": "the numerical examples of the theorems, computed",
    "theorems": "Theorem 1's zero gradient and Theorem 2's signs, on small problems with known noise",
    "table7": "the recipes' settings beside the published ones",
    "list": "the experiments, their rows and columns",
}
COMMANDS: dict[str, Callable[[argparse.Namespace, Start], int]] = {
    "table1": _table1,
    "theorems": _theorems,
    "table7": _table7,
    "list": _list,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastac.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = sorted([*COMMANDS, *GRIDS])
    parser.add_argument("what", choices=names, metavar="WHAT", help=f"one of {', '.join(names)}")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these rows only (see: list)")
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="these columns only")
    parser.add_argument(
        "--seeds", type=int, default=5, help="how many, from 0 on (default: 5, as in the papers)"
    )
    parser.add_argument(
        "--short", type=float, default=1.0, metavar="F", help="train this share of the epochs; results say so"
    )
    parser.add_argument("--data-dir", type=Path, help="the data sets' files, or the folder of their folders")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"), help="default: runs/paper")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs side by side, on one device or shared out over the GPUs (default: 1)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="another setting of fastac.train for all runs; results say so",
    )
    parser.add_argument("--taus", type=_numbers, help="figure3: per cents to drop, 0,0.2,0.4")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, train nothing")
    parser.add_argument(
        "--no-train", dest="train", action="store_false", help="print what the runs that are there give"
    )
    return parser


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.replace(",", " ").split()]


if __name__ == "__main__":
    sys.exit(main())
